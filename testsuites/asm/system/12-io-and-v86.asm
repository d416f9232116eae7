; I/O permission, IOPL-sensitive instructions, virtual-8086 mode.
; SDM vol. 1, "Input/Output"; vol. 3, "8086 Emulation".
; mode: pm32 cpl=3

; case: in-with-iopl-0-and-bit-set
; in: edx=0x80
.here:  in al, dx
; fault: #GP(0) at .here

; case: out-with-bit-clear
; in: edx=0x80
; setup:
        mov byte [TSS + 0x68 + 0x10], 0xfe
; code:
        out dx, al
; out: unchanged

; case: word-access-needs-both-bits
; in: edx=0x80
; setup:
        mov byte [TSS + 0x68 + 0x10], 0xfe
; code:
.here:  out dx, ax
; fault: #GP(0) at .here

; case: dword-access-across-bitmap-bytes
; in: edx=0x86
; setup:
        mov word [TSS + 0x68 + 0x10], 0xfc3f
; code:
        out dx, eax
; out: unchanged

; case: bitmap-byte-beyond-the-tss-limit
; in: edx=0x88
; setup:
        mov word [GDT + TSS_SEL], 0x68 + 0x10
        and byte [GDT + TSS_SEL + 5], ~2
        mov word [TSS + 0x68 + 0x10], 0
        mov ax, TSS_SEL
        ltr ax
; code:
.here:  out dx, al
; fault: #GP(0) at .here

; case: bitmap-last-byte-needs-one-more
; in: edx=0x80
; setup:
        mov word [GDT + TSS_SEL], 0x68 + 0x10
        and byte [GDT + TSS_SEL + 5], ~2
        mov word [TSS + 0x68 + 0x10], 0
        mov ax, TSS_SEL
        ltr ax
; code:
.here:  out dx, al
; fault: #GP(0) at .here

; case: iopl-3-needs-no-bitmap
; mode: pm32 cpl=3 iopl=3
; in: edx=0x80
        out dx, al
; out: unchanged

; case: cli-with-iopl-0
.here:  cli
; fault: #GP(0) at .here

; case: sti-with-iopl-0
.here:  sti
; fault: #GP(0) at .here

; case: cli-with-iopl-3
; mode: pm32 cpl=3 iopl=3
        cli
; out: flags=-IF

; case: out-in-64-bit-mode-with-bit-clear
; mode: long64 cpl=3
; in: rdx=0x80
; setup:
        mov byte [TSS + 0x68 + 0x10], 0xfe
; code:
        out dx, al
; out: unchanged

; case: outsb-with-bit-clear
; in: edx=0x80 esi=DATA ecx=3
; setup:
        mov byte [TSS + 0x68 + 0x10], 0xfe
; code:
        rep outsb
; out: ecx=0 esi=DATA+0x3

; case: insb-from-a-port-without-device
; in: edx=0x2f0 edi=DATA ecx=2
; setup:
        mov byte [TSS + 0x68 + 0x5e], 0
; code:
        rep insb
; out: ecx=0 edi=DATA+0x2
; out-mem: DATA = ff ff

; case: insb-to-read-only-page-reads-nothing
; mode: paging32 cpl=3
; in: edx=0x2f0 edi=RO
; setup:
        mov byte [TSS + 0x68 + 0x5e], 0
; code:
.here:  insb
; fault: #PF(7) at .here
; out: cr2=RO

; case: v86-cli-with-iopl-0
; mode: v86
.here:  cli
; fault: #GP(0) at .here

; case: v86-pushf-with-iopl-0
; mode: v86
.here:  pushf
; fault: #GP(0) at .here

; case: v86-iret-with-iopl-0
; mode: v86
.here:  iret
; fault: #GP(0) at .here

; case: v86-popf-with-iopl-3-keeps-iopl
; mode: v86 iopl=3
        push word 0x0247
        popf
        pushf
        pop ax
; out: eax=0x3247 flags=CF,PF,ZF,IF
; out-mem: STACK16+0x7ffe = 47 32

; case: v86-iret-with-iopl-3
; mode: v86 iopl=3
        pushf
        push cs
        push word .there
        iret
.there:
; out-mem: STACK16+0x7ffa = 06 00 00 10 02 30

; case: v86-int-with-iopl-3-goes-through-the-idt
; mode: v86 iopl=3
        int 0x80
.after:
; fault: int 0x80 at end

; case: v86-int-with-iopl-3-and-gate-dpl-0
; mode: v86 iopl=3
.here:  int 0x50
; fault: #GP(0x282) at .here

; case: v86-in-uses-the-bitmap-whatever-iopl
; mode: v86 iopl=3
; in: edx=0x80
.here:  in al, dx
; fault: #GP(0) at .here

; case: v86-in-with-bit-clear
; mode: v86
; in: edx=0x80
; setup:
        mov byte [TSS + 0x68 + 0x10], 0xfe
; code:
        out dx, al
; out: unchanged

; case: v86-hlt
; mode: v86
.here:  hlt
; fault: #GP(0) at .here

; case: v86-mov-cr0
; mode: v86
.here:  mov eax, cr0
; fault: #GP(0) at .here

; case: v86-lgdt
; mode: v86
.here:  lgdt [0]
; fault: #GP(0) at .here

; case: v86-segment-load-is-shift-by-4
; mode: v86
; in: eax=0x3000
; in-mem: EXTRA16+4 = 34 12
        mov ds, ax
        mov bx, [4]
; out: ebx=0x1234 ds=0x3000

; case: v86-offset-beyond-64-kib
; mode: v86
; qemu-differs: checks no segment limits; SDM vol. 3, "8086 Emulation": #GP(0) beyond 0xffff
; in: ebx=0x10000
.here:  mov al, [ebx]
; fault: #GP(0) at .here

; case: v86-word-at-ffff
; mode: v86
; qemu-differs: checks no segment limits; SDM vol. 3, "8086 Emulation": #GP(0) beyond 0xffff
; in: ebx=0xffff
.here:  mov ax, [bx]
; fault: #GP(0) at .here

; case: v86-frame-on-the-ring-0-stack
; qemu-differs: pushes RF clear; SDM vol. 3, "Restart Flag": the image of a fault has RF set
; mode: v86
; in: eax=5
; setup:
        idt32 6, KCODE32, CODE16 + .handler, 0x8e00
; code:
.here:  ud2
bits 32
.handler:
        mov ecx, [esp + 8]              ; EFLAGS
        mov edx, [esp + 12]             ; ESP
        mov ebx, [esp + 20]             ; ES
        mov esi, [esp + 24]             ; DS
        mov edi, ds
        int 0x51
; fault: int 0x51 at 0x10016
; out: ecx=0x30002 edx=0x8000 ebx=0x3000 esp=0x1113fdc esi=0x2000 flags=-VM cs=8 ds=0 es=0 fs=0 gs=0
; out: ss=0x18

; case: v86-far-jump
; mode: v86
; in-mem: DATA16+0x10 = 0f 0b
        jmp 0x2000:0x10
; fault: #UD at 0x10
; out: cs=0x2000

; case: v86-gate-to-conforming-code
; qemu-differs: leaves EXT clear; SDM vol. 3, "Error Code": EXT is set for a fault while an exception is delivered
; mode: v86
; setup:
        idt32 6, CONFORM_SEL, .here, 0x8e00
; code:
.here:  ud2
        nop
; fault: #GP(0xe1) at .here

; case: bytes-by-dx-and-immediate-in-a-loop
; mode: long64 cpl=0
; in: rax=0x1122334455667700 rdx=0x3ff rcx=4
.again: add al, 0x13
        out dx, al                      ; the scratch register of COM1
        mov al, 0
        in al, dx
        rol rbx, 8
        add rbx, rax
        out 0x87, al                    ; a DMA page register
        mov al, 0
        in al, 0x87
        rol rsi, 8
        add rsi, rax
        loop .again
; out: rax=0x112233445566774c rcx=0 rbx=0xaaef33774614e3b2 rsi=0xaaef33774614e3b2 flags=PF,AF,SF

; case: words-and-dwords-in-a-loop
; mode: long64 cpl=0
; in: rax=0x1122334400000000 rdx=0xcf8 rcx=4
.again: add eax, 0x00010100
        and eax, 0xfffffc
        bts eax, 31
        out dx, eax                     ; PCI's address register
        in eax, dx
        rol rbx, 4
        add rbx, rax
        mov rax, 0x1122334400000000
        mov dx, 0x2f0
        in ax, dx
        rol rsi, 4
        add rsi, rax
        mov rax, 0x1122334400000000
        in eax, dx
        rol rdi, 4
        add rdi, rax
        mov dx, 0xcf8
        loop .again
; out: rax=0xffffffff rcx=0 rbx=0x88891220cbc rsi=0x68aceb841110f013 rdi=0x1110ffffeeef

; case: ports-in-a-loop-in-real-mode
; mode: real
; in: eax=0x11223344 edx=0x3ff ecx=4
.again: add al, 0x13
        out dx, al
        mov al, 0
        in al, dx
        rol ebx, 8
        add ebx, eax
        loop .again
; out: eax=0x11223390 ecx=0 ebx=0xbdd0e3f6 flags=PF,SF

; case: port-access-behind-a-load-of-ss
; mode: real
; in: eax=0x11223344 edx=0x3ff ecx=4 edi=0x3000
.again: add al, 0x13
        mov ss, di
        out dx, al
        mov al, 0
        in al, dx
        rol ebx, 8
        add ebx, eax
        loop .again
; out: eax=0x11223390 ecx=0 ebx=0xbdd0e3f6 flags=PF,SF ss=0x3000

; case: port-breakpoint-in-a-loop
; mode: long64 cpl=0
; in: rax=0x11 rdx=0x3ff rcx=4
; setup:
        mov rax, 0x3ff
        mov dr0, rax
        mov rax, cr4
        or eax, 8
        mov cr4, rax
; code:
.again: out dx, al
        in al, dx
        add rbx, rax
        cmp ecx, 2
        jne .on
        mov esi, 0x20402                ; one byte, by IN or OUT
        mov dr7, rsi
.on:    loop .again
; fault: #DB at CODE+0x1
; out: rcx=1 rbx=0x33 rsi=0x20402 flags=PF,ZF dr6=0xffff0ff1
