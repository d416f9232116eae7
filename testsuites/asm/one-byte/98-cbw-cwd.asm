; CBW, CWDE, CDQE, CWD, CDQ, CQO, MOVSXD: sign extension by operand size.
; SDM vol. 2A, "CBW/CWDE/CDQE"; "CWD/CDQ/CQO"; vol. 2B, "MOVSX/MOVSXD".
; mode: long64 cpl=3

; case: cbw-keeps-upper-bits
; in: rax=0x1111111111111180
        cbw
; out: rax=0x111111111111ff80

; case: cwde
; in: rax=0xffffffffffff8001
        cwde
; out: rax=0xffff8001

; case: cdqe-positive
; in: rax=0xffffffff7fffffff
        cdqe
; out: rax=0x7fffffff

; case: cwd
; in: rax=0x8000 rdx=0x1111111111111111
        cwd
; out: rdx=0x111111111111ffff

; case: cdq-clears-upper-half-of-rdx
; in: rax=0x80000000 rdx=0x1111111111111111
        cdq
; out: rdx=0xffffffff

; case: cqo
; in: rax=0x8000000000000000
        cqo
; out: rdx=0xffffffffffffffff

; case: movsxd
; in: rbx=0x1_80000000
        movsxd rax, ebx
; out: rax=0xffffffff80000000

; case: movsxd-without-rex-w-is-a-move
; in: rax=-1 rbx=0x1_80000000
        db 0x63, 0xc3
; out: rax=0x80000000
