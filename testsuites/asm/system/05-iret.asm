; IRET: to the same level, outward, with refused frames, in each mode.
; SDM vol. 2A, "IRET/IRETD/IRETQ-Interrupt Return".
; mode: pm32

; case: iretd-same-level
        push dword 0x47
        push dword KCODE32
        push dword .there
        iretd
.there:
; out: flags=CF,PF,ZF

; case: iret-word-operand
        pushf
        push word KCODE32
        push word 0x9000
        o16 iret
; fault: #UD at 0x9000
; out: esp=STACK+0xffe
; in-mem: 0x9000 = 0f 0b

; case: iretd-outward
        push dword UDATA
        push dword STACK + 0x800
        push dword 0x202
        push dword UCODE32
        push dword .there
        iretd
.there: mov eax, cs
        mov ebx, ss
; out: eax=0x23 ebx=0x2b esp=STACK+0x800 flags=IF cs=0x23 ds=0 es=0 ss=0x2b
; out-mem: STACK+0xfec = 14 00 00 01 23 00 00 00 02 02 00 00 00 08 02 01
; out-mem: STACK+0xffc = 2b

; case: iretd-outward-clears-inner-data-segments
        mov eax, KDATA
        mov fs, ax
        push dword UDATA
        push dword STACK + 0x800
        push dword 0x202
        push dword UCODE32
        push dword .there
        iretd
.there:
; out: eax=0x18 esp=STACK+0x800 flags=IF cs=0x23 ds=0 es=0 ss=0x2b
; out-mem: STACK+0xfec = 1b 00 00 01 23 00 00 00 02 02 00 00 00 08 02 01
; out-mem: STACK+0xffc = 2b

; case: iretd-at-cpl-3-keeps-if-and-iopl
; mode: pm32 cpl=3
        push dword 0x3045
        push dword UCODE32
        push dword .there
        iretd
.there:
; out: flags=CF,PF,ZF
; out-mem: STACK+0xff4 = 0d 00 00 01 23 00 00 00 45 30

; case: iretd-at-cpl-3-with-iopl-3-changes-if
; mode: pm32 cpl=3 iopl=3
        push dword 0x3002
        push dword UCODE32
        push dword .there
        iretd
.there:
; out: flags=-IF
; out-mem: STACK+0xff4 = 0d 00 00 01 23 00 00 00 02 30

; case: iretd-to-inner-level
; mode: pm32 cpl=3
        push dword 0x202
        push dword KCODE32
        push dword .there
.here:  iretd
.there:
; fault: #GP(8) at .here
; out: esp=STACK+0xff4
; out-mem: STACK+0xff4 = 0d 00 00 01 08 00 00 00 02 02

; case: iretd-to-null-cs
        push dword 2
        push dword 0
        push dword .there
.here:  iretd
.there:
; fault: #GP(0) at .here
; out: esp=STACK+0xff4
; out-mem: STACK+0xff4 = 0a 00 00 01
; out-mem: STACK+0xffc = 02

; case: iretd-to-absent-code
        push dword 2
        push dword ABSENT_CODE_SEL
        push dword .there
.here:  iretd
.there:
; fault: #NP(0xe8) at .here
; out: esp=STACK+0xff4
; out-mem: STACK+0xff4 = 0d 00 00 01 e8 00 00 00 02

; case: iretd-outward-null-ss
        push dword 0
        push dword STACK + 0x800
        push dword 0x202
        push dword UCODE32
        push dword .there
.here:  iretd
.there:
; fault: #GP(0) at .here
; out: esp=STACK+0xfec
; out-mem: STACK+0xfec = 14 00 00 01 23 00 00 00 02 02 00 00 00 08 02 01

; case: iretd-outward-stack-of-other-level
        push dword KDATA
        push dword STACK + 0x800
        push dword 0x202
        push dword UCODE32
        push dword .there
.here:  iretd
.there:
; fault: #GP(0x18) at .here
; out: esp=STACK+0xfec
; out-mem: STACK+0xfec = 14 00 00 01 23 00 00 00 02 02 00 00 00 08 02 01
; out-mem: STACK+0xffc = 18

; case: iretd-outward-offset-beyond-the-code-limit
; qemu-differs: does not check the limit of CS; SDM vol. 2A, "IRET": #GP(0) if the return instruction pointer is not within the limit
        push dword UDATA
        push dword STACK + 0x800
        push dword 0x202
        push dword SMALLCODE_SEL
        push dword 0x100
.here:  iretd
; fault: #GP(0) at .here
; out: esp=STACK+0xfec
; out-mem: STACK+0xfec = 00 01 00 00 7f 00 00 00 02 02 00 00 00 08 02 01 2b

; case: iretd-sets-trap-flag-for-the-next-instruction
        push dword 0x102
        push dword KCODE32
        push dword .there
        iretd
.there: inc eax
.trap:  inc eax
; fault: #DB at .trap
; out: eax=1 flags=TF dr6=0xffff4ff0

; case: iretd-to-v86
        push dword 0x5000               ; GS FS DS ES SS ESP
        push dword 0x5001
        push dword 0x2000
        push dword 0x3000
        push dword 0x4000
        push dword 0x8000
        push dword 0x20202
        push dword 0x1000
        push dword 0x9000
        iretd
; fault: #UD at 0x9000
; out: esp=0x8000 flags=IF,VM cs=0x1000 ds=0x2000 es=0x3000 fs=0x5001 gs=0x5000 ss=0x4000
; out-mem: STACK+0xfdd = 90 00 00 00 10 00 00 02 02 02 00 00 80
; out-mem: STACK+0xfed = 40 00 00 00 30 00 00 00 20 00 00 01 50
; out-mem: STACK+0xffd = 50
; in-mem: CODE16+0x9000 = 0f 0b

; case: iretd-vm-is-ignored-at-cpl-3
; qemu-differs: enters virtual-8086 mode; SDM vol. 2A, "IRET": only if CPL is 0
; mode: pm32 cpl=3
        push dword 0x20202
        push dword UCODE32
        push dword .there
        iretd
.there:
; out-mem: STACK+0xff4 = 0d 00 00 01 23 00 00 00 02 02 02

; case: iret-in-real-mode
; mode: real
        pushf
        push cs
        push word .there
        iret
.there:
; out: unchanged

; case: iretd-in-real-mode-keeps-vm-clear
; mode: real
        push dword 0x247
        push dword 0x1000
        push dword .there
        o32 iret
.there:
; out: flags=CF,PF,ZF,IF

; case: iretq-same-level-pops-the-stack-pointer
; mode: long64
        mov rax, rsp
        push qword KDATA
        push qword STACK + 0x808
        push qword 0x47
        push qword KCODE64
        push qword .there
        iretq
.there:
; out: rax=STACK+0x1000 rsp=STACK+0x808 flags=CF,PF,ZF
; out-mem: STACK+0xfd8 = 15 00 00 01
; out-mem: STACK+0xfe0 = 10
; out-mem: STACK+0xfe8 = 47
; out-mem: STACK+0xff0 = 08 08 02 01
; out-mem: STACK+0xff8 = 18

; case: iretq-outward
; mode: long64
        push qword UDATA
        push qword STACK + 0x800
        push qword 0x202
        push qword UCODE64
        push qword .there
        iretq
.there: mov eax, cs
; out: rax=0x33 rsp=STACK+0x800 flags=IF cs=0x33 ss=0x2b
; out-mem: STACK+0xfd8 = 15 00 00 01
; out-mem: STACK+0xfe0 = 33
; out-mem: STACK+0xfe8 = 02 02
; out-mem: STACK+0xff1 = 08 02 01
; out-mem: STACK+0xff8 = 2b

; case: iretq-to-compatibility-mode
; mode: long64
        push qword UDATA
        push qword STACK + 0x800
        push qword 0x202
        push qword UCODE32
        push qword .there
        iretq
bits 32
.there: mov eax, cs
; out: rax=0x23 rsp=STACK+0x800 flags=IF cs=0x23 ss=0x2b
; out-mem: STACK+0xfd8 = 15 00 00 01
; out-mem: STACK+0xfe0 = 23
; out-mem: STACK+0xfe8 = 02 02
; out-mem: STACK+0xff1 = 08 02 01
; out-mem: STACK+0xff8 = 2b

; case: iretq-noncanonical-target
; mode: long64
; qemu-differs: faults at the target; SDM vol. 2A, "IRET": #GP(0) if the return instruction pointer is not canonical
        push qword KDATA
        push qword STACK + 0x800
        push qword 2
        push qword KCODE64
        mov rax, 0x8000000000000000
        push rax
.here:  iretq
; fault: #GP(0) at .here
; out: rax=0x8000000000000000 rsp=STACK+0xfd8
; out-mem: STACK+0xfdf = 80 10
; out-mem: STACK+0xfe8 = 02
; out-mem: STACK+0xff1 = 08 02 01
; out-mem: STACK+0xff8 = 18

; case: iretq-with-nt
; mode: long64
; in: flags=NT
.here:  iretq
; fault: #GP(0) at .here

; case: iretq-null-ss-to-cpl-0
; mode: long64
        push qword 0
        push qword STACK + 0x800
        push qword 2
        push qword KCODE64
        push qword .there
        iretq
.there: mov eax, ss
; out: rsp=STACK+0x800 ss=0
; out-mem: STACK+0xfd8 = 12 00 00 01
; out-mem: STACK+0xfe0 = 10
; out-mem: STACK+0xfe8 = 02
; out-mem: STACK+0xff1 = 08 02 01

; case: iretq-null-ss-to-cpl-3
; mode: long64
        push qword 3
        push qword STACK + 0x800
        push qword 0x202
        push qword UCODE64
        push qword .there
.here:  iretq
.there:
; fault: #GP(0) at .here
; out: rsp=STACK+0xfd8
; out-mem: STACK+0xfd8 = 15 00 00 01
; out-mem: STACK+0xfe0 = 33
; out-mem: STACK+0xfe8 = 02 02
; out-mem: STACK+0xff1 = 08 02 01
; out-mem: STACK+0xff8 = 03

; case: iretd-in-64-bit-mode-pops-dwords
; mode: long64
        sub rsp, 20
        mov dword [rsp], .there
        mov dword [rsp + 4], KCODE64
        mov dword [rsp + 8], 2
        mov dword [rsp + 12], STACK + 0x800
        mov dword [rsp + 16], KDATA
        iretd
.there:
; out: rsp=STACK+0x800
; out-mem: STACK+0xfec = 2c 00 00 01 10 00 00 00 02
; out-mem: STACK+0xff9 = 08 02 01 18
; undef: flags=CF,PF,AF,ZF,SF,OF

; case: iretq-outward-in-user-mode-of-itself
; mode: long64 cpl=3
        push qword UDATA
        push qword STACK + 0x800
        push qword 0x246
        push qword UCODE64
        push qword .there
        iretq
.there:
; out: rsp=STACK+0x800 flags=PF,ZF
; out-mem: STACK+0xfd8 = 15 00 00 01
; out-mem: STACK+0xfe0 = 33
; out-mem: STACK+0xfe8 = 46 02
; out-mem: STACK+0xff1 = 08 02 01
; out-mem: STACK+0xff8 = 2b

; case: iretd-same-level-in-a-loop
; mode: pm32
; in: eax=0x46 ecx=6
.again: push eax
        push dword 0xabcd0000 + KCODE32
        push dword .there
        iretd
.there: pushf
        pop edx
        rol ebx, 3
        add ebx, edx
        xor eax, 0x2018c5               ; ID, OF, IOPL, SF, ZF, PF, CF
        loop .again
; out: ecx=0 edx=0x201883 ebx=0x9d1f775 flags=ID,IOPL1


; case: iretd-same-level-in-a-loop-with-paging
; mode: paging32
; in: eax=0x46 ecx=6
.again: push eax
        push dword KCODE32
        push dword .there
        iretd
.there: pushf
        pop edx
        rol ebx, 3
        add ebx, edx
        xor eax, 0x2428d5               ; ID, AC, OF, IOPL, SF, ZF, AF, PF, CF
        loop .again
; out: ecx=0 edx=0x242893 ebx=0x4bdb0b85 flags=AC,ID,IOPL2

; case: iretd-in-a-loop-reads-the-descriptor-again
; mode: pm32
; in: ecx=5
; setup:
        mov eax, [GDT + KCODE32]
        mov [GDT + ABSENT_CODE_SEL], eax
        mov eax, [GDT + KCODE32 + 4]
        mov [GDT + ABSENT_CODE_SEL + 4], eax
; code:
.again: push dword 0x46
        push dword ABSENT_CODE_SEL
        push dword .there
        cmp ecx, 2
        jne .here
        mov byte [GDT + ABSENT_CODE_SEL + 5], 0x1b
.here:  iretd
.there: loop .again
; fault: #NP(0xe8) at .here
; out: ecx=2 esp=STACK+0xff4 flags=PF,ZF cs=0xe8
; out-mem: STACK+0xff4 = 19 00 00 01 e8 00 00 00 46

; case: iretd-in-a-loop-checks-the-limit
; qemu-differs: does not check the limit of CS; SDM vol. 2A, "IRET": #GP(0) if the return instruction pointer is not within the limit
; mode: pm32
; in: ecx=5
; setup:
        mov eax, [GDT + KCODE32]
        mov [GDT + ABSENT_CODE_SEL], eax
        mov eax, [GDT + KCODE32 + 4]
        mov [GDT + ABSENT_CODE_SEL + 4], eax
; code:
.again: push dword 0x46
        push dword ABSENT_CODE_SEL
        push dword .there
        cmp ecx, 2
        jne .here
        mov byte [GDT + ABSENT_CODE_SEL + 6], 0x40
.here:  iretd
.there: loop .again
; fault: #GP(0) at .here
; out: ecx=2 esp=STACK+0xff4 flags=PF,ZF cs=0xe8
; out-mem: STACK+0xff4 = 19 00 00 01 e8 00 00 00 46

; case: iretd-in-a-loop-to-another-selector
; mode: pm32
; in: ecx=5 edx=KCODE32
.again: push dword 0x46
        push edx
        push dword .there
        cmp ecx, 2
        jne .here
        mov dword [esp + 4], ABSENT_CODE_SEL
.here:  iretd
.there: loop .again
; fault: #NP(0xe8) at .here
; out: ecx=2 esp=STACK+0xff4 flags=PF,ZF
; out-mem: STACK+0xff4 = 16 00 00 01 e8 00 00 00 46

; case: iretd-in-a-loop-sets-the-trap-flag
; mode: pm32
; in: ecx=5
.again: push dword 0x46
        push dword KCODE32
        push dword .there
        cmp ecx, 2
        jne .here
        or byte [esp + 9], 1
.here:  iretd
.there: inc ebx
.trap:  loop .again
; fault: #DB at .trap
; out: ecx=2 ebx=4 flags=TF dr6=0xffff4ff0

; case: iretd-in-a-loop-with-nt-set-before
; mode: pm32
; in: ecx=5
.again: push dword 0x46
        push dword KCODE32
        push dword .there
        cmp ecx, 2
        jne .here
        or byte [esp + 9], 0x40         ; NT; the next one is a return from a task
.here:  iretd
.there: loop .again
; fault: #TS(0) at .here
; out: ecx=1 esp=STACK+0xff4 flags=CF,PF,AF,SF,NT
; out-mem: STACK+0xff4 = 14 00 00 01 08 00 00 00 46

; case: iretd-in-a-loop-to-v86
; mode: pm32
; in: ecx=5
; in-mem: CODE16+0x9000 = 0f 0b
.again: push dword 0x5000               ; GS FS DS ES SS ESP
        push dword 0x5001
        push dword 0x2000
        push dword 0x3000
        push dword 0x4000
        push dword 0x8000
        push dword 0x46
        push dword KCODE32
        push dword .there
        cmp ecx, 2
        jne .here
        mov dword [esp], 0x9000
        mov dword [esp + 4], 0x1000
        mov dword [esp + 8], 0x20202
.here:  iretd
.there: add esp, 24
        loop .again
; fault: #UD at 0x9000
; out: ecx=2 esp=0x8000 flags=IF,VM cs=0x1000 ds=0x2000 es=0x3000 fs=0x5001 gs=0x5000 ss=0x4000
; out-mem: STACK+0xfdd = 90 00 00 00 10 00 00 02 02 02 00 00 80
; out-mem: STACK+0xfed = 40 00 00 00 30 00 00 00 20 00 00 01 50
; out-mem: STACK+0xffd = 50
