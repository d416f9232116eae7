; AND, OR, XOR, TEST, NOT: carry and overflow are cleared, AF is undefined; NOT touches no flag.
; SDM vol. 2A, "AND-Logical AND" and its relatives.
; mode: long64 cpl=3
; undef: flags=AF

; case: and-clears-carry-and-overflow
; in: rax=0xf0 rbx=0x0f flags=CF,OF
        and al, bl
; out: rax=0 flags=PF,ZF

; case: and-sign
; in: rax=0x8000000000000001 rbx=0xff00000000000003
        and rax, rbx
; out: flags=SF

; case: and-immediate-8-is-sign-extended
; in: rax=0x12345678_9abcdef0
        and rax, -16
; out: flags=PF

; case: or-parity-of-low-byte-only
; in: rax=0x0100 rbx=0x0003
        or ax, bx
; out: rax=0x103 flags=PF

; case: or-memory-byte
; in: rdi=DATA+3 rax=0x80
; in-mem: DATA+3 = 01
        or [rdi], al
; out: flags=PF,SF
; out-mem: DATA+0x3 = 81

; case: xor-self-is-zero
; in: rax=0xdeadbeef_12345678 flags=CF,SF,OF
        xor eax, eax
; out: rax=0 flags=PF,ZF

; case: xor-flips-sign
; in: rax=0x7f
        xor al, 0xff
; out: rax=0x80 flags=SF

; case: test-leaves-operands
; in: rax=0x80000000 rbx=0x80000001
        test eax, ebx
; out: flags=PF,SF

; case: test-immediate-with-memory
; in: rdi=DATA
; in-mem: DATA = 0f
        test byte [rdi], 0xf0
; out: flags=PF,ZF

; case: not-touches-no-flag
; in: rax=0x0f0f flags=CF,ZF,OF
        not ax
; out: rax=0xf0f0

; case: not-locked-memory
; in: rdi=DATA+4
; in-mem: DATA+4 = u32:0x00ff00ff
        lock not dword [rdi]
; out-mem: DATA+0x4 = 00 ff 00 ff

; case: test-slash-1-is-an-alias
; qemu-differs: #UD there; APM vol. 3, "One-Byte Opcode Map, ModRM Extensions" lists TEST at F6 /1, and Intel CPUs run it
; in: rax=1
        db 0xf6, 0xc8, 0x01             ; test al, 1 by the undocumented /1
; out: unchanged
