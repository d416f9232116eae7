; Switching between modes and back within a case.
; SDM vol. 3, "Mode Switching", "Initializing IA-32e Mode".
; mode: real

; case: real-to-protected-and-back
        o32 lgdt [cs:.gdtr]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        jmp dword KCODE32:CODE16 + .protected
bits 32
.protected:
        mov ax, KDATA
        mov ds, ax
        mov dword [CODE16 + 0x9000], 0x12345678
        mov ax, DATA16_SEL
        mov ds, ax
        jmp CODE16_SEL:.leave
bits 16
.leave: mov eax, cr0
        and al, 0xfe
        mov cr0, eax
        jmp 0x1000:.real
.real:  mov ax, 0x2000
        mov ds, ax
        mov eax, [cs:0x9000]
        jmp short .out
.gdtr:  dw 0xfff
        dd GDT
.out:
; out: eax=0x12345678

; case: protection-on-before-the-jump-still-has-real-segments
        o32 lgdt [cs:.gdtr]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        mov bx, [4]                     ; DS as loaded in real mode
        and al, 0xfe
        mov cr0, eax
        jmp short .out
.gdtr:  dw 0xfff
        dd GDT
.out:
; out: eax=0x50032 ebx=0x1234
; in-mem: DATA16+4 = 34 12

; case: limit-loaded-in-protected-mode-survives
        o32 lgdt [cs:.gdtr]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        mov bx, KDATA
        mov es, bx
        and al, 0xfe
        mov cr0, eax
        mov ebx, [es:DATA16 + 4]        ; "unreal": base 0, limit 4 GiB
        mov cx, 0x3000
        mov es, cx
        mov byte [es:dword 0x10000], 7  ; a new base, the limit still there
        jmp short .out
.gdtr:  dw 0xfff
        dd GDT
.out:
; out: eax=0x50032 ecx=0x3000 ebx=0x1008
; out-mem: STACK16+0x0 = 07
; in-mem: DATA16+4 = 78 56 34 12

; case: protected-to-long-and-back
; mode: pm32
; setup:
        mov eax, PML4
        mov cr3, eax
        mov eax, cr4
        or al, 0x20
        mov cr4, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x900
        wrmsr
; code:
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax                    ; compatibility mode now
        mov ecx, 0xc0000080
        rdmsr
        mov ebx, eax
        jmp KCODE64:.wide
bits 64
.wide:  mov rsi, 0x1122334455667788
        mov r8, rsi
        mov rax, r8
        shr rax, 32
        mov esi, eax
        push qword KCODE32
        push qword .narrow
        o64 retf
bits 32
.narrow:
        mov eax, cr0
        and eax, 0x7fffffff
        mov cr0, eax
        mov ecx, 0xc0000080
        rdmsr
        xor edi, edi
; out: eax=0x900 ecx=0xc0000080 ebx=0xd00 esi=0x11223344 flags=PF,ZF
; undef: flags=AF

; case: lme-without-paging-is-not-active
; mode: pm32
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x100
        wrmsr
        rdmsr
; out: eax=0x100 ecx=0xc0000080 flags=PF
; undef: flags=AF

; case: long-mode-without-pae
; mode: pm32
; qemu: no, it does not check and gets lost; SDM vol. 3, "Initializing IA-32e Mode": #GP(0) if PAE is clear
; setup:
        mov eax, PML4
        mov cr3, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x100
        wrmsr
; code:
        mov eax, cr0
        or eax, 0x80000000
; undef: flags=AF
.here:  mov cr0, eax
; fault: #GP(0) at .here
; out: eax=0x80050033 flags=PF,SF

; case: long-mode-with-64-bit-cs-loaded
; mode: pm32
; qemu: no, it does not check and gets lost; SDM vol. 3, "Initializing IA-32e Mode": #GP(0) if CS.L is set
; setup:
        mov eax, PML4
        mov cr3, eax
        mov eax, cr4
        or al, 0x20
        mov cr4, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x100
        wrmsr
        describe FREE_SEL, 0xffff, 0x00af9a00
; code:
        jmp FREE_SEL:.there             ; outside long mode L means nothing: a 16-bit segment
bits 16
.there: mov eax, cr0
        or eax, 0x80000000
; undef: flags=AF
.here:  mov cr0, eax
; fault: #GP(0) at .here
; out: eax=0x80050033 flags=PF,SF cs=0x130

; case: paging-on-and-off
; mode: pm32
; in-mem: DATA = u32:0x11
; in-mem: DATA2 = u32:0x22
; setup:
        mov eax, PD32
        mov cr3, eax
        mov eax, cr4
        or al, 0x10
        mov cr4, eax
        mov dword [PTE32(DATA)], DATA2 + 7
; code:
        mov ebx, [DATA]
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        mov ecx, [DATA]
        and eax, 0x7fffffff
        mov cr0, eax
        mov edx, [DATA]
; out: eax=0x50033 ecx=0x22 edx=0x11 ebx=0x11 flags=PF
; undef: flags=AF

; case: paging-switched-off-by-a-pae-change
; mode: pae32
; in-mem: DATA2 = u32:0x22
        mov ebx, [DATA2]
        mov eax, cr0
        and eax, 0x7fffffff
        mov cr0, eax
        mov ecx, [DATA2]
; out: eax=0x50033 ecx=0x22 ebx=0x22 flags=PF
; undef: flags=AF

; case: to-16-bit-code-and-back
; mode: pm32 cpl=3
; in-mem: CODE16+0x8000 = b8 34 12 66 cb
        push dword UCODE32
        push dword .back
        push dword UCODE16_SEL
        push dword 0x8000               ; mov ax, 0x1234; retfd
        retf
.back:  mov ebx, cs
; out: eax=0x1234 ebx=0x23
; out-mem: STACK+0xff1 = 80 00 00 4f 00 00 00 0f 00 00 01 23

; case: 64-bit-to-16-bit-code
; mode: long64 cpl=3
        push qword UCODE16_SEL
        push qword 0x8000
        o64 retf
; fault: #UD at 0x8003
; out: rax=0x1234 cs=0x4f
; out-mem: STACK+0xff1 = 80
; out-mem: STACK+0xff8 = 4f
; in-mem: CODE16+0x8000 = b8 34 12 0f 0b

; case: ss-with-b-clear-in-32-bit-code
; mode: pm32 cpl=3
; in: eax=USTACK16_SEL ebx=0x55aa
        mov ss, ax
        mov esp, 0x12340004
        push ebx
        mov ecx, esp
        mov eax, UDATA
        mov ss, eax
        mov esp, STACK_MID
; out: eax=0x2b ecx=0x12340000
; out-mem: STACK16+0x0 = aa 55

; case: push-across-the-end-of-a-16-bit-stack
; mode: pm32 cpl=3
; qemu-differs: checks no segment limits; SDM vol. 3, "Limit Checking"
; in: eax=USTACK16_SEL
        mov ss, ax
        mov esp, 2
.here:  push ebx
; fault: #SS(0) at .here
; out: esp=2 ss=0x67

; case: esp-as-index-base-uses-all-32-bits-with-b-clear
; mode: pm32 cpl=3
; qemu-differs: checks no segment limits; SDM vol. 3, "Limit Checking"
; in: eax=USTACK16_SEL
        mov ss, ax
        mov esp, 0x10000
.here:  mov ebx, [esp]
; fault: #SS(0) at .here
; out: esp=0x10000 ss=0x67

; case: call-in-32-bit-code-with-16-bit-stack-wraps
; mode: pm32 cpl=3
; in: eax=USTACK16_SEL
        mov ss, ax
        xor esp, esp
        call .function
.function:
        mov ebx, esp
        mov eax, UDATA
        mov ss, eax
        mov esp, STACK_MID
; out: eax=0x2b ebx=0xfffc flags=PF,ZF
; out-mem: STACK16+0xfffc = 09 00 00 01
