; SSE and SSE2 moves: which bits they keep, which alignments they want.
; SDM vol. 2B, "MOVSS", "MOVAPS", "MOVD/MOVQ" and their relatives.
; mode: long64 cpl=3

; case: movss-register-keeps-upper-lanes
; in: xmm0=u32:1,2,3,4 xmm1=u32:5,6,7,8
        movss xmm0, xmm1
; out: xmm0=u32:5,2,3,4

; case: movss-load-clears-upper-lanes
; in: xmm0=u32:1,2,3,4 rsi=DATA
; in-mem: DATA = u32:9
        movss xmm0, [rsi]
; out: xmm0=u32:9,0,0,0

; case: movsd-register-keeps-upper-half-of-ymm
; in: ymm0=u64:1,2,3,4 xmm1=u64:5,6
        movsd xmm0, xmm1
; out: xmm0=u64:5,2

; case: movaps-legacy-keeps-upper-half-of-ymm
; in: ymm0=u64:1,2,3,4 xmm1=u64:5,6
        movaps xmm0, xmm1
; out: xmm0=u64:5,6

; case: movups-store-unaligned-across-pages
; in: xmm2=u32:0x11111111,0x22222222,0x33333333,0x44444444 rdi=DATA2-5
        movups [rdi], xmm2
; out-mem: DATA+0xffb = 11 11 11 11 22 22 22 22 33 33 33 33 44 44 44 44

; case: movaps-misaligned-load
; in: rsi=DATA+8
.here:  movaps xmm0, [rsi]
; fault: #GP(0) at .here

; case: movdqa-misaligned-store
; in: rdi=DATA+4
.here:  movdqa [rdi], xmm0
; fault: #GP(0) at .here

; case: movdqu-into-absent-page-writes-nothing
; qemu-differs: stores the two halves apart; SDM vol. 3, "Faults": a fault leaves the state as before the instruction
; in: rdi=ABSENT-8 xmm0=u8:0xff
.here:  movdqu [rdi], xmm0
; fault: #PF(6) at .here
; out: cr2=ABSENT

; case: addps-misaligned-memory
; in: rsi=DATA+4
.here:  addps xmm0, [rsi]
; fault: #GP(0) at .here

; case: movhps-movlps
; in: rsi=DATA xmm0=u32:1,2,3,4
; in-mem: DATA = u32:10,11
        movhps xmm0, [rsi]
        movlps [rsi + 8], xmm0
; out: xmm0=u32:1,2,0xa,0xb
; out-mem: DATA+0x8 = 01 00 00 00 02

; case: movhlps-movlhps
; in: xmm0=u32:1,2,3,4 xmm1=u32:5,6,7,8
        movhlps xmm0, xmm1
        movlhps xmm1, xmm0
; out: xmm0=u32:7,8,3,4

; case: movd-clears-the-rest
; in: xmm0=u64:-1 rax=0x1_80000001
        movd xmm0, eax
; out: xmm0=u64:0x80000001,0

; case: movq-to-general-register
; in: xmm3=u64:0x1122334455667788,9
        movq rax, xmm3
; out: rax=0x1122334455667788

; case: movq-register-clears-upper-half
; in: xmm0=u64:-1 xmm1=u64:5,6
        movq xmm0, xmm1
; out: xmm0=u64:5,0

; case: movmskps-movmskpd-pmovmskb
; in: xmm0=u32:0x80000000,1,0x80000080,0x7fffffff rax=-1
        movmskps eax, xmm0
        movmskpd ebx, xmm0
        pmovmskb ecx, xmm0
; out: rax=5 rcx=0x7908

; case: movntdq-and-movnti
; in: xmm0=u32:7 rdi=DATA rax=0x55667788
        movntdq [rdi], xmm0
        movnti [rdi + 16], eax
; out-mem: DATA = 07 00 00 00 07 00 00 00 07 00 00 00 07
; out-mem: DATA+0x10 = 88 77 66 55

; case: movntps-misaligned
; in: rdi=DATA+8
.here:  movntps [rdi], xmm0
; fault: #GP(0) at .here

; case: maskmovdqu-writes-selected-bytes
; in: xmm0=u8:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 xmm1=u8:0x80,0,0,0x80,0,0,0,0,0,0,0,0,0,0,0,0x80 rdi=DATA+1
        maskmovdqu xmm0, xmm1
; out-mem: DATA+0x4 = 03
; out-mem: DATA+0x10 = 0f

; case: lddqu
; in: rsi=DATA+3
; in-mem: DATA+3 = 01 02 03 04
        lddqu xmm0, [rsi]
; out: xmm0=0000000000000000_0000000004030201

; case: movddup-movshdup-movsldup
; needs: sse3
; in: xmm0=u32:1,2,3,4
        movddup xmm1, xmm0
        movshdup xmm2, xmm0
        movsldup xmm3, xmm0
; out: xmm1=u32:1,2,1,2 xmm2=u32:2,2,4,4 xmm3=u32:1,1,3,3

; case: movdq2q-enters-mmx-state
; qemu-differs: leaves bits 79:64 of the x87 register; SDM vol. 1, "MMX Instructions and the x87 FPU Tag Word" and vol. 3, "The MMX State": they become ones
; in: xmm0=u64:0x0102030405060708,9
        movdq2q mm2, xmm0
; out: ftw=0xff mm2=u64:0x102030405060708

; case: movq2dq
; in: mm1=u64:0x1122334455667788 xmm0=u64:-1
        movq2dq xmm0, mm1
; out: ftw=0xff xmm0=u64:0x1122334455667788,0
