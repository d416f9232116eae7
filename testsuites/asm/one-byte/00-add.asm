; ADD: carry, overflow and adjust at each size, and every operand form.
; SDM vol. 2A, "ADD-Add".
; mode: long64 cpl=3

; case: byte-carry-out
; in: rax=0x11223344556677ff rbx=1
        add al, bl
; out: rax=0x1122334455667700 flags=CF,PF,AF,ZF

; case: high-byte-then-low-byte-overflow
; in: rax=0x112233445566777f rbx=0x11
        add ah, bl
        add al, bl
; out: rax=0x1122334455668890 flags=PF,AF,SF,OF

; case: word-keeps-upper-bits
; in: rax=0xfffffffffff000f rdx=1
        add ax, dx
; out: rax=0xfffffffffff0010 flags=AF

; case: dword-clears-upper-half
; in: rax=0xffffffff_ffffffff rcx=1
        add eax, ecx
; out: rax=0 flags=CF,PF,AF,ZF

; case: qword-signed-overflow
; in: r8=0x7fffffff_ffffffff r15=1
        add r8, r15
; out: r8=0x8000000000000000 flags=PF,AF,SF,OF

; case: immediate-32-is-sign-extended
; in: rax=0x1_00000000
        add rax, -2
; out: rax=0xfffffffe flags=CF

; case: memory-destination-across-pages
; in: rdi=DATA2-4 rax=0x1_00000001
; in-mem: DATA2-4 = u64:0xffffffff_ffffffff
        add [rdi], rax
; out: flags=CF,PF,AF
; out-mem: DATA+0xffc = 00 00 00 00 01 00 00 00

; case: write-to-read-only-page-faults
; in: rdi=RO+8 rax=1
.here:  add [rdi], eax
; fault: #PF(7) at .here
; out: cr2=RO+0x8

; case: second-page-absent-faults-before-any-write
; qemu-differs: it reads before it writes and reports the read; SDM vol. 3, "Page-Fault Exceptions": W/R is set for a read-modify-write
; in: rdi=ABSENT-2 rax=0x01010101
; in-mem: ABSENT-2 = ff ff
.here:  add [rdi], eax
; fault: #PF(6) at .here
; out: cr2=ABSENT

; case: lock-on-register-is-undefined
.here:  db 0xf0, 0x01, 0xd8             ; lock add eax, ebx
; fault: #UD at .here

; case: lock-memory
; in: rbx=DATA+8 rcx=5
; in-mem: DATA+8 = u32:0xfffffffe
        lock add [rbx], ecx
; out: flags=CF,PF,AF
; out-mem: DATA+0x8 = 03 00 00 00
