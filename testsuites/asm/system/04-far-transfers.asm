; Far JMP, CALL and RET: code segments, call gates, privilege changes.
; SDM vol. 3, "Accessing a Code Segment Through a Call Gate"; vol. 2A, "CALL"; "JMP"; vol. 2B, "RET".
; mode: pm32 cpl=3

; case: jmp-far-same-privilege
        jmp LDT_CODE_SEL:.there
.there: mov eax, cs
; out: eax=0x17 cs=0x17

; case: call-far-and-retf
        call LDT_CODE_SEL:.function
        jmp short .out
.function:
        mov eax, cs
        retf
.out:
; out: eax=0x17
; out-mem: STACK+0xff8 = 07 00 00 01 23

; case: retf-imm16
        push dword UCODE32
        push dword .there
        retf 8
        ud2
.there:
; out: esp=STACK+0x1008
; out-mem: STACK+0xff8 = 0c 00 00 01 23

; case: jmp-far-null
.here:  jmp 0:.here
; fault: #GP(0) at .here

; case: jmp-far-data-segment
.here:  jmp UDATA:.here
; fault: #GP(0x28) at .here

; case: jmp-far-kernel-code
.here:  jmp KCODE32:.here
; fault: #GP(8) at .here

; case: jmp-far-not-present
.here:  jmp UABSENT_CODE_SEL:.here
; fault: #NP(0x6c) at .here

; case: jmp-far-beyond-the-table
.here:  jmp BEYOND_SEL:.here
; fault: #GP(0x1000) at .here

; case: jmp-far-memory-16-bit-offset
; in: esi=DATA
; in-mem: DATA = 00 80 4f 00
; in-mem: CODE16+0x8000 = 0f 0b
        o16 jmp far [esi]
; fault: #UD at 0x8000
; out: cs=0x4f

; case: call-far-to-16-bit-code-pushes-dwords
; in: esi=DATA
; in-mem: DATA = u32:0x8000,0x4f
; in-mem: CODE16+0x8000 = 0f 0b
        call far [esi]
; fault: #UD at 0x8000
; out: esp=STACK+0xff8 cs=0x4f
; out-mem: STACK+0xff8 = 02 00 00 01 23

; case: call-far-fault-leaves-the-stack
.here:  call KDATA:.here
; fault: #GP(0x18) at .here

; case: call-far-with-absent-stack
; qemu-differs: reports a supervisor access; SDM vol. 3, "Page-Fault Exceptions": U/S is the privilege of the access
; mode: paging32 cpl=3
; in: esp=STACK+4
.here:  call LDT_CODE_SEL:.here
; fault: #PF(6) at .here
; out: cr2=0x101fffc
; out-mem: STACK = 23

; case: retf-to-inner-level
        push dword KCODE32
        push dword .there
.here:  retf
.there:
; fault: #GP(8) at .here
; out: esp=STACK+0xff8
; out-mem: STACK+0xff8 = 08 00 00 01 08

; case: retf-to-data-selector
        push dword UDATA
        push dword .there
.here:  retf
.there:
; fault: #GP(0x28) at .here
; out: esp=STACK+0xff8
; out-mem: STACK+0xff8 = 08 00 00 01 2b

; case: retf-in-64-bit-mode
; mode: long64 cpl=3
        push qword UCODE64
        lea rax, [rel .there]
        push rax
        o64 retf
        ud2
.there:
; out: rax=CODE+0xe
; out-mem: STACK+0xff0 = 0e 00 00 01
; out-mem: STACK+0xff8 = 33

; case: jmp-far-to-compatibility-mode
; mode: long64 cpl=3
; in: rsi=DATA
        mov dword [rsi], .there
        mov word [rsi + 4], UCODE32
        jmp far dword [rsi]
bits 32
.there: mov eax, cs
        inc ecx
; out: rax=0x23 rcx=1 cs=0x23
; out-mem: DATA = 0e 00 00 01 23

; case: retf-to-compatibility-mode-and-back
; mode: long64 cpl=3
        push qword UCODE32
        push qword .narrow
        o64 retf
bits 32
.narrow:
        dec eax                         ; a REX prefix in 64-bit mode
        jmp UCODE64:.wide
bits 64
.wide:  inc rbx
; out: rax=0xffffffff rbx=1
; out-mem: STACK+0xff0 = 09 00 00 01
; out-mem: STACK+0xff8 = 23

; case: call-gate-to-inner-level
; setup:
        gate32 FREE_SEL, KCODE32, .inner, 0xec00
; code:
        call FREE_SEL | 3:0
.inner: mov eax, cs
        mov ebx, ss
        mov ecx, [esp]
        mov edx, [esp + 12]
; out: eax=8 ecx=CODE+0x7 edx=0x2b ebx=0x18 esp=KSTACK+0x3ff0 cs=8 ss=0x18

; case: call-gate-copies-parameters
; setup:
        gate32 FREE_SEL, KCODE32, .inner, 0xec03
; code:
        push dword 0x11
        push dword 0x22
        push dword 0x33
        call FREE_SEL | 3:0
.inner: mov eax, [esp + 8]
        mov ebx, [esp + 12]
        mov ecx, [esp + 16]
        mov edx, [esp + 20]
        mov esi, [esp + 24]
; out: eax=0x33 ecx=0x11 edx=STACK+0xff4 ebx=0x22 esp=KSTACK+0x3fe4 esi=0x2b cs=8 ss=0x18
; out-mem: STACK+0xff4 = 33 00 00 00 22 00 00 00 11

; case: call-gate-and-retf-to-outer-level
; setup:
        gate32 FREE_SEL, KCODE32, .inner, 0xec02
; code:
        push dword 0x11
        push dword 0x22
        call FREE_SEL | 3:0
        mov ebx, cs
        jmp short .out
.inner: mov eax, cs
        retf 8
.out:
; out: eax=8 ebx=0x23
; out-mem: STACK+0xff8 = 22 00 00 00 11

; case: call-gate-through-jmp-to-nonconforming-inner
; setup:
        gate32 FREE_SEL, KCODE32, .here, 0xec00
; code:
.here:  jmp FREE_SEL | 3:0
; fault: #GP(8) at .here

; case: call-gate-dpl-too-low
; setup:
        gate32 FREE_SEL, KCODE32, .here, 0x8c00
; code:
.here:  call FREE_SEL | 3:0
; fault: #GP(0x130) at .here

; case: call-gate-not-present
; setup:
        gate32 FREE_SEL, KCODE32, .here, 0x6c00
; code:
.here:  call FREE_SEL | 3:0
; fault: #NP(0x130) at .here

; case: call-gate-to-data-segment
; setup:
        gate32 FREE_SEL, KDATA, .here, 0xec00
; code:
.here:  call FREE_SEL | 3:0
; fault: #GP(0x18) at .here

; case: call-gate-to-null
; setup:
        gate32 FREE_SEL, 0, .here, 0xec00
; code:
.here:  call FREE_SEL | 3:0
; fault: #GP(0) at .here

; case: call-gate-to-absent-code
; setup:
        gate32 FREE_SEL, ABSENT_CODE_SEL, .here, 0xec00
; code:
.here:  call FREE_SEL | 3:0
; fault: #NP(0xe8) at .here

; case: call-gate-to-ring-1
; setup:
        gate32 FREE_SEL, CODE_DPL1_SEL, .inner, 0xec00
; code:
        call FREE_SEL | 3:0
.inner: mov eax, cs
        mov ebx, ss
; out: eax=0xf1 ebx=0xf9 esp=0x1114ff0 cs=0xf1 ss=0xf9

; case: call-gate-16-bit
; setup:
        gate32 FREE_SEL, CODE16_SEL, 0x9000, 0xe400
; code:
        call FREE_SEL | 3:0
; fault: #UD at 0x9000
; out: esp=KSTACK+0x3ff8 cs=0x80 ss=0x18
; in-mem: CODE16+0x9000 = 0f 0b

; case: call-gate-same-level
; mode: pm32
; setup:
        gate32 FREE_SEL, KCODE32, .inner, 0x8c00
; code:
        call FREE_SEL:0
        jmp short .out
.inner: retf
.out:
; out: unchanged

; case: call-gate-stack-selector-null
; setup:
        gate32 FREE_SEL, CODE_DPL1_SEL, .here, 0xec00
        mov dword [TSS + 16], 0
; code:
.here:  call FREE_SEL | 3:0
; fault: #TS(0) at .here

; case: call-gate-stack-selector-wrong-dpl
; setup:
        gate32 FREE_SEL, CODE_DPL1_SEL, .here, 0xec00
        mov dword [TSS + 16], DATA_DPL2_SEL
; code:
.here:  call FREE_SEL | 3:0
; fault: #TS(0x108) at .here

; case: call-gate-stack-segment-not-present
; qemu-differs: raises #TS; SDM vol. 2A, "CALL": #SS(selector) if the new stack segment is not present
; setup:
        gate32 FREE_SEL, CODE_DPL1_SEL, .here, 0xec00
        describe FREE2_SEL, 0xffff, 0x00cf3200
        mov dword [TSS + 16], FREE2_SEL | 1
; code:
.here:  call FREE_SEL | 3:0
; fault: #SS(0x140) at .here

; case: call-gate-tss-too-short
; setup:
        gate32 FREE_SEL, CODE_DPL1_SEL, .here, 0xec00
        describe FREE2_SEL, ((TSS2 & 0xffff) << 16) | 0x0f, (TSS2 & 0xff000000) | ((TSS2 >> 16) & 0xff) | 0x8900
        mov dword [TSS2 + 4], KSTACK_TOP
        mov dword [TSS2 + 8], KDATA
        mov ax, FREE2_SEL
        ltr ax
; code:
.here:  call FREE_SEL | 3:0
; fault: #TS(0x140) at .here

; case: retf-outer-clears-inner-data-segments
; mode: pm32
        mov eax, KDATA
        mov es, ax
        mov fs, ax
        mov eax, UDATA
        mov gs, ax
        push dword UDATA
        push dword STACK + 0x800
        push dword UCODE32
        push dword .there
        retf
.there: mov eax, cs
; out: eax=0x23 esp=STACK+0x800 cs=0x23 ds=0 es=0 gs=0x2b ss=0x2b
; out-mem: STACK+0xff0 = 1f 00 00 01 23
; out-mem: STACK+0xff9 = 08 02 01 2b

; case: retf-outer-to-null-stack
; mode: pm32
        push dword 0
        push dword STACK + 0x800
        push dword UCODE32
        push dword .there
.here:  retf
.there:
; fault: #GP(0) at .here
; out: esp=STACK+0xff0
; out-mem: STACK+0xff0 = 0f 00 00 01 23
; out-mem: STACK+0xff9 = 08 02 01

; case: retf-outer-stack-rpl-mismatch
; mode: pm32
        push dword KDATA
        push dword STACK + 0x800
        push dword UCODE32
        push dword .there
.here:  retf
.there:
; fault: #GP(0x18) at .here
; out: esp=STACK+0xff0
; out-mem: STACK+0xff0 = 0f 00 00 01 23
; out-mem: STACK+0xff9 = 08 02 01 18

; case: call-gate-64-bit
; mode: long64 cpl=3
; setup:
        gate64 FREE_SEL, KCODE64, .inner, 0xec00
; code:
        mov dword [DATA + 4], FREE_SEL | 3
        call far dword [DATA]
.inner: mov eax, cs
        mov ebx, ss
        mov rcx, [rsp]
        mov rdx, [rsp + 24]
; out: rax=0x10 rcx=CODE+0x12 rdx=0x2b rsp=KSTACK+0x3fe0 cs=0x10 ss=0
; out-mem: DATA+0x4 = 33 01

; case: call-gate-64-bit-to-compatibility-code
; mode: long64 cpl=3
; setup:
        gate64 FREE_SEL, KCODE32, .here, 0xec00
; code:
        mov dword [DATA + 4], FREE_SEL | 3
.here:  call far dword [DATA]
; fault: #GP(8) at .here
; out-mem: DATA+0x4 = 33 01

; case: call-gate-64-bit-upper-type-not-zero
; mode: long64 cpl=3
; setup:
        gate64 FREE_SEL, KCODE64, .here, 0xec00
        mov dword [GDT + FREE_SEL + 12], 0x100
; code:
        mov dword [DATA + 4], FREE_SEL | 3
.here:  call far dword [DATA]
; fault: #GP(0x130) at .here
; out-mem: DATA+0x4 = 33 01

; case: call-gate-16-bit-type-in-long-mode
; mode: long64 cpl=3
; setup:
        gate64 FREE_SEL, KCODE64, .here, 0xe400
; code:
        mov dword [DATA + 4], FREE_SEL | 3
.here:  call far dword [DATA]
; fault: #GP(0x130) at .here
; out-mem: DATA+0x4 = 33 01

; case: jmp-far-to-code-with-l-and-d
; qemu: no, it does not check and gets lost; SDM vol. 2A, "JMP": #GP(selector) if L and D are both set
; mode: long64
; setup:
        describe FREE_SEL, 0xffff, 0x00ef9a00
; code:
        mov dword [DATA], .here
        mov dword [DATA + 4], FREE_SEL
.here:  jmp far dword [DATA]
; fault: #GP(0x130) at .here
; out-mem: DATA = 16 00 00 01 30 01

; case: jmp-far-tss-in-long-mode
; mode: long64
        mov dword [DATA + 4], TSS2_SEL
.here:  jmp far dword [DATA]
; fault: #GP(0x110) at .here
; out-mem: DATA+0x4 = 10 01

; case: far-call-from-16-bit-to-64-bit-code-pushes-on-a-flat-stack
; vendor: intel
; The target's mode counts for the stack (measured).
; qemu-differs: pushes with the old mode's base and width; SDM vol. 2A, "CALL": the stack of the new code segment
; mode: compat16 cpl=3
; in-mem: DATA16 = u32:ABSENT,UCODE64
        mov esp, EXTRA16 + 0x100
        call far dword [0]
; fault: #PF(0x14) at 0x1012000
; out: esp=0xf8 cs=0x33 cr2=ABSENT
; out-mem: EXTRA16+0xf8 = 0b 00 00 00 4f
