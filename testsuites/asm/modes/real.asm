; Real mode: segments, limits, what is undefined, what a fault looks like.
; SDM vol. 3, "Real-Address Mode Operation".
; mode: real

; case: segment-is-shifted-by-4
; in: eax=0x2001
; in-mem: DATA16+0x10 = 34 12
        mov ds, ax
        mov bx, [0]
; out: ebx=0x1234 ds=0x2001

; case: word-at-ffff
; qemu-differs: checks no segment limits; SDM vol. 3, "Real-Address Mode Operation": #GP beyond the segment
; in: ebx=0xffff
.here:  mov ax, [bx]
; fault: #GP(0) at .here

; case: dword-at-fffd-by-32-bit-address
; qemu-differs: checks no segment limits; SDM vol. 3, "Real-Address Mode Operation"
; in: ebx=0xfffd
.here:  mov eax, [ebx]
; fault: #GP(0) at .here

; case: stack-word-at-ffff
; qemu-differs: checks no segment limits; SDM vol. 3, "Real-Address Mode Operation": #SS beyond the stack segment
; in: ebp=0xffff
.here:  mov ax, [bp]
; fault: #SS(0) at .here

; case: high-memory-area
; in: eax=0xffff
; the byte past 1 MiB is the harness's multiboot header, 0x1badb002
        mov ds, ax
        mov ebx, [0x10]
; out: ebx=0x1badb002 ds=0xffff

; case: push-dword
; in: eax=0x12345678
        push eax
        push dword 0x11223344
        pop bx
; out: ebx=0x3344 esp=0x7ffa
; out-mem: STACK16+0x7ffa = 22 11 78 56 34 12

; case: pushf-dword-clears-rf-and-vm
        pushfd
        pop eax
; out: eax=2

; case: popf-loads-everything-it-has
        push word 0x7ed5
        popf
        pushf
        pop ax
        cli
        cld
; out: eax=0x7ed7 flags=CF,PF,AF,ZF,SF,OF,NT,IOPL3

; case: smsw-and-lmsw
        smsw ax
        lmsw ax
; out: eax=0x32

; case: mov-cr0-is-allowed
        mov eax, cr0
; out: eax=0x50032

; case: lldt-is-undefined
.here:  lldt ax
; fault: #UD at .here

; case: str-is-undefined
.here:  str ax
; fault: #UD at .here

; case: verr-is-undefined
.here:  verr ax
; fault: #UD at .here

; case: int3-vector
        int3
.after:
; fault: #BP at end

; case: into-vector
; in: flags=OF
        into
.after:
; fault: #OF at end

; case: bound-vector
; in: eax=9 ebx=0x10
; in-mem: DATA16+0x10 = 00 00 08 00
.here:  bound ax, [bx]
; fault: #BR at .here

; case: divide-error-points-at-the-instruction
.here:  div cx
; fault: #DE at .here

; case: divide-error-frame
; setup:
        xor ax, ax
        mov es, ax
        mov word [es:0], .handler
        mov word [es:2], 0x1000
; code:
.here:  div cx
.handler:
        pop bx
        pop cx
        pop dx
; out: ecx=0x1000 edx=2

; case: iret-loads-iopl
        push word 0x3002
        push cs
        push word .there
        iret
.there:
; out: flags=IOPL3

; case: far-call-and-retf
        call 0x1000:.function
        jmp short .out
.function:
        mov bp, sp
        mov ax, [bp]
        mov bx, [bp + 2]
        retf
.out:
; out: eax=5 ebx=0x1000 ebp=0x7ffc

; case: far-jump-normalises-nothing
; in-mem: CODE16+0x9000 = 0f 0b
        jmp 0x1800:0x1000
; fault: #UD at 0x1000
; out: cs=0x1800

; case: retf-imm16
        push word 0x5555
        push cs
        push word .there
        retf 2
.there:
; out: unchanged

; case: in-and-out-are-free
; in: edx=0x80
        out dx, al
        cli
        sti
        cli
; out: unchanged

; case: lock-prefix-on-register-is-undefined
.here:  db 0xf0, 0x01, 0xd8
; fault: #UD at .here

; case: long-address-through-segment-prefix
; in: ebx=0x8000 esi=0x4000
; in-mem: EXTRA16+0xc000 = ef be
        mov ax, [es:bx + si]
; out: eax=0xbeef

; case: fs-and-gs
; in: eax=0x3000
; in-mem: EXTRA16+2 = 34 12
        mov fs, ax
        mov bx, [fs:2]
; out: ebx=0x1234 fs=0x3000

; case: lfs
; in-mem: DATA16+8 = 02 00 00 30
; in-mem: EXTRA16+2 = 34 12
        lfs bx, [8]
        mov cx, [fs:bx]
; out: ecx=0x1234 ebx=2 fs=0x3000

; case: ip-runs-off-the-segment-end
; qemu: no, it runs on into the next segment; SDM vol. 3, "Limit Checking": #GP past the limit of CS
; in-mem: CODE16+0xfffe = 90 90
        jmp near 0xfffe
; the frame holds 16 bits of 0x10000
; fault: #GP(0) at start

; case: rdmsr-is-allowed
; in: ecx=0xc0000081
        rdmsr
; out: edx=0x230010

; case: popad
        push dword 1
        push dword 2
        push dword 3
        push dword 4
        push dword 5
        push dword 6
        push dword 7
        push dword 8
        popad
; out: eax=1 ecx=2 edx=3 ebx=4 ebp=6 esi=7 edi=8

; case: bsf-and-shld-in-16-bit-code
; in: eax=0x8421 ebx=0x1234
; undef: flags=CF,OF,SF,AF,PF,ZF
        bsf cx, ax
        shld ax, bx, 4
; out: eax=0x4211

; case: cpuid-in-real-mode
; in: eax=0
        cpuid
        xor eax, eax
        xor ebx, ebx
        xor ecx, ecx
        xor edx, edx
; out: flags=PF,ZF
