; Debug registers, breakpoints, single-step.
; SDM vol. 3, "Debug Exceptions", "Debug Registers".
; mode: long64

; case: mov-to-dr7-and-back
; in: rax=0x400
        mov dr7, rax
        mov rbx, dr7
        mov rcx, dr6
; out: rcx=0xffff0ff0 rbx=0x400

; case: dr7-reserved-bits-read-as-fixed
; in: rax=0xffff0055
        mov dr7, rax
        mov rbx, dr7
        xor eax, eax
        mov dr7, rax
; out: rax=0 rbx=0xffff0455 flags=PF,ZF

; case: dr7-upper-half-must-be-zero
; in: rax=0x100000000
.here:  mov dr7, rax
; fault: #GP(0) at .here

; case: dr6-upper-half-must-be-zero
; in: rax=0x100000000
.here:  mov dr6, rax
; fault: #GP(0) at .here

; case: dr0-holds-64-bits
; in: rax=0x123456789abcdef0
        mov dr0, rax
        mov rbx, dr0
; out: rbx=0x123456789abcdef0

; case: dr4-aliases-dr6
        mov rax, dr4
        mov rbx, dr5
; out: rax=0xffff0ff0 rbx=0x400

; case: dr4-is-undefined-with-de
; needs: de
        mov rax, cr4
        or eax, 8
        mov cr4, rax
; undef: flags=AF
.here:  mov rax, dr4
; fault: #UD at .here
; out: rax=0x50628 flags=PF

; case: general-detect
; qemu-differs: ignores GD; SDM vol. 3, "General-Detect Exception Condition"
        mov eax, 0x2400
        mov dr7, rax
.here:  mov rbx, dr0
; fault: #DB at .here
; out: rax=0x2400 dr6=0xffff2ff0

; case: general-detect-is-off-in-the-handler
; qemu-differs: ignores GD; SDM vol. 3, "General-Detect Exception Condition": the processor clears GD on entry to the handler
; setup:
        idt64 1, KCODE64, .handler, 0x8e01
; code:
        mov eax, 0x2400
        mov dr7, rax
        mov rbx, dr0
.handler:
        mov rcx, dr7
        mov rdx, dr6
; out: rax=0x2400 rcx=0x400 rdx=0xffff2ff0 rsp=0x1117fd8 dr6=0xffff2ff0

; case: instruction-breakpoint
; setup:
        mov eax, .here
        mov dr0, rax
        mov eax, 0x402
        mov dr7, rax
; code:
        inc ebx
.here:  inc ebx
        inc ebx
; fault: #DB at .here
; out: rbx=1 dr6=0xffff0ff1

; case: instruction-breakpoint-3-local
; setup:
        mov eax, .here
        mov dr3, rax
        mov eax, 0x440
        mov dr7, rax
; code:
        inc ebx
.here:  inc ebx
; fault: #DB at .here
; out: rbx=1 dr6=0xffff0ff8

; case: instruction-breakpoint-is-skipped-with-rf
; setup:
        mov eax, .here
        mov dr0, rax
        mov eax, 0x402
        mov dr7, rax
; code:
        push qword KDATA
        push qword STACK_MID
        push qword 0x10002
        push qword KCODE64
        push qword .here
        iretq
.here:  inc ebx
; out: rbx=1
; out-mem: STACK+0xfd8 = 15 00 00 01
; out-mem: STACK+0xfe0 = 10
; out-mem: STACK+0xfe8 = 02 00 01
; out-mem: STACK+0xff1 = 10 02 01
; out-mem: STACK+0xff8 = 18

; case: write-breakpoint-traps-after
; setup:
        mov eax, DATA + 4
        mov dr1, rax
        mov eax, 0x00d00408             ; G1, write, 4 bytes
        mov dr7, rax
; code:
        mov eax, [DATA + 4]
        mov byte [DATA + 3], 1
        mov byte [DATA + 7], 2
.after: nop
; fault: #DB at .after
; out: dr6=0xffff0ff2
; out-mem: DATA+0x3 = 01 00 00 00 02

; case: read-write-breakpoint-hits-reads
; setup:
        mov eax, DATA
        mov dr0, rax
        mov eax, 0x000f0402             ; G0, read or write, 4 bytes
        mov dr7, rax
; code:
        mov al, [DATA + 3]
.after: nop
; fault: #DB at .after
; out: dr6=0xffff0ff1

; case: eight-byte-breakpoint
; setup:
        mov eax, DATA
        mov dr0, rax
        mov eax, 0x00090402             ; G0, write, 8 bytes
        mov dr7, rax
; code:
        mov byte [DATA + 7], 2
.after: nop
; fault: #DB at .after
; out: dr6=0xffff0ff1
; out-mem: DATA+0x7 = 02

; case: unaligned-access-that-overlaps-a-breakpoint
; setup:
        mov eax, DATA + 8
        mov dr0, rax
        mov eax, 0x000d0402
        mov dr7, rax
; code:
        mov qword [DATA + 3], -1
.after: nop
; fault: #DB at .after
; out: dr6=0xffff0ff1
; out-mem: DATA+0x3 = ff ff ff ff ff ff ff ff

; case: disabled-breakpoint-leaves-no-trap
; setup:
        mov eax, DATA
        mov dr0, rax
        mov eax, 0x000d0400
        mov dr7, rax
; code:
        mov byte [DATA], 2
        nop
; out-mem: DATA = 02

; case: rep-movs-traps-after-the-iteration
; qemu-differs: 10.0 traps after the last iteration; SDM vol. 3, "Data Breakpoint": after the iteration that hits
; in: rsi=RO rdi=DATA rcx=4
; setup:
        mov eax, DATA + 1
        mov dr0, rax
        mov eax, 0x00010402
        mov dr7, rax
; code:
.here:  rep movsb
; fault: #DB at .here
; out: rcx=2 rsi=RO+0x2 rdi=DATA+0x2 dr6=0xffff0ff1

; case: push-hits-a-stack-breakpoint
; setup:
        mov eax, STACK_MID - 8
        mov dr0, rax
        mov eax, 0x00010402
        mov dr7, rax
; code:
        push rax
.after: nop
; fault: #DB at .after
; out: rsp=STACK+0xff8 dr6=0xffff0ff1

; case: io-breakpoint
; needs: de
; setup:
        mov rax, cr4
        or eax, 8
        mov cr4, rax
        mov eax, 0x80
        mov dr0, rax
        mov eax, 0x00020402
        mov dr7, rax
; code:
        out 0x80, al
.after: nop
; fault: #DB at .after
; out: dr6=0xffff0ff1

; case: single-step
        pushfq
        or dword [rsp], 0x100
        popfq
        inc ebx
.trap:  inc ebx
; fault: #DB at .trap
; out: rbx=1 flags=TF dr6=0xffff4ff0
; out-mem: STACK+0xff8 = 02 01
; undef: flags=AF

; case: single-step-of-a-rep-iteration
; in: rsi=RO rdi=DATA rcx=3
; in-mem: RO = 01 02 03
        pushfq
        or dword [rsp], 0x100
        popfq
.here:  rep movsb
; fault: #DB at .here
; out: rcx=2 rsi=RO+0x1 rdi=DATA+0x1 flags=TF dr6=0xffff4ff0
; out-mem: DATA = 01
; out-mem: STACK+0xff8 = 02 01
; undef: flags=AF,CF,OF,SF,ZF,PF

; case: single-step-across-mov-ss
        pushfq
        or dword [rsp], 0x100
        mov ecx, ss
        popfq
        mov ss, ecx
        inc ebx
.trap:  inc ebx
; fault: #DB at .trap
; out: rcx=0x18 rbx=1 flags=TF dr6=0xffff4ff0
; out-mem: STACK+0xff8 = 02 01
; undef: flags=AF

; case: popf-that-sets-tf-in-an-ss-shadow
        pushfq
        or dword [rsp], 0x100
        mov ecx, ss
        mov ss, ecx
        popfq
        inc ebx
.trap:  inc ebx
; fault: #DB at .trap
; out: rcx=0x18 rbx=1 flags=TF dr6=0xffff4ff0
; out-mem: STACK+0xff8 = 02 01
; undef: flags=AF

; case: int-clears-tf-without-a-trap
; setup:
        idt64 0x50, KCODE64, .handler, 0x8f00
; code:
        pushfq
        or dword [rsp], 0x100
        popfq
        int 0x50
.handler:
        mov ebx, 1
        mov rcx, [rsp + 16]
; out: rbx=1 rsp=STACK+0xfd8
; out-mem: STACK+0xfd8 = 0b 00 00 01
; out-mem: STACK+0xfe0 = 10
; out-mem: STACK+0xfe8 = 02 01
; out-mem: STACK+0xff1 = 10 02 01
; out-mem: STACK+0xff8 = 18
; undef: flags=AF,CF,OF,SF,ZF,PF
; undef: rcx

; case: breakpoint-in-a-mov-ss-shadow-is-delayed
; qemu-differs: traps at once; SDM vol. 3, "Masking Exceptions and Interrupts When Switching Stacks": not before the next instruction has run
; in-mem: DATA = 18 00
; setup:
        mov eax, DATA
        mov dr0, rax
        mov eax, 0x000f0402
        mov dr7, rax
; code:
        mov ss, [DATA]
        inc ebx
.trap:  inc ebx
; fault: #DB at .trap
; out: rbx=1 dr6=0xffff0ff1

; case: icebp-at-cpl-0
; qemu-differs: stops for a debugger of its own; SDM vol. 2A, "INT1": #DB after the instruction
        db 0xf1
.after:
; fault: #DB at end

; case: bs-and-data-breakpoint-together
; qemu-differs: single-steps its handler; SDM vol. 3, "Debug Exceptions": one #DB, TF clear in the handler
; setup:
        mov eax, DATA
        mov dr0, rax
        mov eax, 0x000d0402
        mov dr7, rax
; code:
        pushfq
        or dword [rsp], 0x100
        popfq
        mov byte [DATA], 1
.trap:  nop
; undef: flags=AF,CF,OF,SF,ZF,PF
; fault: #DB at .trap
; out: flags=TF dr6=0xffff4ff1
; out-mem: DATA = 01
; out-mem: STACK+0xff8 = 02 01

; case: fault-wins-over-single-step
        pushfq
        or dword [rsp], 0x100
        popfq
.here:  ud2
        nop
; fault: #UD at .here
; out: flags=TF
; out-mem: STACK+0xff8 = 02 01
; undef: flags=AF,CF,OF,SF,ZF,PF
