; IMUL with two and three operands: CF and OF say whether the product was cut.
; SDM vol. 2A, "IMUL-Signed Multiply".
; mode: long64 cpl=3
; undef: flags=SF,ZF,AF,PF

; case: imm8-fits
; in: rbx=-3
        imul rax, rbx, 7
; out: rax=0xffffffffffffffeb

; case: imm32-overflows
; in: rbx=0x10000
        imul eax, ebx, 0x10000
; out: flags=CF,OF

; case: word-cut
; in: rax=0x7fff rbx=2
        imul ax, bx
; out: rax=0xfffe flags=CF,OF

; case: qword-minimum-times-minus-one
; in: rax=0x8000000000000000 rbx=-1
        imul rax, rbx
; out: flags=CF,OF

; case: memory-source
; in: rax=6 rsi=DATA
; in-mem: DATA = u32:0xfffffff9
        imul eax, [rsi]
; out: rax=0xffffffd6
