; x87 environment, control word, exceptions: when #MF comes, and what the waiting forms do.
; SDM vol. 1, "x87 FPU Exception Synchronization"; vol. 2A, "FINIT/FNINIT"; "FLDENV"; "FSAVE".
; mode: long64 cpl=3

; case: fninit
; in: st0=1.0 fcw=0x27f
        fninit
; out: fcw=0x37f fsw=0 ftw=0

; case: fnstcw
; in: fcw=0x27f rdi=DATA
        fnstcw [rdi]
; out-mem: DATA = 7f 02

; case: fldcw
; in: rsi=DATA
; in-mem: DATA = 7f 0e
        fldcw [rsi]
; out: fcw=0xe7f

; case: fnclex-clears-exceptions-and-busy
; in: fsw=0xb8ff
        fnclex
; out: fsw=0x3800

; case: unmasked-error-comes-at-the-next-waiting-instruction
; qemu-differs: stores the masked result; SDM vol. 1, "Divide-By-Zero Exception (#Z)": with #Z unmasked the operands stay
; in: st0=1.0 st1=0.0 fcw=0x37b
        fdiv st0, st1
        mov eax, 1
.here:  fwait
; fault: #MF at .here
; out: rax=1 fsw=0xb084

; case: unmasked-error-does-not-stop-non-waiting-forms
; qemu-differs: stores the masked result; SDM vol. 1, "Divide-By-Zero Exception (#Z)"
; in: st0=1.0 st1=0.0 fcw=0x37b
        fdiv st0, st1
        fnstsw ax
        fnclex
        fwait
; out: rax=0xb084

; case: unmasked-error-at-the-next-x87-instruction
; qemu-differs: raises #MF at FWAIT only; SDM vol. 3, "Interrupt 16": at the next waiting x87 instruction
; in: st0=1.0 st1=0.0 fcw=0x37b
        fdiv st0, st1
.here:  fld1
; fault: #MF at .here
; out: fsw=0xb084

; case: unmasked-invalid-leaves-operands
; qemu-differs: stores the masked result; SDM vol. 1, "Invalid Arithmetic Operand Exception (#IA)"
; in: st0=-4.0 fcw=0x37e
        fsqrt
.here:  fwait
; fault: #MF at .here
; out: fsw=0xb881

; case: unmasking-a-pending-flag-raises-it
; qemu-differs: derives ES only when an exception occurs; SDM vol. 2A, "FLDCW": an unmasked pending one is raised at the next waiting instruction
; in: fsw=0x0004 rsi=DATA
; in-mem: DATA = 7b 03
        fldcw [rsi]
.here:  fwait
; fault: #MF at .here
; out: fcw=0x37b fsw=0x8084

; case: unmasked-inexact
; in: st0=1.0 st1=3.0 fcw=0xf5f
        fdiv st0, st1
.here:  fwait
; fault: #MF at .here
; out: fsw=0xb0a0 st0=3ffd_aaaaaaaaaaaaaaaa

; case: emms-empties-all-tags
; in: mm0=u8:1 mm7=u8:2
        emms
; out: ftw=0

; case: fnstenv-sets-all-masks
; qemu-differs: leaves the control word; SDM vol. 2A, "FSTENV/FNSTENV": masks all exceptions afterwards
; in: st0=1.0 st1=2.0 fcw=0x340 rdi=DATA
; upper halves are reserved, instruction and operand pointers not compared
; undef-mem: DATA+2 2
; undef-mem: DATA+6 2
; undef-mem: DATA+10 18
        fnstenv [rdi]
; out: fcw=0x37f
; out-mem: DATA = 40 03 00 00 00 30 00 00 ff 0f

; case: fldenv-loads-tags
; in: rsi=DATA
; in-mem: DATA = u32:0x027f,0x3800,0x3fff,0,0,0,0
        fldenv [rsi]
; out: fcw=0x27f fsw=0x3800 ftw=0x80

; case: fnsave-stores-registers-and-initialises
; in: st0=1.0 st1=2.0 rdi=DATA
; upper halves are reserved, instruction and operand pointers not compared
; undef-mem: DATA+2 2
; undef-mem: DATA+6 2
; undef-mem: DATA+10 18
        fnsave [rdi]
; out: fsw=0 ftw=0
; out-mem: DATA = 7f 03 00 00 00 30 00 00 ff 0f
; out-mem: DATA+0x23 = 80 ff 3f
; out-mem: DATA+0x2d = 80 00 40

; case: frstor
; in: rsi=DATA
; in-mem: DATA = u32:0x027f,0x3000,0x0fff,0,0,0,0
; in-mem: DATA+28 = 00 00 00 00 00 00 00 80 ff 3f
; in-mem: DATA+38 = 00 00 00 00 00 00 00 c0 00 40
        frstor [rsi]
; out: fcw=0x27f fsw=0x3000 ftw=0xc0 st0=1.0 st1=3.0

; case: fxsave-layout
; in: st0=1.0 xmm3=u32:0x11223344 mxcsr=0x1fa0 rdi=DATA
; undef-mem: DATA+6 18
; undef-mem: DATA+28 4
        fxsave [rdi]
; out-mem: DATA = 7f 03 00 38 80
; out-mem: DATA+0x18 = a0 1f
; out-mem: DATA+0x27 = 80 ff 3f
; out-mem: DATA+0xd0 = 44 33 22 11 44 33 22 11 44 33 22 11 44 33 22 11

; case: fxsave-misaligned
; in: rdi=DATA+8
.here:  fxsave [rdi]
; fault: #GP(0) at .here

; case: fxrstor-bad-mxcsr
; qemu-differs: does not check; SDM vol. 2A, "FXRSTOR": #GP(0) for reserved bits of MXCSR
; in: rsi=DATA
; in-mem: DATA+24 = u32:0xffff0000
.here:  fxrstor [rsi]
; fault: #GP(0) at .here

; case: d9-slash-1-is-undefined
; in: rsi=DATA
.here:  db 0xd9, 0x0e
; fault: #UD at .here

; case: df-slash-1-register-is-undefined
; host: no, FXCH4's neighbours run on some CPUs
.here:  db 0xdb, 0xfb
; fault: #UD at .here
