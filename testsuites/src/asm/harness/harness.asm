; The guest that runs conformance cases: a multiboot-1 image followed by case records.
;
; Problem: hundreds of small cases, each in its own processor mode, must run on any x86 machine model
; and report every register and every changed byte. Scheme: "home" is 32-bit protected mode without
; paging. For each record home rebuilds all tables and memory, enters the case's mode, runs its set-up
; code at CPL 0, loads the initial state and jumps to the case. A case ends with an exception: UD2
; after its last instruction when all went well. Every vector leads to a capture routine of the
; mode, which stores the state at CAP and comes back home; home prints what differs from the
; initial state. Output on COM1, in hex: see report.rs. Exit by the debug-exit port.
;
; Invariants: nothing of a case survives into the next but the time stamp counter. CAP and INIT have the layout of
; state.rs. Home never uses the case's tables.
;
; Record: magic, length, index, mode, set-up address, chunks, windows, 16 if the
; 16-bit segments are used; state (1024 bytes);
; chunks {address, length, bytes padded to 4}; windows {address, length in bytes, multiple of 4}.

%include "layout.inc"

MODE_REAL       equ 0
MODE_V86        equ 1
MODE_PM         equ 2
MODE_PAGING32   equ 3
MODE_PAE        equ 4
MODE_LONG       equ 5

; state, in bytes from CAP or INIT
S_GPR           equ 0
S_RIP           equ 128
S_RFLAGS        equ 136
S_ES            equ 144
S_CS            equ 148
S_SS            equ 152
S_DS            equ 156
S_FS            equ 160
S_GS            equ 164
S_VECTOR        equ 168
S_ERROR         equ 172
S_CR2           equ 176
S_DR6           equ 184
S_FX            equ 256
S_YMMH          equ 768
S_SIZE          equ 1024

SNAPSHOT        equ 0x1800000   ; windows as they were before the case
CR0_BASE        equ 0x00050033  ; AM WP NE ET MP PE
CR4_BASE        equ 0x00050600  ; OSXSAVE FSGSBASE OSXMMEXCPT OSFXSR
COM1            equ 0x3f8

        org 0x100000
section .text align=16
bits 32
image:
        dd 0x1badb002, 0x00010000, -(0x1badb002 + 0x00010000)
        dd image, image, 0, 0, start    ; header, load start, load end (whole file), bss end, entry
        dd records - image              ; offset 32: where image.rs appends the records

start:
        cli
        cld
        lgdt [home_gdtr]
        jmp 0x08:.cs
.cs:    mov ax, KDATA
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov esp, home_stack_top
        xor eax, eax                    ; the loader may have left anything in these
        mov fs, ax
        mov gs, ax
        mov al, 0xff                    ; all PIC lines masked
        out 0x21, al
        out 0xa1, al
        mov dx, COM1 + 3                ; 8N1, fastest divisor, FIFO on
        mov al, 0x83
        out dx, al
        mov dx, COM1
        mov al, 1
        out dx, al
        inc dx
        mov al, 0
        out dx, al
        mov dx, COM1 + 3
        mov al, 3
        out dx, al
        dec dx
        mov al, 1
        out dx, al
        ; low memory: the real-mode part and its vector table
        mov esi, section..low.start
        mov edi, low_start
        mov ecx, low_end - low_start
        rep movsb
        call print_cpuid
        mov ebx, records
.next:  cmp dword [ebx], 'CASE'
        jne .done
        mov [record], ebx
        call run_case
        mov ebx, [record]
        add ebx, [ebx + 4]
        jmp .next
.done:  mov esi, text_end
        call print_text
        call drain
        mov al, 0
        out 0xf4, al
.stop:  hlt
        jmp .stop

; ---------------------------------------------------------------- output

putc:                                   ; al
        push edx
        push eax
        dec dword [fifo_room]
        jns .send
        call drain
        mov dword [fifo_room], 15
.send:  mov eax, [esp]
        mov dx, COM1
        out dx, al
        pop eax
        pop edx
        ret
drain:  mov dx, COM1 + 5
.wait:  in al, dx
        test al, 0x20
        jz .wait
        ret
print_text:                             ; esi: zero-terminated
        lodsb
        test al, al
        jz .ret
        call putc
        jmp print_text
.ret:   ret
print_hex:                              ; eax, without leading zeros
        push ecx
        push edx
        mov edx, eax
        bsr ecx, eax
        jnz .some
        xor ecx, ecx
.some:  and ecx, 0x1c
.digit: mov eax, edx
        shr eax, cl
        and eax, 15
        mov al, [digits + eax]
        call putc
        sub ecx, 4
        jns .digit
        pop edx
        pop ecx
        ret
newline:
        mov al, 10
        jmp putc
print_cpuid:                            ; "cpuid 1.ecx 1.edx 7.ebx 7.ecx 80000001.ecx 80000001.edx 0xd:1.eax"
        mov esi, text_cpuid
        call print_text
        mov eax, 1
        cpuid
        push edx
        mov eax, ecx
        call print_hex
        mov al, ' '
        call putc
        pop eax
        call print_hex
        mov al, ' '
        call putc
        mov eax, 7
        xor ecx, ecx
        cpuid
        push ecx
        mov eax, ebx
        call print_hex
        mov al, ' '
        call putc
        pop eax
        call print_hex
        mov al, ' '
        call putc
        mov eax, 0x80000001
        cpuid
        push edx
        mov eax, ecx
        call print_hex
        mov al, ' '
        call putc
        pop eax
        call print_hex
        mov al, ' '
        call putc
        mov eax, 0xd
        mov ecx, 1
        cpuid
        call print_hex
        jmp newline

; ---------------------------------------------------------------- one case

run_case:
        mov eax, [ebx + 8]
        push eax
        mov esi, text_case
        call print_text
        pop eax
        call print_hex
        call newline
        call clear_memory
        call build_tables
        ; initial state
        mov ebx, [record]
        lea esi, [ebx + 32]
        mov edi, INIT
        mov ecx, S_SIZE / 4
        rep movsd
        mov edi, CAP
        mov ecx, S_SIZE / 4
        xor eax, eax
        rep stosd
        ; chunks: code and data
        mov edx, [ebx + 20]
        test edx, edx
        jz .chunks_done
.chunk: lodsd
        mov edi, eax
        lodsd
        mov ecx, eax
        push ecx
        rep movsb
        pop ecx
        neg ecx
        and ecx, 3
        add esi, ecx
        dec edx
        jnz .chunk
.chunks_done:
        mov [windows], esi
        mov edx, [ebx + 24]             ; snapshot
        mov edi, SNAPSHOT
.snap:  test edx, edx
        jz .snap_done
        push esi
        mov ecx, [esi + 4]
        mov esi, [esi]
        shr ecx, 2
        rep movsd
        pop esi
        add esi, 8
        dec edx
        jmp .snap
.snap_done:
        mov [home_esp], esp
        mov eax, CR4_BASE
        mov cr4, eax
        mov eax, CR0_BASE
        mov cr0, eax
        xor ecx, ecx
        mov eax, 7
        xor edx, edx
        xsetbv
        call reset_registers
        mov eax, [ebx + 12]
        cmp eax, MODE_LONG
        je enter_long
        call load_vectors
        cmp eax, MODE_REAL
        je enter_real
        jmp enter_protected

; Every capture routine ends here, in 32-bit protected mode without paging, tables still foreign.
home:
        lgdt [home_gdtr]
        mov ax, KDATA
        mov ds, ax
        mov es, ax
        mov ss, ax
        xor eax, eax
        mov fs, ax
        mov gs, ax
        lldt ax
        mov esp, [home_esp]
        push dword 2
        popfd
        xor eax, eax
        mov dr7, eax
        mov dr0, eax
        mov dr1, eax
        mov dr2, eax
        mov dr3, eax
        mov eax, 0xffff0ff0
        mov dr6, eax
        ; vector state into the layout of CAP
        mov esi, XSAVE_AREA
        mov edi, CAP + S_FX
        mov ecx, 512 / 4
        rep movsd
        mov esi, XSAVE_AREA + 576
        mov ecx, 256 / 4
        rep movsd
        ; differences of state
        xor ebx, ebx
.state: mov eax, [CAP + ebx * 4]
        cmp eax, [INIT + ebx * 4]
        je .same
        mov al, 's'
        call putc
        mov eax, ebx
        call print_hex
        mov al, '='
        call putc
        mov eax, [CAP + ebx * 4]
        call print_hex
        call newline
.same:  inc ebx
        cmp ebx, S_SIZE / 4
        jb .state
        ; differences of memory
        mov ebx, [record]
        mov edx, [ebx + 24]
        mov ebx, [windows]
        mov edi, SNAPSHOT
.window:
        test edx, edx
        jz .printed
        mov esi, [ebx]
        mov ecx, [ebx + 4]
        shr ecx, 2
.compare:
        jecxz .window_done
        repe cmpsd
        je .window_done
        mov al, 'm'
        call putc
        lea eax, [esi - 4]
        call print_hex
        mov al, '='
        call putc
        mov eax, [esi - 4]
        call print_hex
        call newline
        jmp .compare
.window_done:
        add ebx, 8
        dec edx
        jmp .window
.printed:
        mov esi, text_done
        jmp print_text

; The vector state of INIT as the processor's. Keeps eax, ebx.
load_vectors:
        push eax
        mov edi, XSAVE_AREA
        mov esi, INIT + S_FX
        mov ecx, 512 / 4
        rep movsd
        xor eax, eax
        mov ecx, 64 / 4
        rep stosd
        mov dword [XSAVE_AREA + 512], 7
        mov esi, INIT + S_YMMH
        mov ecx, 256 / 4
        rep movsd
        xor edx, edx
        mov eax, 7
        xrstor [XSAVE_AREA]
        pop eax
        ret

; Model-specific and debug registers to what every case starts with.
reset_registers:
        mov esi, msr_resets
.msr:   lodsd
        test eax, eax
        jz .debug
        mov ecx, eax
        lodsd
        mov edx, eax
        lodsd
        xchg eax, edx
        wrmsr
        jmp .msr
.debug: xor eax, eax
        mov cr2, eax
        mov dr7, eax
        mov eax, 0xffff0ff0
        mov dr6, eax
        ret

clear_memory:
        xor eax, eax
        mov edi, CODE
        mov ecx, (STACK_END - CODE) / 4
        rep stosd
        mov edi, 0x1100000
        mov ecx, 0x18000 / 4
        rep stosd
        mov ebx, [record]
        cmp dword [ebx + 28], 16
        jne .ret
        mov edi, CODE16
        mov ecx, 0x40000 / 4
        rep stosd
.ret:   ret

; Descriptor tables, TSS, page tables. ebx: record.
build_tables:
        mov ebx, [record]
        mov esi, gdt_template
        mov edi, GDT
        mov ecx, (gdt_template_end - gdt_template) / 4
        rep movsd
        mov esi, ldt_template
        mov edi, LDT
        mov ecx, (ldt_template_end - ldt_template) / 4
        rep movsd
        ; the I/O permission bitmap denies everything
        mov edi, TSS + 0x68
        mov ecx, 0x2004 / 4
        mov eax, -1
        rep stosd
        mov word [TSS + 0x66], 0x68
        mov word [TSS2 + 0x66], 0x68
        mov word [TSS3 + 0x66], 0x68
        cmp dword [ebx + 12], MODE_LONG
        je .long
        mov dword [TSS + 4], KSTACK_TOP
        mov dword [TSS + 8], KDATA
        mov dword [TSS + 12], RING1_TOP
        mov dword [TSS + 16], DATA_DPL1_SEL
        mov dword [TSS + 20], RING2_TOP
        mov dword [TSS + 24], DATA_DPL2_SEL
        ; 32-bit interrupt gates
        mov edi, IDT
        mov edx, stubs32
        xor ecx, ecx
.gate:  mov eax, edx
        and eax, 0xffff
        or eax, KCODE32 << 16
        mov [edi], eax
        mov eax, edx
        mov ax, 0x8e00
        call gate_dpl
        mov [edi + 4], eax
        add edi, 8
        add edx, 16
        inc ecx
        cmp ecx, 256
        jb .gate
        jmp .paging
.long:  mov dword [GDT + TSS_SEL + 8], 0
        mov dword [GDT + TSS_SEL + 12], 0
        mov dword [TSS + 4], KSTACK_TOP
        mov dword [TSS + 12], RING1_TOP
        mov dword [TSS + 20], RING2_TOP
        mov dword [TSS + 0x24], IST_TOP
        ; 64-bit interrupt gates, IST 1
        mov edi, IDT
        mov edx, stubs64
        xor ecx, ecx
.gate64:
        mov eax, edx
        and eax, 0xffff
        or eax, KCODE64 << 16
        mov [edi], eax
        mov eax, edx
        mov ax, 0x8e01
        call gate_dpl
        mov [edi + 4], eax
        mov dword [edi + 8], 0
        mov dword [edi + 12], 0
        add edi, 16
        add edx, 16
        inc ecx
        cmp ecx, 256
        jb .gate64
.paging:
        ; clear, then the first 2 GiB identity in large supervisor pages, but for the case region
        mov edi, PML4
        mov ecx, 0x7000 / 4
        xor eax, eax
        rep stosd
        mov dword [PML4], PDPT + 7
        mov dword [PML4 + 256 * 8], PDPT + 7
        mov dword [PDPT], PD + 7
        mov dword [PDPT_PAE], PD + 1
        mov edi, PD
        mov eax, 0x83
.pd:    mov [edi], eax
        add edi, 8
        add eax, 0x200000
        cmp edi, PD + 0x1000
        jb .pd
        mov dword [PD + (CODE >> 21) * 8], PT + 7
        mov dword [PD + (RSVD >> 21) * 8], RSVD + 0x2087 ; bit 13 of a large page's entry
        mov edi, PD32
        mov eax, 0x83
.pd32:  mov [edi], eax
        add edi, 4
        add eax, 0x400000
        cmp edi, PD32 + 0x1000
        jb .pd32
        mov dword [PD32 + (CODE >> 22) * 4], PT32 + 7
        cmp dword [ebx + 28], 16
        jne .small
        or byte [PD], 4                 ; user code in 16-bit segments
        or byte [PD32], 4
.small: ; 4 KiB pages: both table formats. First all supervisor writable, then the list.
        mov ecx, 512
        mov eax, CODE + 3
        mov edi, PT
        mov edx, PT32
.pt:    mov [edi], eax
        mov [edx], eax
        add edi, 8
        add edx, 4
        add eax, 0x1000
        loop .pt
        mov ecx, 512                    ; the second half of the 4 MiB that PT32 covers
.pt32:  mov [edx], eax
        add edx, 4
        add eax, 0x1000
        loop .pt32
        mov ecx, 0x100                  ; nothing present below the tables but what is listed
        mov edi, PT
        xor eax, eax
        push ecx
        shl ecx, 1
        rep stosd
        pop ecx
        mov edi, PT32
        rep stosd
        mov esi, page_list
.page:  lodsd                           ; linear | flags; high dword of the entry
        mov edx, eax
        lodsd
        test edx, edx
        jz .ret
        mov ecx, edx
        sub ecx, CODE
        shr ecx, 12
        mov [PT + ecx * 8], edx
        mov [PT + ecx * 8 + 4], eax
        mov [PT32 + ecx * 4], edx
        jmp .page
.ret:   ret

gate_dpl:                               ; ecx: vector; eax: high half of its gate. INT3, INTO, INT 0x80: DPL 3
        cmp ecx, 3
        je .user
        cmp ecx, 4
        je .user
        cmp ecx, 0x80
        jne .ret
.user:  or eax, 0x6000
.ret:   ret

; Loads the case's GDT, IDT, LDT, TSS. CS and the data segments are the same in both GDTs.
load_tables:
        lgdt [case_gdtr]
        lidt [case_idtr]
        mov cx, TSS_SEL
        ltr cx
        mov cx, LDT_SEL
        lldt cx
        ret

%include "protected.inc"
%include "long.inc"
%include "real.inc"

; ---------------------------------------------------------------- data

section .text
        align 16
msr_resets:                             ; register, low, high; 0 ends
        dd 0xc0000081, 0, 0x00230010    ; STAR: SYSCALL to KCODE64/KDATA, SYSRET to UCODE32+16/UDATA
        dd 0xc0000082, 0, 0             ; LSTAR
        dd 0xc0000083, 0, 0             ; CSTAR
        dd 0xc0000084, 0, 0             ; FMASK
        dd 0xc0000100, 0, 0             ; FS base
        dd 0xc0000101, 0, 0             ; GS base
        dd 0xc0000102, 0, 0             ; kernel GS base
        dd 0x174, 0, 0                  ; SYSENTER_CS, ESP, EIP
        dd 0x175, 0, 0
        dd 0x176, 0, 0
        dd 0xc0000080, 0, 0             ; EFER
        dd 0

page_list:                              ; entry low, entry high
        dd CODE + 5, 0
        dd CODE + 0x1005, 0
        dd RWX + 7, 0
        dd SETUP + 3, 0
        dd SETUP + 0x1003, 0
        dd DATA + 7, 0x80000000
        dd DATA2 + 7, 0x80000000
        dd RO + 5, 0x80000000
        dd SUP + 3, 0x80000000
        dd STACK + 7, 0x80000000
        dd STACK + 0x1007, 0x80000000
        dd 0, 0

%define CODE32(dpl)   0x00cf9a00 | (dpl << 13)
%define DATA32(dpl)   0x00cf9200 | (dpl << 13)
        align 8
gdt_template:                           ; low, high; order as in layout.inc
        dd 0, 0
        dd 0xffff, CODE32(0)
        dd 0xffff, 0x00af9a00
        dd 0xffff, DATA32(0)
        dd 0xffff, CODE32(3)
        dd 0xffff, DATA32(3)
        dd 0xffff, 0x00affa00
        dd 0, 0
        dd ((TSS & 0xffff) << 16) | 0x2068, (TSS & 0xff000000) | ((TSS >> 16) & 0xff) | 0x8900
        dd 0, 0
        dd ((LDT & 0xffff) << 16) | 0x0fff, (LDT & 0xff000000) | ((LDT >> 16) & 0xff) | 0x8200
        dd 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
        dd 0x0000ffff, 0x00009a01       ; 0x80 CODE16
        dd 0x0000ffff, 0x00009202       ; DATA16
        dd 0x0000ffff, 0x00009203       ; EXTRA16
        dd 0x0000ffff, 0x00009204       ; STACK16
        times 16 dd 0                   ; 0xa0 to 0xd8
        dd 0xffff, 0x00cf9e00           ; conforming
        dd 0xffff, 0x00cf1a00           ; not present, code
        dd 0xffff, CODE32(1)
        dd 0xffff, DATA32(1)
        dd 0xffff, CODE32(2)
        dd 0xffff, DATA32(2)
        dd ((TSS2 & 0xffff) << 16) | 0x67, (TSS2 & 0xff000000) | ((TSS2 >> 16) & 0xff) | 0x8900
        dd 0, 0
        dd ((TSS3 & 0xffff) << 16) | 0x67, (TSS3 & 0xff000000) | ((TSS3 >> 16) & 0xff) | 0x8900
        dd 0, 0
gdt_template_end:
%define BASED(base, low, high) (((base) & 0xffff) << 16) | (low), ((base) & 0xff000000) | (((base) >> 16) & 0xff) | (high)
ldt_template:                           ; accessed already, as a Linux process has them
        dd 0, 0
        dd 0xffff, 0x00cff300
        dd 0xffff, 0x00cffb00
        dd BASED(DATA, 0xfff, 0x40f300)
        dd BASED(DATA, 0xfff, 0x40f700)
        dd 0xffff, 0x00cff100
        dd 0xffff, 0x00cf7300
        dd 0xffff, 0x00cff900
        dd 0xffff, 0x00cfff00
        dd BASED(CODE16, 0xffff, 0xfb00)
        dd BASED(DATA16, 0xffff, 0xf300)
        dd BASED(EXTRA16, 0xffff, 0xf300)
        dd BASED(STACK16, 0xffff, 0xf300)
        dd 0xffff, 0x00cf7b00
        dd BASED(DATA, 0xfff, 0xf700)
        dd BASED(CODE, 0xff, 0x40fb00)
ldt_template_end:
case_gdtr:
        dw 0xfff
        dd GDT, 0
case_idtr:
        dw 0xfff
        dd IDT, 0
home_gdtr:
        dw home_gdt_end - home_gdt - 1
        dd home_gdt, 0
        align 8
home_gdt:
        dd 0, 0
        dd 0xffff, CODE32(0)
        dd 0xffff, 0x00af9a00
        dd 0xffff, DATA32(0)
        dd 0xffff, 0x00009a00           ; 0x20: 16-bit code, base 0
        dd 0xffff, 0x00009200           ; 0x28: 16-bit data, base 0
home_gdt_end:

digits:         db "0123456789abcdef"
text_case:      db "case ", 0
text_done:      db "done", 10, 0
text_end:       db "end", 10, 0
text_cpuid:     db "cpuid ", 0
        align 4
record:         dd 0
windows:        dd 0
home_esp:       dd 0
fifo_room:      dd 0
                times 1024 db 0
home_stack_top:

section .records follows=.low align=16
records:
