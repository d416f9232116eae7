; Opcodes that are no instruction, and prefixes that make one invalid.
; SDM vol. 2D, "Opcode Map"; vol. 2A, "LOCK-Assert LOCK# Signal Prefix".
; mode: long64 cpl=3

; case: 0f-04
.here:  db 0x0f, 0x04
; fault: #UD at .here

; case: 0f-0a
.here:  db 0x0f, 0x0a
; fault: #UD at .here

; case: 0f-24
.here:  db 0x0f, 0x24, 0xc0
; fault: #UD at .here

; case: 0f-a6
; host: no, PadLock on some CPUs
.here:  db 0x0f, 0xa6, 0xc0
; fault: #UD at .here

; case: fe-slash-2
.here:  db 0xfe, 0xd0
; fault: #UD at .here

; case: ff-slash-7
.here:  db 0xff, 0xf8
; fault: #UD at .here

; case: ff-slash-3-register-far-call
.here:  db 0xff, 0xd8
; fault: #UD at .here

; case: c6-slash-1
; qemu-differs: ignores the reg field; SDM vol. 2D, "Opcode Extensions", group 11: only /0 and /7 with mod 3, rm 0
.here:  db 0xc6, 0xc8, 0x00
; fault: #UD at .here

; case: 0f-c7-slash-0
; qemu-differs: 10.0 runs it as CMPXCHG8B; SDM vol. 2D, "Opcode Extensions", group 9
.here:  db 0x0f, 0xc7, 0x07
; fault: #UD at .here

; case: lock-mov
; qemu-differs: ignores the prefix; SDM vol. 2A, "LOCK": #UD with an instruction that is not in the list
; in: rdi=DATA
.here:  db 0xf0, 0x89, 0x07
; fault: #UD at .here

; case: lock-cmp
; in: rdi=DATA
.here:  db 0xf0, 0x39, 0x07
; fault: #UD at .here

; case: lock-nop
.here:  db 0xf0, 0x90
; fault: #UD at .here

; case: 82-is-undefined-in-64-bit-mode
.here:  db 0x82, 0xc0, 0x01
; fault: #UD at .here

; case: 82-is-an-alias-in-32-bit-code
; mode: pm32 cpl=3
        db 0x82, 0xc0, 0x01             ; add al, 1
; out: eax=1

; case: far-jump-immediate-in-64-bit-mode
.here:  db 0xea, 0, 0, 0, 1, 0x33, 0
; fault: #UD at .here

; case: rep-ret-ignores-the-prefix
        call .function
        jmp short .out
.function:
        db 0xf3, 0xc3
.out:
; out-mem: STACK+0xff8 = 05 00 00 01

; case: undefined-opcode-at-a-page-end-fetches-nothing-more
; vendor: intel
; (measured)
; mode: long64 cpl=3
; in-mem: RWX+0xfff = 06
        jmp RWX + 0xfff
; fault: #UD at RWX+0xfff

; case: undefined-member-of-a-group-fetches-its-immediate
; vendor: intel
; (measured)
; qemu-differs: #UD before the immediate; which one isn't said in SDM vol. 3, "Priority Among Concurrent Events", but Intel's do so
; mode: long64 cpl=3
; in-mem: RWX+0xffd = 0f ba c0
        jmp RWX + 0xffd
; fault: #PF(0x14) at RWX+0xffd
; out: cr2=RWX+0x1000

; case: pop-with-a-reg-field-is-undefined-at-a-page-end
; vendor: intel
; (measured; for AMD's older processors it began an XOP instruction)
; qemu-differs: fetches more first; SDM vol. 2D, "Opcode Extensions", group 1A: only /0
; mode: long64 cpl=3
; in-mem: RWX+0xffe = 8f 0b
        jmp RWX + 0xffe
; fault: #UD at RWX+0xffe

; case: 0f-3a-00-cut-short-by-a-page-end
; The bytes that the map's instructions have are fetched first (measured).
; qemu-differs: looks at no more than the opcode; AMD APM vol. 3, "Opcode and Operand Encodings": the map has ModRM and an immediate byte
; in-mem: RWX+0xffc = 0f 3a 00 c0
        jmp RWX+0xffc
; fault: #PF(0x14) at RWX+0xffc
; out: cr2=RWX+0x1000
