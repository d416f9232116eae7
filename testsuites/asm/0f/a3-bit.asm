; BT, BTS, BTR, BTC, BSF, BSR, TZCNT, LZCNT, POPCNT: bit offsets beyond the operand, zero sources.
; SDM vol. 2A, "BT-Bit Test" and its relatives; "BSF-Bit Scan Forward".
; mode: long64 cpl=3

; case: bt-register-offset-is-modulo-size
; in: rax=2 rcx=33
; undef: flags=OF,SF,AF,PF
        bt eax, ecx
; out: flags=CF

; case: bt-memory-offset-reaches-beyond
; in: rdi=DATA rcx=0x104
; in-mem: DATA+0x20 = 10
; undef: flags=OF,SF,AF,PF
        bt [rdi], ecx
; out: flags=CF

; case: bt-memory-negative-offset
; in: rdi=DATA2 rcx=-1
; in-mem: DATA2-8 = 00 00 00 00 00 00 00 80
; undef: flags=OF,SF,AF,PF
        bt [rdi], rcx
; out: flags=CF

; case: bts-memory-negative-dword-offset
; in: rdi=DATA+0x10 rcx=0xffffffe0
; undef: flags=OF,SF,AF,PF
        bts [rdi], ecx
; out-mem: DATA+0xc = 01

; case: bt-memory-immediate-is-modulo-size
; in: rdi=DATA
; in-mem: DATA = u64:0x100000001
; undef: flags=OF,SF,AF,PF
        bt dword [rdi], 32
; out: flags=CF

; case: btr-word-memory
; in: rdi=DATA rcx=17
; in-mem: DATA+2 = ff ff
; undef: flags=OF,SF,AF,PF
        btr [rdi], cx
; out: flags=CF
; out-mem: DATA+0x2 = fd

; case: btc-locked
; in: rdi=DATA rcx=3
; undef: flags=OF,SF,AF,PF
        lock btc [rdi], rcx
; out-mem: DATA = 08

; case: bts-register
; in: rax=0 rcx=63
; undef: flags=OF,SF,AF,PF
        bts rax, rcx
; out: rax=0x8000000000000000

; case: btr-immediate
; in: rax=0x80
; undef: flags=OF,SF,AF,PF
        btr eax, 7
; out: rax=0 flags=CF

; case: bt-keeps-zero-flag
; in: rax=0 flags=ZF
; undef: flags=OF,SF,AF,PF
        bt eax, 3
; out: unchanged

; case: lock-bt-is-undefined
; qemu-differs: ignores the prefix; SDM vol. 2A, "LOCK": #UD with an instruction that is not in the list
; in: rdi=DATA
.here:  db 0xf0, 0x0f, 0xa3, 0x07       ; lock bt [rdi], eax
; fault: #UD at .here

; case: group-8-slash-0-is-undefined
.here:  db 0x0f, 0xba, 0xc0, 0x01
; fault: #UD at .here

; case: bts-to-read-only-page
; in: rdi=RO
.here:  bts dword [rdi], 1
; fault: #PF(7) at .here
; out: cr2=RO

; case: bsf
; in: rbx=0x00f0_0000_0000_0000
; undef: flags=CF,OF,SF,AF,PF
        bsf rax, rbx
; out: rax=0x34

; case: bsf-zero-sets-zero-flag
; in: rax=0x1122334455667788
; undef: flags=CF,OF,SF,AF,PF rax
        bsf rax, rbx
; out: flags=ZF

; case: bsr
; in: rbx=0x00018000
; undef: flags=CF,OF,SF,AF,PF
        bsr ax, bx
; out: rax=0xf

; case: bsr-dword
; in: rbx=0x00018000 rax=-1
; undef: flags=CF,OF,SF,AF,PF
        bsr eax, ebx
; out: rax=0x10

; case: tzcnt
; needs: bmi1
; in: rbx=0x100
; undef: flags=OF,SF,AF,PF
        tzcnt rax, rbx
; out: rax=8

; case: tzcnt-zero-is-operand-size
; needs: bmi1
; undef: flags=OF,SF,AF,PF
        tzcnt eax, ebx
; out: rax=0x20 flags=CF

; case: tzcnt-word-zero
; needs: bmi1
; in: rax=-1
; undef: flags=OF,SF,AF,PF
        tzcnt ax, bx
; out: rax=0xffffffffffff0010 flags=CF

; case: lzcnt
; needs: lzcnt
; in: rbx=0x100
; undef: flags=OF,SF,AF,PF
        lzcnt rax, rbx
; out: rax=0x37

; case: lzcnt-of-top-bit-is-zero
; needs: lzcnt
; in: rbx=0x80000000
; undef: flags=OF,SF,AF,PF
        lzcnt eax, ebx
; out: flags=ZF

; case: lzcnt-zero
; needs: lzcnt
; undef: flags=OF,SF,AF,PF
        lzcnt rax, rbx
; out: rax=0x40 flags=CF

; case: popcnt
; needs: popcnt
; in: rbx=0xff00ff00ff00ff01 flags=CF,OF,SF,PF
        popcnt rax, rbx
; out: rax=0x21 flags=none

; case: popcnt-zero-sets-only-zero-flag
; needs: popcnt
; in: rax=5 flags=CF,OF,SF,PF,AF
        popcnt ax, bx
; out: rax=0 flags=ZF
