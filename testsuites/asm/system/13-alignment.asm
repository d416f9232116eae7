; Alignment checks: CR0.AM, EFLAGS.AC and CPL 3 together.
; SDM vol. 3, "Interrupt 17-Alignment Check Exception (#AC)".
; mode: long64 cpl=3
; in: flags=AC

; case: word
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
.here:  mov ax, [DATA + 1]
; fault: #AC(0) at .here

; case: dword-at-2
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
.here:  mov eax, [DATA + 2]
; fault: #AC(0) at .here

; case: dword-aligned
        mov eax, [DATA + 4]
; out: unchanged

; case: qword-at-4
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
.here:  mov rax, [DATA + 4]
; fault: #AC(0) at .here

; case: byte-never
        mov al, [DATA + 1]
; out: unchanged

; case: push-with-odd-stack
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; in: rsp=STACK_MID-1
.here:  push rax
; fault: #AC(0) at .here

; case: store
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
.here:  mov [DATA + 3], eax
; fault: #AC(0) at .here

; case: locked
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; in: rdi=DATA+2
.here:  lock inc dword [rdi]
; fault: #AC(0) at .here

; case: x87-double-at-4
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
.here:  fld qword [DATA + 4]
; fault: #AC(0) at .here

; case: string-move
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; in: rsi=DATA+1 rdi=DATA+0x10
.here:  movsd
; fault: #AC(0) at .here

; case: cmpxchg8b-at-4
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; in: rdi=DATA+4
.here:  cmpxchg8b [rdi]
; fault: #AC(0) at .here

; case: without-ac-nothing
; in: flags=none
        mov eax, [DATA + 1]
; out: unchanged

; case: without-am-nothing
; setup:
        mov rax, cr0
        and eax, ~0x40000
        mov cr0, rax
; code:
        mov eax, [DATA + 1]
; out: unchanged

; case: not-at-cpl-0
; mode: long64
        mov eax, [DATA + 1]
; out: unchanged

; case: 32-bit-code
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; mode: pm32 cpl=3
.here:  mov eax, [DATA + 1]
; fault: #AC(0) at .here

; case: far-pointer
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; mode: pm32 cpl=3
; in: esi=DATA+2
; in-mem: DATA+2 = 00 00 00 00 2b 00
.here:  les eax, [esi]
; fault: #AC(0) at .here

; case: fnstenv
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; mode: pm32 cpl=3
; in: edi=DATA+2
.here:  fnstenv [edi]
; fault: #AC(0) at .here

; case: bound
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; mode: pm32 cpl=3
; in: esi=DATA+2
.here:  bound eax, [esi]
; fault: #AC(0) at .here

; case: x87-extended-at-4
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
.here:  fld tword [DATA + 4]
; fault: #AC(0) at .here

; case: x87-integer-word
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
.here:  fild word [DATA + 1]
; fault: #AC(0) at .here

; case: mmx-load-at-4
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
.here:  movq mm0, [DATA + 4]
; fault: #AC(0) at .here

; case: sse-scalar-at-2
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
.here:  movss xmm0, [DATA + 2]
; fault: #AC(0) at .here

; case: sse-scalar-double-at-4
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
.here:  addsd xmm0, [DATA + 4]
; fault: #AC(0) at .here

; case: movups-at-8
; vendor: intel
.here:  movups xmm0, [DATA + 8]
; out: unchanged

; case: movdqu-store-at-1
; vendor: intel
.here:  movdqu [DATA + 1], xmm0
; out: unchanged

; case: avx-unaligned-load-at-4
; vendor: intel
; needs: avx
.here:  vmovups ymm0, [DATA + 4]
; out: unchanged

; case: avx-arithmetic-at-4
; vendor: intel
; needs: avx
.here:  vaddps xmm0, xmm1, [DATA + 4]
; out: unchanged

; case: aligned-vector-instruction-still-gives-gp
.here:  movaps xmm0, [DATA + 4]
; fault: #GP(0) at .here

; case: fxsave-at-8
.here:  fxsave [DATA + 8]
; fault: #GP(0) at .here

; case: stmxcsr-at-2
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
.here:  stmxcsr [DATA + 2]
; fault: #AC(0) at .here

; case: fsave-at-2
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; undef-mem: DATA 128
.here:  fnsave [DATA + 2]
; fault: #AC(0) at .here

; case: pextrw-store-at-1
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; needs: sse4.1
.here:  pextrw [DATA + 1], xmm0, 0
; fault: #AC(0) at .here

; case: pinsrd-at-2
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; needs: sse4.1
.here:  pinsrd xmm0, [DATA + 2], 0
; fault: #AC(0) at .here

; case: movbe-at-2
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; needs: movbe
.here:  movbe eax, [DATA + 2]
; fault: #AC(0) at .here

; case: bt-memory-at-2
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; in: rdi=DATA+2
; undef: flags=OF,SF,AF,PF,CF
.here:  bt [rdi], eax
; fault: #AC(0) at .here

; case: xsave-misaligned-gives-gp
; needs: xsave
.here:  xsave [DATA + 8]
; fault: #GP(0) at .here

; case: vmaskmov-at-2
; needs: avx
; in: xmm1=u32:0x80000000
.here:  vmaskmovps xmm0, xmm1, [DATA + 2]
; out: unchanged

; case: gather-at-2
; needs: avx2
; in: rsi=DATA+2 xmm2=u32:0x80000000
; undef: xmm2
.here:  vpgatherdd xmm0, [rsi + xmm1], xmm2
; out: unchanged

; case: cmpxchg16b-misaligned-gives-gp
; needs: cx16
.here:  cmpxchg16b [DATA + 8]
; fault: #GP(0) at .here

; case: leave
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; in: rbp=DATA+4
.here:  leave
; fault: #AC(0) at .here

; case: ret
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; in: rsp=STACK_MID+2
.here:  ret
; fault: #AC(0) at .here

; case: far-jump-pointer
; qemu-differs: TCG makes no alignment checks; SDM vol. 3, "Interrupt 17"
; mode: pm32 cpl=3
; in: esi=DATA+2
.here:  jmp far [esi]
; fault: #AC(0) at .here

; case: half-precision-load-at-4
; vendor: intel
; needs: f16c
.here:  vcvtph2ps xmm0, [DATA + 4]
; out: unchanged

; case: half-precision-load-at-4-on-amd
; vendor: amd
; needs: f16c
; qemu-differs: TCG makes no alignment checks; APM vol. 2, "#AC-Alignment-Check Exception (Vector 17)"
.here:  vcvtph2ps xmm0, [DATA + 4]
; fault: #AC(0) at .here

; case: movups-at-8-on-amd
; vendor: amd
; qemu-differs: TCG makes no alignment checks; APM vol. 2, "#AC-Alignment-Check Exception (Vector 17)"
.here:  movups xmm0, [DATA + 8]
; fault: #AC(0) at .here

; case: movdqu-store-at-1-on-amd
; vendor: amd
; qemu-differs: TCG makes no alignment checks; APM vol. 2, "#AC-Alignment-Check Exception (Vector 17)"
.here:  movdqu [DATA + 1], xmm0
; fault: #AC(0) at .here

; case: avx-unaligned-load-at-4-on-amd
; vendor: amd
; needs: avx
; qemu-differs: TCG makes no alignment checks; APM vol. 2, "#AC-Alignment-Check Exception (Vector 17)"
.here:  vmovups ymm0, [DATA + 4]
; fault: #AC(0) at .here

; case: avx-256-bit-load-at-16-on-amd
; vendor: amd
; needs: avx
        vmovups ymm0, [DATA + 16]
; out: unchanged

; case: avx-arithmetic-at-4-on-amd
; vendor: amd
; needs: avx
; qemu-differs: TCG makes no alignment checks; APM vol. 2, "#AC-Alignment-Check Exception (Vector 17)"
.here:  vaddps xmm0, xmm1, [DATA + 4]
; fault: #AC(0) at .here
