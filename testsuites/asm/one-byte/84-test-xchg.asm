; XCHG and NOP: implicit lock, and the forms that look like XCHG.
; SDM vol. 2D, "XCHG-Exchange Register/Memory With Register"; vol. 2B, "NOP-No Operation"; "PAUSE".
; mode: long64 cpl=3

; case: byte-registers-high-and-low
; in: rax=0x1234
        xchg ah, al
; out: rax=0x3412

; case: dword-clears-both-upper-halves
; in: rax=0x1111111122222222 rbx=0x3333333344444444
        db 0x87, 0xd8                   ; xchg eax, ebx
; out: rax=0x44444444 rbx=0x22222222

; case: nop-keeps-upper-half
; in: rax=0x1111111122222222
        db 0x90
; out: unchanged

; case: xchg-eax-r8d-is-no-nop
; in: rax=0x1111111122222222 r8=0x5555555566666666
        db 0x41, 0x90
; out: rax=0x66666666 r8=0x22222222

; case: pause-is-a-nop
; in: rax=0x1111111122222222 flags=CF
        pause
; out: unchanged

; case: pause-with-rex-b
; vendor: intel
; qemu-differs: exchanges, as AMD's processors do; SDM vol. 2B, "PAUSE": F3 90, and Intel's heed no REX.B (measured)
; in: rax=0x1111111122222222 r8=0x5555555566666666
        db 0xf3, 0x41, 0x90
; out: unchanged

; case: pause-with-rex-b-exchanges
; vendor: amd
; in: rax=0x1111111122222222 r8=0x5555555566666666
        db 0xf3, 0x41, 0x90
; out: rax=0x66666666 r8=0x22222222

; case: memory
; in: rax=0x1122334455667788 rdi=DATA2-4
; in-mem: DATA2-4 = u64:0x0102030405060708
; host: no, a locked access across a cache line is slow and may be forbidden
        xchg rax, [rdi]
; out: rax=0x102030405060708
; out-mem: DATA+0xffc = 88 77 66 55 44 33 22 11

; case: memory-word
; in: rax=0xffff1234 rdi=DATA
; in-mem: DATA = cd ab
        xchg [rdi], ax
; out: rax=0xffffabcd
; out-mem: DATA = 34 12

; case: read-only-memory-faults
; in: rax=1 rdi=RO
.here:  xchg [rdi], eax
; fault: #PF(7) at .here
; out: cr2=RO

; case: one-byte-form-word
; in: rax=0xaaaa1111 rdx=0xbbbb2222
        db 0x66, 0x92                   ; xchg ax, dx
; out: rax=0xaaaa2222 rdx=0xbbbb1111
