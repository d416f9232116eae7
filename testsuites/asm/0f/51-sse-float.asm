; SSE floating point: results, NaN rules, MXCSR flags and modes, #XM.
; SDM vol. 1, "SSE Floating-Point Exceptions"; vol. 2, the instructions' entries.
; mode: long64 cpl=3

; case: addps
; in: xmm0=f32:1.5,-2.0,0.25,1e30 xmm1=f32:0.5,2.0,0.75,1e30
        addps xmm0, xmm1
; out: xmm0=f32:2.0,0.0,1.0,2e30

; case: addss-keeps-upper-lanes
; in: xmm0=f32:1.0,2.0,3.0,4.0 xmm1=f32:10.0
        addss xmm0, xmm1
; out: xmm0=f32:11.0,2.0,3.0,4.0

; case: mulpd-inexact-sets-pe
; in: xmm0=f64:0.1,2.0 xmm1=f64:0.1,4.0
        mulpd xmm0, xmm1
; out: xmm0=f64:0.010000000000000002,8.0 mxcsr=0x1fa0

; case: divss-by-zero-masked
; in: xmm0=f32:1.0,0.0,0.0,0.0 xmm1=f32:0.0
        divss xmm0, xmm1
; out: xmm0=f32:inf,0.0,0.0,0.0 mxcsr=0x1f84

; case: divss-by-zero-unmasked
; qemu-differs: never raises #XM; SDM vol. 1, "SSE Floating-Point Exceptions": unmasked ones stop the instruction
; in: xmm0=f32:1.0,0.0,0.0,0.0 xmm1=f32:0.0 mxcsr=0x1d80
.here:  divss xmm0, xmm1
; fault: #XM at .here
; out: mxcsr=0x1d84

; case: sqrtsd-of-negative
; in: xmm1=f64:-1.0,0.0
        sqrtsd xmm0, xmm1
; out: xmm0=f64:0xfff8000000000000,0.0 mxcsr=0x1f81

; case: sqrtps-unmasked-invalid
; qemu-differs: never raises #XM; SDM vol. 1, "SSE Floating-Point Exceptions": unmasked ones stop the instruction
; in: xmm1=f32:4.0,-1.0,9.0,16.0 mxcsr=0x1f00
.here:  sqrtps xmm0, xmm1
; fault: #XM at .here
; out: mxcsr=0x1f01

; case: packed-flags-are-the-or-of-all-lanes
; in: xmm0=f32:1.0,0.0,3.4e38,1.0 xmm1=f32:0.0,0.0,1e-30,3.0
        divps xmm0, xmm1
; out: xmm0=f32:inf,0xffc00000,inf,0.33333334 mxcsr=0x1fad

; case: denormal-operand-sets-de
; qemu-differs: never sets DE; SDM vol. 1, "Denormal-Operand Exception (#D)"
; in: xmm0=u32:1,0,0,0 xmm1=f32:1.0
        addss xmm0, xmm1
; out: xmm0=u32:0x3f800000,0,0,0 mxcsr=0x1fa2

; case: denormals-are-zero
; in: xmm0=u32:1,0,0,0 xmm1=f32:1.0 mxcsr=0x1fc0
        mulss xmm0, xmm1
; out: xmm0=u32:0,0,0,0

; case: flush-to-zero
; in: xmm0=f32:1e-30,0.0,0.0,0.0 xmm1=f32:1e-10 mxcsr=0x9f80
        mulss xmm0, xmm1
; out: xmm0=f32:0.0,0.0,0.0,0.0 mxcsr=0x9fb0

; case: underflow-masked-gives-denormal
; in: xmm0=f32:1e-30,0.0,0.0,0.0 xmm1=f32:1e-10
        mulss xmm0, xmm1
; out: xmm0=f32:1e-40,0.0,0.0,0.0 mxcsr=0x1fb0

; case: overflow-unmasked
; qemu-differs: never raises #XM; SDM vol. 1, "SSE Floating-Point Exceptions": unmasked ones stop the instruction
; in: xmm0=f64:1e300,0.0 xmm1=f64:1e300 mxcsr=0x1b80
.here:  mulsd xmm0, xmm1
; fault: #XM at .here
; out: mxcsr=0x1ba8

; case: underflow-unmasked
; qemu-differs: never raises #XM; SDM vol. 1, "SSE Floating-Point Exceptions": unmasked ones stop the instruction
; in: xmm0=f64:1e-300,0.0 xmm1=f64:1e-300 mxcsr=0x1780
.here:  mulsd xmm0, xmm1
; fault: #XM at .here
; out: mxcsr=0x17b0

; case: precision-unmasked
; qemu-differs: never raises #XM; SDM vol. 1, "SSE Floating-Point Exceptions": unmasked ones stop the instruction
; in: xmm0=f32:1.0,0.0,0.0,0.0 xmm1=f32:3.0 mxcsr=0x0f80
.here:  divss xmm0, xmm1
; fault: #XM at .here
; out: mxcsr=0xfa0

; case: denormal-unmasked
; qemu-differs: never raises #XM; SDM vol. 1, "SSE Floating-Point Exceptions": unmasked ones stop the instruction
; in: xmm0=u32:1,0,0,0 xmm1=f32:1.0 mxcsr=0x1e80
.here:  addss xmm0, xmm1
; fault: #XM at .here
; out: mxcsr=0x1e82

; case: invalid-by-snan-unmasked
; qemu-differs: never raises #XM; SDM vol. 1, "SSE Floating-Point Exceptions": unmasked ones stop the instruction
; in: xmm0=u32:0x7f800001,0,0,0 xmm1=f32:1.0 mxcsr=0x1f00
.here:  addss xmm0, xmm1
; fault: #XM at .here
; out: mxcsr=0x1f01

; case: old-flags-do-not-raise
; in: xmm0=f32:1.0,0.0,0.0,0.0 xmm1=f32:1.0 mxcsr=0x003f
        addss xmm0, xmm1
; out: xmm0=f32:2.0,0.0,0.0,0.0

; case: first-nan-operand-wins
; qemu-differs: takes the larger significand; SDM vol. 1, table "Rules for Handling NaNs": SSE takes the first source operand
; in: xmm0=u32:0x7fc00001,0x7f800001,0,0x3f800000 xmm1=u32:0xffc00002,0x7fc00003,0x7fc00004,0x7f800005
        addps xmm0, xmm1
; out: xmm0=u32:0x7fc00001,0x7fc00001,0x7fc00004,0x7fc00005 mxcsr=0x1f81

; case: minps-returns-the-second-operand
; in: xmm0=f32:0.0,nan,1.0,-1.0 xmm1=f32:-0.0,2.0,nan,-2.0
        minps xmm0, xmm1
; out: xmm0=f32:-0.0,2.0,nan,-2.0 mxcsr=0x1f81

; case: maxsd-equal-zeros
; in: xmm0=f64:-0.0,7.0 xmm1=f64:0.0
        maxsd xmm0, xmm1
; out: xmm0=f64:0.0,7.0

; case: cmpps-all-legacy-predicates
; in: xmm0=f32:1.0,2.0,3.0,nan xmm1=f32:2.0,2.0,2.0,2.0 xmm4=f32:1.0,2.0,3.0,nan xmm5=f32:1.0,2.0,3.0,nan
        cmpltps xmm0, xmm1
        cmpneqps xmm4, xmm1
        cmpordps xmm5, xmm1
; out: xmm0=f32:0xffffffff,0.0,0.0,0.0 xmm4=f32:0xffffffff,0.0,0xffffffff,0xffffffff
; out: xmm5=f32:0xffffffff,0xffffffff,0xffffffff,0.0 mxcsr=0x1f81

; case: cmpltsd-quiet-nan-is-invalid
; in: xmm0=f64:nan,0.0 xmm1=f64:1.0
        cmpltsd xmm0, xmm1
; out: xmm0=f64:0.0,0.0 mxcsr=0x1f81

; case: ucomiss-unordered
; in: xmm0=f32:nan,0.0,0.0,0.0 xmm1=f32:1.0 flags=OF,SF,AF
        ucomiss xmm0, xmm1
; out: flags=CF,PF,ZF

; case: comisd-less
; in: xmm0=f64:-1.0,0.0 xmm1=f64:1.0
        comisd xmm0, xmm1
; out: flags=CF

; case: comiss-quiet-nan-unmasked-leaves-flags
; qemu-differs: never raises #XM; SDM vol. 1, "SSE Floating-Point Exceptions": unmasked ones stop the instruction
; in: xmm0=f32:nan,0.0,0.0,0.0 mxcsr=0x1f00 flags=CF,OF
.here:  comiss xmm0, xmm0
; fault: #XM at .here
; out: mxcsr=0x1f01

; case: cvtss2si-rounds-to-even
; in: xmm0=f32:2.5,0.0,0.0,0.0
        cvtss2si eax, xmm0
; out: rax=2 mxcsr=0x1fa0

; case: cvttsd2si-out-of-range
; in: xmm0=f64:3e9,0.0
        cvttsd2si eax, xmm0
        cvttsd2si rbx, xmm0
; out: rax=0x80000000 rbx=0xb2d05e00 mxcsr=0x1f81

; case: cvtsi2sd-from-qword
; in: rax=-3 xmm0=f64:1.0,2.0
        cvtsi2sd xmm0, rax
; out: xmm0=f64:-3.0,2.0

; case: cvtsi2ss-inexact-rounding-down
; in: rax=0x7fffffff xmm0=f32:1.0 mxcsr=0x3f80
        cvtsi2ss xmm0, eax
; out: xmm0=f32:2147483500.0,1.0,1.0,1.0 mxcsr=0x3fa0

; case: cvtps2pd-and-cvtpd2ps
; in: xmm0=f32:1.5,-2.5,3.0,4.0 xmm2=f64:0.1,1e300
        cvtps2pd xmm1, xmm0
        cvtpd2ps xmm3, xmm2
; out: xmm1=f32:0.0,1.9375,0.0,-2.0625 xmm3=f32:0.1,inf,0.0,0.0 mxcsr=0x1fa8

; case: cvtdq2ps-and-cvtps2dq
; in: xmm0=u32:1,0xffffffff,0x80000000,16777217 xmm2=f32:1.5,2.5,1e10,-0.5
        cvtdq2ps xmm1, xmm0
        cvtps2dq xmm3, xmm2
; out: xmm1=u32:0x3f800000,0xbf800000,0xcf000000,0x4b800000 xmm3=u32:2,2,0x80000000,0 mxcsr=0x1fa1

; case: cvtpi2ps-changes-x87-state
; in: mm1=u32:3,0xffffffff xmm0=f32:9.0
        cvtpi2ps xmm0, mm1
; out: ftw=0xff xmm0=u32:0x40400000,0xbf800000,0x41100000,0x41100000

; case: rcpps-special-operands
; in: xmm0=f32:0.0,inf,-0.0,nan
        rcpps xmm1, xmm0
; out: xmm1=f32:inf,0.0,-inf,nan

; case: haddps-and-addsubps
; needs: sse3
; in: xmm0=f32:1.0,2.0,3.0,4.0 xmm1=f32:10.0,20.0,30.0,40.0
        haddps xmm0, xmm1
        addsubps xmm1, xmm0
; out: xmm0=f32:3.0,7.0,30.0,70.0 xmm1=f32:7.0,27.0,0.0,110.0

; case: shufps-and-unpcklps
; in: xmm0=f32:1.0,2.0,3.0,4.0 xmm1=f32:5.0,6.0,7.0,8.0
        shufps xmm0, xmm1, 0x1b
        unpcklps xmm1, xmm0
; out: xmm0=f32:4.0,3.0,6.0,5.0 xmm1=f32:5.0,4.0,6.0,3.0

; case: andnps-and-xorpd
; in: xmm0=u32:0xff00ff00,1,2,3 xmm1=u32:0xffffffff,3,3,3
        andnps xmm0, xmm1
        xorpd xmm1, xmm1
; out: xmm0=u32:0xff00ff,2,1,0 xmm1=u32:0,0,0,0

; case: ldmxcsr-stmxcsr
; in: rsi=DATA
; in-mem: DATA = u32:0x9fff
        ldmxcsr [rsi]
        stmxcsr [rsi + 4]
; out: mxcsr=0x9fff
; out-mem: DATA+0x4 = ff 9f

; case: ldmxcsr-reserved-bits
; qemu-differs: does not check; SDM vol. 2A, "LDMXCSR": #GP(0) for reserved bits
; in: rsi=DATA
; in-mem: DATA = u32:0x10000
.here:  ldmxcsr [rsi]
; fault: #GP(0) at .here
