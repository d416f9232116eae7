; CMPXCHG, CMPXCHG8B, CMPXCHG16B, XADD.
; SDM vol. 2A, "CMPXCHG-Compare and Exchange"; "CMPXCHG8B/CMPXCHG16B"; vol. 2D, "XADD-Exchange and Add".
; mode: long64 cpl=3

; case: equal-stores-source
; in: rax=5 rbx=5 rcx=9
        cmpxchg ebx, ecx
; out: rbx=9 flags=PF,ZF

; case: different-loads-accumulator
; in: rax=5 rbx=6 rcx=9
        cmpxchg rbx, rcx
; out: rax=6 flags=CF,PF,AF,SF

; case: byte-compares-as-subtraction
; in: rax=0x80 rbx=0x01 rcx=0x55
        cmpxchg bl, cl
; out: rax=1 flags=AF,OF

; case: dword-different-clears-upper-half-of-rax
; in: rax=0x1_00000005 rbx=0x1_00000006 rcx=9
        cmpxchg ebx, ecx
; out: rax=6 flags=CF,PF,AF,SF

; case: dword-equal-keeps-upper-half-of-rax
; in: rax=0x1_00000005 rbx=0x1_00000005 rcx=9
        cmpxchg ebx, ecx
; out: rbx=9 flags=PF,ZF

; case: memory-locked
; in: rax=0x11 rdi=DATA rcx=0x22
; in-mem: DATA = u32:0x11
        lock cmpxchg [rdi], ecx
; out: flags=PF,ZF
; out-mem: DATA = 22

; case: memory-different-to-read-only-page-still-faults
; in: rax=1 rdi=RO rcx=2
.here:  cmpxchg [rdi], ecx
; fault: #PF(7) at .here
; out: cr2=RO

; case: cmpxchg8b-equal
; in: rax=1 rdx=2 rbx=3 rcx=4 rdi=DATA flags=CF,OF
; in-mem: DATA = u32:1,2
        cmpxchg8b [rdi]
; out: flags=CF,ZF,OF
; out-mem: DATA = 03 00 00 00 04

; case: cmpxchg8b-different-clears-upper-halves
; in: rax=0x1_00000001 rdx=0x1_00000002 rbx=3 rcx=4 rdi=DATA flags=ZF,SF
; in-mem: DATA = u32:7,8
        lock cmpxchg8b [rdi]
; out: rax=7 rdx=8 flags=SF

; case: cmpxchg8b-register-form-is-undefined
.here:  db 0x0f, 0xc7, 0xc8
; fault: #UD at .here

; case: cmpxchg16b-equal
; needs: cx16
; in: rax=1 rdx=2 rbx=3 rcx=4 rdi=DATA
; in-mem: DATA = u64:1,2
        lock cmpxchg16b [rdi]
; out: flags=ZF
; out-mem: DATA = 03
; out-mem: DATA+0x8 = 04

; case: cmpxchg16b-different
; needs: cx16
; in: rax=1 rdx=2 rbx=3 rcx=4 rdi=DATA+0x10
; in-mem: DATA+0x10 = u64:1,3
        cmpxchg16b [rdi]
; out: rdx=3

; case: cmpxchg16b-misaligned
; needs: cx16
; in: rdi=DATA+8
.here:  cmpxchg16b [rdi]
; fault: #GP(0) at .here

; case: xadd-register
; in: rax=0xffffffff rbx=2
        xadd eax, ebx
; out: rax=1 rbx=0xffffffff flags=CF,AF

; case: xadd-same-register-doubles
; in: rax=0x81
        xadd al, al
; out: rax=2 flags=CF,OF

; case: xadd-memory-locked
; in: rdi=DATA rax=-1
; in-mem: DATA = u64:1
        lock xadd [rdi], rax
; out: rax=1 flags=CF,PF,AF,ZF
; out-mem: DATA = 00

; case: xadd-faults-leave-register
; in: rdi=RO rax=3
.here:  xadd [rdi], eax
; fault: #PF(7) at .here
; out: cr2=RO
