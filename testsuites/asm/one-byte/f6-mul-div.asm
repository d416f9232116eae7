; MUL, IMUL, DIV, IDIV with one operand: widths, overflow flags, divide errors at the edges.
; SDM vol. 2A, "DIV-Unsigned Divide"; "IDIV-Signed Divide"; vol. 2B, "MUL-Unsigned Multiply".
; mode: long64 cpl=3
; undef: flags=SF,ZF,AF,PF

; case: mul-byte
; in: rax=0x11ff rbx=0xff
        mul bl
; out: rax=0xfe01 flags=CF,OF

; case: mul-byte-fits
; in: rax=0x10 rbx=0x0f
        mul bl
; out: rax=0xf0

; case: mul-word
; in: rax=0xffff rdx=0xaaaaaaaa rbx=0x2
        mul bx
; out: rax=0xfffe rdx=0xaaaa0001 flags=CF,OF

; case: mul-dword
; in: rax=0xffffffff rdx=-1 rbx=0xffffffff
        mul ebx
; out: rax=1 rdx=0xfffffffe flags=CF,OF

; case: mul-qword
; in: rax=0xffffffffffffffff rbx=0xfffffffffffffffe
        mul rbx
; out: rax=2 rdx=0xfffffffffffffffd flags=CF,OF

; case: imul-byte-negative-fits
; in: rax=0xfe rbx=0x03
        imul bl
; out: rax=0xfffa

; case: imul-dword-cut
; in: rax=0x80000000 rbx=0xffffffff
        imul ebx
; out: flags=CF,OF

; case: imul-qword
; in: rax=-1 rbx=0x7fffffffffffffff
        imul rbx
; out: rax=0x8000000000000001 rdx=0xffffffffffffffff

; case: div-byte
; in: rax=0x0123 rbx=0x10
; undef: flags=CF,OF
        div bl
; out: rax=0x312

; case: div-word
; in: rax=0x2345 rdx=1 rbx=0x100
; undef: flags=CF,OF
        div bx
; out: rax=0x123 rdx=0x45

; case: div-dword-clears-upper-halves
; in: rax=0xffffffff_00000007 rdx=0xffffffff_00000001 rbx=3
; undef: flags=CF,OF
        div ebx
; out: rax=0x55555557 rdx=2

; case: div-qword-128-bit-dividend
; in: rax=0 rdx=1 rbx=3
; undef: flags=CF,OF
        div rbx
; out: rax=0x5555555555555555

; case: div-by-zero
; in: rax=1
.here:  div ecx
; fault: #DE at .here

; case: div-quotient-too-large-by-one
; in: rax=0 rdx=5 rbx=5
.here:  div rbx
; fault: #DE at .here

; case: div-largest-quotient
; in: rax=-1 rdx=4 rbx=5
; undef: flags=CF,OF
        div rbx
; out: unchanged

; case: div-byte-overflow
; in: rax=0x1000 rbx=0x10
.here:  div bl
; fault: #DE at .here

; case: idiv-rounds-to-zero
; in: rax=-7 rdx=-1 rbx=2
; undef: flags=CF,OF
        idiv rbx
; out: rax=0xfffffffffffffffd

; case: idiv-remainder-has-dividend-sign
; in: rax=7 rbx=-2
; undef: flags=CF,OF
        idiv ebx
; out: rax=0xfffffffd rdx=1

; case: idiv-minimum-by-minus-one
; in: rax=0x80000000 rdx=0xffffffff rbx=0xffffffff
.here:  idiv ebx
; fault: #DE at .here

; case: idiv-byte-minimum-quotient-is-allowed
; in: rax=0xff00 rbx=2
; undef: flags=CF,OF
        idiv bl
; out: rax=0x80

; case: idiv-byte-quotient-128
; in: rax=0x0100 rbx=2
.here:  idiv bl
; fault: #DE at .here

; case: idiv-qword-minimum-by-minus-one
; in: rax=0x8000000000000000 rdx=-1 rbx=-1
.here:  idiv rbx
; fault: #DE at .here

; case: div-memory-zero
; in: rsi=DATA rax=5
.here:  div word [rsi]
; fault: #DE at .here

; case: div-memory-absent-page-before-divide-error
; in: rsi=ABSENT
.here:  div dword [rsi]
; fault: #PF(4) at .here
; out: cr2=ABSENT
