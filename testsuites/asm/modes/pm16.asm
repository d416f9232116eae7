; 16-bit code: operand and address sizes, wrap-around, the 16-bit stack.
; SDM vol. 1, "Operand-Size and Address-Size Attributes"; vol. 2A, "16-Bit Addressing Forms".
; mode: pm16 cpl=3

; case: default-operand-size
; in: eax=0xffffffff
        inc ax
        mov bx, 0x1234
; out: eax=0xffff0000 ebx=0x1234 flags=PF,AF,ZF

; case: operand-size-prefix
; in: eax=0xffffffff
        inc eax
        mov ebx, 0x12345678
; out: eax=0 ebx=0x12345678 flags=PF,AF,ZF

; case: address-wraps-at-64-kib
; in: ebx=0xfff0 esi=0x14
; in-mem: DATA16+4 = cd ab
        mov ax, [bx + si]
; out: eax=0xabcd

; case: bp-uses-the-stack-segment
; in: ebp=0x100
; in-mem: STACK16+0x104 = 34 12
        mov ax, [bp + 4]
; out: eax=0x1234

; case: bp-di-and-bx-di
; in: ebp=0x100 ebx=0x200 edi=0x10
; in-mem: STACK16+0x110 = 11 11
; in-mem: DATA16+0x210 = 22 22
        mov ax, [bp + di]
        mov cx, [bx + di]
; out: eax=0x1111 ecx=0x2222

; case: disp16-without-base
; in-mem: DATA16+0xfff0 = 78 56
        mov ax, [0xfff0]
; out: eax=0x5678

; case: address-size-prefix-with-sib
; in: ebx=0x100 ecx=4
; in-mem: DATA16+0x110 = 78 56
        mov ax, [ebx + ecx * 4]
; out: eax=0x5678

; case: word-at-segment-end
; qemu-differs: checks no segment limits; SDM vol. 3, "Limit Checking"
; in: ebx=0xffff
.here:  mov ax, [bx]
; fault: #GP(0) at .here

; case: 32-bit-offset-beyond-the-limit
; qemu-differs: checks no segment limits; SDM vol. 3, "Limit Checking"
; in: ebx=0x10000
.here:  mov al, [ebx]
; fault: #GP(0) at .here

; case: push-and-pop-words
; in: eax=0x11112222
        push ax
        push eax
        pop bx
        pop ecx
; out: ecx=0x22221111 ebx=0x2222
; out-mem: STACK16+0x7ffa = 22 22 11 11 22 22

; case: push-wraps
; in: esp=0 eax=0x1234
        push ax
        mov bx, sp
; out: ebx=0xfffe esp=0xfffe
; out-mem: STACK16+0xfffe = 34 12

; case: push-across-the-wrap
; in: esp=1 eax=0x1234
; qemu-differs: checks no segment limits; SDM vol. 3, "Limit Checking": the word at 0xffff crosses the limit
.here:  push ax
; fault: #SS(0) at .here

; case: pusha-and-popa
; in: eax=1 ecx=2 edx=3 ebx=4 ebp=5 esi=6 edi=7
        pusha
        popad
; undef: eax
        xor eax, eax
        sub sp, 16
; out: ecx=0 edx=0 ebx=0 ebp=0x30004 esi=0x80000005 edi=0x60007 flags=PF,SF
; out-mem: STACK16+0x7ff0 = 07 00 06 00 05 00 00 80 04 00 03 00 02 00 01

; case: call-near-and-ret
        call .function
        jmp short .out
.function:
        mov bp, sp
        mov ax, [bp]
        ret
.out:
; out: eax=3 ebp=0x7ffe
; out-mem: STACK16+0x7ffe = 03

; case: call-far-and-retf
        call UCODE16_SEL:.function
        jmp short .out
.function:
        mov bp, sp
        mov ax, [bp]
        mov bx, [bp + 2]
        retf
.out:
; out: eax=5 ebx=0x4f ebp=0x7ffc
; out-mem: STACK16+0x7ffc = 05 00 4f

; case: jmp-short-wraps-ip
; in-mem: CODE16+0xfffe = 0f 0b
        jmp near 0xfffe
; fault: #UD at 0xfffe

; case: loop-uses-cx
; in: ecx=0x10003
.again: inc ax
        loop .again
; out: eax=3 ecx=0x10000 flags=PF

; case: jecxz-by-prefix
; in: ecx=0x10000
        a32 jecxz .taken
        mov ax, 1
.taken:
; out: eax=1

; case: lea-word
; in: ebx=0x1ffff esi=2
        lea ax, [bx + si + 1]
; out: eax=2

; case: lea-dword-of-16-bit-address
; in: ebx=0x1ffff esi=0x10
        lea eax, [bx + si]
; out: eax=0xf

; case: xlat-uses-bx
; in: eax=0x55 ebx=0x1_0010
; in-mem: DATA16+0x65 = 99
        xlatb
; out: eax=0x99

; case: lds-loads-word-offset
; in: ebx=0x20
; in-mem: DATA16+0x20 = 34 12 2b 00
        lds si, [bx]
; out: esi=0x1234 ds=0x2b

; case: les-dword-offset
; in: ebx=0x20
; in-mem: DATA16+0x20 = 78 56 34 12 57 00
        les esi, [bx]
; out: esi=0x12345678 es=0x57

; case: stosw-wraps-di
; in: eax=0x1234 edi=0x1_fffe ecx=2
        rep stosw
; out: ecx=0 edi=0x10002
; out-mem: EXTRA16+0x0 = 34 12
; out-mem: EXTRA16+0xfffe = 34 12

; case: movsb-segments
; in: esi=4 edi=8
; in-mem: DATA16+4 = 77
        movsb
; out: esi=5 edi=9
; out-mem: EXTRA16+0x8 = 77

; case: lodsd-with-prefix
; in: esi=4
; in-mem: DATA16+4 = 11 22 33 44
        lodsd
; out: eax=0x44332211 esi=8

; case: enter-and-leave
; in: ebp=0x9000
        enter 6, 0
        mov ax, bp
        leave
; out: eax=0x7ffe
; out-mem: STACK16+0x7fff = 90

; case: enter-level-2
; in: ebp=0x9000
; in-mem: STACK16+0x8ffe = 22 22
        enter 4, 2
; out: esp=0x7ff6 ebp=0x7ffe
; out-mem: STACK16+0x7ffa = fe 7f 22 22 00 90

; case: mul-word
; in: eax=0x1_8000 ebx=4
; undef: flags=SF,ZF,AF,PF
        mul bx
; out: eax=0x10000 edx=2 flags=CF,OF

; case: movzx-dword-from-word
; in: ebx=0xfffff edx=-1
        movzx edx, bx
; out: edx=0xffff

; case: push-sreg-is-a-word
        push es
        push cs
; out: esp=0x7ffc
; out-mem: STACK16+0x7ffc = 4f 00 5f

; case: iret-word
        pushf
        push cs
        push word .there
        iret
.there:
; out-mem: STACK16+0x7ffa = 06 00 4f 00 02 02

; case: int3
        int3
.after:
; fault: #BP at end

; case: x87-environment-14-bytes
; in: st0=1.0
; undef-mem: DATA16+6 8
        fnstenv [0]
; out-mem: DATA16+0x0 = 7f 03 00 38 ff 3f

; case: sse-in-16-bit-code
; in: xmm0=f32:1.0 xmm1=f32:2.0
        addps xmm0, xmm1
        movups [0x10], xmm0
; out: xmm0=f32:3.0,3.0,3.0,3.0
; out-mem: DATA16+0x12 = 40 40 00 00 40 40 00 00 40 40 00 00 40 40

; case: avx-in-16-bit-code
; qemu-differs: #UD in 16-bit code; SDM vol. 2, "VEX Encoding": only real and virtual-8086 mode are excluded
; needs: avx
; in: ymm1=f32:1.0 ymm2=f32:2.0
        vaddps ymm0, ymm1, ymm2
; out: ymm0=f32:3.0,3.0,3.0,3.0,3.0,3.0,3.0,3.0

; case: compat16-behaves-alike
; mode: compat16 cpl=3
; in: ebx=0xfff0 esi=0x14
; in-mem: DATA16+4 = cd ab
        mov ax, [bx + si]
        push ax
        mov cx, cs
; out: eax=0xabcd ecx=0x4f esp=0x7ffe
; out-mem: STACK16+0x7ffe = cd ab
