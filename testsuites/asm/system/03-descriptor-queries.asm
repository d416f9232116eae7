; LAR, LSL, VERR, VERW, SLDT, STR, LLDT, LTR, SGDT, SIDT, LGDT, LIDT.
; SDM vol. 2A, "LAR-Load Access Rights Byte"; "LSL-Load Segment Limit"; vol. 2D, "VERR/VERW".
; mode: pm32 cpl=3

; case: lar-data
; undef: flags=AF,CF,OF,SF,ZF,PF
; in: ebx=UDATA
        lar eax, ebx
        and eax, 0xf0ff00              ; limit bits 19:16 are undefined
; out: eax=0xc0f300

; case: lar-word-result
; in: ebx=UDATA eax=-1
        lar ax, bx
; out: eax=0xfffff300 flags=ZF

; case: lar-kernel-data-is-invisible
; in: ebx=KDATA eax=5 flags=ZF
        lar eax, ebx
; out: flags=none

; case: lar-conforming-code-is-visible
; undef: flags=AF,CF,OF,SF,ZF,PF
; host: no, its GDT has other entries
; in: ebx=CONFORM_SEL
        lar eax, ebx
        and eax, 0xf0ff00              ; limit bits 19:16 are undefined
; out: eax=0xc09e00

; case: lar-null
; in: eax=5 flags=ZF
        lar eax, ebx
; out: flags=none

; case: lar-not-present-is-no-obstacle
; undef: flags=AF,CF,OF,SF,ZF,PF
; in: ebx=ABSENT_SEL
        lar eax, ebx
        and eax, 0xf0ff00              ; limit bits 19:16 are undefined
; out: eax=0xc07300

; case: lar-beyond-the-limit
; in: ebx=BEYOND_SEL eax=5 flags=ZF
        lar eax, ebx
; out: flags=none

; case: lar-tss-at-cpl-0
; mode: pm32
; in: ebx=TSS_SEL
        lar eax, ebx
; out: eax=0x8b00 flags=ZF

; case: lar-call-gate
; mode: pm32
; setup:
        gate32 FREE_SEL, KCODE32, .target, 0x8c00
; code:
        mov ebx, FREE_SEL
        lar eax, ebx
.target:
; out: eax=0x8c00 ebx=0x130 flags=ZF

; case: lar-interrupt-gate-is-invalid
; mode: pm32
; in: eax=5
; setup:
        gate32 FREE_SEL, KCODE32, .target, 0x8e00
; code:
        mov ebx, FREE_SEL
        lar eax, ebx
.target:
; out: ebx=0x130

; case: lsl-granular
; in: ebx=UDATA
        lsl eax, ebx
; out: eax=0xffffffff flags=ZF

; case: lsl-byte-granular
; in: ebx=SMALL_SEL
        lsl eax, ebx
; out: eax=0xfff flags=ZF

; case: lsl-of-a-gate-is-invalid
; mode: pm32
; in: eax=5 flags=ZF
; setup:
        gate32 FREE_SEL, KCODE32, .target, 0x8c00
; code:
        mov ebx, FREE_SEL
        lsl eax, ebx
.target:
; out: ebx=0x130 flags=none

; case: lsl-tss
; mode: pm32
; in: ebx=TSS_SEL
        lsl eax, ebx
; out: eax=0x2068 flags=ZF

; case: lsl-word-cuts-the-limit
; in: ebx=UDATA eax=-1
        lsl ax, bx
; out: flags=ZF

; case: verr-readable-code
; in: eax=UCODE32
        verr ax
; out: flags=ZF

; case: verr-execute-only
; in: eax=XCODE_SEL flags=ZF
        verr ax
; out: flags=none

; case: verw-read-only
; in: eax=RODATA_SEL flags=ZF
        verw ax
; out: flags=none

; case: verw-data
; in: eax=UDATA
        verw ax
; out: flags=ZF

; case: verr-kernel-data
; in: eax=KDATA flags=ZF
        verr ax
; out: flags=none

; case: verr-system-segment
; mode: pm32
; in: eax=TSS_SEL flags=ZF
        verr ax
; out: flags=none

; case: lar-in-real-mode-is-undefined
; mode: real
.here:  lar eax, ebx
; fault: #UD at .here

; case: lar-in-v86-mode-is-undefined
; mode: v86
.here:  lar eax, ebx
; fault: #UD at .here

; case: str-and-sldt-dword
; host: no, its tables lie elsewhere
; in: eax=-1 ebx=-1
        str eax
        sldt ebx
; out: eax=0x40 ebx=0x50

; case: sldt-memory-is-a-word
; host: no, its tables lie elsewhere
; in: edi=DATA
; in-mem: DATA = u64:-1
        sldt [edi]
; out-mem: DATA = 50 00

; case: sgdt-and-sidt-store-32-bit-bases
; host: no, its tables lie elsewhere
; in: edi=DATA
        sgdt [edi]
        sidt [edi + 8]
; out-mem: DATA = ff 0f 00 00 10 01 00 00 ff 0f 00 20 10 01

; case: sgdt-in-64-bit-mode-stores-ten-bytes
; host: no, its tables lie elsewhere
; mode: long64 cpl=3
; in: rdi=DATA
        sgdt [rdi]
; out-mem: DATA = ff 0f 00 00 10 01

; case: sgdt-with-umip
; mode: long64 cpl=3
; needs: umip
; setup:
        cr4_set 0x800
; code:
.here:  sgdt [DATA]
; fault: #GP(0) at .here

; case: smsw-with-umip
; mode: long64 cpl=3
; needs: umip
; setup:
        cr4_set 0x800
; code:
.here:  smsw eax
; fault: #GP(0) at .here

; case: lgdt-lidt-round-trip
; mode: pm32
; in: edi=DATA
        sgdt [edi]
        lgdt [edi]
        sidt [edi]
        lidt [edi]
; out-mem: DATA = ff 0f 00 20 10 01

; case: lgdt-word-operand-loads-24-bit-base
; mode: pm32
; in: esi=DATA edi=DATA+16
; in-mem: DATA = ff 0f 00 00 10 ff
        sgdt [esi + 8]
        o16 lgdt [esi]
        sgdt [edi]
        lgdt [esi + 8]
; out-mem: DATA+0x8 = ff 0f 00 00 10 01 00 00 ff 0f 00 00 10

; case: lgdt-noncanonical-base
; mode: long64
; in: rsi=DATA
; in-mem: DATA = ff 0f 00 00 00 00 00 00 00 80
; qemu-differs: does not check; SDM vol. 2A, "LGDT/LIDT": #GP(0) if the base is not canonical
.here:  lgdt [rsi]
; fault: #GP(0) at .here

; case: lldt-null-makes-ldt-unusable
; mode: pm32
        lldt ax
        mov eax, LDT_DATA_SEL
.here:  mov fs, ax
; fault: #GP(0xc) at .here
; out: eax=0xf

; case: lldt-not-an-ldt
; mode: pm32
; in: eax=KDATA
.here:  lldt ax
; fault: #GP(0x18) at .here

; case: lldt-selector-in-ldt
; mode: pm32
; in: eax=0x54
.here:  lldt ax
; fault: #GP(0x54) at .here

; case: lldt-not-present
; mode: pm32
; setup:
        and dword [GDT + LDT_SEL + 4], ~0x8000
; code:
        mov eax, LDT_SEL
.here:  lldt ax
; fault: #NP(0x50) at .here
; out: eax=0x50

; case: ltr-busy
; mode: pm32
; in: eax=TSS_SEL
.here:  ltr ax
; fault: #GP(0x40) at .here

; case: ltr-null
; qemu-differs: loads a null TR; SDM vol. 2A, "LTR": #GP(0) for a null selector
; mode: pm32
.here:  ltr ax
; fault: #GP(0) at .here

; case: ltr-not-present
; mode: pm32
; setup:
        and dword [GDT + TSS2_SEL + 4], ~0x8000
; code:
        mov eax, TSS2_SEL
.here:  ltr ax
; fault: #NP(0x110) at .here
; out: eax=0x110

; case: ltr-sets-busy
; mode: pm32
; watch: GDT+0x110 8
; in: eax=TSS2_SEL
        ltr ax
; out-mem: GDT+0x114 = 10 8b 00 01

; case: ltr-16-bit-tss-in-long-mode
; qemu: no, it does not check and dies; SDM vol. 3, table "System-Segment and Gate-Descriptor Types": type 1 is reserved in IA-32e mode
; mode: long64
; setup:
        describe FREE_SEL, 0x67, 0x8100
; code:
        mov eax, FREE_SEL
.here:  ltr ax
; fault: #GP(0x130) at .here
; out: rax=0x130

; case: lsl-16-byte-descriptor-in-long-mode
; mode: long64
; in: rbx=TSS_SEL
        lsl eax, ebx
; out: rax=0x2068 flags=ZF
