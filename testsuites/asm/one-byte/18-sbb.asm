; SBB: the borrow in counts for borrow and overflow out.
; SDM vol. 2B, "SBB-Integer Subtraction With Borrow".
; mode: long64 cpl=3

; case: borrow-mask-idiom
; in: rax=0x1234 flags=CF
        sbb rax, rax
; out: rax=0xffffffffffffffff flags=CF,PF,AF,SF

; case: borrow-mask-idiom-clear
; in: rax=0x1234
        sbb eax, eax
; out: rax=0 flags=PF,ZF

; case: equal-with-borrow
; in: rax=0x80 rbx=0x80 flags=CF
        sbb al, bl
; out: rax=0xff flags=CF,PF,AF,SF

; case: minimum-minus-zero-with-borrow-overflows
; in: rax=0x80000000 flags=CF
        sbb eax, 0
; out: rax=0x7fffffff flags=PF,AF,OF

; case: subtrahend-all-ones-with-borrow
; in: rax=5 rbx=0xffffffff_ffffffff flags=CF
        sbb rax, rbx
; out: flags=CF,PF,AF
