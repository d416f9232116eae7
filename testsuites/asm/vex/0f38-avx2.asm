; AVX2, FMA and F16C: gathers with faults in the middle, variable shifts, broadcasts, fused rounding.
; SDM vol. 2, the instructions' entries.
; mode: long64 cpl=3
; needs: avx2

; case: vpaddb-ymm-and-vpackuswb-by-lane
; in: ymm1=u16:1,2,3,4,5,6,7,8,0x100,0xffff,11,12,13,14,15,16 ymm2=u16:0x100
        vpaddb ymm0, ymm1, ymm2
        vpackuswb ymm3, ymm1, ymm2
; out: ymm0=u16:0x101,0x102,0x103,0x104,0x105,0x106,0x107,0x108,0x200,0xff,0x10b,0x10c,0x10d,0x10e,0x10f,0x110
; out: ymm3=u16:0x201,0x403,0x605,0x807,0xffff,0xffff,0xffff,0xffff,0xff,0xc0b,0xe0d,0x100f,0xffff,0xffff,0xffff,0xffff

; case: vpermq-vpermd
; in: ymm1=u32:1,2,3,4,5,6,7,8 ymm2=u32:7,6,5,4,3,2,1,8
        vpermd ymm0, ymm2, ymm1
        vpermq ymm3, ymm1, 0x1b
; out: ymm0=u32:8,7,6,5,4,3,2,1 ymm3=u32:7,8,5,6,3,4,1,2

; case: vpbroadcastb-and-vpbroadcastd-memory
; in: xmm1=u8:0x5a,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 rsi=DATA+2
; in-mem: DATA+2 = u32:0x12345678
        vpbroadcastb ymm0, xmm1
        vpbroadcastd xmm2, [rsi]
; out: xmm2=u8:0x78,0x56,0x34,0x12,0x78,0x56,0x34,0x12,0x78,0x56,0x34,0x12,0x78,0x56,0x34,0x12
; out: ymm0=u8:0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a,0x5a

; case: vpsllvd-counts-beyond-31-give-zero
; in: ymm1=u32:0x80000001 ymm2=u32:0,1,31,32,33,0xffffffff,2,3
        vpsllvd ymm0, ymm1, ymm2
        vpsravd ymm3, ymm1, ymm2
; out: ymm0=u32:0x80000001,2,0x80000000,0,0,0,4,8
; out: ymm3=u32:0x80000001,0xc0000000,0xffffffff,0xffffffff,0xffffffff,0xffffffff,0xe0000000,0xf0000000

; case: vpsrlvq
; in: ymm1=u64:0x8000000000000001 ymm2=u64:0,63,64,1
        vpsrlvq ymm0, ymm1, ymm2
; out: ymm0=u64:0x8000000000000001,1,0,0x4000000000000000

; case: vinserti128-vperm2i128-zeroing
; in: ymm1=u64:1,2,3,4 xmm2=u64:5,6
        vinserti128 ymm0, ymm1, xmm2, 0
        vperm2i128 ymm3, ymm1, ymm1, 0x81
; out: xmm3=u64:3,4 ymm0=u64:5,6,3,4

; case: vpmaskmovd-store
; in: ymm0=u32:1,2,3,4,5,6,7,8 ymm1=u32:0x80000000,0,0,0,0,0,0,0x80000000 rdi=DATA
        vpmaskmovd [rdi], ymm1, ymm0
; out-mem: DATA = 01
; out-mem: DATA+0x1c = 08

; case: vpgatherdd-clears-the-mask
; in: rsi=DATA xmm1=u32:0,4,8,0xfffffffc xmm2=u32:0x80000000,0,0x80000000,0x80000000 xmm0=u32:9
; in-mem: DATA = u32:0x11,0x22,0x33
        vpgatherdd xmm0, [rsi + xmm1 + 4], xmm2
; out: xmm0=u32:0x22,9,0,0x11 xmm2=u32:0,0,0,0

; case: vgatherqpd
; in: rsi=DATA ymm1=u64:0,2,1,3 ymm2=u64:0x8000000000000000 ymm0=u64:9
; in-mem: DATA = u64:0x11,0x22,0x33,0x44
        vgatherqpd ymm0, [rsi + ymm1 * 8], ymm2
; out: ymm0=u64:0x11,0x33,0x22,0x44 ymm2=u64:0,0,0,0

; case: vpgatherqd-ymm-index-zeroes-upper-half
; in: rsi=DATA ymm1=u64:0,1,2,3 xmm2=u32:0x80000000 ymm0=u64:9
; in-mem: DATA = u32:0x11,0x22,0x33,0x44
        vpgatherqd xmm0, [rsi + ymm1 * 4], xmm2
; out: xmm2=u64:0,0 ymm0=u64:0x2200000011,0x4400000033,0,0

; case: vpgatherdd-fault-keeps-finished-lanes
; lanes complete from the lowest, those done have their mask bits cleared
; in: rsi=DATA xmm1=u32:0,0x2000,4,8 xmm2=u32:0xffffffff xmm0=u32:9
; in-mem: DATA = u32:0x11,0x22,0x33
.here:  vpgatherdd xmm0, [rsi + xmm1], xmm2
; fault: #PF(4) at .here
; out: cr2=ABSENT xmm0=u32:0x11,9,9,9 xmm2=u32:0,0xffffffff,0xffffffff,0xffffffff

; case: vpgatherdd-with-empty-mask-makes-no-access
; in: rsi=ABSENT xmm0=u32:9
        vpgatherdd xmm0, [rsi + xmm1], xmm2
; out: unchanged

; case: vpgatherdd-same-registers-are-undefined
; in: rsi=DATA
.here:  db 0xc4, 0xe2, 0x71, 0x90, 0x04, 0x06   ; vpgatherdd xmm0, [rsi+xmm0], xmm1
; fault: #UD at .here

; case: vfmadd213ss-rounds-once
; needs: fma
; in: xmm0=u32:0x3f800001,1,2,3 xmm1=u32:0x3f800001,0,0,0 xmm2=u32:0xbf800002,0,0,0
        vfmadd213ss xmm0, xmm1, xmm2
; out: xmm0=u32:0x28800000,1,2,3

; case: vfmadd132pd-231pd
; needs: fma
; in: ymm0=f64:2.0 ymm1=f64:10.0 ymm2=f64:3.0 ymm3=f64:100.0
        vfmadd132pd ymm0, ymm1, ymm2
        vfmadd231pd ymm3, ymm1, ymm2
; out: ymm0=f64:16.0,16.0,16.0,16.0 ymm3=f64:130.0,130.0,130.0,130.0

; case: vfmaddsub213ps-and-vfnmsub213ps
; needs: fma
; in: xmm0=f32:1.0,2.0,3.0,4.0 xmm1=f32:10.0 xmm2=f32:1.0 xmm3=f32:1.0,2.0,3.0,4.0
        vfmaddsub213ps xmm0, xmm1, xmm2
        vfnmsub213ps xmm3, xmm1, xmm2
; out: xmm0=f32:9.0,21.0,29.0,41.0 xmm3=f32:-11.0,-21.0,-31.0,-41.0

; case: vfmadd-infinity-times-zero-plus-nan
; needs: fma
; in: xmm0=f32:inf,0.0,0.0,0.0 xmm1=f32:0.0 xmm2=u32:0x7fc00123,0,0,0
        vfmadd213ss xmm0, xmm1, xmm2
; out: xmm0=f32:0x7fc00123,0.0,0.0,0.0

; case: vcvtph2ps
; needs: f16c
; in: xmm1=u16:0x3c00,0xc000,0x7c00,0x0001,0x8000,0x7bff,0x7e01,0x3555
        vcvtph2ps ymm0, xmm1
; out: ymm0=u16:0,0x3f80,0,0xc000,0,0x7f80,0,0x3380,0,0x8000,0xe000,0x477f,0x2000,0x7fc0,0xa000,0x3eaa

; case: vcvtps2ph-rounding-from-immediate
; needs: f16c
; in: xmm1=f32:1.0004883,65520.0,-1e-8,0.1
        vcvtps2ph xmm0, xmm1, 0
        vcvtps2ph xmm2, xmm1, 3
; out: xmm0=f32:2.6633238e36,5.2409632e-11,0.0,0.0 xmm2=f32:2.6505053e36,5.2409632e-11,0.0,0.0
; out: mxcsr=0x1fb8

; case: vcvtps2ph-store-is-half-as-wide
; needs: f16c
; in: ymm1=f32:1.0 rdi=ABSENT-16
        vcvtps2ph [rdi], ymm1, 0
; out-mem: DATA+0x1ff1 = 3c 00 3c 00 3c 00 3c 00 3c 00 3c 00 3c 00 3c

; case: vmovntdqa-ymm-misaligned
; in: rsi=DATA+16
.here:  vmovntdqa ymm0, [rsi]
; fault: #GP(0) at .here

; case: vpshufb-ymm-by-lane
; in: ymm1=u8:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31 ymm2=u8:15,0x80
        vpshufb ymm0, ymm1, ymm2
; out: ymm0=u8:0xf,0,0xf,0,0xf,0,0xf,0,0xf,0,0xf,0,0xf,0,0xf,0,0x1f,0,0x1f,0,0x1f,0,0x1f,0,0x1f,0,0x1f,0,0x1f,0,0x1f,0

; case: vpmovsxbd-ymm
; in: xmm1=u8:0x80,1,0xff,0x7f,2,3,4,5
        vpmovsxbd ymm0, xmm1
; out: ymm0=u8:0x80,0xff,0xff,0xff,1,0,0,0,0xff,0xff,0xff,0xff,0x7f,0,0,0,2,0,0,0,3,0,0,0,4,0,0,0,5,0,0,0

; case: vpmovmskb-ymm
; in: ymm1=u8:0x80,0,0,0xff rax=-1
        vpmovmskb eax, ymm1
; out: rax=0x99999999
