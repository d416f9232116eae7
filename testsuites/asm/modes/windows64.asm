; 64-bit code that reaches several pages from one base: where the first access to each faults on the way, what the code
; before it has worked out must still be there behind it. DATA and STACK are 64 KiB apart.
; SDM vol. 1, "Specifying an Offset"; vol. 3A, "Page-Fault Exceptions".
; mode: long64 cpl=3

; case: loads-from-two-pages
; in: rbx=DATA
; in-mem: DATA = u64:0x1122334455667788,0x99aabbccddeeff00
; in-mem: STACK = u64:0x0123456789abcdef
        mov rax, [rbx]
        mov rcx, [rbx + 0x10000]
        mov rdx, [rbx + 8]
; out: rax=0x1122334455667788 rcx=0x123456789abcdef rdx=0x99aabbccddeeff00

; case: stores-to-two-pages
; in: rax=0x1111 rbx=DATA rcx=0x2222 rdx=0x3333
        mov [rbx], rax
        mov [rbx + 0x10000], rcx
        mov [rbx + 16], rdx
        mov [rbx + 0x11000], rax
; out-mem: DATA = 11 11
; out-mem: DATA+0x10 = 33 33
; out-mem: STACK = 22 22
; out-mem: STACK+0x1000 = 11 11

; case: scratch-registers-between
; in: rbx=DATA r10=5 r11=7
; in-mem: DATA = u64:0x1000,0x2000
; in-mem: STACK = u64:0x30000
        mov rax, [rbx]
        mov r11, [rbx + 0x10000]
        add r10, r11
        mov rcx, [rbx + 8]
        add [rbx + 0x10008], r10
        mov r10, [rbx]
        lea rdx, [r10 + r11]
        mov [rbx + 24], rdx
; out: rax=0x1000 rcx=0x2000 rdx=0x31000 r10=0x1000 r11=0x30000 flags=PF
; out-mem: DATA+0x19 = 10 03
; out-mem: STACK+0x8 = 05 00 03

; case: three-bases-by-turns
; in: rax=3 rbx=DATA rsi=STACK rdi=RO
; in-mem: DATA = u64:0x10,0x20
; in-mem: STACK = u64:0x300,0x400
        mov rcx, [rbx]
        mov rdx, [rsi]
        add rcx, [rdi]
        mov [rbx + 8], rcx
        mov [rsi + 8], rdx
        add rax, [rbx + 0x10008]
        push rax
        push qword [rsi + 8]
        add rcx, [rsi - 0x10000]
        pop rbp
        pop r11
        mov r12, [rsp - 8]
; out: rax=0x303 rcx=0x20 rdx=0x300 rbp=0x300 r11=0x303 r12=0x303
; out-mem: DATA+0x8 = 10
; out-mem: STACK+0x9 = 03
; out-mem: STACK+0xff1 = 03
; out-mem: STACK+0xff8 = 03 03

; case: fixed-addresses
; in: rax=0x77
; in-mem: DATA = u64:0x1234
; in-mem: STACK = u64:0x5678
        mov rcx, [abs DATA]
        mov [abs STACK + 16], rax
        add rcx, [abs STACK]
        mov rdx, [rel DATA]
        xchg rdx, [abs DATA + 8]
        mov [abs DATA + 16], r11
        mov r11, [abs STACK]
        add qword [abs DATA], 0x1000
; out: rcx=0x68ac r11=0x5678
; out-mem: DATA+0x1 = 22
; out-mem: DATA+0x8 = 34 12
; out-mem: STACK+0x10 = 77

; case: a-page-that-is-not-there-behind-one-that-is
; in: rax=9 rbx=DATA
        mov [rbx], rax
        inc rax
        mov [rbx + 0x2000], rax
; fault: #PF(6) at CODE+0x6
; out: rax=0xa flags=PF cr2=ABSENT
; out-mem: DATA = 09

; case: a-page-that-may-not-be-written-behind-one-that-may
; in: rax=9 rbx=DATA
        mov [rbx + 0x10000], rax
        mov rcx, [rbx + 0x4000]
        mov [rbx + 0x4000], rax
; fault: #PF(7) at CODE+0xe
; out: cr2=RO
; out-mem: STACK = 09

; case: pushes-over-pages
; in: rax=1 rcx=2 rbx=DATA rsp=STACK_MID+16
        push rax
        push rcx
        mov [rbx], rsp
        push 3
        push qword [rbx]
        mov rdx, [rsp + 16]
        pop rsi
        pop rdi
        mov [rbx + 8], rsi
        pop rbp
; out: rdx=2 rsp=STACK+0x1008 rbp=2 rsi=STACK+0x1000 rdi=3
; out-mem: DATA+0x1 = 10 02 01
; out-mem: DATA+0x9 = 10 02 01
; out-mem: STACK+0xff1 = 10 02 01
; out-mem: STACK+0xff8 = 03
; out-mem: STACK+0x1000 = 02
; out-mem: STACK+0x1008 = 01
