; INC and DEC: all flags but CF.
; SDM vol. 2A, "INC-Increment by 1"; "DEC-Decrement by 1".
; mode: long64 cpl=3

; case: inc-keeps-carry
; in: rax=0xffffffff flags=CF
        inc eax
; out: rax=0 flags=CF,PF,AF,ZF

; case: inc-overflows
; in: rax=0x7f
        inc al
; out: rax=0x80 flags=AF,SF,OF

; case: dec-of-minimum-overflows
; in: rax=0x8000
        dec ax
; out: rax=0x7fff flags=PF,AF,OF

; case: dec-below-zero-keeps-carry-clear
        dec rax
; out: rax=0xffffffffffffffff flags=PF,AF,SF

; case: inc-memory-locked
; in: rdi=DATA+1
; in-mem: DATA+1 = ff ff
        lock inc word [rdi]
; out: flags=PF,AF,ZF
; out-mem: DATA+0x1 = 00 00

; case: one-byte-forms-in-32-bit-code
; mode: pm32 cpl=3
; in: eax=0xf ebx=0x10
        db 0x40                         ; inc eax
        db 0x4b                         ; dec ebx
; out: eax=0x10 ebx=0xf flags=PF,AF

; case: one-byte-forms-with-operand-size-prefix
; mode: pm32 cpl=3
; in: ecx=0x1ffff
        db 0x66, 0x41                   ; inc cx
; out: ecx=0x10000 flags=PF,AF,ZF
