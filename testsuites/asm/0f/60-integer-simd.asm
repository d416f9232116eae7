; MMX and SSE2 integer instructions: saturation, packing, shifts, multiplication.
; SDM vol. 2B, "PADDB/PADDW/PADDD/PADDQ" and its relatives.
; mode: long64 cpl=3

; case: paddsb-and-paddusb-saturate
; in: xmm0=u8:0x7f,0x80,0xff,1,2,3,4,5,6,7,8,9,10,11,12,13 xmm1=u8:1,0xff,1,2 xmm2=u8:0xf0
        paddsb xmm0, xmm1
        paddusb xmm1, xmm2
; out: xmm0=u8:0x7f,0x80,0,3,3,2,5,7,7,6,9,0xb,0xb,0xa,0xd,0xf
; out: xmm1=u8:0xf1,0xff,0xf1,0xf2,0xf1,0xff,0xf1,0xf2,0xf1,0xff,0xf1,0xf2,0xf1,0xff,0xf1,0xf2

; case: psubusw-stops-at-zero
; in: xmm0=u16:1,5,0xffff,0,9,9,9,9 xmm1=u16:2,3,1,1,9,8,10,0
        psubusw xmm0, xmm1
; out: xmm0=u16:0,2,0xfffe,0,0,1,0,9

; case: packsswb-packuswb
; in: xmm0=u16:0x7f,0x80,0xff80,0xff7f,0x100,0xffff,0,0x8000 xmm1=u16:0x7f,0x80,0xff80,0xff7f,0x100,0xffff,0,0x8000
        packsswb xmm0, xmm0
        packuswb xmm1, xmm1
; out: xmm0=u16:0x7f7f,0x8080,0xff7f,0x8000,0x7f7f,0x8080,0xff7f,0x8000
; out: xmm1=u16:0x807f,0,0xff,0,0x807f,0,0xff,0

; case: packssdw
; in: xmm0=u32:0x7fff,0x8000,0xffff8000,0xffff7fff
        packssdw xmm0, xmm0
; out: xmm0=u32:0x7fff7fff,0x80008000,0x7fff7fff,0x80008000

; case: pmulhw-pmullw-pmulhuw
; in: xmm0=u16:0x8000,0xffff,2,3,4,5,6,7 xmm1=u16:0x8000,0xffff,2,3,4,5,6,7 xmm2=u16:0x8000,0xffff,2,3,4,5,6,7
        pmulhw xmm0, xmm2
        pmullw xmm1, xmm2
        pmulhuw xmm2, xmm2
; out: xmm0=u16:0x4000,0,0,0,0,0,0,0 xmm1=u16:0,1,4,9,0x10,0x19,0x24,0x31
; out: xmm2=u16:0x4000,0xfffe,0,0,0,0,0,0

; case: pmaddwd-of-minimums-wraps
; in: xmm0=u16:0x8000,0x8000,1,2,3,4,5,6
        pmaddwd xmm0, xmm0
; out: xmm0=u16:0,0x8000,5,0,0x19,0,0x3d,0

; case: pmuludq
; in: xmm0=u32:0xffffffff,7,2,9 xmm1=u32:0xffffffff,8,3,1
        pmuludq xmm0, xmm1
; out: xmm0=u32:1,0xfffffffe,6,0

; case: psadbw
; in: xmm0=u8:1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16 xmm1=u8:0xff
        psadbw xmm0, xmm1
; out: xmm0=u8:0xd4,7,0,0,0,0,0,0,0x94,7,0,0,0,0,0,0

; case: pavgb-rounds-up
; in: xmm0=u8:1 xmm1=u8:2
        pavgb xmm0, xmm1
; out: xmm0=u8:2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2

; case: shift-count-beyond-element-size
; in: xmm0=u16:0x8001 xmm1=u64:16,0 xmm2=u16:0x8001 xmm3=u16:0x8001
        psllw xmm0, xmm1
        psraw xmm2, xmm1
        psrlw xmm3, 15
; out: xmm0=u16:0,0,0,0,0,0,0,0 xmm2=u16:0xffff,0xffff,0xffff,0xffff,0xffff,0xffff,0xffff,0xffff
; out: xmm3=u16:1,1,1,1,1,1,1,1

; case: shift-count-uses-64-bits
; in: xmm0=u32:0xffffffff xmm1=u64:0x100000000,0
        psrld xmm0, xmm1
; out: xmm0=u32:0,0,0,0

; case: pslldq-psrldq
; in: xmm0=u8:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 xmm1=u8:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
        pslldq xmm0, 3
        psrldq xmm1, 20
; out: xmm0=u8:0,0,0,0,1,2,3,4,5,6,7,8,9,0xa,0xb,0xc xmm1=u8:0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0

; case: pshufd-pshuflw-pshufhw
; in: xmm0=u32:1,2,3,4
        pshufd xmm1, xmm0, 0x1b
        pshuflw xmm2, xmm0, 0x4e
        pshufhw xmm3, xmm0, 0x4e
; out: xmm1=u32:4,3,2,1 xmm2=u32:2,1,3,4 xmm3=u32:1,2,4,3

; case: punpck
; in: xmm0=u8:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 xmm1=u8:0xf0,0xf1,0xf2,0xf3,0xf4,0xf5,0xf6,0xf7,0xf8,0xf9,0xfa,0xfb,0xfc,0xfd,0xfe,0xff
        punpcklbw xmm0, xmm1
        punpckhqdq xmm1, xmm0
; out: xmm0=u8:0,0xf0,1,0xf1,2,0xf2,3,0xf3,4,0xf4,5,0xf5,6,0xf6,7,0xf7
; out: xmm1=u8:0xf8,0xf9,0xfa,0xfb,0xfc,0xfd,0xfe,0xff,4,0xf4,5,0xf5,6,0xf6,7,0xf7

; case: pinsrw-pextrw
; in: xmm0=u16:1,2,3,4,5,6,7,8 rax=0xabcd rbx=-1
        pinsrw xmm0, eax, 11
        pextrw ebx, xmm0, 3
; out: rbx=0xabcd xmm0=u16:1,2,3,0xabcd,5,6,7,8

; case: pcmpgt-is-signed
; in: xmm0=u8:0x7f,0x80,0,0xff,0,0,0,0,0,0,0,0,0,0,0,0 xmm1=u8:0x80,0x7f,0xff,0,0,0,0,0,0,0,0,0,0,0,0,0
        pcmpgtb xmm0, xmm1
; out: xmm0=u8:0xff,0,0xff,0,0,0,0,0,0,0,0,0,0,0,0,0

; case: pminub-pmaxsw
; in: xmm0=u8:0x80,0x01,0xff,0,0,0,0,0,0,0,0,0,0,0,0,0 xmm1=u8:0x7f,0xff,1,0,0,0,0,0,0,0,0,0,0,0,0,0
        pminub xmm0, xmm1
        pmaxsw xmm1, xmm0
; out: xmm0=u8:0x7f,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0 xmm1=u8:0x7f,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0

; case: mmx-paddw-enters-mmx-state
; in: mm0=u16:1,2,3,4 mm1=u16:0xffff
        paddw mm0, mm1
; out: ftw=0xff mm0=u16:0,1,2,3

; case: mmx-after-x87-resets-top
; qemu-differs: leaves bits 79:64 of the x87 register; SDM vol. 1, "MMX Instructions and the x87 FPU Tag Word" and vol. 3, "The MMX State": they become ones
; in: st0=1.0 st1=2.0
        pxor mm0, mm0
; out: fsw=0 ftw=0xff mm0=0000000000000000

; case: mmx-psllq-and-pmulhw
; in: mm0=u16:0x8000,2,3,4 mm1=u64:4
        pmulhw mm0, mm0
        psllq mm0, mm1
; out: ftw=0xff mm0=u16:0,4,0,0

; case: mmx-pshufw-pinsrw-pmovmskb
; in: mm0=u16:0x80,2,3,0x8000 rax=0x1234
        pmovmskb ebx, mm0
        pinsrw mm0, eax, 2
        pshufw mm0, mm0, 0x1b
; out: rbx=0x81 ftw=0xff mm0=u16:0x8000,0x1234,2,0x80

; case: mmx-maskmovq
; in: mm0=u8:1,2,3,4,5,6,7,8 mm1=u8:0x80,0,0x80,0,0,0,0,0x80 rdi=DATA
        maskmovq mm0, mm1
; out: ftw=0xff
; out-mem: DATA = 01 00 03
; out-mem: DATA+0x7 = 08

; case: mmx-with-pending-x87-error
; in: st0=1.0 st1=0.0 fcw=0x37b
; qemu-differs: keeps the masked result of FDIV and raises #MF at FWAIT only; SDM vol. 3, "Interrupt 16": MMX instructions report pending errors
        fdiv st0, st1
.here:  paddb mm0, mm1
; fault: #MF at .here
; out: fsw=0xb084
