; Transcendental instructions where the result is exact or the manual gives it.
; SDM vol. 1, "Transcendental Instruction Accuracy"; vol. 2A, entries of the instructions.
; mode: long64 cpl=3

; case: fsin-of-zero
; in: st0=-0.0
        fsin
; out: unchanged

; case: fcos-of-zero
; in: st0=0.0
        fcos
; out: st0=1.0

; case: fsincos-of-zero
; in: st0=0.0
        fsincos
; out: fsw=0x3000 ftw=0xc0 st0=1.0

; case: fsin-out-of-range-sets-c2
; in: st0=1e30
        fsin
; out: fsw=0x3c00

; case: fptan-of-zero-pushes-one
; in: st0=0.0
        fptan
; out: fsw=0x3000 ftw=0xc0 st0=1.0

; case: fpatan-quadrant
; in: st0=-1.0 st1=0.0
; qemu-differs: never sets C1; SDM vol. 1, "x87 FPU Condition Code"
        fpatan
; out: fsw=0x3a20 ftw=0x80 st0=4000_c90fdaa22168c235

; Whether C1 says that it was rounded up differs among processors.
; case: f2xm1-of-one
; qemu-differs: finds it exact; hardware reports it as inexact (SDM vol. 1, "Transcendental Instruction Accuracy")
; in: st0=1.0
; undef: fsw
        f2xm1
        fnstsw ax
        and ah, ~2
; out: rax=0x3820

; case: f2xm1-of-minus-one
; qemu-differs: finds it exact; hardware reports it as inexact (SDM vol. 1, "Transcendental Instruction Accuracy")
; in: st0=-1.0
        f2xm1
; out: fsw=0x3820 st0=-0.5

; case: fyl2x-power-of-two
; qemu-differs: finds it exact; hardware reports every transcendental result but zeros as inexact (SDM vol. 1, "Transcendental Instruction Accuracy")
; in: st0=8.0 st1=2.0
        fyl2x
; out: fsw=0x3820 ftw=0x80 st0=6.0

; case: fyl2x-of-zero-divides-by-zero
; in: st0=0.0 st1=1.0
        fyl2x
; out: fsw=0x3804 ftw=0x80 st0=ffff_8000000000000000

; case: fyl2x-of-negative-is-invalid
; in: st0=-2.0 st1=1.0
        fyl2x
; out: fsw=0x3801 ftw=0x80 st0=ffff_c000000000000000

; case: fyl2xp1-of-zero
; in: st0=0.0 st1=3.0
        fyl2xp1
; out: fsw=0x3800 ftw=0x80 st0=0.0
