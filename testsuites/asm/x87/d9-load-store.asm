; x87 loads, stores, constants, stack control.
; SDM vol. 2A, "FLD-Load Floating-Point Value" and its relatives.
; mode: long64 cpl=3

; case: fld-single
; in: rsi=DATA
; in-mem: DATA = f32:-0.75
        fld dword [rsi]
; out: fsw=0x3800 ftw=0x80 st0=-0.75

; case: fld-double-denormal-is-normalised
; qemu-differs: never reports denormal operands of x87; SDM vol. 1, "Denormal Operand Exception (#D)"
; in: rsi=DATA
; in-mem: DATA = u64:1
        fld qword [rsi]
; out: fsw=0x3802 ftw=0x80 st0=3bcd_8000000000000000

; case: fld-extended-keeps-every-bit
; in: rsi=DATA
; in-mem: DATA = 01 23 45 67 89 ab cd ef fe 7f
        fld tword [rsi]
; out: fsw=0x3800 ftw=0x80 st0=7ffe_efcdab8967452301

; case: fld-single-signalling-nan
; in: rsi=DATA
; in-mem: DATA = u32:0x7f800001
        fld dword [rsi]
; out: fsw=0x3801 ftw=0x80 st0=7fff_c000010000000000

; case: fld-stack-overflow
; qemu-differs: does not check for overflow; SDM vol. 1, "Stack Overflow or Underflow Exception": IE, SF and C1, and the default NaN
; in: st0=0.0 st1=1.0 st2=2.0 st3=3.0 st4=4.0 st5=5.0 st6=6.0 st7=7.0
        fld1
; out: fsw=0x3a41 st0=ffff_c000000000000000

; case: constants
        fld1
        fldz
        fldpi
        fldl2e
; out: fsw=0x2000 ftw=0xf0 st0=3fff_b8aa3b295c17f0bc st1=4000_c90fdaa22168c235 st3=1.0

; case: constants-round-down
; in: fcw=0x77f
        fldpi
        fldl2t
        fldlg2
        fldln2
; out: fsw=0x2000 ftw=0xf0 st0=3ffe_b17217f7d1cf79ab st1=3ffd_9a209a84fbcff798
; out: st2=4000_d49a784bcd1b8afe st3=4000_c90fdaa22168c234

; case: fild-16-32-64
; in: rsi=DATA
; in-mem: DATA = u64:0x8000000000008001
        fild word [rsi]
        fild dword [rsi]
        fild qword [rsi]
; out: fsw=0x2800 ftw=0xe0 st0=c03d_fffffffffffefffe st1=32769.0 st2=-32767.0

; case: fist-rounds-to-even
; in: st0=2.5 rdi=DATA
        fist dword [rdi]
; out: fsw=0x3820
; out-mem: DATA = 02

; case: fistp-out-of-range-stores-the-indefinite
; in: st0=3000000000.0 rdi=DATA
        fistp dword [rdi]
; out: fsw=1 ftw=0
; out-mem: DATA+0x3 = 80

; case: fistp-64
; in: st0=-4294967297.0 rdi=DATA
        fistp qword [rdi]
; out: fsw=0 ftw=0
; out-mem: DATA = ff ff ff ff fe ff ff ff

; case: fisttp-truncates
; in: st0=-2.75 rdi=DATA
        fisttp word [rdi]
; out: fsw=0x20 ftw=0
; out-mem: DATA = fe ff

; case: fst-single-inexact
; in: st0=1.0000000001 rdi=DATA
        fst dword [rdi]
; out: fsw=0x3820
; out-mem: DATA+0x2 = 80 3f

; case: fstp-double
; in: st0=-0.1 rdi=DATA
        fstp qword [rdi]
; out: fsw=0 ftw=0
; out-mem: DATA = 9a 99 99 99 99 99 b9 bf

; case: fstp-extended
; in: st0=bfff_c000000000000001 rdi=DATA
        fstp tword [rdi]
; out: fsw=0 ftw=0
; out-mem: DATA = 01
; out-mem: DATA+0x7 = c0 ff bf

; case: fst-single-overflow
; qemu-differs: never sets C1; SDM vol. 1, "x87 FPU Condition Code"
; in: st0=1e300 rdi=DATA
        fst dword [rdi]
; out: fsw=0x3a28
; out-mem: DATA+0x2 = 80 7f

; case: fbld-and-fbstp
; in: rsi=DATA rdi=DATA+0x10
; in-mem: DATA = 90 78 56 34 12 00 00 00 00 80
        fbld [rsi]
        fld1
        faddp
        fbstp [rdi]
; out: st6=1.0 st7=c01d_932c05a200000000
; out-mem: DATA+0x10 = 89 78 56 34 12
; out-mem: DATA+0x19 = 80

; case: fxch
; in: st0=1.0 st1=2.0
        fxch
; out: st0=2.0 st1=1.0

; case: ffree-and-fincstp
; in: st0=1.0 st1=2.0
        ffree st1
        fincstp
; out: fsw=0x3800 ftw=0x40

; case: fdecstp-wraps
        fdecstp
; out: fsw=0x3800

; case: fcmov
; in: st0=1.0 st1=2.0 st2=3.0 flags=CF
        fcmovb st0, st1
        fcmovnb st0, st2
; out: st0=2.0

; case: fst-to-read-only-page-does-not-pop
; in: st0=1.0 rdi=RO
.here:  fstp qword [rdi]
; fault: #PF(7) at .here
; out: cr2=RO

; case: fld-from-absent-page-does-not-push
; in: rsi=ABSENT-4
.here:  fld qword [rsi]
; fault: #PF(4) at .here
; out: cr2=ABSENT
