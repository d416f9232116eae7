; Each mode of the harness enters, runs a few instructions and reports: selectors, stack and flags as
; documented in docs/testing.md.
; mode: long64 cpl=3

; case: real
; mode: real
; in: eax=0xffff
        push cs
        pop bx
        push ss
        pop cx
        inc ax
        pushf
        pop dx
; out: eax=0 ecx=0x4000 edx=0x56 ebx=0x1000 flags=PF,AF,ZF

; case: real-with-setup
; mode: real
; setup:
        mov ax, 0x2000
        mov es, ax
        mov word [es:4], 0x1234
; code:
        mov ax, [4]
; out: eax=0x1234
; out-mem: DATA16+0x4 = 34 12

; case: v86
; mode: v86
        push cs
        pop bx
        mov [2], bx
        pushf
        pop dx
; fault: #GP(0) at 6
; out: ebx=0x1000
; out-mem: DATA16+0x3 = 10
; out-mem: STACK16+0x7fff = 10

; case: v86-iopl3
; mode: v86 iopl=3
        sti
        pushf
        pop dx
; out: edx=0x3202 flags=IF
; out-mem: STACK16+0x7ffe = 02 32

; case: pm16
; mode: pm16
        push cs
        pop bx
        mov [2], bx
; out: ebx=0x80
; out-mem: DATA16+0x2 = 80

; case: pm16-user
; mode: pm16 cpl=3
        push cs
        pop bx
        mov [2], bx
; out: ebx=0x4f
; out-mem: DATA16+0x2 = 4f
; out-mem: STACK16+0x7ffe = 4f

; case: pm32
; mode: pm32
        push cs
        pop ebx
        mov [DATA], ebx
; out: ebx=8
; out-mem: DATA = 08

; case: pm32-ring1
; mode: pm32 cpl=1
        push cs
        pop ebx
        mov [DATA], ebx
; out: ebx=0xf1
; out-mem: DATA = f1
; out-mem: STACK+0xffc = f1

; case: pm32-user
; mode: pm32 cpl=3
        push cs
        pop ebx
        mov [DATA], ebx
; out: ebx=0x23
; out-mem: DATA = 23
; out-mem: STACK+0xffc = 23

; case: paging32
; mode: paging32
        push cs
        pop ebx
.there: mov [ABSENT], ebx
; fault: #PF(2) at .there
; out: ebx=8 cr2=ABSENT

; case: paging32-user
; mode: paging32 cpl=3
; host: no, a process has no supervisor page of its own
        push cs
        pop ebx
.there: mov [SUP], ebx
; fault: #PF(7) at .there
; out: ebx=0x23 cr2=SUP
; out-mem: STACK+0xffc = 23

; case: pae32
; mode: pae32
; qemu-differs: leaves P clear; SDM vol. 3, "Page-Fault Exceptions": RSVD is set only if P is
        push cs
        pop ebx
.there: mov [RSVD], ebx
; fault: #PF(0xb) at .there
; out: ebx=8 cr2=RSVD

; case: pae32-user
; mode: pae32 cpl=3
        push cs
        pop ebx
.there: jmp DATA
; fault: #PF(0x15) at DATA
; out: ebx=0x23 cr2=DATA
; out-mem: STACK+0xffc = 23

; case: compat16
; mode: compat16
        push cs
        pop bx
        mov [2], bx
; out: ebx=0x80
; out-mem: DATA16+0x2 = 80
; out-mem: STACK16+0x7ffe = 80

; case: compat16-user
; mode: compat16 cpl=3
        push cs
        pop bx
        mov [2], bx
; out: ebx=0x4f
; out-mem: DATA16+0x2 = 4f
; out-mem: STACK16+0x7ffe = 4f

; case: compat32
; mode: compat32
        push cs
        pop ebx
        mov [DATA], ebx
; out: ebx=8
; out-mem: DATA = 08
; out-mem: STACK+0xffc = 08

; case: compat32-user
; mode: compat32 cpl=3
        push cs
        pop ebx
        mov [DATA], ebx
; out: ebx=0x23
; out-mem: DATA = 23
; out-mem: STACK+0xffc = 23

; case: long64
; mode: long64
        mov rax, cr0
        mov rbx, cr4
        mov rcx, HIGH + DATA
        mov byte [rcx + 1], 7
; out: rax=0x80050033 rcx=0xffff800001010000 rbx=0x50620
; out-mem: DATA+0x1 = 07

; case: long64-with-setup
; mode: long64 cpl=3
; setup:
        mov byte [PTE(SUP)], 7
        invlpg [SUP]
; code:
        mov byte [SUP], 5
; out-mem: SUP = 05

; case: vector-registers
; in: xmm1=f32:1.5,-2.0,inf,0.25 ymm2=f32:1.5 st0=4.0 st1=2.0
        addps xmm1, xmm1
        vaddps ymm3, ymm2, ymm2
        fdivp
; out: fsw=0x3800 ftw=0x80 st0=0.5 xmm1=f32:3.0,-4.0,inf,0.5
; out: ymm3=f32:3.0,3.0,3.0,3.0,3.0,3.0,3.0,3.0

; case: vector-registers-32
; mode: pm32 cpl=3
; in: xmm1=f32:1.5,-2.0,inf,0.25 ymm2=f32:1.5 st0=4.0 st1=2.0
        addps xmm1, xmm1
        vaddps ymm3, ymm2, ymm2
        fdivp
; out: fsw=0x3800 ftw=0x80 st0=0.5 xmm1=f32:3.0,-4.0,inf,0.5
; out: ymm3=f32:3.0,3.0,3.0,3.0,3.0,3.0,3.0,3.0

; case: mmx-registers
; in: mm1=u16:1,2,3,0xffff mm2=u16:1
        paddw mm1, mm2
; out: ftw=0xff mm1=u16:2,3,4,0

; case: vector-registers-real
; mode: real
; in: xmm1=f32:1.5,-2.0,inf,0.25 st0=4.0 st1=2.0
        addps xmm1, xmm1
        fdivp
; out: fsw=0x3800 ftw=0x80 st0=0.5 xmm1=f32:3.0,-4.0,inf,0.5
