; ENTER and LEAVE: frame, nesting levels, operand sizes, faults.
; SDM vol. 2A, "ENTER-Make Stack Frame for Procedure Parameters"; "LEAVE-High Level Procedure Exit".
; mode: long64 cpl=3

; case: enter-level-0
; in: rbp=0x1122334455667788
        enter 0x20, 0
; out: rsp=STACK+0xfd8 rbp=STACK+0xff8
; out-mem: STACK+0xff8 = 88 77 66 55 44 33 22 11

; case: enter-level-1-pushes-the-frame-pointer
; in: rbp=STACK_MID+0x40
        enter 0x10, 1
; out: rsp=STACK+0xfe0 rbp=STACK+0xff8
; out-mem: STACK+0xff0 = f8 0f 02 01
; out-mem: STACK+0xff8 = 40 10 02 01

; case: enter-level-3-copies-two-pointers
; in: rbp=STACK_MID+0x40
; in-mem: STACK_MID+0x30 = u64:0x3333333333333333,0x2222222222222222
        enter 8, 3
; out: rsp=STACK+0xfd8 rbp=STACK+0xff8
; out-mem: STACK+0xfe0 = f8 0f 02 01
; out-mem: STACK+0xfe8 = 33 33 33 33 33 33 33 33 22 22 22 22 22 22 22 22
; out-mem: STACK+0xff8 = 40 10 02 01

; case: enter-level-is-modulo-32
; in: rbp=STACK_MID+0x40
        enter 0, 33
; out: rsp=STACK+0xff0 rbp=STACK+0xff8
; out-mem: STACK+0xff0 = f8 0f 02 01
; out-mem: STACK+0xff8 = 40 10 02 01

; case: enter-word-operand
; in: rbp=0x1122334455667788
        o16 enter 4, 0
; out: rsp=STACK+0xffa rbp=0x1122334455660ffe
; out-mem: STACK+0xffe = 88 77

; case: enter-in-32-bit-code
; mode: pm32 cpl=3
; in: ebp=STACK_MID+0x40
; in-mem: STACK_MID+0x3c = u32:0x22222222
        enter 0x100, 2
; out: esp=STACK+0xef4 ebp=STACK+0xffc
; out-mem: STACK+0xff4 = fc 0f 02 01 22 22 22 22 40 10 02 01

; case: enter-size-reaches-an-absent-page
; qemu-differs: does not probe the new stack top; SDM vol. 2A, "ENTER": #PF if a write at the final stack pointer would fault
; in: rsp=STACK+0x20
.here:  enter 0x100, 0
; fault: #PF(6) at .here
; out: cr2=0x101ff18

; case: enter-push-faults
; in: rsp=STACK rbp=1
.here:  enter 0, 0
; fault: #PF(6) at .here
; out: cr2=0x101fff8

; case: leave
; in: rbp=STACK_MID+0x20
; in-mem: STACK_MID+0x20 = u64:0xabcdef
        leave
; out: rsp=STACK+0x1028 rbp=0xabcdef

; case: leave-word
; in: rbp=0x1020f00
; in-mem: STACK+0xf00 = 34 12 ff ff
        o16 leave
; out: rsp=STACK+0xf02 rbp=STACK+0x1234

; case: leave-with-absent-frame
; in: rbp=ABSENT
.here:  leave
; fault: #PF(4) at .here
; out: cr2=ABSENT

; case: leave-in-32-bit-code
; mode: pm32 cpl=3
; in: ebp=STACK_MID-8
; in-mem: STACK_MID-8 = u32:0x55
        leave
; out: esp=STACK+0xffc ebp=0x55

; case: leave-in-real-mode-uses-bp
; mode: real
; in: ebp=0x12347000
; in-mem: STACK16+0x7000 = 78 56
        leave
; out: esp=0x7002 ebp=0x12345678
