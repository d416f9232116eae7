; Jcc, JMP, LOOP, JCXZ: each condition taken and not taken, and target sizes.
; SDM vol. 2A, "Jcc-Jump if Condition Is Met"; "LOOP/LOOPcc"; "JMP-Jump".
; mode: long64 cpl=3

; case: conditions-with-carry-and-zero
; in: flags=CF,ZF
; bit n of EAX: condition n taken
%assign n 0
%rep 16
  %assign opcode 0x70 + n
        db opcode, 2                    ; jcc over the jump
        jmp short .not %+ n
        bts eax, n
        jmp short .same %+ n
.not %+ n:
        jmp short .same %+ n
.same %+ n:
        push qword 0x247                ; BTS changed CF: back to CF and ZF
        popfq
  %assign n n + 1
%endrep
; out: rax=0x6656 flags=CF,PF,ZF
; out-mem: STACK+0xff8 = 47 02

; case: conditions-with-sign-and-parity
; in: flags=SF,PF
%assign n 0
%rep 16
  %assign opcode 0x70 + n
        db opcode, 2
        jmp short .not %+ n
        bts eax, n
.not %+ n:
        push qword 0x286
        popfq
  %assign n n + 1
%endrep
; out: rax=0x55aa
; out-mem: STACK+0xff8 = 86 02

; case: conditions-with-overflow
; in: flags=OF
%assign n 0
%rep 16
  %assign opcode 0x70 + n
        db opcode, 2
        jmp short .not %+ n
        bts eax, n
.not %+ n:
        push qword 0xa02
        popfq
  %assign n n + 1
%endrep
; out: rax=0x5aa9
; out-mem: STACK+0xff8 = 02 0a

; case: near-form-backward
; in: rcx=3
.again: inc eax
        dec ecx
        jnz near .again
; out: rax=3 rcx=0 flags=PF,ZF

; case: jrcxz-looks-at-all-64-bits
; in: rcx=0x1_00000000
        jrcxz .taken
        mov eax, 1
.taken:
; out: rax=1

; case: jecxz-looks-at-32-bits
; in: rcx=0x1_00000000
        jecxz .taken
        mov eax, 1
.taken:
; out: unchanged

; case: jcxz-in-32-bit-code
; mode: pm32 cpl=3
; in: ecx=0x10000
        jcxz .taken
        mov eax, 1
.taken:
; out: unchanged

; case: loop-counts-down-without-flags
; in: rcx=5 flags=CF,ZF
.again: lea rax, [rax + 2]
        loop .again
; out: rax=0xa rcx=0

; case: loop-with-address-size-prefix
; in: rcx=0x1_00000002
.again: lea rax, [rax + 1]
        a32 loop .again
; out: rax=2 rcx=0

; case: loop-from-zero-wraps
; mode: pm32 cpl=3
; in: ecx=0
.again: inc eax
        jnz .on
.on:    cmp eax, 3
        je .out
        loop .again
.out:
; out: eax=3 ecx=0xfffffffe flags=PF,ZF

; case: loope-stops-on-clear-zero
; in: rcx=5
.again: inc eax
        cmp eax, 1
        loope .again
; out: rax=2 rcx=3

; case: loopne-stops-on-zero
; in: rcx=9
.again: inc eax
        cmp eax, 4
        loopne .again
; out: rax=4 rcx=5 flags=PF,ZF

; case: jmp-register
; in: rax=.target
        jmp rax
        ud2
.target:
        inc ebx
; out: rbx=1

; case: jmp-memory
; in: rdi=DATA
        lea rax, [rel .target]
        mov [rdi], rax
        jmp [rdi]
        ud2
.target:
; out: rax=CODE+0xe
; out-mem: DATA = 0e 00 00 01

; case: jmp-to-noncanonical-faults-at-the-jump
; qemu-differs: loads RIP, then faults; SDM vol. 2A, "JMP": #GP(0) at the jump if the target is non-canonical
; in: rax=0x800000000000
.here:  jmp rax
; fault: #GP(0) at .here

; case: jmp-to-absent-page-faults-at-the-target
; in: rax=ABSENT
        jmp rax
; fault: #PF(0x14) at ABSENT
; out: cr2=ABSENT

; case: jmp-to-data-page-is-no-execute
; in: rax=DATA
        jmp rax
; fault: #PF(0x15) at DATA
; out: cr2=DATA

; case: fetch-runs-into-absent-page
; in: rax=RWX+0xffe
        mov word [RWX + 0xffe], 0x00b8  ; mov eax, imm32, cut off
        jmp rax
; fault: #PF(0x14) at RWX+0xffe
; out: cr2=RWX+0x1000
; out-mem: RWX+0xffe = b8

; case: jmp-word-operand-masks-ip-in-32-bit-code
; mode: pm32 cpl=3
; host: no, the low 64 KiB are not mapped there
; in: eax=0x12349000
; in-mem: 0x9000 = 0f 0b
        jmp ax
; fault: #UD at 0x9000
