; SSSE3, SSE4.1 and SSE4.2 of the 0F 38 map, AES, SHA.
; SDM vol. 2, the instructions' entries.
; mode: long64 cpl=3

; case: pshufb
; needs: ssse3
; in: xmm0=u8:10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25 xmm1=u8:15,0x80,1,0x1f,0,0,0,0,0xff,8,9,10,11,12,13,14
        pshufb xmm0, xmm1
; out: xmm0=u8:0x19,0,0xb,0x19,0xa,0xa,0xa,0xa,0,0x12,0x13,0x14,0x15,0x16,0x17,0x18

; case: phaddsw-saturates
; needs: ssse3
; in: xmm0=u16:0x7fff,1,0x8000,0xffff,1,2,3,4 xmm1=u16:5,6,7,8,9,10,11,12
        phaddsw xmm0, xmm1
; out: xmm0=u16:0x7fff,0x8000,3,7,0xb,0xf,0x13,0x17

; case: psignb-and-pabsw
; needs: ssse3
; in: xmm0=u8:1,2,3,4,0x80,6,7,8,9,10,11,12,13,14,15,16 xmm1=u8:0xff,0,1,0x80,0xff,0,0,0,1,1,1,1,1,1,1,1 xmm2=u16:0x8000,0xffff,5,0,0,0,0,0
        psignb xmm0, xmm1
        pabsw xmm3, xmm2
; out: xmm0=u8:0xff,0,3,0xfc,0x80,0,0,0,9,0xa,0xb,0xc,0xd,0xe,0xf,0x10
; out: xmm3=u8:0,0x80,1,0,5,0,0,0,0,0,0,0,0,0,0,0

; case: pmulhrsw-and-pmaddubsw
; needs: ssse3
; in: xmm0=u16:0x8000,0x7fff,0x4000,1,2,3,4,5 xmm1=u16:0x8000,0x7fff,2,1,2,3,4,5 xmm2=u8:0xff xmm3=u8:0x7f
        pmulhrsw xmm0, xmm1
        pmaddubsw xmm2, xmm3
; out: xmm0=u16:0x8000,0x7ffe,1,0,0,0,0,0
; out: xmm2=u16:0x7fff,0x7fff,0x7fff,0x7fff,0x7fff,0x7fff,0x7fff,0x7fff

; case: pmovsx-and-pmovzx
; needs: sse4.1
; in: xmm0=u8:0x80,1,0xff,0x7f,2,3,4,5,6,7,8,9,10,11,12,13
        pmovsxbw xmm1, xmm0
        pmovzxbd xmm2, xmm0
        pmovsxbq xmm3, xmm0
; out: xmm1=u8:0x80,0xff,1,0,0xff,0xff,0x7f,0,2,0,3,0,4,0,5,0
; out: xmm2=u8:0x80,0,0,0,1,0,0,0,0xff,0,0,0,0x7f,0,0,0
; out: xmm3=u8:0x80,0xff,0xff,0xff,0xff,0xff,0xff,0xff,1,0,0,0,0,0,0,0

; case: pmovsx-loads-only-what-it-needs
; needs: sse4.1
; in: rsi=ABSENT-2
; in-mem: ABSENT-2 = 80 01
        pmovsxbq xmm0, [rsi]
; out: xmm0=0000000000000001_ffffffffffffff80

; case: ptest
; needs: sse4.1
; in: xmm0=u64:0xff,0 xmm1=u64:0xff00,0 flags=OF,SF,AF,PF
        ptest xmm0, xmm1
; out: flags=ZF

; case: ptest-carry
; needs: sse4.1
; in: xmm0=u64:0xff,1 xmm1=u64:0x0f,0
        ptest xmm0, xmm1
; out: flags=CF

; case: blendv-uses-xmm0
; needs: sse4.1
; in: xmm0=u8:0x80,0,0x80,0,0x7f,0xff,0,0,0,0,0,0,0,0,0,0x80 xmm1=u8:1 xmm2=u8:2
        pblendvb xmm1, xmm2
; out: xmm1=u8:2,1,2,1,1,2,1,1,1,1,1,1,1,1,1,2

; case: pmulld-pmuldq-pminsd
; needs: sse4.1
; in: xmm0=u32:0x10001,0xffffffff,3,4 xmm1=u32:0x10001,2,0xffffffff,5 xmm2=u32:0x80000000,1,0xffffffff,2
        pmulld xmm0, xmm1
        pmuldq xmm1, xmm2
        pminsd xmm2, xmm0
; out: xmm0=u32:0x20001,0xfffffffe,0xfffffffd,0x14 xmm1=u32:0x80000000,0xffff7fff,1,0
; out: xmm2=u32:0x80000000,0xfffffffe,0xfffffffd,2

; case: phminposuw
; needs: sse4.1
; in: xmm1=u16:9,5,7,5,8,6,10,11
        phminposuw xmm0, xmm1
; out: xmm0=u16:5,1,0,0,0,0,0,0

; case: packusdw-and-pcmpeqq
; needs: sse4.1
; in: xmm0=u32:0xffffffff,0x10000,0x8000,5 xmm1=u64:1,2
        packusdw xmm0, xmm0
        pcmpeqq xmm1, xmm1
; out: xmm0=u32:0xffff0000,0x58000,0xffff0000,0x58000
; out: xmm1=u32:0xffffffff,0xffffffff,0xffffffff,0xffffffff

; case: pcmpgtq-is-signed
; needs: sse4.2
; in: xmm0=u64:1,0x8000000000000000 xmm1=u64:-1,0
        pcmpgtq xmm0, xmm1
; out: xmm0=u64:0xffffffffffffffff,0

; case: movntdqa-misaligned
; needs: sse4.1
; in: rsi=DATA+4
.here:  movntdqa xmm0, [rsi]
; fault: #GP(0) at .here

; case: aesenc-and-aesenclast
; needs: aes
; in: xmm0=0011223344556677_8899aabbccddeeff xmm1=000102030405060708090a0b0c0d0e0f xmm2=0011223344556677_8899aabbccddeeff
        aesenc xmm0, xmm1
        aesenclast xmm2, xmm1
; out: xmm0=ae00a313c1ad525d_0a125058a0f12753 xmm2=1bef2ac0c0c495f2_438b39e16ff1a219

; case: aesdec-and-aesimc
; needs: aes
; in: xmm0=0011223344556677_8899aabbccddeeff xmm1=000102030405060708090a0b0c0d0e0f
        aesdec xmm0, xmm1
        aesimc xmm2, xmm1
; out: xmm0=460b664054828ba6_1046095d3f0503aa xmm2=0e0b0c090a0f080d_0603040102070005

; case: sha1-round
; needs: sha
; in: xmm0=u32:1,2,3,4 xmm1=u32:5,6,7,8
        sha1rnds4 xmm0, xmm1, 2
        sha1nexte xmm1, xmm0
        sha1msg1 xmm2, xmm1
        sha1msg2 xmm3, xmm1
; out: xmm0=u32:0xe3c6ef59,0x5ca4da75,0x6188f793,0xe2bd189e
; out: xmm1=u32:0xe3c6ef59,0x5ca4da75,0x6188f793,0xe2bd18a0 xmm2=u32:0x6188f793,0xe2bd18a0,0,0
; out: xmm3=u32:0x8623de4d,0xc78ddeb3,0xb949b4ea,0xc311ef26

; case: sha256-rounds
; needs: sha
; in: xmm0=u32:0x11,0x22,0,0 xmm1=u32:1,2,3,4 xmm2=u32:5,6,7,8
        sha256rnds2 xmm1, xmm2
        sha256msg1 xmm3, xmm2
        sha256msg2 xmm2, xmm1
; out: xmm1=u32:0x18c00319,0x674194ac,0x1900231c,0x856e4556
; out: xmm2=u32:0x15ebcfad,0xea20c991,0x9e2652c2,0x7dc0406e xmm3=u32:0,0,0,0xa014000

; case: pshufb-mmx
; needs: ssse3
; in: mm0=u8:1,2,3,4,5,6,7,8 mm1=u8:7,6,0x80,0,0,9,1,2
        pshufb mm0, mm1
; out: ftw=0xff mm0=u8:8,7,0,1,1,2,2,3
