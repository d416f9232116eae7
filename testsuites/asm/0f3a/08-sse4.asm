; SSE4.1, SSE4.2, AES and PCLMULQDQ of the 0F 3A map: immediates choose.
; SDM vol. 2, the instructions' entries.
; mode: long64 cpl=3

; case: roundps-each-mode
; needs: sse4.1
; in: xmm0=f32:1.5,-1.5,2.5,-0.5
        roundps xmm1, xmm0, 0
        roundps xmm2, xmm0, 1
        roundps xmm3, xmm0, 2
        roundps xmm4, xmm0, 3
; out: xmm1=f32:2.0,-2.0,2.0,-0.0 xmm2=f32:1.0,-2.0,2.0,-1.0 xmm3=f32:2.0,-1.0,3.0,-0.0
; out: xmm4=f32:1.0,-1.0,2.0,-0.0 mxcsr=0x1fa0

; case: roundsd-by-mxcsr-without-inexact
; needs: sse4.1
; in: xmm0=f64:1.5,7.0 xmm1=f64:0.0,9.0 mxcsr=0x5f80
        roundsd xmm1, xmm0, 0x0c
; out: xmm1=f64:2.0,9.0

; case: roundss-of-snan
; needs: sse4.1
; in: xmm0=u32:0x7f800001,0,0,0
        roundss xmm1, xmm0, 0
; out: xmm1=u32:0x7fc00001,0,0,0 mxcsr=0x1f81

; case: blendps-and-pblendw
; needs: sse4.1
; in: xmm0=u16:1,2,3,4,5,6,7,8 xmm1=u16:11,12,13,14,15,16,17,18 xmm2=u16:21,22,23,24,25,26,27,28
        blendps xmm0, xmm1, 0x5
        pblendw xmm1, xmm2, 0xa5
; out: xmm0=u16:0xb,0xc,3,4,0xf,0x10,7,8 xmm1=u16:0x15,0xc,0x17,0xe,0xf,0x1a,0x11,0x1c

; case: palignr
; needs: ssse3
; in: xmm0=u8:16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31 xmm1=u8:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 xmm2=u8:0xff
        palignr xmm0, xmm1, 5
        palignr xmm2, xmm1, 33
; out: xmm0=u8:5,6,7,8,9,0xa,0xb,0xc,0xd,0xe,0xf,0x10,0x11,0x12,0x13,0x14
; out: xmm2=u8:0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0

; case: pinsr-pextr
; needs: sse4.1
; in: xmm0=u32:1,2,3,4 rax=0x1122334455667788 rdi=DATA
        pinsrb xmm0, eax, 3
        pinsrq xmm0, rax, 1
        pextrd ebx, xmm0, 2
        pextrb [rdi], xmm0, 15
; out: rbx=0x55667788 xmm0=u32:0x88000001,2,0x55667788,0x11223344
; out-mem: DATA = 11

; case: extractps-insertps
; needs: sse4.1
; in: xmm0=f32:1.0,2.0,3.0,4.0 xmm1=f32:5.0,6.0,7.0,8.0 rax=-1
        extractps eax, xmm0, 2
        insertps xmm0, xmm1, 0x9a
; out: rax=0x40400000 xmm0=f32:1.0,0.0,3.0,0.0

; case: dpps-masks
; needs: sse4.1
; in: xmm0=f32:1.0,2.0,3.0,4.0 xmm1=f32:10.0,100.0,1000.0,10000.0
        dpps xmm0, xmm1, 0x75
; out: xmm0=f32:3210.0,0.0,3210.0,0.0

; case: dppd
; needs: sse4.1
; in: xmm0=f64:2.0,3.0 xmm1=f64:5.0,7.0
        dppd xmm0, xmm1, 0x31
; out: xmm0=f64:31.0,0.0

; case: mpsadbw
; needs: sse4.1
; in: xmm0=u8:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 xmm1=u8:3,4,5,6,0,0,0,0,0,0,0,0,0,0,0,0
        mpsadbw xmm0, xmm1, 4
; out: xmm0=u8:4,0,8,0,0xc,0,0x10,0,0x14,0,0x18,0,0x1c,0,0x20,0

; case: pcmpistri-finds-a-substring
; needs: sse4.2
; in: xmm0=u8:0x62,0x63,0,0,0,0,0,0,0,0,0,0,0,0,0,0 xmm1=u8:0x61,0x62,0x63,0x64,0,0,0,0,0,0,0,0,0,0,0,0
        pcmpistri xmm0, xmm1, 0x0c
; out: rcx=1 flags=CF,ZF,SF

; case: pcmpistrm-ranges-byte-mask
; needs: sse4.2
; in: xmm2=u8:0x61,0x7a,0,0,0,0,0,0,0,0,0,0,0,0,0,0 xmm1=u8:0x41,0x62,0x63,0x20,0x7b,0x7a,0,0,0,0,0,0,0,0,0,0
        pcmpistrm xmm2, xmm1, 0x44
; out: flags=CF,ZF,SF xmm0=u8:0,0xff,0xff,0,0,0xff,0,0,0,0,0,0,0,0,0,0

; case: pcmpestri-lengths-and-flags
; needs: sse4.2
; in: rax=3 rdx=-20 xmm0=u8:1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16 xmm1=u8:9,9,9,3,9,9,9,9,9,9,9,9,9,9,9,2
        pcmpestri xmm0, xmm1, 0x40
; out: rcx=0xf flags=CF,SF

; case: pcmpestrm-words-negated
; needs: sse4.2
; in: rax=2 rdx=4 xmm2=u16:5,6,7,8,9,10,11,12 xmm1=u16:6,5,4,3,2,1,0,0
        pcmpestrm xmm2, xmm1, 0x11
; out: flags=CF,ZF,SF xmm0=u16:0xfc,0,0,0,0,0,0,0

; case: pcmpistri-memory-needs-no-alignment
; needs: sse4.2
; in: xmm0=u8:0x64,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0 rsi=DATA+3
; in-mem: DATA+3 = 61 62 64
        pcmpistri xmm0, [rsi], 0
; out: rcx=2 flags=CF,ZF,SF

; case: pclmulqdq
; needs: pclmulqdq
; in: xmm0=u64:0x87,0xf xmm1=u64:0x8000000000000001,3 xmm2=u64:0x87,0xf
        pclmulqdq xmm0, xmm1, 0x00
        pclmulqdq xmm2, xmm1, 0x11
; out: xmm0=u64:0x8000000000000087,0x43 xmm2=u64:0x11,0

; case: aeskeygenassist
; needs: aes
; in: xmm0=000102030405060708090a0b0c0d0e0f
        aeskeygenassist xmm1, xmm0, 0x1b
; out: xmm1=7b637c6c637c777b_2b30017c3001672b
