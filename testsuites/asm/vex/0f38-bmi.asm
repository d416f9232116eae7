; ANDN, BLSI, BLSR, BLSMSK, BEXTR, BZHI, PDEP, PEXT, MULX, RORX, SARX, SHLX, SHRX.
; SDM vol. 2, the instructions' own entries.
; mode: long64 cpl=3

; case: andn
; needs: bmi1
; in: rbx=0xff00 rcx=0x0ff0 flags=CF,OF
; undef: flags=AF,PF
        andn rax, rbx, rcx
; out: rax=0xf0 flags=none

; case: blsi
; qemu-differs: CF inverted; SDM vol. 2A, "BLSI": CF is set if the source is not zero
; needs: bmi1
; in: rbx=0x0b40
; undef: flags=AF,PF
        blsi eax, ebx
; out: rax=0x40 flags=CF

; case: blsi-zero
; qemu-differs: CF inverted; SDM vol. 2A, "BLSI": CF is set if the source is not zero
; needs: bmi1
; undef: flags=AF,PF
        blsi rax, rbx
; out: flags=ZF

; case: blsr-zero-source-sets-carry
; needs: bmi1
; undef: flags=AF,PF
        blsr rax, rbx
; out: flags=CF,ZF

; case: blsr
; needs: bmi1
; in: rbx=0x80000001
; undef: flags=AF,PF
        blsr eax, ebx
; out: rax=0x80000000 flags=SF

; case: blsmsk
; needs: bmi1
; in: rbx=0x60
; undef: flags=AF,PF
        blsmsk rax, rbx
; out: rax=0x3f

; case: blsmsk-zero
; needs: bmi1
; undef: flags=AF,PF
        blsmsk eax, ebx
; out: rax=0xffffffff flags=CF,SF

; case: bextr
; needs: bmi1
; in: rbx=0x123456789abcdef0 rcx=0x1008
; undef: flags=AF,SF,PF
        bextr rax, rbx, rcx
; out: rax=0xbcde

; case: bextr-start-beyond-operand
; needs: bmi1
; in: rbx=0xffffffff rcx=0x0840
; undef: flags=AF,SF,PF
        bextr eax, ebx, ecx
; out: flags=ZF

; case: bextr-memory-length-255
; needs: bmi1
; in: rsi=DATA rcx=0xff04
; in-mem: DATA = u64:0xfedcba9876543210
; undef: flags=AF,SF,PF
        bextr rax, [rsi], rcx
; out: rax=0xfedcba987654321

; case: bzhi
; needs: bmi2
; in: rbx=-1 rcx=0x1_0c
; undef: flags=AF,PF
        bzhi rax, rbx, rcx
; out: rax=0xfff

; case: bzhi-index-beyond-operand-sets-carry
; needs: bmi2
; in: rbx=0x12345678 rcx=32
; undef: flags=AF,PF
        bzhi eax, ebx, ecx
; out: rax=0x12345678 flags=CF

; case: pdep
; needs: bmi2
; in: rbx=0x2d rcx=0x8421_0000_0000_8421 flags=CF,ZF
        pdep rax, rbx, rcx
; out: rax=0x20000000008401

; case: pext
; needs: bmi2
; in: rbx=0x8000_0000_0000_0421 rcx=0x8421_0000_0000_8421
        pext rax, rbx, rcx
; out: rax=0x87

; case: pext-dword-memory
; needs: bmi2
; in: rax=-1 rbx=0x87654321 rsi=DATA
; in-mem: DATA = u32:0xf0f0f0f0
        pext eax, ebx, [rsi]
; out: rax=0x8642

; case: mulx-keeps-flags
; needs: bmi2
; in: rdx=0xffffffffffffffff rbx=2 flags=CF,OF,SF
        mulx rax, rcx, rbx
; out: rax=1 rcx=0xfffffffffffffffe

; case: mulx-same-destination-takes-the-high-half
; needs: bmi2
; in: rdx=0x80000000 rbx=6
        mulx eax, eax, ebx
; out: rax=3

; case: rorx
; needs: bmi2
; in: rbx=0x1122334455667788 flags=CF
        rorx rax, rbx, 68
; out: rax=0x8112233445566778

; case: sarx-count-is-masked
; needs: bmi2
; in: rbx=0x80000000 rcx=0x24 flags=CF
        sarx eax, ebx, ecx
; out: rax=0xf8000000

; case: shlx-qword
; needs: bmi2
; in: rbx=3 rcx=0x7f
        shlx rax, rbx, rcx
; out: rax=0x8000000000000000

; case: shrx-memory
; needs: bmi2
; in: rsi=DATA rcx=4
; in-mem: DATA = u32:0xf0
        shrx eax, [rsi], ecx
; out: rax=0xf

; case: andn-with-l-1-is-undefined
; needs: bmi1
.here:  db 0xc4, 0xe2, 0x74, 0xf2, 0xc2
; fault: #UD at .here

; case: vex-after-rex-is-undefined
; needs: bmi1
.here:  db 0x48, 0xc4, 0xe2, 0x70, 0xf2, 0xc2
; fault: #UD at .here

; case: vex-after-operand-size-prefix-is-undefined
; needs: bmi1
.here:  db 0x66, 0xc4, 0xe2, 0x70, 0xf2, 0xc2
; fault: #UD at .here

; case: vex-after-lock-is-undefined
; needs: bmi1
.here:  db 0xf0, 0xc4, 0xe2, 0x70, 0xf2, 0xc2
; fault: #UD at .here

; case: andn-in-32-bit-code
; mode: pm32 cpl=3
; needs: bmi1
; in: ebx=0xff00 ecx=0x0ff0
; undef: flags=AF,PF
        andn eax, ebx, ecx
; out: eax=0xf0
