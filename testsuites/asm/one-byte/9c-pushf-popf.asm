; PUSHF and POPF: which bits each privilege and mode may change.
; SDM vol. 2B, "PUSHF/PUSHFD/PUSHFQ-Push EFLAGS Register Onto the Stack"; "POPF/POPFD/POPFQ".
; mode: long64 cpl=3

; case: pushfq
; in: flags=CF,DF,OF
        pushfq
        pop rax
; out: rax=0xe03
; out-mem: STACK+0xff8 = 03 0e

; case: popfq-user-changes-status-nt-ac-id
; in-mem: STACK_MID = u64:0x244cd5
        popfq
; out: rsp=STACK+0x1008 flags=CF,PF,AF,ZF,SF,DF,OF,NT,AC,ID

; case: popfq-user-ignores-if-and-iopl
; in-mem: STACK_MID = u64:0x3000
        popfq
; out: rsp=STACK+0x1008

; case: popf-word-leaves-upper-bits
; host: no, a signal return does not load ID
; in: flags=AC,ID
; in-mem: STACK_MID = 01 00
        popfw
; out: rsp=STACK+0x1002 flags=CF,AC,ID

; case: popfq-ignores-reserved-bits
; in-mem: STACK_MID = u64:0xffffffffff008028
        popfq
; out: rsp=STACK+0x1008

; case: popfq-vm-and-rf-are-not-loaded
; in-mem: STACK_MID = u64:0x30202
        popfq
        pushfq
        pop rax
; out: rax=0x202 rsp=STACK+0x1008
; out-mem: STACK+0x1002 = 00

; case: kernel-changes-if-and-iopl
; mode: long64
; in-mem: STACK_MID = u64:0x3202
        popfq
        pushfq
        pop rax
        cli
; out: rax=0x3202 rsp=STACK+0x1008 flags=IOPL3

; case: iopl-user-changes-if
; mode: pm32 cpl=3 iopl=3
; in-mem: STACK_MID = u32:0
        popfd
        pushfd
        pop eax
; out: eax=0x3002 esp=STACK+0x1004 flags=-IF
; out-mem: STACK+0x1000 = 02 30

; case: real-popfd-changes-iopl-and-nt
; mode: real
        push dword 0x7247
        popfd
        pushfd
        pop eax
        cli
; out: eax=0x7247 flags=CF,PF,ZF,NT,IOPL3

; case: single-step-by-popf
; in: rbx=1
; in-mem: STACK_MID = u64:0x302
        popfq
        inc rbx
.trap:  inc rbx
; fault: #DB at .trap
; out: rbx=2 rsp=STACK+0x1008 flags=TF
