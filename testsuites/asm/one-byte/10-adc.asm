; ADC: the carry in counts for carry and overflow out.
; SDM vol. 2A, "ADC-Add With Carry".
; mode: long64 cpl=3

; case: carry-in-wraps-to-zero
; in: rax=0xff rbx=0 flags=CF
        adc al, bl
; out: rax=0 flags=CF,PF,AF,ZF

; case: all-ones-plus-all-ones-plus-carry
; in: rax=0xffffffff rbx=0xffffffff flags=CF
        adc eax, ebx
; out: flags=CF,PF,AF,SF

; case: carry-in-makes-overflow
; in: rax=0x7fffffff_ffffffff flags=CF
        adc rax, 0
; out: rax=0x8000000000000000 flags=PF,AF,SF,OF

; case: no-carry-in
; in: rax=0x8000 rbx=0x8000
        adc ax, bx
; out: rax=0 flags=CF,PF,ZF,OF

; case: chain-of-four-words
; in: rsi=DATA rdi=DATA+0x20
; in-mem: DATA = ff ff ff ff ff ff ff ff 00 00 00 00 00 00 00 80
; in-mem: DATA+0x20 = 01 00 00 00 00 00 00 00 ff ff ff ff ff ff ff 7f
        mov rax, [rsi]
        add [rdi], rax
        mov rax, [rsi + 8]
        adc [rdi + 8], rax
; out: rax=0x8000000000000000 flags=CF,PF,AF,ZF
; out-mem: DATA+0x20 = 00
; out-mem: DATA+0x28 = 00 00 00 00 00 00 00 00
