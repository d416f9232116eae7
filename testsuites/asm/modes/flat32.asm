; Flat 32-bit code: linear addresses have 32 bits, and what is computed beyond them is lost.
; SDM vol. 1, "Specifying an Offset"; vol. 3A, "Segmentation in IA-32e Mode".
; mode: paging32

; case: base-and-displacement-wrap
; in: rbx=0xfffffff0
; in-mem: DATA+4 = u32:0xcafe
        mov eax, [ebx + DATA + 20]
; out: eax=0xcafe

; case: base-and-scaled-index-wrap
; in: rbx=DATA rcx=0xc0000001
; in-mem: DATA+4 = u32:0xbeef
        mov eax, [ebx + ecx * 4]
; out: eax=0xbeef

; case: base-and-displacement-wrap-in-pm32
; mode: pm32 cpl=3
; in: rbx=0xfffffff0
; in-mem: DATA+4 = u32:0xcafe
        mov eax, [ebx + DATA + 20]
; out: eax=0xcafe

; case: base-and-scaled-index-wrap-in-pm32
; mode: pm32 cpl=3
; in: rbx=DATA rcx=0xc0000001
; in-mem: DATA+4 = u32:0xbeef
        mov eax, [ebx + ecx * 4]
; out: eax=0xbeef

; case: base-and-displacement-wrap-in-compat32
; mode: compat32 cpl=3
; in: rbx=0xfffffff0
; in-mem: DATA+4 = u32:0xcafe
        mov eax, [ebx + DATA + 20]
; out: eax=0xcafe

; case: base-and-scaled-index-wrap-in-compat32
; mode: compat32 cpl=3
; in: rbx=DATA rcx=0xc0000001
; in-mem: DATA+4 = u32:0xbeef
        mov eax, [ebx + ecx * 4]
; out: eax=0xbeef

; case: below-zero-wraps
; in: rbx=8 rcx=DATA
; in-mem: DATA = u32:0x1234
        mov eax, [ebx + ecx - 8]
; out: eax=0x1234

; case: high-byte-by-a-wrapped-address
; in: rax=0x5a00 rbx=0xffffffff
        mov [ebx + DATA + 3], ah
; out-mem: DATA+0x2 = 5a

; case: sixteen-bit-address-wraps-at-64-kib
; in: rbx=0xffff rsi=2
        a16 lea eax, [bx + si + 4]
; out: eax=5

; case: read-modify-write-by-a-wrapped-address
; in: rdx=0x80000000 rbx=DATA
; in-mem: DATA+8 = u32:5
        add dword [ebx + edx * 2 + 8], 7
        xchg [ebx + edx * 2 + 8], edx
; out: edx=0xc flags=PF
; out-mem: DATA+0x8 = 00 00 00 80

; case: vector-by-a-wrapped-address
; in: rdx=0x40000000 rbx=DATA
; in-mem: DATA+16 = u32:1,2,3,4
        movdqu xmm0, [ebx + edx * 4 + 16]
        movdqu [ebx + edx * 4], xmm0
; out: xmm0=0000000400000003_0000000200000001
; out-mem: DATA = 01 00 00 00 02 00 00 00 03 00 00 00 04

; case: other-segment-with-a-base-of-zero
; in: rbx=0xfffffffc
; in-mem: DATA = u32:0x77
        mov eax, [es:ebx + DATA + 4]
; out: eax=0x77

; case: stack-pointer-as-base
; in: rdx=0x80000000
        push dword 0x1234
        mov eax, [esp + edx * 2]
        pop ecx
; out: eax=0x1234 ecx=0x1234
