; AVX: three operands, zeroed upper halves, no alignment checks, VEX.L and VEX.vvvv rules.
; SDM vol. 2, "Instruction Exception Specification"; vol. 1, "Programming With AVX, FMA, and AVX2".
; mode: long64 cpl=3
; needs: avx

; case: vaddps-ymm
; in: ymm1=f32:1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0 ymm2=f32:0.5
        vaddps ymm0, ymm1, ymm2
; out: ymm0=f32:1.5,2.5,3.5,4.5,5.5,6.5,7.5,8.5

; case: vaddps-xmm-zeroes-upper-half
; in: ymm0=u64:1,2,3,4 xmm1=f32:1.0 xmm2=f32:2.0
        vaddps xmm0, xmm1, xmm2
; out: ymm0=u64:0x4040000040400000,0x4040000040400000,0,0

; case: vmovss-load-zeroes-all-above
; in: ymm0=u64:1,2,3,4 rsi=DATA
; in-mem: DATA = u32:5
        vmovss xmm0, [rsi]
; out: ymm0=u64:5,0,0,0

; case: vmovss-merge-three-operands
; in: xmm1=u32:1,2,3,4 xmm2=u32:5,6,7,8
        vmovss xmm0, xmm1, xmm2
; out: xmm0=u32:5,2,3,4

; case: vaddps-unaligned-memory
; in: ymm1=f32:1.0 rsi=DATA2-9
; in-mem: DATA2-9 = f32:1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0
        vaddps ymm0, ymm1, [rsi]
; out: ymm0=f32:2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0

; case: vmovaps-misaligned-16-is-checked-for-32
; in: rsi=DATA+16
.here:  vmovaps ymm0, [rsi]
; fault: #GP(0) at .here

; case: vmovups-store-into-absent-page
; qemu-differs: stores the parts apart; SDM vol. 3, "Faults": a fault leaves the state as before the instruction
; in: rdi=ABSENT-16 ymm0=u64:-1
.here:  vmovups [rdi], ymm0
; fault: #PF(6) at .here
; out: cr2=ABSENT

; case: vzeroupper
; in: ymm0=u64:1,2,3,4 ymm15=u64:5,6,7,8
        vzeroupper
; out: ymm0=u64:1,2,0,0 ymm15=u64:5,6,0,0

; case: vzeroall
; in: ymm0=u64:1,2,3,4 ymm15=u64:5,6,7,8
        vzeroall
; out: ymm0=u64:0,0,0,0 ymm15=u64:0,0,0,0

; case: vbroadcastss-and-vbroadcastf128
; in: rsi=DATA
; in-mem: DATA = u32:1,2,3,4
        vbroadcastss ymm0, [rsi + 4]
        vbroadcastf128 ymm1, [rsi]
; out: ymm0=0000000200000002_0000000200000002_0000000200000002_0000000200000002
; out: ymm1=0000000400000003_0000000200000001_0000000400000003_0000000200000001

; case: vinsertf128-vextractf128-vperm2f128
; in: ymm1=u64:1,2,3,4 xmm2=u64:5,6 rdi=DATA
        vinsertf128 ymm0, ymm1, xmm2, 1
        vextractf128 [rdi], ymm1, 1
        vperm2f128 ymm3, ymm1, ymm0, 0x83
; out: xmm3=u64:5,6 ymm0=u64:1,2,5,6
; out-mem: DATA = 03
; out-mem: DATA+0x8 = 04

; case: vpermilps-and-vpermilpd
; in: ymm1=u32:1,2,3,4,5,6,7,8 ymm2=u32:3,2,1,0,0,0,2,2
        vpermilps ymm0, ymm1, ymm2
        vpermilpd ymm3, ymm1, 0x6
; out: ymm0=u32:4,3,2,1,5,5,7,7 ymm3=u32:1,2,3,4,7,8,5,6

; case: vblendvps-and-vtestps
; in: ymm1=u32:1 ymm2=u32:2 ymm3=u32:0x80000000,0,0x80000000,0,0,0,0,0x80000000
        vblendvps ymm0, ymm1, ymm2, ymm3
        vtestps ymm3, ymm3
; out: flags=CF ymm0=u32:2,1,2,1,1,1,1,2

; case: vcmpps-extended-predicates
; in: xmm1=f32:1.0,nan,2.0,3.0 xmm2=f32:1.0
        vcmpps xmm3, xmm1, xmm2, 0x11
        vcmpps xmm4, xmm1, xmm2, 0x19
        vcmpps xmm5, xmm1, xmm2, 0x1f
; out: xmm4=f32:0.0,0xffffffff,0.0,0.0 xmm5=f32:0xffffffff,0xffffffff,0xffffffff,0xffffffff
; out: mxcsr=0x1f81

; case: vmaskmovps-load-does-not-touch-masked-lanes
; qemu-differs: loads all lanes; SDM vol. 2C, "VMASKMOV": faults do not occur for masked lanes
; in: ymm1=u32:0x80000000,0x80000000,0,0,0,0,0,0 rsi=ABSENT-8
; in-mem: ABSENT-8 = u32:7,8
        vmaskmovps ymm0, ymm1, [rsi]
; out: xmm0=u32:7,8,0,0

; case: vmaskmovps-load-of-an-absent-lane-faults
; in: ymm1=u32:0x80000000,0x80000000,0x80000000,0,0,0,0,0 rsi=ABSENT-8
.here:  vmaskmovps ymm0, ymm1, [rsi]
; fault: #PF(4) at .here
; out: cr2=ABSENT

; case: vmaskmovpd-store
; in: ymm0=u64:1,2,3,4 ymm1=u64:0x8000000000000000,0,0x8000000000000000,0 rdi=ABSENT-24
        vmaskmovpd [rdi], ymm1, ymm0
; out-mem: DATA+0x1fe8 = 01
; out-mem: DATA+0x1ff8 = 03

; case: vmaskmovps-store-over-a-page-end-names-its-last-byte
; vendor: intel
; qemu-differs: names the page's first byte; which one isn't said in SDM vol. 2C, "VMASKMOV", but Intel's do so (measured)
; in: ymm1=u32:0x80000000,0x80000000,0x80000000,0x80000000 rdi=ABSENT-8
.here:  vmaskmovps [rdi], xmm1, xmm0
; fault: #PF(6) at .here
; out: cr2=ABSENT+0x7

; case: vmaskmovps-store-over-a-page-end-names-the-page
; vendor: amd
; in: ymm1=u32:0x80000000,0x80000000,0x80000000,0x80000000 rdi=ABSENT-8
.here:  vmaskmovps [rdi], xmm1, xmm0
; fault: #PF(6) at .here
; out: cr2=ABSENT

; case: vmaskmovps-store-all-masked-makes-no-fault
; in: rdi=ABSENT ymm1=u32:0x7fffffff
        vmaskmovps [rdi], ymm1, ymm0
; out: unchanged

; case: vvvv-must-be-ones-for-two-operands
.here:  db 0xc5, 0xf0, 0x28, 0xc1       ; vmovaps xmm0, xmm1 with vvvv = 1
; fault: #UD at .here

; case: vldmxcsr
; in: rsi=DATA
; in-mem: DATA = u32:0x1fbf
        vldmxcsr [rsi]
; out: mxcsr=0x1fbf

; case: vex-in-32-bit-code
; mode: pm32 cpl=3
; in: ymm1=f32:1.0 ymm2=f32:2.0
        vmulps ymm0, ymm1, ymm2
; out: ymm0=f32:2.0,2.0,2.0,2.0,2.0,2.0,2.0,2.0

; case: vex-in-real-mode-is-les
; mode: real
; in: ebx=0x20
; in-mem: DATA16+0x20 = 34 12 00 30
        db 0xc4, 0x07                   ; les ax, [bx]
; out: eax=0x1234

; case: vex-register-form-in-real-mode-is-undefined
; mode: real
.here:  db 0xc5, 0xf8, 0x28, 0xc1
; fault: #UD at .here

; case: vpxor-idiom-zeroes
; in: ymm0=u64:1,2,3,4
        vpxor xmm0, xmm0, xmm0
; out: ymm0=u64:0,0,0,0

; case: vsqrtsd-takes-upper-from-first-source
; in: xmm1=f64:1.0,2.0 xmm2=f64:9.0,3.0
        vsqrtsd xmm0, xmm1, xmm2
; out: xmm0=f64:3.0,2.0

; case: vdivpd-unmasked-divide-by-zero
; qemu-differs: never raises #XM; SDM vol. 1, "SSE Floating-Point Exceptions"
; in: ymm1=f64:1.0 ymm2=f64:1.0,2.0,0.0,4.0 mxcsr=0x1d80
.here:  vdivpd ymm0, ymm1, ymm2
; fault: #XM at .here
; out: mxcsr=0x1d84
