; ADD: carry, overflow and adjust at each size, and every operand form.
; SDM vol. 2A, "ADD-Add".
; mode: long64 cpl=3

; case: byte-carry-out
; in: rax=0x11223344556677ff rbx=1
        add al, bl
; out: rax=0x1122334455667700 flags=CF,PF,AF,ZF

; case: byte-overflow-keeps-high-bytes
; in: rax=0x112233445566777f rbx=0x11
        add ah, bl
        add al, bl
; out: rax=0x1122334455668890 flags=PF,AF,SF,OF

; case: word-half-carry
; in: rax=0xffff000f rdx=1
        add ax, dx
; out: rax=0xffff0010 flags=AF

; case: dword-clears-upper-half
; in: rax=0xffffffff_ffffffff rcx=1
        add eax, ecx
; out: rax=0 flags=CF,PF,AF,ZF

; case: memory-destination-across-pages
; in: rdi=DATA2-4 rax=0x1_0000_0001
; in-mem: DATA2-4 = u64:0xffffffff_ffffffff
        add [rdi], rax
; out: flags=CF,PF,AF
; out-mem: DATA+0xffc = 00 00 00 00 01 00 00 00

; case: write-to-read-only-page-faults
; in: rdi=RO+8 rax=1
.here:  add [rdi], eax
; fault: #PF(7) at .here
; out: cr2=RO+0x8
