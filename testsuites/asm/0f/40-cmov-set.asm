; CMOVcc, SETcc, MOVZX, MOVSX, BSWAP.
; SDM vol. 2A, "CMOVcc-Conditional Move"; vol. 2B, "SETcc"; "MOVZX"; "MOVSX"; vol. 2A, "BSWAP".
; mode: long64 cpl=3

; case: cmov-taken
; in: rax=1 rbx=0xffffffffffffffff flags=ZF
        cmovz rax, rbx
; out: rax=0xffffffffffffffff

; case: cmov-not-taken-dword-still-clears-upper-half
; in: rax=0x1122334455667788 rbx=9
        cmovz eax, ebx
; out: rax=0x55667788

; case: cmov-not-taken-word-keeps-all
; in: rax=0x1122334455667788 rbx=9
        cmovz ax, bx
; out: unchanged

; case: cmov-not-taken-still-loads
; in: rbx=ABSENT rax=5
.here:  cmovz eax, [rbx]
; fault: #PF(4) at .here
; out: cr2=ABSENT

; case: cmov-all-signed-conditions
; in: flags=SF rbx=1
        cmovl ecx, ebx
        cmovge edx, ebx
        cmovle esi, ebx
        cmovg edi, ebx
; out: rcx=1 rsi=1

; case: cmov-all-unsigned-conditions
; in: flags=CF rbx=1
        cmovb ecx, ebx
        cmovae edx, ebx
        cmovbe esi, ebx
        cmova edi, ebx
; out: rcx=1 rsi=1

; case: setcc-writes-one-byte
; in: rax=-1 flags=CF
        setc al
        setnc ah
; out: rax=0xffffffffffff0001

; case: setcc-memory
; in: rdi=DATA2-1 flags=OF,SF
        seto [rdi]
        setl [rdi + 1]
        setg [rdi + 2]
; out-mem: DATA+0xfff = 01 00 01

; case: setcc-to-read-only-page
; in: rdi=RO
.here:  setz [rdi]
; fault: #PF(7) at .here
; out: cr2=RO

; case: movzx-high-byte
; in: rbx=0x8a00 rax=-1
        movzx eax, bh
; out: rax=0x8a

; case: movsx-high-byte
; in: rbx=0x8a00
        movsx eax, bh
; out: rax=0xffffff8a

; case: movsx-word-to-qword
; in: rbx=0x8000
        movsx rax, bx
; out: rax=0xffffffffffff8000

; case: movzx-word-to-word
; in: rax=-1 rbx=0xff
        movzx ax, bl
; out: rax=0xffffffffffff00ff

; case: movzx-memory-at-page-end
; in: rsi=ABSENT-2
; in-mem: ABSENT-2 = fe ff
        movzx eax, word [rsi]
; out: rax=0xfffe

; case: bswap-dword
; in: rax=0xffffffff11223344
        bswap eax
; out: rax=0x44332211

; case: bswap-qword
; in: r9=0x1122334455667788
        bswap r9
; out: r9=0x8877665544332211
