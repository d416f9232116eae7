; Entry of the 32-bit report guest: multiboot, protected mode, exceptions that come back to C, and the way through all
; modes.
;
; As in start64.asm: run_at() enters code by IRETD, every exception and INT 0x81 returns to its caller.
%macro say 1
        mov al, %1
        out 0xe9, al
%%wait: mov dx, 0x3fd
        in al, dx
        test al, 0x20
        jz %%wait
        mov dx, 0x3f8
        mov al, %1
        out dx, al
%endmacro

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
        lgdt [gdtr]
        jmp 0x08:.flat
.flat:  mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov fs, eax
        mov gs, eax
        xor eax, eax
        lldt ax
        call new_task_register
        mov edi, idt
        mov eax, vectors
        mov ecx, 256
.gate:  mov word [edi], ax
        mov word [edi + 2], 0x08
        mov word [edi + 4], 0x8e00
        mov edx, eax
        shr edx, 16
        mov word [edi + 6], dx
        add eax, 16
        add edi, 8
        dec ecx
        jnz .gate
        mov byte [idt + 8 * 0x81 + 5], 0xee
        lidt [idtr]
        call main
        call all_modes
        say 'e'
        say 'n'
        say 'd'
        say 10
        mov dx, 0xf4
        xor eax, eax
        out dx, eax
.stop:  hlt
        jmp .stop

; TR anew, not busy.
global new_task_register
new_task_register:
        mov eax, tss
        mov [gdt + 0x42], ax
        shr eax, 16
        mov [gdt + 0x44], al
        mov [gdt + 0x47], ah
        mov byte [gdt + 0x45], 0x89
        mov dword [tss + 4], kernel_top
        mov dword [tss + 8], 0x10
        mov dword [tss + 12], ring1_top
        mov dword [tss + 16], 0xb1
        mov dword [tss + 20], ring2_top
        mov dword [tss + 24], 0xc2
        mov word [tss + 0x66], 0x68
        mov eax, 0x40
        ltr ax
        ret

; int run_at(u32 eip, u32 eflags, u32 cs, u32 ss, u32 esp, u32 ds, u32 eax, u32 edi)
global run_at
run_at: push ebx
        push ebp
        push esi
        push edi
        mov [saved_esp], esp
        mov ebp, esp
        mov eax, [ebp + 24]     ; eflags
        mov ecx, [ebp + 28]     ; cs
        test eax, 0x20000
        jnz .virtual
        test ecx, 3
        jnz .outer
        ; same privilege: the stack is changed by hand
        mov esp, [ebp + 36]
        jmp .frame
.virtual:
        push dword 0            ; gs
        push dword 0            ; fs
        push dword [ebp + 40]   ; ds
        push dword [ebp + 40]   ; es
.outer: push dword [ebp + 32]
        push dword [ebp + 36]
.frame: push eax
        push ecx
        push dword [ebp + 20]
        mov edi, [ebp + 48]
        mov eax, [ebp + 40]
        mov ecx, [ebp + 44]
        test dword [ebp + 24], 0x20000
        jnz .go
        mov ds, eax
.go:    mov eax, ecx
        xor ecx, ecx
        xor edx, edx
        xor ebx, ebx
        xor esi, esi
        xor ebp, ebp
        iretd

; vector, error code, EIP, CS, EFLAGS, and ESP, SS from outside.
caught: push eax
        push ds
        mov eax, 0x10
        mov ds, eax
        pop dword [event + 44]
        mov eax, [esp + 4]
        mov [event], eax
        mov eax, [esp + 8]
        mov [event + 4], eax
        mov eax, [esp + 12]
        mov [event + 8], eax
        mov eax, [esp + 16]
        mov [event + 12], eax
        mov eax, [esp + 20]
        mov [event + 16], eax
        mov eax, [esp + 24]
        mov [event + 20], eax
        mov eax, [esp + 28]
        mov [event + 24], eax
        mov eax, cr2
        mov [event + 28], eax
        pop eax
        mov [event + 32], eax
        mov [event + 36], ecx
        mov [event + 40], esp
        pushfd
        pop eax
        mov [event + 48], eax
        str ax
        movzx eax, ax
        mov [event + 52], eax
        mov [event + 56], ss
        mov [event + 60], ebx
        ; an outer level's registers don't matter any more
        mov eax, 0x10
        mov es, eax
        mov fs, eax
        mov gs, eax
        mov ss, eax
        mov esp, [saved_esp]
        push dword 2
        popfd
        cld
        pop edi
        pop esi
        pop ebp
        pop ebx
        mov eax, [event]
        ret

        align 16
vectors:
%assign n 0
%rep 256
        align 16
%if n = 8 || (n >= 10 && n <= 14) || n = 17 || n = 21
        push dword n
        jmp caught
%else
        push dword 0
        push dword n
        jmp caught
%endif
%assign n n + 1
%endrep

; A second task: what it sees goes into `task_seen`, then IRET (or whatever is put in its place).
global task_entry, task_seen
task_entry:
        pushfd
        pop dword [task_seen]
        mov [task_seen + 4], esp
        mov [task_seen + 8], eax
        str [task_seen + 12]
        mov eax, cr0
        mov [task_seen + 16], eax
        int 0x81

; -- through the modes: protected with and without paging, 16-bit, real, and back; long and compatibility

LOW equ 0x8000                  ; where real mode can run
all_modes:
        pushad
        mov [saved_esp], esp
        ; the part for real mode goes below 1 MiB
        mov esi, low_code
        mov edi, LOW
        mov ecx, low_end - low_code
        rep movsb
        say 'P'
        ; identity tables: 4 MiB pages
        mov dword [modes_pd], 0x83
        mov eax, cr4
        or eax, 0x10
        mov cr4, eax
        mov eax, modes_pd
        mov cr3, eax
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        say 'G'                 ; paging
        mov eax, cr0
        and eax, 0x7fffffff
        mov cr0, eax
        say 'g'
        jmp 0xd8:LOW            ; 16-bit protected code
back32:
        mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov fs, eax
        mov gs, eax
        mov esp, [saved_esp]
        lidt [idtr]
        say 'p'
        ; long mode, by way of PAE tables
        mov dword [modes_pml4], modes_pdpt + 3
        mov dword [modes_pdpt], modes_pd + 3
        mov dword [modes_pd], 0x83
        mov dword [modes_pd + 4], 0
        mov dword [modes_pd + 8], 0x200083
        mov dword [modes_pd + 12], 0
        mov eax, cr4
        or eax, 0x20
        mov cr4, eax
        mov eax, modes_pml4
        mov cr3, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x100
        wrmsr
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        say 'C'                 ; compatibility mode: still 32-bit code
        jmp 0xe8:.long
bits 64
.long:  say 'L'
        mov rax, 0x123456789abcdef0
        mov r8, rax
        shr r8, 32
        cmp r8d, 0x12345678
        jne .bad
        say '6'
.bad:   ; and back through compatibility mode
        push qword 0x08
        lea rax, [rel .compat]
        push rax
        retfq
bits 32
.compat:
        say 'c'
        mov eax, cr0
        and eax, 0x7fffffff
        mov cr0, eax
        mov ecx, 0xc0000080
        rdmsr
        mov ebx, eax
        and eax, ~0x100
        wrmsr
        mov eax, cr4
        and eax, ~0x20
        mov cr4, eax
        mov ecx, 0xc0000080
        rdmsr
        test eax, 0x400         ; LMA went with paging
        jnz .end
        say 'e'
.end:   say 10
        popad
        ret

; Copied to LOW. 16-bit protected mode first, whose segments have base 0.
low_code:
bits 16
        mov ax, 0xe0
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov fs, ax
        mov gs, ax
        mov sp, 0x7000
        say '1'
        mov eax, cr0
        and al, 0xfe
        mov cr0, eax
        jmp 0:(LOW + .real - low_code)
.real:  xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, 0x7000
        say 'R'
        ; an interrupt through the real-mode table
        mov word [4 * 0x60], LOW + .service - low_code
        mov word [4 * 0x60 + 2], 0
        lidt [LOW + .table - low_code]
        int 0x60
        say 'r'
        o32 lgdt [LOW + .gdt - low_code]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        jmp dword 0x08:back32
.service:
        say 'I'
        iret
.table: dw 0x3ff, 0, 0
.gdt:   dw gdtr.end - gdt - 1
        dd gdt
low_end:
bits 32

section .data
        align 16
global gdt, idt, tss, event, kernel_top, ring1_top, ring2_top, modes_pd
gdt:    dq 0
        dq 0x00cf9b000000ffff   ; 08 code
        dq 0x00cf93000000ffff   ; 10 data
        dq 0x00cffb000000ffff   ; 18 user code
        dq 0x00cff3000000ffff   ; 20 user data
        dq 0, 0, 0              ; 28
        dq 0x0000890000000067   ; 40 TSS
        dq 0                    ; 48
        times 11 dq 0           ; 50 to a0: free for C
        dq 0x00cfbb000000ffff   ; a8 code, DPL 1
        dq 0x00cfb3000000ffff   ; b0 data, DPL 1
        dq 0x00cfdb000000ffff   ; b8 code, DPL 2
        dq 0x00cfd3000000ffff   ; c0 data, DPL 2
        dq 0, 0                 ; c8
        dq 0x00009b000000ffff   ; d8 16-bit code, base 0
        dq 0x000093000000ffff   ; e0 16-bit data
        dq 0x00af9b000000ffff   ; e8 64-bit code
gdtr:   dw $ - gdt - 1
        dd gdt
.end equ gdtr
idtr:   dw 2047
        dd idt
section .bss
        align 4096
modes_pd: resb 4096
modes_pdpt: resb 4096
modes_pml4: resb 4096
idt:    resb 2048
        resb 2048
tss:    resb 4096
        resb 8192
stack_top:
        resb 8192
kernel_top:
        resb 4096
ring1_top:
        resb 4096
ring2_top:
saved_esp: resd 1
event:  resd 16
task_seen: resd 8
