; Loading segment registers in protected mode: each check and its error code.
; SDM vol. 2B, "MOV-Move"; vol. 3, "Segment Loading Instructions in IA-32e Mode", "Privilege Level Checking".
; mode: pm32 cpl=3

; case: mov-ds-flat
; in: eax=UDATA
        mov ds, ax
; out: unchanged

; case: mov-ds-null
        mov ds, ax
; out: ds=0

; case: use-of-null-ds
; qemu-differs: checks no segment limits or types; SDM vol. 3, "Limit Checking" and "Type Checking"
        mov ds, ax
.here:  mov eax, [DATA]
; fault: #GP(0) at .here
; out: ds=0

; case: mov-ds-ldt
; in: eax=LDT_DATA_SEL
        mov ds, ax
        mov ebx, [DATA]
; out: ds=0xf

; case: mov-ds-beyond-the-limit
; in: eax=BEYOND_SEL
.here:  mov ds, ax
; fault: #GP(0x1000) at .here

; case: mov-ds-beyond-the-ldt-limit
; in: eax=0x1007
.here:  mov ds, ax
; fault: #GP(0x1004) at .here

; case: mov-ds-kernel-data
; in: eax=KDATA
.here:  mov ds, ax
; fault: #GP(0x18) at .here

; case: mov-ds-rpl-weakens
; mode: pm32
; in: eax=0x1b
.here:  mov ds, ax
; fault: #GP(0x18) at .here

; case: mov-ds-not-present
; in: eax=ABSENT_SEL
.here:  mov ds, ax
; fault: #NP(0x34) at .here

; case: mov-ds-execute-only-code
; in: eax=XCODE_SEL
.here:  mov ds, ax
; fault: #GP(0x3c) at .here

; case: mov-ds-readable-code
; in: eax=UCODE32
        mov ds, ax
        mov ebx, [DATA]
; out: ds=0x23

; case: store-through-readable-code
; qemu-differs: checks no segment limits or types; SDM vol. 3, "Limit Checking" and "Type Checking"
; in: eax=UCODE32
        mov ds, ax
.here:  mov [DATA], eax
; fault: #GP(0) at .here
; out: ds=0x23

; case: mov-ds-conforming-code-of-ring-0
; host: no, its GDT has other entries
; in: eax=CONFORM_SEL
        mov ds, ax
        mov ebx, [DATA]
; out: ds=0xe0

; case: mov-ds-system-segment
; in: eax=0x43
.here:  mov ds, ax
; fault: #GP(0x40) at .here

; case: store-through-read-only-data
; qemu-differs: checks no segment limits or types; SDM vol. 3, "Limit Checking" and "Type Checking"
; in: eax=RODATA_SEL
        mov ds, ax
        mov ebx, [DATA]
.here:  mov [DATA], ebx
; fault: #GP(0) at .here
; out: ds=0x2f

; case: mov-ss-null
.here:  mov ss, ax
; fault: #GP(0) at .here

; case: mov-ss-wrong-rpl
; in: eax=0x28
.here:  mov ss, ax
; fault: #GP(0x28) at .here

; case: mov-ss-read-only
; in: eax=RODATA_SEL
.here:  mov ss, ax
; fault: #GP(0x2c) at .here

; case: mov-ss-code
; in: eax=UCODE32
.here:  mov ss, ax
; fault: #GP(0x20) at .here

; case: mov-ss-not-present
; mode: pm32
; setup:
        describe FREE_SEL, 0xffff, 0x00cf1200
; code:
        mov eax, FREE_SEL
.here:  mov ss, ax
; fault: #SS(0x130) at .here
; out: eax=0x130

; case: mov-ss-beyond-the-limit
; in: eax=0x1003
.here:  mov ss, ax
; fault: #GP(0x1000) at .here

; case: accessed-bit-is-set
; mode: pm32
; watch: GDT+0x130 8
; setup:
        describe FREE_SEL, 0xffff, 0x00cf9200
; code:
        mov eax, FREE_SEL
        mov es, ax
; out: eax=0x130 es=0x130
; out-mem: GDT+0x130 = ff ff 00 00 00 93 cf

; case: small-segment-limit-last-byte
; in: eax=SMALL_SEL
        mov es, ax
        mov byte [es:0xfff], 1
; out: es=0x1f
; out-mem: DATA+0xfff = 01

; case: small-segment-limit-crossed
; qemu-differs: checks no segment limits or types; SDM vol. 3, "Limit Checking" and "Type Checking"
; in: eax=SMALL_SEL
        mov es, ax
.here:  mov [es:0xffd], eax
; fault: #GP(0) at .here
; out: es=0x1f

; case: small-segment-far-beyond
; qemu-differs: checks no segment limits or types; SDM vol. 3, "Limit Checking" and "Type Checking"
; in: eax=SMALL_SEL ebx=-1
        mov es, ax
.here:  mov al, [es:ebx]
; fault: #GP(0) at .here
; out: es=0x1f

; case: expand-down-below-the-limit
; qemu-differs: checks no segment limits or types; SDM vol. 3, "Limit Checking" and "Type Checking"
; in: eax=EXPDOWN_SEL
        mov es, ax
.here:  mov byte [es:0xfff], 1
; fault: #GP(0) at .here
; out: es=0x27

; case: expand-down-above-the-limit
; in: eax=EXPDOWN_SEL
        mov es, ax
        mov byte [es:0x1000], 1
; out: es=0x27
; out-mem: DATA+0x1000 = 01

; case: stack-limit-is-a-stack-fault
; qemu-differs: checks no segment limits or types; SDM vol. 3, "Limit Checking" and "Type Checking"
; in: eax=SMALL_SEL
        mov ss, ax
        mov esp, 0x1010
.here:  mov eax, [esp - 0x10]
; fault: #SS(0) at .here
; out: esp=0x1010 ss=0x1f

; case: push-beyond-the-stack-limit
; qemu-differs: checks no segment limits or types; SDM vol. 3, "Limit Checking" and "Type Checking"
; in: eax=SMALL_SEL
        mov ss, ax
        mov esp, 0x1002
.here:  push eax
; fault: #SS(0) at .here
; out: esp=0x1002 ss=0x1f

; case: ebp-base-uses-the-stack-segment
; qemu-differs: checks no segment limits or types; SDM vol. 3, "Limit Checking" and "Type Checking"
; in: eax=SMALL_SEL ebp=0x2000
        mov ss, ax
.here:  mov al, [ebp]
; fault: #SS(0) at .here
; out: ss=0x1f

; case: expand-down-16-bit-ends-at-64-kib
; qemu-differs: checks no segment limits or types; SDM vol. 3, "Limit Checking" and "Type Checking"
; in: eax=EXPDOWN16_SEL ebx=0xffff
        mov es, ax
        mov cl, [es:0x1ff0]
.here:  mov cx, [es:ebx]
; fault: #GP(0) at .here
; out: es=0x77

; case: execute-only-code-cannot-be-read
; qemu-differs: checks no segment limits or types; SDM vol. 3, "Limit Checking" and "Type Checking"
; in: eax=XCODE_SEL
        push eax
        push .there
        retf
.there: mov ebx, [DATA]
.here:  mov eax, [cs:.here]
; fault: #GP(0) at .here
; out: cs=0x3f
; out-mem: STACK+0xff8 = 07 00 00 01 3f

; case: conforming-code-keeps-cpl
; host: no, Linux allows no conforming segments
; in: eax=UCONFORM_SEL
        push eax
        push .there
        retf
.there: mov ebx, cs
; out: ebx=0x47 cs=0x47
; out-mem: STACK+0xff8 = 07 00 00 01 47

; case: code-limit
; qemu-differs: checks no segment limits or types; SDM vol. 3, "Limit Checking" and "Type Checking"
; in: eax=SMALLCODE_SEL
        push eax
        push .there - CODE
        retf
        align 16
.there: jmp near .beyond
        times 0x100 nop
.beyond:
; fault: #GP(0) at 0x10
; out: cs=0x7f
; out-mem: STACK+0xff8 = 10 00 00 00 7f

; case: execution-runs-over-the-code-limit
; qemu-differs: checks no segment limits or types; SDM vol. 3, "Limit Checking" and "Type Checking"
        push dword SMALLCODE_SEL
        push dword 0xfe
        retf
        times 0xfe - ($ - .start_) nop
        nop
        nop
        nop
; fault: #GP(0) at 0x100
; out: cs=0x7f
; out-mem: STACK+0xff8 = fe 00 00 00 7f

; case: base-is-added-and-wraps
; in-mem: DATA = u32:0xabc
; setup:
        describe FREE_SEL, 0x0000ffff, 0xffcff200
; code:
        mov eax, FREE_SEL | 3
        mov es, ax
        mov ebx, [es:DATA + 0x1000000]
; out: eax=0x133 ebx=0xabc es=0x133

; case: pop-fs-fault-leaves-esp
; in-mem: STACK_MID = 18 00 00 00
.here:  pop fs
; fault: #GP(0x18) at .here

; case: lss-loads-both
; in: esi=DATA
; in-mem: DATA = 00 18 02 01 2b 00
        lss esp, [esi]
; out: esp=STACK+0x1800

; case: lfs-fault-leaves-the-register
; in: esi=DATA edx=5
; in-mem: DATA = 01 02 03 04 18 00
.here:  lfs edx, [esi]
; fault: #GP(0x18) at .here

; case: mov-ss-conforming-in-long-mode
; mode: long64 cpl=3
; in: rax=UCONFORM_SEL
.here:  mov ss, ax
; fault: #GP(0x44) at .here

; case: null-ss-at-cpl-0-in-64-bit-mode
; mode: long64
        mov ss, ax
; out: ss=0

; case: null-ss-with-rpl-3-at-cpl-0-in-64-bit-mode
; qemu-differs: does not check; SDM vol. 2B, "MOV": a null SS needs RPL equal to CPL
; mode: long64
; in: rax=3
.here:  mov ss, ax
; fault: #GP(0) at .here

; case: fs-limit-is-not-checked-in-64-bit-mode
; mode: long64 cpl=3
; in: rax=SMALL_SEL
        mov fs, ax
        mov byte [fs:0x1100], 9
; out: fs=0x1f
; out-mem: DATA+0x1100 = 09

; case: ds-base-is-ignored-in-64-bit-mode
; mode: long64 cpl=3
; in: rax=SMALL_SEL rbx=DATA
        mov ds, ax
        mov byte [rbx], 7
; out: ds=0x1f
; out-mem: DATA = 07

; case: ds-limit-in-compatibility-mode
; qemu-differs: checks no segment limits or types; SDM vol. 3, "Limit Checking" and "Type Checking"
; mode: compat32 cpl=3
; in: eax=SMALL_SEL
        mov ds, ax
.here:  mov byte [0x1000], 7
; fault: #GP(0) at .here
; out: ds=0x1f
