; SHLD and SHRD: count masks, carry, overflow for a count of one.
; SDM vol. 2B, "SHLD-Double Precision Shift Left"; "SHRD".
; mode: long64 cpl=3

; case: shld-dword
; in: rax=0x12345678 rbx=0xabcdef01
; undef: flags=AF,OF
        shld eax, ebx, 8
; out: rax=0x345678ab

; case: shld-by-1-overflow
; in: rax=0x40000000 rbx=0
; undef: flags=AF
        shld eax, ebx, 1
; out: rax=0x80000000 flags=PF,SF,OF

; case: shld-qword-by-cl
; in: rax=1 rbx=0x8000000000000000 rcx=0x41
; undef: flags=AF
        shld rax, rbx, cl
; out: rax=3 flags=PF

; case: shld-count-zero-keeps-flags-and-clears-upper-half
; in: rax=0x1_00000001 rbx=5 rcx=0x20 flags=CF,OF,ZF
        shld eax, ebx, cl
; out: rax=1

; case: shld-word
; in: rax=0xffff1234 rbx=0xabcd
; undef: flags=AF,OF
        shld ax, bx, 4
; out: rax=0xffff234a flags=CF

; case: shrd-dword
; in: rax=0x12345678 rbx=0xabcdef01
; undef: flags=AF,OF
        shrd eax, ebx, 4
; out: rax=0x11234567 flags=CF

; case: shrd-by-1-sign-change
; in: rax=0x00000001 rbx=1
; undef: flags=AF
        shrd eax, ebx, 1
; out: rax=0x80000000 flags=CF,PF,SF,OF

; case: shrd-memory-qword
; in: rdi=DATA2-4 rbx=0xff rcx=60
; in-mem: DATA2-4 = u64:0x123456789abcdef0
; undef: flags=AF,OF
        shrd [rdi], rbx, cl
; out-mem: DATA+0xffc = f1 0f 00 00 00 00 00 00
