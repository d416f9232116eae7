; x87 addition, subtraction, multiplication, division: operands, results, tags, exceptions masked.
; SDM vol. 1, "Programming With the x87 FPU".
; mode: long64 cpl=3

; case: fadd-st0-sti
; in: st0=1.5 st1=2.25
        fadd st0, st1
; out: st0=3.75

; case: fadd-sti-st0
; in: st0=1.5 st1=2.25
        fadd st1, st0
; out: st1=3.75

; case: faddp-pops
; in: st0=1.5 st1=2.25
        faddp st1, st0
; out: fsw=0x3800 ftw=0x80 st0=3.75

; case: fsubr-and-fsub-to-sti
; in: st0=1.5 st1=2.25 st2=10.0
        fsub st1, st0
        fsubr st2, st0
; out: st1=0.75 st2=-8.5

; case: fmul-memory-single
; in: st0=3.0 rsi=DATA
; in-mem: DATA = f32:-0.5
        fmul dword [rsi]
; out: st0=-1.5

; case: fdiv-memory-double
; in: st0=3.0 rsi=DATA
; in-mem: DATA = f64:4.0
        fdiv qword [rsi]
; out: st0=0.75

; case: fdivr-memory-integer-16
; in: st0=4.0 rsi=DATA
; in-mem: DATA = u16:3
        fidivr word [rsi]
; out: st0=0.75

; case: fiadd-memory-integer-32-negative
; in: st0=4.0 rsi=DATA
; in-mem: DATA = u32:0xfffffff6
        fiadd dword [rsi]
; out: st0=-6.0

; case: divide-by-zero-masked-gives-infinity
; in: st0=-1.0 st1=0.0
        fdiv st0, st1
; out: fsw=0x3004 st0=ffff_8000000000000000

; case: zero-by-zero-is-invalid
; in: st0=0.0 st1=0.0
        fdiv st0, st1
; out: fsw=0x3001 st0=ffff_c000000000000000

; case: infinity-minus-infinity-is-invalid
; in: st0=7fff_8000000000000000 st1=7fff_8000000000000000
        fsub st0, st1
; out: fsw=0x3001 st0=ffff_c000000000000000

; case: signalling-nan-is-quieted
; in: st0=1.0 st1=7fff_a000000000000001
        fadd st0, st1
; out: fsw=0x3001 st0=7fff_e000000000000001

; case: quiet-nan-with-larger-significand-wins
; in: st0=7fff_c000000000000001 st1=ffff_c000000000000002
        fadd st0, st1
; out: st0=ffff_c000000000000002

; case: denormal-operand-sets-the-flag
; qemu-differs: never reports denormal operands of x87; SDM vol. 1, "Denormal Operand Exception (#D)": DE is set
; in: st0=1.0 st1=0000_0000000000000001
        fmul st0, st1
; out: fsw=0x3002 st0=0000_0000000000000001

; case: stack-underflow
; qemu-differs: does not look at tags; SDM vol. 1, "Stack Overflow or Underflow Exception": IE, SF and the default NaN
; in: st0=1.0
        fadd st0, st1
; out: fsw=0x3841 st0=ffff_c000000000000000

; case: precision-control-single-rounds
; in: st0=1.0 st1=3fdb_8000000000000000 fcw=0x07f
        fadd st0, st1
; out: fsw=0x3020

; case: precision-control-double-rounds-down
; in: st0=1.0 st1=3fbf_8000000000000000 fcw=0x67f
        fadd st0, st1
; out: fsw=0x3020

; case: rounding-toward-zero-is-inexact
; in: st0=1.0 st1=3.0 fcw=0xf7f
        fdiv st0, st1
; out: fsw=0x3020 st0=3ffd_aaaaaaaaaaaaaaaa

; case: rounding-up-sets-c1
; qemu-differs: never sets C1; SDM vol. 1, "x87 FPU Condition Code": C1 says that the result was rounded up
; in: st0=2.0 st1=3.0
        fdiv st0, st1
; out: fsw=0x3220 st0=3ffe_aaaaaaaaaaaaaaab

; case: overflow-masked-gives-infinity
; qemu-differs: never sets C1; SDM vol. 1, "x87 FPU Condition Code"
; in: st0=7ffe_ffffffffffffffff st1=7ffe_ffffffffffffffff
        fadd st0, st1
; out: fsw=0x3228 st0=7fff_8000000000000000

; case: underflow-masked-gives-denormal
; in: st0=0001_8000000000000000 st1=2.0
        fdiv st0, st1
; out: st0=0000_4000000000000000

; case: fsqrt-exact
; in: st0=6.25
        fsqrt
; out: st0=2.5

; case: fsqrt-of-negative-is-invalid
; qemu-differs: sets C2; SDM vol. 2A, "FSQRT": only C1 is affected, and hardware leaves the others
; in: st0=-1.0
        fsqrt
; out: fsw=0x3801 st0=ffff_c000000000000000

; case: fabs-and-fchs
; in: st0=-1.0 st1=7fff_c000000000000000
        fabs
        fxch
        fchs
; out: st0=ffff_c000000000000000 st1=1.0

; case: frndint-each-mode
; qemu-differs: never sets C1; SDM vol. 1, "x87 FPU Condition Code": C1 says that the result was rounded up
; in: st0=2.5 st1=-2.5 fcw=0x77f
        frndint
        fxch
        frndint
; out: fsw=0x3220 st0=-3.0 st1=2.0

; case: fprem
; in: st0=10.0 st1=3.0
        fprem
; out: fsw=0x7200 st0=1.0

; case: fprem1-rounds-the-quotient
; qemu-differs: leaves C0, C1 and C3; SDM vol. 2A, "FPREM1": they are the low bits of the quotient
; in: st0=11.0 st1=4.0
        fprem1
; out: fsw=0x7200 st0=-1.0

; case: fscale
; in: st0=1.5 st1=3.75
        fscale
; out: st0=12.0

; case: fxtract
; in: st0=-12.0
        fxtract
; out: fsw=0x3000 ftw=0xc0 st0=-1.5 st1=3.0

; case: fxtract-of-zero-divides-by-zero
; in: st0=0.0
        fxtract
; out: fsw=0x3004 ftw=0xc0 st1=ffff_8000000000000000
