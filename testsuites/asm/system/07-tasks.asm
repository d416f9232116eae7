; Hardware task switches: what is saved and loaded, busy bits, nesting, faults in the new task.
; SDM vol. 3, "Task Switching".
; mode: pm32

; case: jmp-to-tss
; watch: GDT+0x40 8
; watch: GDT+0x110 8
; watch: TSS+0x20 0x48
; setup:
        mov dword [TSS2 + 0x20], .there
        mov dword [TSS2 + 0x24], 2
        mov dword [TSS2 + 0x28], 0xa0
        mov dword [TSS2 + 0x38], STACK + 0x800
        mov dword [TSS2 + 0x48], KDATA
        mov dword [TSS2 + 0x4c], KCODE32
        mov dword [TSS2 + 0x50], KDATA
        mov dword [TSS2 + 0x54], KDATA
; code:
; in: eax=0xaaaa ebx=0xbbbb flags=CF
        jmp TSS2_SEL:0
.back:  nop
.there: mov ebx, cr0
        str ecx
; out: eax=0xa0 ecx=0x110 ebx=0x5003b esp=STACK+0x800 flags=none
; out-mem: GDT+0x114 = 10 8b 00 01
; out-mem: TSS+0x20 = 07 00 00 01 03 00 00 00 aa aa
; out-mem: TSS+0x34 = bb bb 00 00 00 10 02 01
; out-mem: TSS+0x48 = 18 00 00 00 08 00 00 00 18 00 00 00 18

; case: call-to-tss-nests
; watch: GDT+0x40 8
; watch: GDT+0x110 8
; watch: TSS2 4
; setup:
        task32 TSS2, .there
; code:
        call TSS2_SEL:0
.there: pushfd
        pop eax
; out: eax=0x4002 esp=STACK+0x800 flags=NT
; out-mem: GDT+0x44 = 10 8b 00 01
; out-mem: GDT+0x114 = 10 8b 00 01
; out-mem: TSS2 = 40

; case: iret-with-nt-returns-to-the-outer-task
; watch: GDT+0x40 8
; watch: GDT+0x110 8
; in: ebx=5 flags=CF
; setup:
        task32 TSS2, .there
; code:
        call TSS2_SEL:0
        inc ebx
        jmp short .out
.there: mov ebx, 9
        iretd
.out:
; out: ebx=6 flags=CF,PF
; out-mem: GDT+0x44 = 10 8b 00 01

; case: task-gate-in-the-idt
; in: edx=7
; setup:
        task32 TSS2, .there
        idt32 0x50, TSS2_SEL, 0, 0x8500
; code:
        int 0x50
.there: str eax
; out: eax=0x110 edx=0 esp=STACK+0x800 flags=NT

; case: task-gate-pushes-the-error-code-on-the-new-stack
; setup:
        task32 TSS2, .there
        idt32 13, TSS2_SEL, 0, 0x8500
; code:
        mov eax, BEYOND_SEL
        mov ds, ax
.there: pop ebx
; out: ebx=0x1000 esp=STACK+0x800 flags=NT

; case: task-gate-in-the-gdt
; setup:
        task32 TSS2, .there
        gate32 FREE_SEL, TSS2_SEL, 0, 0x8500
; code:
        jmp FREE_SEL:0
.there: str eax
; out: eax=0x110 esp=STACK+0x800

; case: switch-to-user-level
; setup:
        mov dword [TSS2 + 4], KSTACK_TOP - 0x800
        mov dword [TSS2 + 8], KDATA
        mov dword [TSS2 + 0x20], .there
        mov dword [TSS2 + 0x24], 0x202
        mov dword [TSS2 + 0x38], STACK + 0x800
        mov dword [TSS2 + 0x48], UDATA
        mov dword [TSS2 + 0x4c], UCODE32
        mov dword [TSS2 + 0x50], UDATA
        mov dword [TSS2 + 0x54], UDATA
; code:
        jmp TSS2_SEL:0
.there: mov eax, cs
; out: eax=0x23 esp=STACK+0x800 flags=IF cs=0x23 ds=0x2b es=0x2b ss=0x2b

; case: switch-to-v86
; in-mem: CODE16+0x9000 = 0f 0b
; setup:
        mov dword [TSS2 + 4], KSTACK_TOP - 0x800
        mov dword [TSS2 + 8], KDATA
        mov dword [TSS2 + 0x20], 0x9000
        mov dword [TSS2 + 0x24], 0x20202
        mov dword [TSS2 + 0x38], 0x8000
        mov dword [TSS2 + 0x48], 0x3000
        mov dword [TSS2 + 0x4c], 0x1000
        mov dword [TSS2 + 0x50], 0x4000
        mov dword [TSS2 + 0x54], 0x2000
; code:
        jmp TSS2_SEL:0
; fault: #UD at 0x9000
; out: esp=0x8000 flags=IF,VM cs=0x1000 ds=0x2000 es=0x3000 ss=0x4000

; case: switch-loads-cr3-and-ldt
; mode: paging32
; in: eax=1
; setup:
        mov dword [TSS2 + 0x1c], PD32
        mov dword [TSS2 + 0x20], .there
        mov dword [TSS2 + 0x24], 2
        mov dword [TSS2 + 0x38], STACK + 0x800
        mov dword [TSS2 + 0x48], LDT_DATA_SEL
        mov dword [TSS2 + 0x4c], KCODE32
        mov dword [TSS2 + 0x50], KDATA
        mov dword [TSS2 + 0x54], KDATA
        mov dword [TSS2 + 0x60], LDT_SEL
; code:
        jmp TSS2_SEL:0
.there: sldt eax
        mov ebx, cr3
; out: eax=0x50 ebx=0x1185000 esp=STACK+0x800 es=0xf

; case: jmp-to-busy-tss
.here:  jmp TSS_SEL:0
; fault: #GP(0x40) at .here

; case: jmp-to-absent-tss
; setup:
        and dword [GDT + TSS2_SEL + 4], ~0x8000
; code:
.here:  jmp TSS2_SEL:0
; fault: #NP(0x110) at .here

; case: jmp-to-tss-from-cpl-3
; mode: pm32 cpl=3
.here:  jmp TSS2_SEL:0
; fault: #GP(0x110) at .here

; case: jmp-to-tss-too-short
; setup:
        mov byte [GDT + TSS2_SEL], 0x66
; code:
.here:  jmp TSS2_SEL:0
; fault: #TS(0x110) at .here

; case: iret-with-nt-and-link-not-busy
; setup:
        mov dword [TSS], TSS2_SEL
; code:
        push dword 0x4002
        popfd
.here:  iretd
; fault: #TS(0x110) at .here
; out: flags=NT

; case: new-task-has-null-cs
; qemu-differs: saves the EIP of the switch; SDM vol. 3, "Task Switching": after the commit point the fault is the new task's, before its first instruction
; the new task has no stack yet, so a task gate takes the fault
; setup:
        task32 TSS2, .there
        mov dword [TSS2 + 0x4c], 0
        task32 TSS3, .handler
        idt32 10, TSS3_SEL, 0, 0x8500
; code:
        jmp TSS2_SEL:0
.there: nop
.handler:
        pop ebx
        str eax
        mov ecx, [TSS3]
        mov edx, [TSS2 + 0x20]
; out: eax=0x120 ecx=0x110 edx=.there esp=STACK+0x800 flags=NT

; case: new-task-has-bad-data-segment
; qemu-differs: saves the EIP of the switch; SDM vol. 3, "Task Switching": after the commit point the fault is the new task's, before its first instruction
; setup:
        mov dword [TSS2 + 0x20], .there
        mov dword [TSS2 + 0x24], 2
        mov dword [TSS2 + 0x38], STACK + 0x800
        mov dword [TSS2 + 0x48], KDATA
        mov dword [TSS2 + 0x4c], KCODE32
        mov dword [TSS2 + 0x50], KDATA
        mov dword [TSS2 + 0x54], BEYOND_SEL
; code:
        jmp TSS2_SEL:0
.there: nop
; fault: #TS(0x1000) at .there
; out: esp=STACK+0x800 ds=0x1000

; case: new-task-has-bad-ldt
; qemu-differs: saves the EIP of the switch; SDM vol. 3, "Task Switching": after the commit point the fault is the new task's, before its first instruction
; the new task has no stack yet, so a task gate takes the fault
; setup:
        task32 TSS2, .there
        mov dword [TSS2 + 0x60], KDATA
        task32 TSS3, .handler
        idt32 10, TSS3_SEL, 0, 0x8500
; code:
        jmp TSS2_SEL:0
.there: nop
.handler:
        pop ebx
        str eax
        mov ecx, [TSS3]
        mov edx, [TSS2 + 0x20]
; out: eax=0x120 ecx=0x110 edx=.there ebx=0x18 esp=STACK+0x800 flags=NT

; case: new-task-with-debug-trap-flag
; qemu-differs: ignores the flag; SDM vol. 3, "Task-Switch Exception Condition": #DB before the first instruction, BT in DR6
; setup:
        task32 TSS2, .there
        mov byte [TSS2 + 0x64], 1
; code:
        jmp TSS2_SEL:0
.there: nop
; fault: #DB at .there
; out: esp=STACK+0x800 dr6=0xffff8ff0

; case: double-fault-by-task-gate-has-its-own-stack
; in: esp=STACK_MID
; setup:
        task32 TSS2, .there
        idt32 8, TSS2_SEL, 0, 0x8500
        and dword [IDT + 13 * 8 + 4], ~0x8000
; code:
        mov eax, BEYOND_SEL
        mov ds, ax
.there: pop eax
; out: esp=STACK+0x800 flags=NT
