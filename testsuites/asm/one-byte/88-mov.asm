; MOV: widths, high bytes, sign-extended immediates, moffs, segment registers.
; SDM vol. 2B, "MOV-Move".
; mode: long64 cpl=3

; case: high-byte-to-low-byte
; in: rax=0xab00
        mov bl, ah
; out: rbx=0xab

; case: rex-turns-ah-into-spl
; in: rax=0x1234
        db 0x40, 0x88, 0xe0             ; mov al, spl
; out: rax=0x1200

; case: dword-clears-upper-half
; in: rax=-1 rbx=0xffffffff00000005
        mov eax, ebx
; out: rax=5

; case: word-keeps-upper-bits
; in: rax=-1
        mov ax, 0x1234
; out: rax=0xffffffffffff1234

; case: imm32-sign-extended-to-qword
        mov rax, strict qword -5
        mov qword [DATA], -2
; out: rax=0xfffffffffffffffb
; out-mem: DATA = fe ff ff ff ff ff ff ff

; case: imm64
        mov r9, 0x123456789abcdef0
; out: r9=0x123456789abcdef0

; case: moffs64-load
; in-mem: DATA+8 = u64:0x1122334455667788
        mov rax, [abs qword DATA + 8]
; out: rax=0x1122334455667788

; case: moffs-with-address-size-prefix
; in-mem: DATA+8 = u32:0x55667788
        a32 mov eax, [DATA + 8]
; out: rax=0x55667788

; case: moffs-byte-store
; in: rax=0x5a
        mov [abs qword DATA + 1], al
; out-mem: DATA+0x1 = 5a

; case: address-size-32-wraps
; in: rbx=0xffffffff00000000 rcx=DATA+0x10
; in-mem: DATA+4 = u32:0xcafe
        mov eax, [ebx + ecx - 12]
; out: rax=0xcafe

; case: address-with-scale-and-negative-displacement
; in: rbx=DATA rcx=4
; in-mem: DATA+0x18 = u32:7
        mov eax, [rbx + rcx * 8 - 8]
; out: rax=7

; case: rip-relative-counts-from-the-end-with-immediate
        mov dword [rel .there + RWX - CODE], 0x11223344
.there:
; out-mem: RWX+0xa = 44 33 22 11

; case: rbp-base-and-r13-base-take-a-displacement
; in: rbp=DATA r13=DATA+4
; in-mem: DATA = u32:1,2
        mov eax, [rbp]
        mov ebx, [r13]
; out: rax=1 rbx=2

; case: r12-base-needs-sib
; in: r12=DATA
; in-mem: DATA = u32:9
        mov eax, [r12]
; out: rax=9

; case: r12-as-index
; in: rbx=DATA r12=4
; in-mem: DATA+8 = u32:3
        mov eax, [rbx + r12 * 2]
; out: rax=3

; case: disp32-is-sign-extended
; in: rax=0x80000000
; in-mem: DATA = u32:5
        mov rbx, DATA
        add rbx, rax
        mov ecx, [rbx - 0x80000000]
; out: rcx=5 rbx=0x81010000 flags=PF

; case: load-noncanonical
; qemu-differs: 10.0 sets CR2; SDM vol. 3, "Control Registers": CR2 has the address of a page fault
; in: rbx=0x800000000000
.here:  mov eax, [rbx]
; fault: #GP(0) at .here

; case: load-across-the-canonical-end
; qemu-differs: looks at the first byte only; SDM vol. 1, "Canonical Addressing": every byte of the access counts
; in: rbx=0x7ffffffffffe
.here:  mov eax, [rbx]
; fault: #GP(0) at .here

; case: load-with-rbp-base-noncanonical-is-a-stack-fault
; qemu-differs: raises #GP(0); SDM vol. 3, "Canonical Addressing" and MOV: #SS(0) where SS is the segment
; in: rbp=0x8000000000000000
.here:  mov eax, [rbp + 8]
; fault: #SS(0) at .here

; case: load-from-absent-page
; in: rbx=ABSENT+8
.here:  mov eax, [rbx]
; fault: #PF(4) at .here
; out: cr2=ABSENT+0x8

; case: load-across-into-absent-page
; in: rbx=ABSENT-3
.here:  mov eax, [rbx]
; fault: #PF(4) at .here
; out: cr2=ABSENT

; case: store-to-read-only-page
; in: rbx=RO+0xffc
.here:  mov [rbx], rbx
; fault: #PF(7) at .here
; out: cr2=RO+0xffc

; case: store-to-code-page
.here:  mov byte [rel .here], 0x90
; fault: #PF(7) at .here
; out: cr2=CODE

; case: mov-from-selector-to-dword-zero-extends
; in: rax=-1
        mov eax, ss
; out: rax=0x2b

; case: mov-from-selector-to-word-keeps-upper-bits
; in: rax=-1
        mov ax, cs
; out: rax=0xffffffffffff0033

; case: mov-from-selector-to-memory-is-a-word
; in: rdi=DATA rax=-1
; in-mem: DATA = u64:0xffffffffffffffff
        mov [rdi], ss
; out-mem: DATA = 2b 00

; case: mov-null-to-ds-in-64-bit-mode
; in: rax=0
        mov ds, ax
        mov ebx, [DATA]
; out: unchanged

; case: mov-to-es-user-data
; in: rax=0x2b
        mov es, ax
; out: es=0x2b

; case: mov-to-cs-is-undefined
; qemu-differs: 10.0 does nothing; SDM vol. 2B, "MOV": #UD if CS is the destination
; in: rax=0x33
.here:  mov cs, ax
; fault: #UD at .here

; case: mov-to-seventh-segment-is-undefined
; qemu-differs: 10.0 does nothing; SDM vol. 2A, "Encoding of Segment Register (sreg) Field": 6 and 7 are reserved
.here:  db 0x8e, 0xf0
; fault: #UD at .here

; case: mov-kernel-selector-to-ds
; in: rax=0x18
.here:  mov ds, ax
; fault: #GP(0x18) at .here

; case: mov-null-to-ss-at-cpl-3
.here:  mov ss, ax
; fault: #GP(0) at .here

; case: mov-code-selector-to-ss
; in: rax=0x33
.here:  mov ss, ax
; fault: #GP(0x30) at .here

; case: mov-selector-beyond-the-table
; in: rax=0xfffb
.here:  mov ds, ax
; fault: #GP(0xfff8) at .here

; case: c7-slash-1-is-undefined
; qemu-differs: ignores the reg field; SDM vol. 2D, "Opcode Extensions", group 11
.here:  db 0xc7, 0xc8, 0, 0, 0, 0
; fault: #UD at .here
