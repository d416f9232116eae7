; Entry of the 64-bit report guest: multiboot, long mode, exceptions that come back to C.
;
; Problem: a report wants hundreds of small attempts at something that may fault, at privilege 0 and 3, and must go on
; behind each. Scheme: run_at() enters code by IRETQ; every exception and INT 0x81 comes to one place, which
; writes down what happened and returns to run_at()'s caller. Interrupts are off unless an attempt switches them on.
bits 32
section .boot
        align 4
header: dd 0x1badb002, 0x00010000, -(0x1badb002 + 0x00010000)
        dd header, __load_start, __load_end, __bss_end, entry32

global entry32
extern main, __bss_start, __bss_end, __load_start, __load_end
entry32:
        cli
        cld
        mov esp, stack_top
        mov edi, __bss_start
        mov ecx, __bss_end
        sub ecx, edi
        xor eax, eax
        rep stosb
        ; identity: 1 GiB in 2 MiB pages, supervisor only
        mov dword [pml4], pdpt + 3
        mov dword [pdpt], pd + 3
        mov edi, pd
        mov eax, 0x83
.next:  mov [edi], eax
        add eax, 0x200000
        add edi, 8
        cmp edi, pd + 4096
        jne .next
        mov eax, cr4
        or eax, 0x6b0           ; PSE PAE PGE OSFXSR OSXMMEXCPT
        mov cr4, eax
        mov eax, pml4
        mov cr3, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x901           ; SCE LME NXE
        wrmsr
        mov eax, 0x80010033     ; PG WP NE ET MP PE
        mov cr0, eax
        lgdt [gdtr]
        jmp 0x08:entry64

bits 64
section .text
entry64:
        mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        xor eax, eax
        mov fs, eax
        mov gs, eax
        mov rsp, stack_top
        ; TSS
        mov eax, tss
        mov [gdt + 0x42], ax
        shr eax, 16
        mov [gdt + 0x44], al
        mov [gdt + 0x47], ah
        mov qword [tss + 4], kernel_top
        mov qword [tss + 0x24], ist_top
        mov eax, 0x40
        ltr ax
        ; IDT: gate N leads to vectors + 16 N
        mov edi, idt
        mov eax, vectors
        mov ecx, 256
.gate:  mov word [rdi], ax
        mov word [rdi + 2], 0x08
        mov word [rdi + 4], 0x8e00
        mov edx, eax
        shr edx, 16
        mov word [rdi + 6], dx
        mov dword [rdi + 8], 0
        mov dword [rdi + 12], 0
        add eax, 16
        add edi, 16
        dec ecx
        jnz .gate
        mov byte [idt + 16 * 0x81 + 5], 0xee
        lidt [idtr]
        call main
        mov dx, 0xf4
        xor eax, eax
        out dx, eax
.stop:  hlt
        jmp .stop

; int run_at(int cpl, u64 rip, u64 rdi, u64 rsi, u64 rflags, u64 cs, u64 ss, u64 rsp)
; SysV: edi, rsi, rdx, rcx, r8, r9, [rsp+8], [rsp+16]. The vector that ended it.
global run_at
run_at: push rbx
        push rbp
        push r12
        push r13
        push r14
        push r15
        mov [saved_rsp], rsp
        mov rax, [rsp + 56]     ; ss
        mov rbx, [rsp + 64]     ; rsp
        push rax
        push rbx
        push r8
        push r9
        push rsi
        mov rdi, rdx
        mov rsi, rcx
        xor eax, eax
        xor ecx, ecx
        xor edx, edx
        xor ebx, ebx
        xor ebp, ebp
        iretq

; The frame on the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
caught: push rax
        mov rax, [rsp + 8]
        mov [event], rax
        mov rax, [rsp + 16]
        mov [event + 8], rax
        mov rax, [rsp + 24]
        mov [event + 16], rax
        mov rax, [rsp + 32]
        mov [event + 24], rax
        mov rax, [rsp + 40]
        mov [event + 32], rax
        mov rax, [rsp + 48]
        mov [event + 40], rax
        mov rax, [rsp + 56]
        mov [event + 48], rax
        mov rax, cr2
        mov [event + 56], rax
        lea rax, [rsp + 64]
        mov [event + 64], rax   ; stack pointer before the frame was pushed
        pop rax
        mov [event + 72], rax
        mov [event + 80], rcx
        mov [event + 88], rbx
        pushfq
        pop rax
        mov [event + 96], rax   ; flags in the handler
        mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        cld
        mov rsp, [saved_rsp]
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbp
        pop rbx
        mov eax, [event]
        ret

; Where the second processor starts, at AP_CODE, in real mode; void ap_main(void) is what it does.
AP_CODE equ 0x9000
%define ap_there(label) (label - ap_start + AP_CODE)
global ap_start, ap_end
extern ap_main
bits 16
ap_start:
        cli
        xor ax, ax
        mov ds, ax
        o32 lgdt [ap_there(.gdtr)]
        mov eax, 0x6b0
        mov cr4, eax
        mov eax, pml4
        mov cr3, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x901
        wrmsr
        mov eax, 0x80010033
        mov cr0, eax
        jmp dword 0x08:ap_entry
.gdtr:  dw 50 * 8 - 1
        dd gdt
ap_end:
bits 64
ap_entry:
        mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov rsp, ap_stack_top
        lidt [abs idtr]
        call ap_main
.stop:  hlt
        jmp .stop

; void mode_trip(void): out of 64-bit mode by way of compatibility, protected and real mode, and back. The code lies
; below 64 KiB while it runs; what it sees goes to TRIP_SEEN, four bytes each.
TRIP_CODE equ 0x8000
TRIP_SEEN equ 0x7000
%define there(label) (label - trip + TRIP_CODE)
%assign seen 0
%macro saw 1
        mov [TRIP_SEEN + seen], %1
%assign seen seen + 4
%endmacro
global mode_trip
mode_trip:
        push rbx
        push rbp
        mov [saved_rsp], rsp
        mov esi, trip
        mov edi, TRIP_CODE
        mov ecx, trip_end - trip
        rep movsb
        push qword 0x18
        push qword there(trip)
        o64 retf
bits 32
trip:   mov ax, 0x10
        mov ss, ax
        mov esp, TRIP_CODE
        mov eax, cs
        saw eax
        mov ecx, -1
        inc ecx                 ; a REX prefix in 64-bit code
        saw ecx
        mov ebx, esp
        push eax
        sub ebx, esp
        saw ebx
        mov eax, cr0
        and eax, 0x7fffffff
        mov cr0, eax            ; protected mode without paging
        saw eax
        mov ecx, 0xc0000080
        rdmsr
        saw eax
        mov ax, 0x10
        mov fs, ax
        jmp 0xa0:there(.narrow)
bits 16
.narrow:
        mov ax, 0xa8
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov ecx, -1
        inc cx
        saw ecx
        mov eax, cr0
        and al, 0xfe
        mov cr0, eax
        smsw bx                 ; real mode, with the selectors of protected mode
        saw ebx
        mov eax, ss
        saw eax
        jmp 0:there(.real)
.real:  xor eax, eax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, TRIP_CODE - 0x100
        lidt [there(.ivt)]
        mov eax, cs
        saw eax
        mov dword [4 * 0x60], there(.handler)
        mov ebx, 0x12340000
        int 0x60
        saw ebx
        mov eax, [fs:dword 0x100000]    ; FS's limit is still 4 GiB
        saw eax
        mov eax, esp
        saw eax
        o32 lgdt [there(.gdtr)]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        jmp dword 0x18:there(.wide)
.handler:
        mov bx, sp
        push bp
        mov bp, sp
        add bx, [bp + 2 + 2]    ; the pushed CS
        pop bp
        iret
.ivt:   dw 0x3ff
        dd 0
.gdtr:  dw 50 * 8 - 1
        dd gdt
bits 32
.wide:  mov ax, 0x10
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov eax, cr0
        saw eax
        or eax, 0x80000000
        mov cr0, eax            ; LME is still set: compatibility mode
        mov ecx, 0xc0000080
        rdmsr
        saw eax
        jmp 0x08:there(.long)
bits 64
.long:  mov rsp, [abs saved_rsp]
        mov rax, -1
        db 0x48                 ; a prefix here, DEC EAX elsewhere
        inc eax
        saw eax
        mov eax, cs
        saw eax
        lidt [abs idtr]
        xor eax, eax
        mov fs, ax
        mov rbx, trip_back
        jmp rbx
trip_end:
trip_back:
        pop rbp
        pop rbx
        ret
global trip_words
trip_words: dd seen / 4

        align 16
vectors:
%assign n 0
%rep 256
        align 16
%if n = 8 || (n >= 10 && n <= 14) || n = 17 || n = 21
        push qword n
        jmp caught
%else
        push qword 0
        push qword n
        jmp caught
%endif
%assign n n + 1
%endrep

section .data
        align 16
global gdt, idt, tss, event, pml4, kernel_top, ist_top, gdtr
gdt:    dq 0
        dq 0x00af9b000000ffff   ; 08 code64
        dq 0x00cf93000000ffff   ; 10 data
        dq 0x00cf9b000000ffff   ; 18 code32
        dq 0x00affb000000ffff   ; 20 user code64
        dq 0x00cff3000000ffff   ; 28 user data
        dq 0x00cffb000000ffff   ; 30 user code32
        dq 0
        dq 0x0000890000000067, 0 ; 40 TSS
        times 40 dq 0           ; 50 and up: free for C
gdtr:   dw $ - gdt - 1
        dq gdt
idtr:   dw 4095
        dq idt
section .bss
        align 4096
pml4:   resb 4096
pdpt:   resb 4096
pd:     resb 4096
idt:    resb 4096
tss:    resb 4096
        resb 8192
stack_top:
        resb 8192
kernel_top:
        resb 8192
ist_top:
        resb 4096
ap_stack_top:
saved_rsp: resq 1
event:  resq 16
