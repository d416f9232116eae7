; LEA: address arithmetic without access, cut to operand and address size.
; SDM vol. 2A, "LEA-Load Effective Address".
; mode: long64 cpl=3

; case: base-index-scale
; in: rbx=0x1000 rcx=0x20 flags=CF,ZF
        lea rax, [rbx + rcx * 4 + 3]
; out: rax=0x1083

; case: no-access-is-made
; in: rbx=0x8000000000000000
        lea rax, [rbx + 8]
; out: rax=0x8000000000000008

; case: word-result
; in: rax=-1 rbx=0x12345678
        lea ax, [rbx + 1]
; out: rax=0xffffffffffff5679

; case: address-size-32-zero-extends
; in: rbx=0xffffffffffffffff
        lea rax, [ebx + 2]
; out: rax=1

; case: dword-result-of-64-bit-address
; in: rbx=0xfffffffffffffff0
        lea eax, [rbx + 0x20]
; out: rax=0x10

; case: sixteen-bit-address-wraps
; mode: pm32 cpl=3
; in: ebx=0xfffff esi=2
        lea eax, [bx + si]
; out: eax=1

; case: sixteen-bit-bp-di-displacement
; mode: pm32 cpl=3
; in: ebp=0x8000 edi=0x10
        lea ax, [bp + di - 0x20]
; out: eax=0x7ff0

; case: register-form-is-undefined
.here:  db 0x8d, 0xc0
; fault: #UD at .here

; case: rip-relative
        lea rax, [rel .after]
.after:
; out: rax=CODE+0x7
