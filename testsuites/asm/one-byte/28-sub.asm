; SUB, CMP, NEG: borrow, overflow, adjust.
; SDM vol. 2B, "SUB-Subtract"; vol. 2A, "CMP-Compare Two Operands"; "NEG-Two's Complement Negation".
; mode: long64 cpl=3

; case: byte-borrow
; in: rax=0x00 rbx=0x01
        sub al, bl
; out: rax=0xff flags=CF,PF,AF,SF

; case: word-overflow-to-positive
; in: rax=0x8000 rbx=1
        sub ax, bx
; out: rax=0x7fff flags=PF,AF,OF

; case: qword-equal
; in: rax=0x80000000_00000000 rbx=0x80000000_00000000
        sub rax, rbx
; out: rax=0 flags=PF,ZF

; case: half-borrow-only
; in: rax=0x10 rbx=1
        sub eax, ebx
; out: rax=0xf flags=PF,AF

; case: cmp-signed-less-unsigned-greater
; in: rax=0xffffffff rbx=1
        cmp eax, ebx
; out: flags=SF

; case: cmp-memory-with-immediate
; in: rsi=RO
; in-mem: RO = u64:0xfffffffffffffff0
        cmp qword [rsi], -16
; out: flags=PF,ZF

; case: cmp-short-immediate-form-of-ax
; in: rax=0x1_8000
        cmp ax, 0x7fff
; out: flags=AF,OF

; case: neg-zero-clears-carry
; in: flags=CF
        neg rax
; out: flags=PF,ZF

; case: neg-minimum-overflows
; in: rax=0x80
        neg al
; out: flags=CF,SF,OF

; case: neg-one
; in: rax=0xffff0001
        neg ax
; out: rax=0xffffffff flags=CF,PF,AF,SF

; case: neg-memory
; in: rdi=DATA
; in-mem: DATA = u32:0x12345678
        neg dword [rdi]
; out: flags=CF,PF,AF,SF
; out-mem: DATA = 88 a9 cb ed
