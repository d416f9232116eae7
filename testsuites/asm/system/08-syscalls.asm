; SYSCALL, SYSRET, SYSENTER, SYSEXIT.
; SDM vol. 2B, "SYSCALL-Fast System Call", "SYSRET", "SYSENTER", "SYSEXIT".
; mode: long64 cpl=3

; case: syscall
; in: rax=1 flags=CF,DF rcx=5
; setup:
        wrmsr_imm 0xc0000082, .entry
        wrmsr_imm 0xc0000084, 0x601
; code:
        syscall
.after:
.entry: mov eax, cs
        mov ebx, ss
; out: rax=0x10 rcx=CODE+0x2 rbx=0x18 r11=0x603 flags=-IF cs=0x10 ss=0x18

; case: syscall-keeps-rsp-and-clears-rf
; setup:
        wrmsr_imm 0xc0000082, .entry
; code:
        syscall
.entry: mov rdx, rsp
        pushfq
        pop rbx
; out: rcx=CODE+0x2 rdx=STACK+0x1000 rbx=0x202 r11=0x202 cs=0x10 ss=0x18
; out-mem: STACK+0xff8 = 02 02

; case: syscall-masks-every-flag
; in: flags=CF,SF,OF
; setup:
        wrmsr_imm 0xc0000082, .entry
        wrmsr_imm 0xc0000084, 0x257fd7
; code:
        syscall
.entry: pushfq
        pop rbx
; out: rcx=CODE+0x2 rbx=0x2 r11=0xa83 flags=-IF cs=0x10 ss=0x18
; out-mem: STACK+0xff8 = 02

; case: syscall-leaves-status-flags
; qemu-differs: 10.0 clears them; SDM vol. 2B, "SYSCALL": RFLAGS AND NOT(IA32_FMASK)
; in: flags=CF,PF,AF,ZF,SF,OF
; setup:
        wrmsr_imm 0xc0000082, .entry
        wrmsr_imm 0xc0000084, 0x47700
; code:
        syscall
.entry: pushfq
        pop rbx
; out: rcx=CODE+0x2 rbx=0x8d7 r11=0xad7 flags=CF,PF,AF,ZF,SF,OF,-IF cs=0x10 ss=0x18
; out-mem: STACK+0xff8 = d7 08

; case: three-system-calls
; setup:
        wrmsr_imm 0xc0000082, .entry
        wrmsr_imm 0xc0000084, 0x47700
; code:
        jmp .start
.entry: o64 sysret
.start: syscall
        inc edi
        cmp edi, 3
        jne .start
        mov eax, cs
        mov ebx, ss
; out: rax=0x33 rbx=0x2b rcx=CODE+0x7 rdi=3 r11=0x297 flags=PF,ZF

; case: stac-and-clac-about-a-system-call
; setup:
        wrmsr_imm 0xc0000082, .entry
        wrmsr_imm 0xc0000084, 0x47700
; code:
        syscall
.entry: stac
        stac
        pushfq
        pop rax
        clac
        clac
        pushfq
        pop rbx
; out: rax=0x40002 rbx=0x2 rcx=CODE+0x2 r11=0x202 flags=-IF cs=0x10 ss=0x18
; out-mem: STACK+0xff8 = 02

; case: syscall-disabled
; host: no, a system call
; setup:
        mov ecx, 0xc0000080
        rdmsr
        and eax, ~1
        wrmsr
; code:
.here:  syscall
; fault: #UD at .here

; case: syscall-from-compatibility-mode
; vendor: intel
; mode: compat32 cpl=3
; qemu-differs: enters at CSTAR as AMD does; SDM vol. 2B, "SYSCALL": #UD outside 64-bit mode
; setup:
        wrmsr_imm 0xc0000083, .here
; code:
.here:  syscall
; fault: #UD at .here

; case: syscall-in-protected-mode
; mode: pm32 cpl=3
; host: no, a system call
.here:  syscall
; fault: #UD at .here

; case: sysretq
; mode: long64
; in: rcx=.user r11=0x246
        o64 sysret
.user:  mov eax, cs
        mov ebx, ss
; out: rax=0x33 rbx=0x2b flags=PF,ZF,IF cs=0x33 ss=0x2b

; case: sysretl-to-compatibility-mode
; mode: long64
; in: rcx=.user r11=0x202
        sysret
bits 32
.user:  mov eax, cs
        mov ebx, ss
; out: rax=0x23 rbx=0x2b flags=IF cs=0x23 ss=0x2b

; case: sysret-clears-rf-and-vm
; qemu-differs: loads VM; SDM vol. 2B, "SYSRET": RFLAGS is R11 AND 3C7FD7H, OR 2
; mode: long64
; in: rcx=.user r11=0x30242
        o64 sysret
.user:  pushfq
        pop rax
; out: rax=0x242 flags=ZF,IF cs=0x33 ss=0x2b
; out-mem: STACK+0xff8 = 42 02

; case: sysret-to-noncanonical
; vendor: intel
; mode: long64
; qemu-differs: faults at the target; SDM vol. 2B, "SYSRET": #GP(0) if RCX is not canonical
; in: rcx=0x8000000000000000 r11=0x202
.here:  o64 sysret
; fault: #GP(0) at .here

; case: sysenter-to-64-bit
; vendor: intel
; setup:
        wrmsr_imm 0x174, KCODE64
        wrmsr_imm 0x175, KSTACK_TOP - 0x100
        wrmsr_imm 0x176, .entry
; code:
        sysenter
.entry: mov eax, cs
        mov ebx, ss
; out: rax=0x10 rbx=0x18 rsp=KSTACK+0x3f00 flags=-IF cs=0x10 ss=0x18

; case: sysenter-with-null-cs
; vendor: intel
; host: no, a system call
.here:  sysenter
; fault: #GP(0) at .here

; case: sysenter-in-protected-mode
; mode: pm32 cpl=3
; setup:
        wrmsr_imm 0x174, KCODE32
        wrmsr_imm 0x175, KSTACK_TOP - 0x100
        wrmsr_imm 0x176, .entry
; code:
; in: edx=1
        sysenter
.entry: mov eax, cs
        mov ebx, ss
; out: eax=8 ebx=0x10 esp=KSTACK+0x3f00 flags=-IF cs=8 ss=0x10

; case: sysenter-in-real-mode
; qemu-differs: 10.0 raises #UD; SDM vol. 2B, "SYSENTER": #GP in real-address mode
; mode: real
.here:  sysenter
; fault: #GP(0) at .here

; case: sysexit-in-protected-mode
; mode: pm32
; setup:
        wrmsr_imm 0x174, KCODE32
; code:
; in: ecx=STACK+0x800 edx=.user
        sysexit
.user:  mov eax, cs
        mov ebx, ss
; out: eax=0x1b ebx=0x23 esp=STACK+0x800 cs=0x1b ss=0x23

; case: sysexit-with-null-cs
; mode: pm32
.here:  sysexit
; fault: #GP(0) at .here

; case: sysexit-to-64-bit
; vendor: intel
; mode: long64
; setup:
        wrmsr_imm 0x174, KCODE64
; code:
; in: rcx=STACK+0x800 rdx=.user
        o64 sysexit
.user:  mov eax, cs
        mov ebx, ss
; out: rax=0x33 rbx=0x3b rsp=STACK+0x800 cs=0x33 ss=0x3b

; case: swapgs-then-user-base
; mode: long64
; setup:
        wrmsr_imm 0xc0000102, DATA
; code:
        swapgs
        mov byte [gs:4], 1
; out-mem: DATA+0x4 = 01

; case: swapgs-in-compatibility-mode
; mode: compat32
.here:  db 0x0f, 0x01, 0xf8
; fault: #UD at .here

; What AMD's processors do otherwise. APM vol. 3, "SYSCALL", "SYSRET", "SYSENTER", "SYSEXIT".

; case: syscall-from-compatibility-mode-on-amd
; vendor: amd
; mode: compat32 cpl=3
; in: eax=5 ecx=5 flags=CF
; setup:
        wrmsr_imm 0xc0000083, .entry
        wrmsr_imm 0xc0000084, 0x601
; code:
        syscall
bits 64
.entry: mov eax, cs
        mov ebx, ss
; out: rax=0x10 rcx=CODE+0x2 rbx=0x18 r11=0x203 flags=-IF cs=0x10 ss=0x18

; case: syscall-in-protected-mode-on-amd
; vendor: amd
; mode: pm32 cpl=3
; in: ecx=5 flags=CF
; setup:
        wrmsr_imm 0xc0000080, 1
        mov ecx, 0xc0000081
        mov eax, .entry
        mov edx, 0x00230008
        wrmsr
; code:
        syscall
.entry: mov eax, cs
        mov ebx, ss
; out: eax=0x8 ecx=CODE+0x2 ebx=0x10 flags=CF,-IF cs=0x8 ss=0x10

; case: sysret-to-noncanonical-on-amd
; vendor: amd
; qemu-differs: 10.0 sets CR2; SDM vol. 3, "Control Registers": CR2 has the address of a page fault
; mode: long64
; in: rcx=0x8000000000000000 r11=0x202
        o64 sysret
; fault: #GP(0) at 0x8000000000000000
; out: flags=IF cs=0x33 ss=0x2b

; case: sysenter-in-64-bit-mode-on-amd
; vendor: amd
; setup:
        wrmsr_imm 0x174, KCODE64
        wrmsr_imm 0x176, .here
; code:
.here:  sysenter
; fault: #UD at .here

; case: sysenter-in-a-process-on-amd
; vendor: amd
.here:  sysenter
; fault: #UD at .here

; case: sysexit-in-64-bit-mode-on-amd
; vendor: amd
; mode: long64
; setup:
        wrmsr_imm 0x174, KCODE64
; code:
.here:  o64 sysexit
; fault: #UD at .here
