; System calls again and again: what is learnt at the first must hold for the next, and no longer.
; SDM vol. 2B, "SYSCALL", "SYSRET", "SWAPGS"; vol. 3, "Fast System Calls in 64-Bit Mode".
; mode: long64 cpl=3

; case: flags-and-selectors-of-many-calls
; host: no, system calls
; setup:
        wrmsr_imm 0xc0000082, .entry
        wrmsr_imm 0xc0000084, 0x40701
; code:
        mov ebp, 100
        xor ebx, ebx
        xor edi, edi
.again: stc
        syscall
        adc ebx, 1
        mov eax, ss
        add edi, eax
        dec ebp
        jnz .again
        jmp .end
.entry: adc edi, 0
        pushfq
        pop rsi
        add edx, esi
        mov eax, cs
        add edi, eax
        mov eax, ss
        add edi, eax
        o64 sysret
.end:   mov eax, cs
; out: rax=0x33 rcx=CODE+0xc rdx=0x1c0 rbx=0xc8 rsi=2 rdi=0x206c r11=0x203 flags=PF,ZF
; out-mem: STACK+0xff8 = 02

; case: status-flags-that-the-mask-spares
; host: no, system calls
; qemu-differs: 10.0 clears them; SDM vol. 2B, "SYSCALL": RFLAGS AND NOT(IA32_FMASK)
; setup:
        wrmsr_imm 0xc0000082, .entry
        wrmsr_imm 0xc0000084, 0x40200
; code:
        mov ebp, 50
        xor edi, edi
.again: mov eax, 0x7fffffff
        add eax, 1
        syscall
        seto al
        movzx eax, al
        add edi, eax
        dec ebp
        jnz .again
        jmp .end
.entry: pushfq
        pop rsi
        mov rdx, r11
        o64 sysret
.end:   nop
; out: rax=1 rcx=CODE+0x11 rdx=0xa96 rsi=0x896 rdi=0x32 r11=0xa96 flags=PF,ZF
; out-mem: STACK+0xff8 = 96 08

; case: mask-is-changed-between-calls
; host: no, system calls
; setup:
        wrmsr_imm 0xc0000082, .entry
        wrmsr_imm 0xc0000084, 0x40700
; code:
        mov ebp, 40
        xor edi, edi
.again: stc
        syscall
        dec ebp
        jnz .again
        jmp .end
.entry: pushfq
        pop rsi
        and esi, 0x201
        lea edi, [rdi*2 + rsi]
        mov r8, rcx
        mov ecx, 0xc0000084
        xor edx, edx
        mov eax, 0x40701
        cmp ebp, 20
        ja .write
        mov eax, 0x40501
.write: wrmsr
        mov rcx, r8
        o64 sysret
.end:   nop
; out: rax=0x40501 rcx=CODE+0xa rsi=0x200 rdi=0xffffe00 r8=CODE+0xa r11=0x203 flags=CF,PF,ZF
; out-mem: STACK+0xff8 = 02 02

; case: return-with-interrupts-off
; host: no, system calls
; setup:
        wrmsr_imm 0xc0000082, .entry
        wrmsr_imm 0xc0000084, 0x40700
; code:
        mov ebp, 20
.again: syscall
        pushfq
        pop rax
        dec ebp
        jnz .again
        jmp .end
.entry: cmp ebp, 4
        ja .return
        and r11d, ~0x200
.return: o64 sysret
.end:   nop
; out: rax=2 rcx=CODE+0x7 r11=2 flags=PF,ZF,-IF
; out-mem: STACK+0xff8 = 02

; case: return-with-direction-flag-set
; host: no, system calls
; setup:
        wrmsr_imm 0xc0000082, .entry
        wrmsr_imm 0xc0000084, 0x40700
; code:
        mov ebp, 20
        xor ebx, ebx
.again: syscall
        pushfq
        pop rax
        and eax, 0x400
        add ebx, eax
        dec ebp
        jnz .again
        jmp .end
.entry: test ebp, 3
        jnz .return
        or r11d, 0x400
.return: o64 sysret
.end:   nop
; out: rax=0x400 rcx=CODE+0x9 rbx=0x5000 r11=0x602 flags=PF,ZF,DF
; out-mem: STACK+0xff8 = 02 06

; case: return-to-noncanonical-after-many
; vendor: intel
; host: no, system calls
; qemu-differs: faults at the target; SDM vol. 2B, "SYSRET": #GP(0) if RCX is not canonical
; setup:
        wrmsr_imm 0xc0000082, .entry
        wrmsr_imm 0xc0000084, 0x40701
; code:
        mov ebp, 10
.again: syscall
        dec ebp
        jmp .again
.entry: cmp ebp, 2
        ja .return
        bts rcx, 47
.return: o64 sysret
; fault: #GP(0) at .return
; out: rcx=0x800001000007 rbp=2 r11=0x202 flags=PF,ZF,-IF cs=0x10 ss=0x18

; case: calls-are-disabled-after-many
; host: no, system calls
; setup:
        wrmsr_imm 0xc0000082, .entry
        wrmsr_imm 0xc0000084, 0x40701
; code:
        mov ebp, 10
.again:
.here:  syscall
        dec ebp
        jmp .again
.entry: cmp ebp, 2
        ja .return
        mov r8, rcx
        mov ecx, 0xc0000080
        rdmsr
        and eax, ~1
        wrmsr
        mov rcx, r8
        o64 sysret
.return: o64 sysret
; fault: #UD at CODE+0x22
; out: rax=0xd00 rcx=CODE+0x7 rbp=2 r8=CODE+0x7 r11=0x202 flags=PF,-IF cs=0x10 ss=0x18

; case: bases-swapped-by-turns
; host: no, system calls
; setup:
        wrmsr_imm 0xc0000082, .entry
        wrmsr_imm 0xc0000084, 0x40701
        wrmsr_imm 0xc0000101, DATA
        wrmsr_imm 0xc0000102, DATA+0x100
; code:
        mov ebp, 30
.again: mov [gs:0], ebp
        syscall
        add dword [gs:8], 1
        dec ebp
        jnz .again
        jmp .end
.entry: mov esi, [gs:0]
        swapgs
        add [gs:0], esi
        mov r9d, [gs:0]
        swapgs
        mov r10d, [gs:0]
        add [gs:0x10], r10d
        swapgs
        swapgs
        o64 sysret
.end:   nop
; out: rcx=CODE+0xf rsi=1 r9=0x1d1 r10=1 r11=0x202 flags=PF,ZF
; out-mem: DATA = 01
; out-mem: DATA+0x8 = 1e
; out-mem: DATA+0x10 = d1 01
; out-mem: DATA+0x100 = d1 01

; case: swapgs-of-a-user
.here:  swapgs
; fault: #GP(0) at .here

; case: vectors-across-many-calls
; host: no, system calls
; in: xmm1=u32:1,2,3,4
; setup:
        wrmsr_imm 0xc0000082, .entry
        wrmsr_imm 0xc0000084, 0x40701
; code:
        mov ebp, 30
.again: paddd xmm0, xmm1
        syscall
        dec ebp
        jnz .again
        jmp .end
.entry: test ebp, 1
        jnz .return
        mov eax, 0
        mov r8, rcx
        cpuid
        mov rcx, r8
        paddd xmm0, xmm1
.return: o64 sysret
.end:   xor eax, eax
        xor ebx, ebx
        xor edx, edx
        xor ecx, ecx
; out: r8=CODE+0xb r11=0x202 flags=PF,ZF xmm0=u32:0x2d,0x5a,0x87,0xb4
