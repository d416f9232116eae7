; The same work in one mode: MODE_* says which, ROUNDS how long.
;
; In `watched` some rounds write where a breakpoint is and call code that has one; a handler counts. In `leftover` the
; page of the table has code that ran once, before. `upper64` is at CPL 3 in the upper half of the addresses, on global
; pages, as paravirtualized kernels and their programs are.
;
; Multiboot leaves 32-bit protected mode. The set-up goes on to the mode; the work itself is a piece of code that is
; assembled for the mode's size and copied to PLACE, where the mode's segments begin (flat modes have it at that
; offset). It prints a checksum on COM1 and ends the run by the debug port.
%define PLACE 0x10000
%define STACK 0x8000
%ifdef MODE_watched                     ; flat32, with breakpoints armed
 %define MODE_flat32
%endif
%ifdef MODE_leftover                    ; flat32, with code beside the data
 %define MODE_flat32
%endif
%ifdef MODE_flat32
 %define FLAT
 %define SIZE 32
%elifdef MODE_long64
 %define FLAT
 %define LONG
 %define SIZE 64
%elifdef MODE_upper64
 %define FLAT
 %define LONG
 %define SIZE 64
%elifdef MODE_pm32
 %define SIZE 32
%elifdef MODE_compat32
 %define LONG
 %define SIZE 32
%elifdef MODE_compat16
 %define LONG
 %define SIZE 16
%else
 %define SIZE 16                        ; real, bios, v86, pm16
%endif
%ifdef MODE_upper64
 %define FLAT_OFFSET 0xffffffff80000000 + PLACE
%elifdef FLAT
 %define FLAT_OFFSET PLACE
%else
 %define FLAT_OFFSET 0
%endif
%ifdef MODE_real
 %define REAL
%elifdef MODE_bios
 %define REAL
 %define SERVICES
%endif

org 0x100000
bits 32
header: dd 0x1badb002, 0x00010000, -(0x1badb002 + 0x00010000)
        dd header, header, 0, 0, entry
        align 16
gdt:    dq 0
        dq 0x00cf9b000000ffff           ; 08 flat code
        dq 0x00cf93000000ffff           ; 10 flat data
        dq 0x00009b010000ffff           ; 18 16-bit code at PLACE
        dq 0x000093010000ffff           ; 20 16-bit data there
        dq 0x00409b010000ffff           ; 28 32-bit code there
        dq 0x004093010000ffff           ; 30 32-bit data there
        dq 0x00af9b000000ffff           ; 38 64-bit code
tssd:   dq 0x0000890000000000 + TSS_BYTES - 1
        dq 0                            ; 48 its upper half in long mode
        dq 0x00affb000000ffff           ; 50 64-bit code, user
        dq 0x00cff3000000ffff           ; 58 data, user
gdtr:   dw $ - gdt - 1
        dd gdt
idtr:   dw 15
        dd 0x30000
idtr16: dw 0x3ff
        dd 0
        align 4
tss:    times 102 db 0
        dw 104
        times 129 db 0                  ; ports may be used
TSS_BYTES equ $ - tss

entry:  cli
        cld
        mov esi, work_image
        mov edi, PLACE
        mov ecx, WORK_BYTES
        rep movsb
        lgdt [gdtr]
        mov eax, tss
        mov [tssd + 2], ax
        shr eax, 16
        mov [tssd + 4], al
        jmp 0x08:.flat
.flat:  mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov esp, 0x9000
%ifdef LONG
        mov edi, 0x20000                ; PML4, PDPT, one page directory: 1 GiB
        mov ecx, 0xc00
        xor eax, eax
        rep stosd
        mov dword [0x20000], 0x21003
        mov dword [0x21000], 0x22003
%ifdef MODE_upper64
        mov dword [0x20000 + 511 * 8], 0x21007
        mov dword [0x21000 + 510 * 8], 0x22007
        mov eax, 0x187
%else
        mov eax, 0x83
%endif
        mov edi, 0x22000
.page:  mov [edi], eax
        add eax, 0x200000
        add edi, 8
        cmp edi, 0x23000
        jne .page
        mov eax, cr4
%ifdef MODE_upper64
        or eax, 0xa0                    ; PAE, PGE
%else
        or eax, 0x20
%endif
        mov cr4, eax
        mov eax, 0x20000
        mov cr3, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x100
        wrmsr
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
%endif
%ifdef MODE_watched
        mov eax, debug_handler          ; an IDT with a gate for #DB
        mov word [0x30008], ax
        mov word [0x3000a], 0x08
        mov word [0x3000c], 0x8e00
        shr eax, 16
        mov word [0x3000e], ax
        lidt [idtr]
        mov dword [HITS], 0
        mov eax, WATCHED
        mov dr0, eax
        mov eax, marked
        mov dr1, eax
        mov eax, 0x000d000a             ; G0: four bytes are written; G1: code
        mov dr7, eax
%endif
%ifdef MODE_flat32
        mov esp, PLACE + STACK
        jmp 0x08:PLACE
%elifdef MODE_long64
        mov esp, PLACE + STACK
        jmp 0x38:PLACE
%elifdef MODE_upper64
        jmp 0x38:.long
bits 64
.long:  mov rax, FLAT_OFFSET
        push 0x5b
        lea rcx, [rax + STACK]
        push rcx
        push 0x3002                     ; ports may be used
        push 0x53
        push rax
        iretq
bits 32
%elifdef MODE_v86
        mov eax, 0x40
        ltr ax
        xor eax, eax
        push eax                        ; GS, FS, DS, ES, SS, ESP, EFLAGS (VM, IOPL 3), CS, EIP
        push eax
        push dword PLACE >> 4
        push dword PLACE >> 4
        push dword PLACE >> 4
        push dword STACK
        push dword 0x23002
        push dword PLACE >> 4
        push dword 0
        iretd
%elif SIZE == 32
        mov eax, 0x30
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov esp, STACK
        jmp 0x28:0
%else
        mov eax, 0x20
        mov ds, eax
        mov es, eax
        mov fs, eax
        mov gs, eax
        mov ss, eax
        mov esp, STACK
        lidt [cs:idtr16]
        jmp 0x18:0
%endif

        align 16
work_image:
section .work follows=.text vstart=FLAT_OFFSET
TABLE   equ 0x4000 + FLAT_OFFSET
COPY    equ TABLE + 0x100
WATCHED equ 0x5000 + FLAT_OFFSET
HITS    equ 0x3000 + FLAT_OFFSET
LEFTOVER equ TABLE + 0x800

%if SIZE == 16
 bits 16
 %define rA ax
 %define rC cx
 %define rSI si
 %define rDI di
 %define rSP sp
 %define rBP bp
%elif SIZE == 32
 bits 32
 %define rA eax
 %define rC ecx
 %define rSI esi
 %define rDI edi
 %define rSP esp
 %define rBP ebp
%else
 bits 64
 %define rA rax
 %define rC rcx
 %define rSI rsi
 %define rDI rdi
 %define rSP rsp
 %define rBP rbp
%endif

start:
%ifdef REAL
        mov eax, cr0
        and al, 0xfe
        mov cr0, eax
        jmp PLACE >> 4:.real
.real:  mov ax, PLACE >> 4
        mov ds, ax
        mov es, ax
        mov ss, ax
%ifdef SERVICES
        xor bx, bx
        mov fs, bx
        mov word [fs:0x40 * 4], service
        mov [fs:0x40 * 4 + 2], ax
%endif
%endif
        mov rDI, TABLE                  ; the table is cleared first: memory is what the loader left
        mov rC, 64
.clear: mov word [rDI], 0
        add rDI, 2
        loop .clear
%ifdef MODE_leftover
        mov byte [LEFTOVER], 0xc3
        call LEFTOVER
%endif
        call work
        ; AX in hexadecimal
        mov bx, ax
        mov cx, 4
.digit: rol bx, 4
        mov al, bl
        and al, 15
        cmp al, 10
        jb .decimal
        add al, 'a' - '0' - 10
.decimal:
        add al, '0'
        mov dx, 0x3f8
        out dx, al
        dec cx
        jnz .digit
        mov dx, 0x3f8
        mov al, 10
        out dx, al
.drain: mov dx, 0x3fd
        in al, dx
        test al, 0x40
        jz .drain
        mov dx, 0xf4
        xor eax, eax
        out dx, eax
.stop:  jmp .stop

; AX: a checksum. Loops over a table, with calls, branches and a frame.
work:   push rBP
        mov rBP, rSP
        sub rSP, 16
        mov dword [rBP - 8], ROUNDS
        xor eax, eax
        xor ebx, ebx
.round: mov rSI, 0
        mov rC, 64
.word:  mov dx, [TABLE + rSI]
        add dx, 0x1357
        add ax, dx
        rol ax, 3
        xor dx, ax
        mov [TABLE + rSI], dx
        add rSI, 2
        loop .word
        push rA
        call mix
        pop rA
        add ax, bx
%ifdef SERVICES
        int 0x40
        call (PLACE >> 4) - 16:far_service + 256
%endif
%ifdef MODE_watched
        test byte [rBP - 8], 63
        jnz .unwatched
        mov [WATCHED + 2], ax
        call marked
.unwatched:
%endif
        dec dword [rBP - 8]
        jnz .round
%ifdef MODE_watched
        add ax, [HITS]
%endif
        leave
        ret

; BX: half the table mixed.
mix:    push rSI
        push rDI
        mov rSI, TABLE
        mov rDI, TABLE + 64
.next:  mov dx, [rSI]
        test dl, 1
        jz .even
        xor bx, dx
        ror bx, 1
        jmp .both
.even:  add bx, [rDI]
        sub [rDI + 2], bx
.both:  add rSI, 2
        add rDI, 2
        cmp rSI, TABLE + 60
        jb .next
        pop rDI
        pop rSI
        ret

%ifdef SERVICES
; As a BIOS's services are: all registers kept, segments loaded and put back.
service:
        pusha
        push ds
        push es
        mov bx, 0x40
        mov ds, bx
        inc word [0x6c]
        les di, [0x6c]
        mov si, 0x6c
        mov cx, 8
.sum:   add al, [si]
        inc si
        loop .sum
        pop es
        pop ds
        popa
        iret
; In a segment of its own; it loads the stack's segment anew, and moves words by string instructions.
far_service:
        push ds
        push es
        pusha
        pushf
        mov bx, ss
        mov ss, bx
        mov sp, sp
        mov ds, bx
        mov es, bx
        mov si, TABLE
        mov di, COPY
        mov cx, 16
        rep movsw
        mov si, COPY
        mov cx, 4
.sum:   mov dx, ax
        lodsw
        add ax, dx
        loop .sum
        mov di, COPY
        mov cx, 16
        repne scasw
        add ax, cx
        popf
        mov bx, sp
        mov [bx + 14], ax               ; AX of those that are popped
        popa
        pop es
        pop ds
        retf
%endif
%ifdef MODE_watched
debug_handler:
        push eax
        mov eax, dr6
        and eax, 15
        add [HITS], eax
        xor eax, eax
        mov dr6, eax
        pop eax
        or dword [esp + 8], 0x10000     ; RF: the instruction at a code breakpoint is done now
        iretd
        times 0x6000 - ($ - start) db 0xcc
        ; a page of its own
marked: ret
%endif
WORK_BYTES equ $ - start
