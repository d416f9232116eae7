; MOV CRn, LMSW, SMSW, CLTS: reserved bits and forbidden combinations.
; SDM vol. 3, "Control Registers"; vol. 2B, "MOV-Move to/from Control Registers".
; mode: long64

; case: read-cr0-cr3-cr4
        mov rax, cr0
        mov rbx, cr3
        mov rcx, cr4
; out: rax=0x80050033 rcx=0x50620 rbx=0x1180000

; case: cr2-is-storage
; in: rax=0x1122334455667788
        mov cr2, rax
        mov rbx, cr2
; out: rbx=0x1122334455667788 cr2=0x1122334455667788

; case: cr0-paging-without-protection
; qemu: no, it does not check and dies; SDM vol. 2B, "MOV to CR": #GP(0) for PG without PE
; in: rax=0x80000010
.here:  mov cr0, rax
; fault: #GP(0) at .here

; case: cr0-nw-without-cd
; qemu-differs: does not check; SDM vol. 2B, "MOV to CR": #GP(0) for NW without CD
        mov rax, cr0
        or eax, 0x20000000
; undef: flags=AF
.here:  mov cr0, rax
; fault: #GP(0) at .here
; out: rax=0xa0050033 flags=PF,SF

; case: cr0-upper-half-must-be-zero
; qemu-differs: does not check; SDM vol. 3, "Control Registers": bits 63:32 of CR0 must be zero
        mov rax, cr0
        bts rax, 32
; undef: flags=AF,OF,SF,PF,ZF
.here:  mov cr0, rax
; fault: #GP(0) at .here
; out: rax=0x180050033

; case: cr0-reserved-low-bits-are-ignored
; qemu-differs: keeps them; SDM vol. 2B, "MOV to CR": reserved bits of CR0 remain clear
        mov rax, cr0
        mov rbx, rax
        or eax, 0x1fc0
        mov cr0, rax
        mov rcx, cr0
; undef: flags=AF
; out: rax=0x80051ff3 rcx=0x80050033 rbx=0x80050033 flags=PF,SF

; case: cr0-et-is-hardwired
        mov rax, cr0
        and eax, ~0x10
        mov cr0, rax
        mov rbx, cr0
; out: rax=0x80050023 rbx=0x80050033 flags=SF
; undef: flags=AF

; case: cr4-clear-pae-in-long-mode
; qemu: no, it does not check and dies; SDM vol. 2B, "MOV to CR": #GP(0) for clearing PAE in IA-32e mode
        mov rax, cr4
        and eax, ~0x20
; undef: flags=AF
.here:  mov cr4, rax
; fault: #GP(0) at .here
; out: rax=0x50600 flags=PF

; case: cr4-reserved-bit
; qemu: no, it does not check and dies; SDM vol. 3, "Control Registers": reserved bits of CR4 must be zero
        mov rax, cr4
        bts rax, 31
; undef: flags=AF,OF,SF,PF,ZF
.here:  mov cr4, rax
; fault: #GP(0) at .here
; out: rax=0x80050620

; case: cr3-reserved-upper-bits
; qemu: no, it does not check and dies; SDM vol. 3, "Control Registers": bits above MAXPHYADDR of CR3 are reserved
        mov rax, cr3
        bts rax, 58
; undef: flags=AF,OF,SF,PF,ZF
.here:  mov cr3, rax
; fault: #GP(0) at .here
; out: rax=0x400000001180000

; case: cr4-pcide-with-nonzero-pcid
; qemu-differs: has no PCID; SDM vol. 3, "Process-Context Identifiers": #GP(0) if CR3[11:0] is not zero
; needs: pcid
        mov rax, cr3
        or rax, 5
        mov cr3, rax
        mov rax, cr4
        or eax, 0x20000
; undef: flags=AF
.here:  mov cr4, rax
; fault: #GP(0) at .here
; out: rax=0x70620

; case: cr8-holds-four-bits
; in: rax=0xb
        mov cr8, rax
        mov rbx, cr8
        xor ecx, ecx
        mov cr8, rcx
; out: rbx=0xb flags=PF,ZF

; case: cr8-reserved-bits
; qemu-differs: does not check; SDM vol. 2B, "MOV to CR": #GP(0) for reserved bits of CR8
; in: rax=0x10
.here:  mov cr8, rax
; fault: #GP(0) at .here

; case: cr1-is-undefined
.here:  db 0x0f, 0x20, 0xc8
; fault: #UD at .here

; case: cr5-is-undefined
.here:  db 0x0f, 0x22, 0xe8
; fault: #UD at .here

; case: mod-field-is-ignored
        db 0x0f, 0x20, 0x00             ; mov rax, cr0 with mod = 0
; out: rax=0x80050033

; case: smsw-dword
; in: rax=-1
        smsw eax
; out: rax=0x80050033

; case: smsw-word
; in: rax=-1
        smsw ax
; out: rax=0xffffffffffff0033

; case: smsw-memory-is-a-word
; in: rdi=DATA
; in-mem: DATA = u64:-1
        smsw [rdi]
; out-mem: DATA = 33 00

; case: lmsw-sets-ts-but-cannot-clear-pe
; in: rax=0x8
        lmsw ax
        smsw ebx
        clts
        smsw ecx
; out: rcx=0x80050031 rbx=0x80050039

; case: lmsw-memory
; in: rdi=DATA
; in-mem: DATA = 0e ff
        lmsw [rdi]
        mov rbx, cr0
        clts
; out: rbx=0x8005003f

; case: cr0-in-32-bit-mode
; mode: pm32
        mov eax, cr0
        or al, 8
        mov cr0, eax
        mov ebx, cr0
        clts
        mov ecx, cr0
; out: eax=0x5003b ecx=0x50033 ebx=0x5003b
; undef: flags=AF

; case: cr4-pae-on-without-paging
; mode: pm32
        mov eax, cr4
        or al, 0x20
        mov cr4, eax
        mov ebx, cr4
; out: eax=0x50620 ebx=0x50620
; undef: flags=AF

; case: pae-pdpte-reserved-bits-fault-at-cr3-load
; qemu-differs: reads PDPTEs when it walks; SDM vol. 3, "PDPTE Registers": a reserved bit is #GP(0) at MOV CR3
; mode: pae32
; setup:
        mov dword [PDPT_PAE + 8], 0x1000 + 0x1e7
; code:
        mov eax, cr3
.here:  mov cr3, eax
; fault: #GP(0) at .here
; out: eax=0x1184000

; case: cr0-clear-pg-in-64-bit-mode
; qemu: no, it does not check and dies; SDM vol. 2B, "MOV to CR": #GP(0) for clearing PG in 64-bit mode
        mov rax, cr0
        btr rax, 31
; undef: flags=AF,OF,SF,PF,ZF
.here:  mov cr0, rax
; fault: #GP(0) at .here
; out: rax=0x50033 flags=CF

; case: mov-cr-always-64-bit-in-64-bit-mode
; in: rax=-1
        db 0x66, 0x0f, 0x20, 0xc0       ; mov rax, cr0 with a useless prefix
; out: rax=0x80050033
