; CALL and RET near: what is pushed, what is popped, which faults leave what.
; SDM vol. 2A, "CALL-Call Procedure"; vol. 2B, "RET-Return From Procedure".
; mode: long64 cpl=3

; case: call-relative
        call .function
        jmp short .out
.function:
        mov rax, [rsp]
        ret
.out:
; out: rax=CODE+0x5
; out-mem: STACK+0xff8 = 05 00 00 01

; case: call-register-that-is-rsp-based
; in: rbx=.function
        mov [rsp], rbx
        call [rsp]
        jmp short .out
.function:
        mov eax, 5
        ret
.out:
; out: rax=5
; out-mem: STACK+0xff8 = 07 00 00 01
; out-mem: STACK+0x1000 = 09 00 00 01

; case: ret-imm16-releases-arguments
; in: rsp=STACK_MID-0x18
        mov rax, .target
        mov [rsp], rax
        ret 0x10
        ud2
.target:
; out: rax=CODE+0x13 rsp=STACK+0x1000
; out-mem: STACK+0xfe8 = 13 00 00 01

; case: ret-imm16-is-unsigned
        lea rax, [rel .target]
        mov rsp, STACK + 8
        mov [rsp], rax
        ret 0x1ff0
.target:
; out: rax=CODE+0x13 rsp=STACK+0x2000
; out-mem: STACK+0x8 = 13 00 00 01

; case: call-to-absent-page-has-pushed
; in: rax=ABSENT
        call rax
; fault: #PF(0x14) at ABSENT
; out: rsp=STACK+0xff8 cr2=ABSENT
; out-mem: STACK+0xff8 = 02 00 00 01

; case: call-with-absent-stack-changes-nothing
; in: rsp=STACK
.here:  call .here
; fault: #PF(6) at .here
; out: cr2=0x101fff8

; case: call-to-noncanonical-leaves-rsp
; Intel's processors store the return address first all the same (measured); SDM vol. 2A, "CALL", has it behind the check.
; vendor: intel
; qemu-differs: moves RSP, then faults at the target; SDM vol. 2A, "CALL": #GP(0) before the push
; in: rax=0x8000000000000000
.here:  call rax
; fault: #GP(0) at .here
; out-mem: STACK+0xff8 = 02 00 00 01

; case: call-to-noncanonical-stores-nothing
; vendor: amd
; qemu-differs: pushes, then faults at the target; APM vol. 3, "CALL (Near)": #GP if the target isn't canonical
; in: rax=0x8000000000000000
.here:  call rax
; fault: #GP(0) at .here

; case: call-to-noncanonical-with-absent-stack
; vendor: intel
; in: rax=0x8000000000000000 rsp=STACK
.here:  call rax
; fault: #PF(6) at .here
; out: cr2=0x101fff8

; case: ret-to-noncanonical-faults-at-ret
; qemu-differs: pops, then faults at the target; SDM vol. 2B, "RET": #GP(0) if the return IP is not canonical
; in-mem: STACK_MID = u64:0x8000000000000000
.here:  ret
; fault: #GP(0) at .here

; case: ret-from-absent-stack
; in: rsp=STACK_END-4
.here:  ret
; fault: #PF(4) at .here
; out: cr2=STACK+0x2000

; case: call-with-word-operand-in-32-bit-code
; mode: pm32 cpl=3
; host: no, the low 64 KiB are not mapped there
; in: eax=0x12349000
; in-mem: 0x9000 = 0f 0b
        call ax
; fault: #UD at 0x9000
; out: esp=STACK+0xffe
; out-mem: STACK+0xffe = 03

; case: ret-word-operand-in-32-bit-code
; mode: pm32 cpl=3
; host: no, the low 64 KiB are not mapped there
; in-mem: STACK_MID = u16:0x9000,0x1234
; in-mem: 0x9000 = 0f 0b
        o16 ret
; fault: #UD at 0x9000
; out: esp=STACK+0x1002

; case: call-in-real-mode-wraps-sp
; mode: real
; in: esp=0
        call .function
.function:
; out: esp=0xfffe
; out-mem: STACK16+0xfffe = 03

; case: ret-in-real-mode
; mode: real
        push word .target
        ret
        ud2
.target:
; out: unchanged

; case: call-beyond-64-kib-in-real-mode
; mode: real
; qemu-differs: does not check the limit of CS; SDM vol. 2A, "JMP": #GP if the target is beyond the code segment limit
; in-mem: CODE16+0x12345 = 0f 0b
.here:  jmp dword 0x12345
; fault: #GP(0) at .here

; case: call-dword-in-real-mode
; mode: real
        call dword .function
.function:
; out: esp=0x7ffc
; out-mem: STACK16+0x7ffc = 06
