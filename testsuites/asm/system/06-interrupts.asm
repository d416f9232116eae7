; Delivery of interrupts and exceptions: gates, stacks, error codes, faults during delivery.
; SDM vol. 3, "Exception and Interrupt Handling", "Interrupt 8-Double Fault Exception".
; mode: pm32

; case: interrupt-gate-clears-if
; in: flags=IF
; setup:
        idt32 0x50, KCODE32, .handler, 0x8e00
; code:
        int 0x50
.handler:
        pushfd
        pop eax
        mov ebx, [esp + 8]
; out: eax=2 ebx=0x202 esp=STACK+0xff4 flags=none
; out-mem: STACK+0xff4 = 02 00 00 01 08 00 00 00 02 02

; case: trap-gate-keeps-if
; in: flags=IF
; setup:
        idt32 0x50, KCODE32, .handler, 0x8f00
; code:
        int 0x50
.handler:
        pushfd
        pop eax
        cli
; out: eax=0x202 esp=STACK+0xff4 flags=none
; out-mem: STACK+0xff4 = 02 00 00 01 08 00 00 00 02 02

; case: delivery-clears-nt-and-tf
; in: flags=NT
; setup:
        idt32 0x50, KCODE32, .handler, 0x8f00
; code:
        int 0x50
.handler:
        pushfd
        pop eax
        mov ebx, [esp + 8]
; out: eax=2 ebx=0x4002 esp=STACK+0xff4 flags=none
; out-mem: STACK+0xff4 = 02 00 00 01 08 00 00 00 02 40

; case: from-user-to-kernel-stack
; mode: pm32 cpl=3
; setup:
        idt32 0x50, KCODE32, .handler, 0xee00
; code:
        int 0x50
.after:
.handler:
        mov eax, [esp]
        mov ebx, [esp + 4]
        mov ecx, [esp + 8]
        mov edx, [esp + 12]
        mov esi, [esp + 16]
        mov edi, ss
; out: eax=CODE+0x2 ecx=0x202 edx=STACK+0x1000 ebx=0x23 esp=KSTACK+0x3fec esi=0x2b edi=0x18
; out: flags=-IF cs=8 ss=0x18

; case: to-ring-1
; mode: pm32 cpl=3
; setup:
        idt32 0x50, CODE_DPL1_SEL & 0xfffc, .handler, 0xee00
; code:
        int 0x50
.handler:
        mov eax, cs
        mov ebx, ss
; out: eax=0xf1 ebx=0xf9 esp=0x1114fec flags=-IF cs=0xf1 ss=0xf9

; case: to-conforming-code-keeps-cpl
; mode: pm32 cpl=3
; setup:
        idt32 0x50, CONFORM_SEL, .handler, 0xee00
; code:
        int 0x50
.handler:
        mov eax, cs
        mov ebx, ss
; out: eax=0xe3 ebx=0x2b esp=STACK+0xff4 flags=-IF cs=0xe3
; out-mem: STACK+0xff4 = 02 00 00 01 23 00 00 00 02 02

; case: to-outer-level-code
; setup:
        idt32 0x50, UCODE32 & 0xfffc, .here, 0x8e00
; code:
.here:  int 0x50
; fault: #GP(0x20) at .here

; case: gate-not-present
; setup:
        idt32 0x50, KCODE32, .here, 0x0e00
; code:
.here:  int 0x50
; fault: #NP(0x282) at .here

; case: gate-of-wrong-type
; setup:
        idt32 0x50, KCODE32, .here, 0x8c00
; code:
.here:  int 0x50
; fault: #GP(0x282) at .here

; case: gate-dpl-is-checked-for-software-only
; mode: pm32 cpl=3
; setup:
        idt32 6, KCODE32, .handler, 0x8e00
; code:
.here:  db 0x0f, 0x0b
.handler:
        mov eax, [esp]
        int 0x51
; fault: int 0x51 at end
; out: eax=CODE esp=KSTACK+0x3fec flags=-IF cs=8 ss=0x18

; case: gate-to-null-selector
; setup:
        idt32 0x50, 0, .here, 0x8e00
; code:
.here:  int 0x50
; fault: #GP(0) at .here

; case: gate-to-data-segment
; setup:
        idt32 0x50, KDATA, .here, 0x8e00
; code:
.here:  int 0x50
; fault: #GP(0x18) at .here

; case: gate-to-absent-code
; setup:
        idt32 0x50, ABSENT_CODE_SEL, .here, 0x8e00
; code:
.here:  int 0x50
; fault: #NP(0xe8) at .here

; case: vector-beyond-the-idt-limit
; setup:
        sub esp, 8
        mov word [esp], 0x27f
        mov dword [esp + 2], IDT
        lidt [esp]
        add esp, 8
; code:
.here:  int 0x50
; fault: #GP(0x282) at .here

; case: 16-bit-gate-pushes-words
; setup:
        idt32 0x50, CODE16_SEL, 0x9000, 0x8600
; code:
        int 0x50
; fault: #UD at 0x9000
; out: esp=STACK+0xffa cs=0x80
; out-mem: STACK+0xffa = 02 00 08 00 02
; in-mem: CODE16+0x9000 = 0f 0b

; case: error-code-is-pushed
; qemu-differs: pushes RF clear; SDM vol. 3, "Restart Flag": the image of a fault has RF set
; setup:
        idt32 13, KCODE32, .handler, 0x8e00
; code:
        mov eax, BEYOND_SEL
.here:  mov ds, ax
.handler:
        pop ebx
        pop ecx
; out: eax=0x1000 ecx=.here ebx=0x1000 esp=STACK+0xff8
; out-mem: STACK+0xff8 = 08 00 00 00 02 00 01

; case: int-13-pushes-no-error-code
; setup:
        idt32 13, KCODE32, .handler, 0x8e00
; code:
        int 13
.after:
.handler:
        pop ebx
; out: ebx=CODE+0x2 esp=STACK+0xff8
; out-mem: STACK+0xff8 = 08 00 00 00 02

; case: stack-of-inner-level-null
; mode: pm32 cpl=3
; setup:
        idt32 0x50, CODE_DPL1_SEL & 0xfffc, .here, 0xee00
        mov dword [TSS + 16], 0
; code:
.here:  int 0x50
; fault: #TS(0) at .here

; case: stack-of-inner-level-wrong-rpl
; mode: pm32 cpl=3
; setup:
        idt32 0x50, CODE_DPL1_SEL & 0xfffc, .here, 0xee00
        mov dword [TSS + 16], UDATA
; code:
.here:  int 0x50
; fault: #TS(0x28) at .here

; case: stack-of-inner-level-not-present
; qemu-differs: raises #TS; SDM vol. 2A, "INT n": #SS(selector) if the new stack segment is not present
; mode: pm32 cpl=3
; setup:
        idt32 0x50, CODE_DPL1_SEL & 0xfffc, .here, 0xee00
        describe FREE_SEL, 0xffff, 0x00cf3200
        mov dword [TSS + 16], FREE_SEL | 1
; code:
.here:  int 0x50
; fault: #SS(0x130) at .here

; case: divide-error-gate-absent-gives-double-fault
; setup:
        and dword [IDT + 4], ~0x8000
; code:
.here:  div ecx
; fault: #DF(0) at .here

; case: gp-gate-absent-gives-double-fault
; setup:
        and dword [IDT + 13 * 8 + 4], ~0x8000
; code:
        mov eax, BEYOND_SEL
.here:  mov ds, ax
; fault: #DF(0) at .here
; out: eax=0x1000

; case: np-of-absent-np-gate-gives-double-fault
; setup:
        and dword [IDT + 11 * 8 + 4], ~0x8000
        idt32 0x50, ABSENT_CODE_SEL, .here, 0x8e00
; code:
.here:  int 0x50
; fault: #DF(0) at .here

; case: page-fault-while-delivering-page-fault-gives-double-fault
; mode: long64 cpl=3
; in: rax=ABSENT
; setup:
        and dword [IDT + 14 * 16 + 4], ~7   ; no IST for #PF
        mov dword [TSS + 4], ABSENT + 0x800
; code:
.here:  mov ebx, [rax]
; fault: #DF(0) at .here
; out: cr2=ABSENT+0x7f8

; case: page-fault-while-delivering-ud-is-a-page-fault
; mode: long64 cpl=3
; setup:
        and dword [IDT + 6 * 16 + 4], ~7
        mov dword [TSS + 4], ABSENT + 0x800
; code:
.here:  ud2
        nop
; fault: #PF(2) at .here
; out: cr2=ABSENT+0x7f8

; case: gp-while-delivering-page-fault-gives-double-fault
; mode: long64 cpl=3
; in: rax=ABSENT
; setup:
        mov dword [IDT + 14 * 16], (KDATA << 16)
; code:
.here:  mov ebx, [rax]
; fault: #DF(0) at .here
; out: cr2=ABSENT

; case: 64-bit-frame-is-aligned-without-ist
; mode: long64
; in: rsp=STACK_MID-3
; setup:
        idt64 0x50, KCODE64, .handler, 0x8e00
; code:
        int 0x50
.after:
.handler:
        mov rax, rsp
        mov rbx, [rsp]
        mov rcx, [rsp + 24]
        mov rdx, [rsp + 32]
; out: rax=STACK+0xfc8 rcx=STACK+0xffd rdx=0x18 rbx=CODE+0x2 rsp=STACK+0xfc8
; out-mem: STACK+0xfc8 = 02 00 00 01
; out-mem: STACK+0xfd0 = 10
; out-mem: STACK+0xfd8 = 02
; out-mem: STACK+0xfe0 = fd 0f 02 01
; out-mem: STACK+0xfe8 = 18

; case: 64-bit-ist-is-used-even-at-cpl-0
; qemu-differs: loads a null SS; SDM vol. 2A, "INT n", INTRA-PRIVILEGE-LEVEL-INTERRUPT: SS is loaded only on a change of level
; mode: long64
; setup:
        idt64 0x50, KCODE64, .handler, 0x8e02
        mov dword [TSS + 0x2c], IST_TOP - 0x800
; code:
        int 0x50
.handler:
        mov rax, rsp
; out: rax=0x11177d8 rsp=0x11177d8

; case: 64-bit-user-interrupt-loads-null-ss
; mode: long64 cpl=3
; setup:
        idt64 0x50, KCODE64, .handler, 0xee00
; code:
        int 0x50
.handler:
        mov eax, ss
        mov rbx, [rsp + 32]
; out: rbx=0x2b rsp=KSTACK+0x3fd8 flags=-IF cs=0x10 ss=0

; case: 64-bit-gate-to-compatibility-code
; mode: long64
; setup:
        idt64 0x50, KCODE32, .here, 0x8e00
; code:
.here:  int 0x50
; fault: #GP(8) at .here

; case: 64-bit-gate-task-type
; qemu-differs: error code vector * 16 + 2 in long mode; SDM vol. 3, "Error Code"
; mode: long64
; setup:
        idt64 0x50, TSS2_SEL, 0, 0x8500
; code:
.here:  int 0x50
; fault: #GP(0x282) at .here

; case: noncanonical-interrupt-stack-is-a-stack-fault
; mode: long64 cpl=3
; setup:
        idt64 0x50, KCODE64, .here, 0xee00
        mov dword [TSS + 8], 0x80000000
; code:
.here:  int 0x50
; fault: #SS(0) at .here

; case: int-n-in-real-mode-uses-the-table
; mode: real
; setup:
        xor ax, ax
        mov es, ax
        mov word [es:0x50 * 4], .handler
        mov word [es:0x50 * 4 + 2], 0x1000
; code:
        sti
        int 0x50
.handler:
        pushf
        pop ax
        mov bp, sp
        mov bx, [bp]
        mov cx, [bp + 2]
        mov dx, [bp + 4]
; out: eax=2 ecx=0x1000 edx=0x202 ebx=3 esp=0x7ffa ebp=0x7ffa
; out-mem: STACK16+0x7ffa = 03 00 00 10 02 02

; case: real-mode-vector-beyond-the-limit
; mode: real
; setup:
        push word 0
        push word 0
        push word 0x13f
        mov bp, sp
        lidt [bp]
        add sp, 6
; code:
.here:  int 0x50
; fault: #GP(0) at .here

; case: compat-mode-interrupt-pushes-64-bit-frame
; mode: compat32 cpl=3
; setup:
        idt64 0x50, KCODE64, .handler, 0xee00
; code:
        int 0x50
bits 64
.handler:
        mov rax, [rsp]
        mov ebx, [rsp + 8]
        mov rcx, [rsp + 24]
; out: eax=CODE+0x2 ecx=STACK+0x1000 ebx=0x23 esp=KSTACK+0x3fd8 flags=-IF cs=0x10 ss=0
