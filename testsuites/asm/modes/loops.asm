; Loops that fit in one block: left after any round, in any way, and with all that a round has changed.
; SDM vol. 2A, "Jcc-Jump if Condition Is Met"; vol. 3A, "Page-Fault Exceptions".
; mode: long64 cpl=3

; case: over-after-each-number-of-rounds
; in: rbx=DATA
; in-mem: DATA = u64:1,10,100,1000,10000,100000,1000000,10000000,100000000,1000000000
        mov r8d, 1
.next:  mov ecx, r8d
        mov rsi, rbx
.again: add rax, [rsi]
        add rsi, 8
        dec ecx
        jne .again
        imul rax, rax, 3
        inc r8d
        cmp r8d, 11
        jne .next
; out: rax=0x11bd45232 rsi=DATA+0x50 r8=0xb flags=PF,ZF

; case: each-condition-leads-back
; how many rounds each takes from the same value, at most 255
%assign n 0
%rep 16
        mov ecx, 0x10
        xor edx, edx
.again %+ n:
        inc dl
        jz .over %+ n
        add ecx, 0x0dcba987
        db 0x70 + n, .again %+ n - ($ + 2)
.over %+ n:
        imul rax, rax, 7
        add rax, rdx
  %assign n n + 1
%endrep
; out: rax=0xad0c6368f7a rcx=0x97c048dd rdx=0xb flags=AF

; case: flags-from-one-round-to-the-next
; in: rbx=DATA rsi=STACK rcx=7
; in-mem: DATA = u64:-1,-1,5,-1,0,-1,-1
; in-mem: STACK = u64:1,0,0,1,-1,0,0
        clc
.again: mov rax, [rsi]
        adc [rbx], rax
        lea rbx, [rbx + 8]
        lea rsi, [rsi + 8]
        dec ecx
        jne .again
        setc dl
; out: rcx=0 rdx=1 rbx=DATA+0x38 rsi=STACK+0x38 flags=CF,PF,ZF
; out-mem: DATA = 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
; out-mem: DATA+0x10 = 06
; out-mem: DATA+0x18 = 00 00 00 00 00 00 00 00
; out-mem: DATA+0x28 = 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00

; case: flags-from-one-round-to-the-next-in-32-bit-code
; mode: paging32
; in: rbx=DATA rsi=STACK rcx=7
; in-mem: DATA = u32:0xffffffff,0xffffffff,5,0xffffffff,0,0xffffffff,0xffffffff
; in-mem: STACK = u32:1,0,0,1,0xffffffff,0,0
        clc
.again: mov eax, [esi]
        adc [ebx], eax
        lea ebx, [ebx + 4]
        lea esi, [esi + 4]
        dec ecx
        jne .again
        setc dl
; out: ecx=0 edx=1 ebx=DATA+0x1c esi=STACK+0x1c flags=CF,PF,ZF
; out-mem: DATA = 00 00 00 00 00 00 00 00 06 00 00 00 00 00 00 00
; out-mem: DATA+0x14 = 00 00 00 00 00 00 00 00

; case: left-in-the-middle-of-a-round
; in: rbx=DATA
; in-mem: DATA = u64:2,4,6,8,10,12,13,14
.again: add rcx, [rbx]
        test byte [rbx], 1
        jne .odd
        add rbx, 8
        inc edx
        jmp .again
.odd:   mov rax, [rbx + 8]
; out: rax=0xe rcx=0x37 rdx=6 rbx=DATA+0x30

; case: fault-in-a-later-round
; the sixth round reads behind DATA's pages
; in: rbx=ABSENT-40 rcx=100 rdx=1
.again: lea rdx, [rdx + rdx * 2]
        add rdx, [rbx]
        add rbx, 8
        dec rcx
        jne .again
; fault: #PF(4) at CODE+0x4
; out: rcx=0x5f rdx=0x2d9 rbx=ABSENT flags=PF,AF cr2=ABSENT

; case: fault-behind-a-change-in-a-later-round
; what is written stays, and the flags are those of the instruction before
; in: rbx=DATA rcx=0x7ffffffffffffffb
.again: inc rcx
        mov [rbx], rcx
        lea rbx, [rbx + 0x800]
        cmp ecx, 0x55
        jne .again
; fault: #PF(6) at CODE+0x3
; out: rcx=0x8000000000000000 rbx=ABSENT flags=PF,AF,SF,OF cr2=ABSENT
; out-mem: DATA = fc ff ff ff ff ff ff 7f
; out-mem: DATA+0x800 = fd ff ff ff ff ff ff 7f
; out-mem: DATA+0x1000 = fe ff ff ff ff ff ff 7f
; out-mem: DATA+0x1800 = ff ff ff ff ff ff ff 7f

; case: vector-and-x87-registers-over-rounds
; in: rbx=DATA rcx=11
; in-mem: DATA = u64:0x3ff0000000000000,0x4000000000000000,0x4008000000000000
        fld1
        movsd xmm0, [rbx]
        movsd xmm1, [rbx + 8]
.again: fadd st0, st0
        addsd xmm0, xmm1
        mulsd xmm1, [rbx + 16]
        fadd qword [rbx + 8]
        dec ecx
        jne .again
        fstp qword [rbx + 24]
        movq rax, xmm0
        movq rdx, xmm1
; out: rax=0x41059fd800000000 rcx=0 rdx=0x41159fd800000000 flags=PF,ZF st7=6142.0
; out: xmm0=0000000000000000_41059fd800000000 xmm1=0000000000000000_41159fd800000000
; out-mem: DATA+0x1d = fe b7 40

; case: scratch-registers-over-rounds
; in: rbx=DATA r10=3 r11=0x100 rcx=9
; in-mem: DATA = u64:1,2,3,4,5,6,7,8,9
.again: add r10, [rbx]
        xor r11, r10
        mov [rbx + 0x100], r11
        imul r10, r10, 5
        add rbx, 8
        dec ecx
        jne .again
; out: rcx=0 rbx=DATA+0x48 r10=0x87f910 r11=0x1f6834 flags=PF,ZF
; out-mem: DATA+0x100 = 04 01
; out-mem: DATA+0x108 = 12 01
; out-mem: DATA+0x110 = 63 01
; out-mem: DATA+0x118 = 5a 03
; out-mem: DATA+0x120 = 78 08
; out-mem: DATA+0x128 = c8 3f
; out-mem: DATA+0x130 = bf 29 01
; out-mem: DATA+0x138 = e4 59 04
; out-mem: DATA+0x140 = 34 68 1f

; case: a-round-changes-the-next
; the routine is copied to RWX: its third round patches what its fourth adds
        lea rsi, [rel .routine]
        mov edi, RWX
        mov ecx, .routine_end - .routine
        rep movsb
        mov eax, RWX
        mov ecx, 9
        xor ebx, ebx
        jmp rax
.routine:
        cmp ecx, 7
        sete dl
        lea edx, [rdx * 4 + 1]
        mov [rel .patched + 2], dl
.patched:
        add ebx, 1
        imul ebx, ebx, 3
        dec ecx
        jne .routine
        ud2
.routine_end:
; fault: #UD at RWX+0x1d
; out: rax=RWX rdx=1 rbx=0x957f rsi=CODE+0x40 rdi=RWX+0x1f flags=PF,ZF
; out-mem: RWX = 83 f9 07 0f 94 c2 8d 14 95 01 00 00 00 88 15 02
; out-mem: RWX+0x13 = 83 c3 01 6b db 03 ff c9 75 e3 0f 0b
