; FXSAVE, XSAVE, XRSTOR and what they check.
; SDM vol. 1, "Managing State Using the XSAVE Feature Set".
; mode: long64 cpl=3
; needs: xsave avx

; case: xsave-avx-only-leaves-the-rest
; in: rdi=DATA rax=4 ymm0=u64:1,2,3,4 ymm15=u64:5,6,7,8
; XSTATE_BV is left open: the init optimisation may clear bits
; undef-mem: DATA+512 8
        xsave [rdi]
; out-mem: DATA+0x240 = 03
; out-mem: DATA+0x248 = 04
; out-mem: DATA+0x330 = 07
; out-mem: DATA+0x338 = 08
; undef-mem: DATA+24 8

; case: xsave-misaligned
; in: rdi=DATA+32 rax=7
.here:  xsave [rdi]
; fault: #GP(0) at .here

; case: xrstor-misaligned
; in: rsi=DATA+16 rax=7
.here:  xrstor [rsi]
; fault: #GP(0) at .here

; case: xrstor-initialises-what-is-not-in-xstate-bv
; in: rsi=DATA rax=6 ymm0=u64:1,2,3,4 xmm7=u64:5,6
; in-mem: DATA+24 = u32:0x1f80
        xrstor [rsi]
; out: xmm7=u64:0,0 ymm0=u64:0,0,0,0

; case: xrstor-loads-avx
; in: rsi=DATA rax=4 ymm3=u64:1,2,3,4
; in-mem: DATA+24 = u32:0x1f80
; in-mem: DATA+512 = u64:4
; in-mem: DATA+576+48 = u64:0x11,0x22
        xrstor [rsi]
; out: ymm3=u64:1,2,0x11,0x22

; case: xrstor-xstate-bv-outside-xcr0
; in: rsi=DATA rax=7
; in-mem: DATA+24 = u32:0x1f80
; in-mem: DATA+512 = u64:0x4000000000000000
.here:  xrstor [rsi]
; fault: #GP(0) at .here

; case: xrstor-reserved-header-bytes
; in: rsi=DATA rax=7
; in-mem: DATA+24 = u32:0x1f80
; in-mem: DATA+528 = u64:1
.here:  xrstor [rsi]
; fault: #GP(0) at .here

; case: xrstor-bad-mxcsr
; qemu-differs: does not check; SDM vol. 2D, "XRSTOR": #GP(0) for reserved bits of MXCSR
; in: rsi=DATA rax=2
; in-mem: DATA+24 = u32:0x80000000
; in-mem: DATA+512 = u64:2
.here:  xrstor [rsi]
; fault: #GP(0) at .here

; case: xsaveopt-runs
; needs: xsave avx xsaveopt
; undef-mem: DATA 1024
; in: rdi=DATA rax=7
        xsaveopt [rdi]
; out: unchanged

; case: xsavec-writes-a-compacted-header
; needs: xsave avx xsavec
; in: rdi=DATA rax=6 ymm1=u64:1,2,3,4
        xsavec [rdi]
; out-mem: DATA+0xb0 = 01
; out-mem: DATA+0xb8 = 02
; out-mem: DATA+0x200 = 06
; out-mem: DATA+0x208 = 06
; out-mem: DATA+0x20f = 80
; out-mem: DATA+0x250 = 03
; out-mem: DATA+0x258 = 04
; undef-mem: DATA+24 8

; case: lock-xsave-is-undefined
; in: rdi=DATA
.here:  db 0xf0, 0x0f, 0xae, 0x27
; fault: #UD at .here

; case: rdfsbase
; needs: fsgsbase
; host: no, FS is the C library's
        rdfsbase rax
; out: unchanged

; case: wrgsbase-and-use
; needs: fsgsbase
; in: rax=DATA
; in-mem: DATA+8 = u32:0x77
        wrgsbase rax
        mov ebx, [gs:8]
        rdgsbase rcx
; out: rcx=DATA rbx=0x77

; case: wrgsbase-noncanonical
; qemu-differs: does not check; SDM vol. 2D, "WRFSBASE/WRGSBASE": #GP(0) if the address is not canonical
; needs: fsgsbase
; in: rax=0x8000000000000000
.here:  wrgsbase rax
; fault: #GP(0) at .here

; case: wrgsbase-dword-zero-extends
; needs: fsgsbase
; in: rax=-1
        wrgsbase eax
        rdgsbase rbx
; out: rbx=0xffffffff
