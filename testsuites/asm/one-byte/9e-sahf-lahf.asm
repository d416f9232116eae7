; SAHF, LAHF, CMC, CLC, STC, CLD, STD, SALC.
; SDM vol. 2B, "SAHF-Store AH Into Flags"; vol. 2A, "LAHF-Load Status Flags Into AH Register".
; mode: long64 cpl=3

; case: sahf-leaves-overflow
; needs: lahf64
; in: rax=0x00d5_00 flags=OF
        mov ah, 0xd5
        sahf
; out: flags=CF,PF,AF,ZF,SF,OF

; case: sahf-clears
; needs: lahf64
; in: flags=CF,PF,AF,ZF,SF,OF
        sahf
; out: flags=OF

; case: lahf-sets-bit-1
; needs: lahf64
; in: rax=-1 flags=CF,ZF
        lahf
; out: rax=0xffffffffffff43ff

; case: cmc-twice
        cmc
        setc al
        cmc
        setc bl
; out: rax=1

; case: stc-cld-std
        stc
        std
        pushf
        cld
        pop rax
; out: rax=0x603 flags=CF
; out-mem: STACK+0xff8 = 03 06

; case: salc-spreads-carry
; mode: pm32 cpl=3
; in: flags=CF eax=0x100
        db 0xd6
; out: eax=0x1ff

; case: salc-is-undefined-in-64-bit-mode
; qemu-differs: 10.0 runs it; APM vol. 3, "One-Byte Opcodes": D6 is invalid in 64-bit mode
.here:  db 0xd6
; fault: #UD at .here
