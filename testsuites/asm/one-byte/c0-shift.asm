; ROL, ROR, RCL, RCR, SHL, SHR, SAR: count masks, carry, and overflow where it is defined.
; SDM vol. 2B, "SAL/SAR/SHL/SHR-Shift"; "RCL/RCR/ROL/ROR-Rotate".
; mode: long64 cpl=3

; case: shl-by-1-sets-overflow
; in: rax=0x40
; undef: flags=AF
        shl al, 1
; out: rax=0x80 flags=SF,OF

; case: shl-by-1-of-two-top-bits
; in: rax=0xc0000000
; undef: flags=AF
        shl eax, 1
; out: rax=0x80000000 flags=CF,PF,SF

; case: shl-count-0-keeps-flags
; in: rax=5 rcx=0 flags=CF,SF,OF
        shl eax, cl
; out: unchanged

; case: shl-count-32-is-0
; in: rax=0xffffffff_00000005 rcx=0x20 flags=CF
        shl eax, cl
; out: rax=5

; case: shl-count-33-is-1
; in: rax=0x80000001 rcx=0x21
; undef: flags=AF
        shl eax, cl
; out: rax=2 flags=CF,OF

; case: shl-qword-count-63
; in: rax=3 rcx=63
; undef: flags=AF,OF
        shl rax, cl
; out: rax=0x8000000000000000 flags=CF,PF,SF

; case: shl-byte-count-8-carries-the-low-bit
; in: rax=0x01
; undef: flags=AF,OF
        shl al, 8
; out: rax=0 flags=CF,PF,ZF

; case: shl-byte-count-9-is-zero
; in: rax=0xff
; undef: flags=AF,OF,CF
        shl al, 9
; out: rax=0 flags=PF,ZF

; case: shr-by-1-overflow-is-old-sign
; in: rax=0x80000001
; undef: flags=AF
        shr eax, 1
; out: rax=0x40000000 flags=CF,PF,OF

; case: shr-word-count-16-carries-the-sign
; in: rax=0xffff8000
; undef: flags=AF,OF
        shr ax, 16
; out: rax=0xffff0000 flags=CF,PF,ZF

; case: sar-fills-with-sign
; in: rax=0x8000000000000010
; undef: flags=AF,OF
        sar rax, 5
; out: rax=0xfc00000000000000 flags=CF,PF,SF

; case: sar-byte-count-31
; in: rax=0x80
; undef: flags=AF,OF
        sar al, 31
; out: rax=0xff flags=CF,PF,SF

; case: sar-by-1-clears-overflow
; in: rax=0xff flags=OF
; undef: flags=AF
        sar al, 1
; out: flags=CF,PF,SF

; case: sal-slash-6-is-an-alias
; in: rax=0x21
; undef: flags=AF
        db 0xd0, 0xf0                   ; sal al, 1 by /6
; out: rax=0x42 flags=PF

; case: shift-memory-by-cl
; in: rdi=DATA2-1 rcx=4
; in-mem: DATA2-1 = 34 12
; undef: flags=AF,OF
        shl word [rdi], cl
; out: flags=CF
; out-mem: DATA+0xfff = 40 23

; case: shift-by-zero-still-writes-memory
; in: rdi=RO rcx=0
.here:  shl dword [rdi], cl
; fault: #PF(7) at .here
; out: cr2=RO

; case: rol-by-1
; in: rax=0x80000000
        rol eax, 1
; out: rax=1 flags=CF,OF

; case: rol-byte-by-8-carries-bit-0
; in: rax=0x81
; undef: flags=OF
        rol al, 8
; out: flags=CF

; case: rol-keeps-zero-and-sign
; in: rax=0x1234 flags=ZF,SF
; undef: flags=OF
        rol ax, 4
; out: rax=0x2341 flags=CF,ZF,SF

; case: ror-by-1-overflow-from-two-top-bits
; in: rax=1
        ror al, 1
; out: rax=0x80 flags=CF,OF

; case: ror-qword
; in: rax=0x123456789abcdef0 rcx=0x44
; undef: flags=OF
        ror rax, cl
; out: rax=0x123456789abcdef

; case: ror-count-masked-to-zero-keeps-carry
; in: rax=1 rcx=0x40 flags=CF
        ror rax, cl
; out: unchanged

; case: rcl-by-1-through-carry
; in: rax=0x80 flags=CF
        rcl al, 1
; out: rax=1 flags=CF,OF

; case: rcl-byte-count-9-is-identity
; qemu-differs: 10.0 loses the byte; SDM vol. 2B, "RCL": the count is taken modulo 9
; in: rax=0xa5 flags=CF
; undef: flags=OF
        rcl al, 9
; out: unchanged

; case: rcl-word-count-17-is-identity
; qemu-differs: 10.0 loses the word; SDM vol. 2B, "RCL": the count is taken modulo 17
; in: rax=0x1234
; undef: flags=OF
        rcl ax, 17
; out: unchanged

; case: rcl-dword
; in: rax=0x12345678 rcx=8 flags=CF
; undef: flags=OF
        rcl eax, cl
; out: rax=0x34567889 flags=none

; case: rcr-by-1
; in: rax=0x01 flags=CF
        rcr al, 1
; out: rax=0x80 flags=CF,OF

; case: rcr-qword
; in: rax=0x123456789abcdef1 rcx=4 flags=CF
; undef: flags=OF
        rcr rax, cl
; out: rax=0x3123456789abcdef flags=none

; case: rcr-word-count-18-is-1
; in: rax=0x8001 rcx=18 flags=CF
; undef: flags=OF
        rcr ax, cl
; out: rax=0xc000
