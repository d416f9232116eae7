; When a pending interrupt is taken: after STI, POPF, IRET, HLT; task priority. (MOV SS can't be tried
; this way, as the manual leaves its shadow open after an STI.) The interrupt is the local APIC's own
; IPI, pending before the case starts.
; SDM vol. 3, "Masking Maskable Hardware Interrupts"; vol. 2B, "STI"; vol. 3, "Interrupt Acceptance for Fixed Interrupts".
; mode: pm32

; case: sti-shields-one-instruction
; setup:
        mov dword [0xfee000f0], 0x1ff   ; software enable
        mov dword [0xfee000b0], 0       ; end of what an earlier case took
        mov dword [0xfee00300], 0x40060 ; vector 0x60 to self
; code:
        sti
        inc eax
.after: inc eax
; fault: int 0x60 at .after
; out: eax=1 flags=IF

; case: popf-shields-nothing
; setup:
        mov dword [0xfee000f0], 0x1ff
        mov dword [0xfee000b0], 0
        mov dword [0xfee00300], 0x40060
; code:
        push dword 0x202
        popfd
.after: inc eax
; fault: int 0x60 at .after
; out: flags=IF

; case: iret-shields-nothing
; setup:
        mov dword [0xfee000f0], 0x1ff
        mov dword [0xfee000b0], 0
        mov dword [0xfee00300], 0x40060
; code:
        push dword 0x202
        push dword KCODE32
        push dword .there
        iretd
        nop
.there: inc eax
; fault: int 0x60 at .there
; out: flags=IF

; case: sti-cli-lets-nothing-in
; setup:
        mov dword [0xfee000f0], 0x1ff
        mov dword [0xfee000b0], 0
        mov dword [0xfee00300], 0x40060
; code:
        sti
        cli
        inc eax
        sti
        nop
.after:
; fault: int 0x60 at end
; out: eax=1 flags=IF

; case: hlt-ends-with-the-interrupt
; setup:
        mov dword [0xfee000f0], 0x1ff
        mov dword [0xfee000b0], 0
        mov dword [0xfee00300], 0x40060
; code:
        sti
        hlt
.after: inc eax
; fault: int 0x60 at .after
; out: flags=IF

; case: task-priority-holds-back
; setup:
        mov dword [0xfee000f0], 0x1ff
        mov dword [0xfee000b0], 0
        mov dword [0xfee00080], 0x60
        mov dword [0xfee00300], 0x40060
; code:
        sti
        nop
        nop
        inc eax
        cli
        mov dword [0xfee00080], 0x50
        sti
        nop
.after:
; fault: int 0x60 at end
; out: eax=1 flags=IF

; case: higher-vector-first-then-the-lower-after-eoi
; setup:
        mov dword [0xfee000f0], 0x1ff
        mov dword [0xfee000b0], 0
        mov dword [0xfee00300], 0x40060
        mov dword [0xfee00300], 0x40071
        idt32 0x71, KCODE32, .handler, 0x8e00
; code:
        sti
        nop
.after: jmp short .out
.handler:
        inc eax
        mov dword [0xfee000b0], 0       ; IF is clear: 0x60 waits for IRET
        inc eax
        iretd
.out:
; fault: int 0x60 at .after
; out: eax=2 flags=IF

; case: fault-in-the-shielded-instruction-comes-first
; qemu-differs: pushes RF clear; SDM vol. 3, "Restart Flag": the image of a fault has RF set
; setup:
        mov dword [0xfee000f0], 0x1ff
        mov dword [0xfee000b0], 0
        mov dword [0xfee00300], 0x40060
        idt32 6, KCODE32, .handler, 0x8e00
; code:
        sti
        ud2
.handler:
        inc eax
        sti
        nop
.after: nop
; fault: int 0x60 at .after
; out: eax=1 esp=STACK+0xff4 flags=IF
; out-mem: STACK+0xff4 = 01 00 00 01 08 00 00 00 02 02 01
