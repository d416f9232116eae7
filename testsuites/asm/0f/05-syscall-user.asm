; What CPL 3 may not do in the 0F map.
; SDM vol. 3, "Privileged Instructions".
; mode: long64 cpl=3

; case: mov-from-cr0
.here:  mov rax, cr0
; fault: #GP(0) at .here

; case: mov-to-cr8
.here:  mov cr8, rax
; fault: #GP(0) at .here

; case: mov-from-dr7
.here:  mov rax, dr7
; fault: #GP(0) at .here

; case: rdmsr
.here:  rdmsr
; fault: #GP(0) at .here

; case: wrmsr
.here:  wrmsr
; fault: #GP(0) at .here

; case: hlt
.here:  hlt
; fault: #GP(0) at .here

; case: lgdt
; in: rdi=DATA
.here:  lgdt [rdi]
; fault: #GP(0) at .here

; case: lldt
.here:  lldt ax
; fault: #GP(0) at .here

; case: ltr
.here:  ltr ax
; fault: #GP(0) at .here

; case: lmsw
.here:  lmsw ax
; fault: #GP(0) at .here

; case: clts
.here:  clts
; fault: #GP(0) at .here

; case: invlpg
; in: rdi=DATA
.here:  invlpg [rdi]
; fault: #GP(0) at .here

; case: invd
; qemu-differs: 10.0 checks no privilege; SDM vol. 3, "Privileged Instructions"
.here:  invd
; fault: #GP(0) at .here

; case: wbinvd
; qemu-differs: 10.0 checks no privilege; SDM vol. 3, "Privileged Instructions"
.here:  wbinvd
; fault: #GP(0) at .here

; case: swapgs
.here:  swapgs
; fault: #GP(0) at .here

; case: sysret
.here:  o64 sysret
; fault: #GP(0) at .here

; case: sysexit
.here:  sysexit
; fault: #GP(0) at .here

; case: cli
.here:  cli
; fault: #GP(0) at .here

; case: sti
.here:  sti
; fault: #GP(0) at .here

; case: in-al
; in: rdx=0x3f8
.here:  in al, dx
; fault: #GP(0) at .here

; case: out-immediate
.here:  out 0x80, al
; fault: #GP(0) at .here

; case: xsetbv
; needs: xsave
.here:  xsetbv
; fault: #GP(0) at .here

; case: monitor
; needs: monitor
; host: no, CPUs may offer it to users
.here:  monitor
; fault: #UD at .here

; case: iretq-to-kernel-selector
; in-mem: STACK_MID = u64:0x1000000,0x10,2,0x1021000,0x18
.here:  iretq
; fault: #GP(0x10) at .here
