; PUSH and POP of registers, immediates and memory, and what they do to the stack pointer.
; SDM vol. 2B, "PUSH-Push Word, Doubleword, or Quadword Onto the Stack"; "POP-Pop a Value From the Stack".
; mode: long64 cpl=3

; case: push-rsp-stores-the-old-value
        push rsp
; out: rsp=STACK+0xff8
; out-mem: STACK+0xff9 = 10 02 01

; case: pop-rsp-takes-the-popped-value
; in-mem: STACK_MID = u64:0x1020ff0
        pop rsp
; out: rsp=STACK+0xff0

; case: push-imm8-is-sign-extended
        push byte -3
; out: rsp=STACK+0xff8
; out-mem: STACK+0xff8 = fd ff ff ff ff ff ff ff

; case: push-imm32-is-sign-extended
        push qword 0x7fffff00
; out: rsp=STACK+0xff8
; out-mem: STACK+0xff9 = ff ff 7f

; case: push-word-in-64-bit-code
; in: rax=0x12345678
        push ax
; out: rsp=STACK+0xffe
; out-mem: STACK+0xffe = 78 56

; case: pop-word-keeps-upper-bits
; in: rbx=0x1122334455667788
; in-mem: STACK_MID = 11 22 33 44
        pop bx
; out: rbx=0x1122334455662211 rsp=STACK+0x1002

; case: push-memory-relative-to-old-rsp
; in-mem: STACK_MID+8 = u64:0x0102030405060708
        push qword [rsp + 8]
; out: rsp=STACK+0xff8
; out-mem: STACK+0xff8 = 08 07 06 05 04 03 02 01

; case: pop-memory-relative-to-new-rsp
; in-mem: STACK_MID = u64:0xaabbccdd11223344
        pop qword [rsp]
; out: rsp=STACK+0x1008
; out-mem: STACK+0x1008 = 44 33 22 11 dd cc bb aa

; case: pop-memory-with-index
; in: rax=2
; in-mem: STACK_MID = u64:0x8877665544332211
        pop qword [rsp + rax * 8]
; out: rsp=STACK+0x1008
; out-mem: STACK+0x1018 = 11 22 33 44 55 66 77 88

; case: push-to-absent-page-leaves-rsp
; in: rsp=STACK rax=1
.here:  push rax
; fault: #PF(6) at .here
; out: cr2=0x101fff8

; case: push-across-page-edge-into-absent-page
; in: rsp=STACK+4 rax=0xffffffffffffffff
.here:  push rax
; fault: #PF(6) at .here
; out: cr2=0x101fffc

; case: pop-from-absent-page-leaves-register
; in: rsp=STACK_END rax=7
.here:  pop rax
; fault: #PF(4) at .here
; out: cr2=STACK+0x2000

; case: pop-to-read-only-memory-leaves-rsp
; in: rdi=RO
; in-mem: STACK_MID = u64:5
.here:  pop qword [rdi]
; fault: #PF(7) at .here
; out: cr2=RO

; case: push-noncanonical-stack
; qemu-differs: raises #GP(0); SDM vol. 2B, "PUSH": #SS(0) for a non-canonical stack address
; in: rsp=0x8000000000000000
.here:  push rax
; fault: #SS(0) at .here

; case: push-r8-to-r15
; in: r8=8 r9=9 r10=10 r11=11 r12=12 r13=13 r14=14 r15=15
        push r8
        push r12
        push r15
        pop r9
        pop r10
; out: rsp=STACK+0xff8 r9=0xf r10=0xc
; out-mem: STACK+0xfe8 = 0f
; out-mem: STACK+0xff0 = 0c
; out-mem: STACK+0xff8 = 08

; case: push-fs-and-gs
        push fs
        push gs
; out: rsp=STACK+0xff0

; case: push-fs-word
        db 0x66, 0x0f, 0xa0
; out: rsp=STACK+0xffe

; case: push-segment-in-32-bit-code
; mode: pm32 cpl=3
        push ds
        push es
        push ss
        push cs
; out: esp=STACK+0xff0
; out-mem: STACK+0xff0 = 23 00 00 00 2b 00 00 00 2b 00 00 00 2b

; case: pop-segment-in-32-bit-code
; mode: pm32 cpl=3
; in-mem: STACK_MID = u32:0
        pop es
; out: esp=STACK+0x1004 es=0

; case: pusha
; mode: pm32 cpl=3
; in: eax=0xa ecx=0xc edx=0xd ebx=0xb ebp=0xbb esi=0x51 edi=0xd1
        pusha
; out: esp=STACK+0xfe0
; out-mem: STACK+0xfe0 = d1 00 00 00 51 00 00 00 bb
; out-mem: STACK+0xfed = 10 02 01 0b 00 00 00 0d 00 00 00 0c 00 00 00 0a

; case: popa-skips-esp
; mode: pm32 cpl=3
; in-mem: STACK_MID = u32:1,2,3,4,5,6,7,8
        popa
; out: eax=8 ecx=7 edx=6 ebx=5 esp=STACK+0x1020 ebp=3 esi=2 edi=1

; case: pusha-word
; mode: pm32 cpl=3
; in: eax=0xaaaa1111 ecx=0xcccc2222 edx=0xdddd3333 ebx=0xbbbb4444 ebp=5 esi=6 edi=7
        o16 pusha
; out: esp=STACK+0xff0
; out-mem: STACK+0xff0 = 07 00 06 00 05 00 00 10 44 44 33 33 22 22 11 11

; case: popa-word
; mode: pm32 cpl=3
; in: eax=0xffffffff
; in-mem: STACK_MID = u16:1,2,3,4,5,6,7,8
        o16 popa
; out: eax=0xffff0008 ecx=7 edx=6 ebx=5 esp=STACK+0x1010 ebp=3 esi=2 edi=1

; case: pusha-faults-in-the-middle
; mode: paging32 cpl=3
; the order of the eight stores is not architectural, so the memory and CR2 are left open
; undef: cr2
; undef-mem: STACK 8
; in: esp=STACK+8 eax=1 ecx=2 edx=3
.here:  pusha
; fault: #PF(6) at .here

; case: pusha-is-undefined-in-64-bit-mode
.here:  db 0x60
; fault: #UD at .here

; case: push-es-is-undefined-in-64-bit-mode
.here:  db 0x06
; fault: #UD at .here

; case: pop-slash-1-is-undefined
; qemu-differs: ignores the reg field; SDM vol. 2, table "Opcode Extensions", group 1A: only /0 is defined
.here:  db 0x8f, 0xc8
; fault: #UD at .here
