; Code that changes code: seen at once by the processor that writes.
; SDM vol. 3, "Self-Modifying Code", "Handling Self- and Cross-Modifying Code".
; mode: long64 cpl=3

; case: write-then-jump
        mov dword [RWX], 0x0b0f07b0     ; mov al, 7; ud2
        mov eax, RWX
        jmp rax
; fault: #UD at RWX+0x2
; out: rax=RWX+0x7
; out-mem: RWX = b0 07 0f 0b

; case: patch-ahead-in-the-same-run
; the routine is copied to RWX: it patches the immediate of an instruction two further on
        lea rsi, [rel .routine]
        mov edi, RWX
        mov ecx, .routine_end - .routine
        rep movsb
        mov eax, RWX
        jmp rax
.routine:
        mov byte [rel .patched + 1], 9
        nop
.patched:
        mov bl, 1
        ud2
.routine_end:
; fault: #UD at RWX+0xa
; out: rax=RWX rbx=9 rsi=CODE+0x26 rdi=RWX+0xc
; out-mem: RWX = c6 05 02 00 00 00 09 90 b3 09 0f 0b

; case: patch-the-very-next-instruction
        lea rsi, [rel .routine]
        mov edi, RWX
        mov ecx, .routine_end - .routine
        rep movsb
        mov eax, RWX
        jmp rax
.routine:
        mov byte [rel .patched + 1], 9
.patched:
        mov bl, 1
        ud2
.routine_end:
; fault: #UD at RWX+0x9
; out: rax=RWX rbx=9 rsi=CODE+0x25 rdi=RWX+0xb
; out-mem: RWX = c6 05 01 00 00 00 09 b3 09 0f 0b

; case: loop-that-patches-itself
        lea rsi, [rel .routine]
        mov edi, RWX
        mov ecx, .routine_end - .routine
        rep movsb
        mov ecx, 4
        mov eax, RWX
        jmp rax
.routine:
        inc byte [rel .patched + 2]
.patched:
        add ebx, byte 0
        dec ecx
        jnz .routine
        ud2
.routine_end:
; fault: #UD at RWX+0xd
; out: rax=RWX rbx=0xa rsi=CODE+0x2e rdi=RWX+0xf flags=PF,ZF
; out-mem: RWX = fe 05 02 00 00 00 83 c3 04 ff c9 75 f3 0f 0b

; case: rep-stos-over-the-code-behind
        lea rsi, [rel .routine]
        mov edi, RWX
        mov ecx, .routine_end - .routine
        rep movsb
        mov eax, RWX
        jmp rax
.routine:
        lea rdi, [rel .overwritten]
        mov ecx, 4
        mov al, 0x90
        rep stosb
.overwritten:
        ud2
        ud2
        inc ebx
        ud2
.routine_end:
; fault: #UD at RWX+0x16
; out: rax=RWX+0x90 rbx=1 rsi=CODE+0x32 rdi=RWX+0x14
; out-mem: RWX = 48 8d 3d 09 00 00 00 b9 04 00 00 00 b0 90 f3 aa
; out-mem: RWX+0x10 = 90 90 90 90 ff c3 0f 0b

; case: run-patch-run-again
        mov dword [RWX], 0xc307b0       ; mov al, 7; ret
        mov edi, RWX
        call rdi
        mov bl, al
        mov byte [RWX + 1], 8
        call rdi
; out: rax=8 rbx=7 rdi=RWX
; out-mem: RWX = b0 08 c3
; out-mem: STACK+0xff8 = 1e 00 00 01

; case: code-written-through-another-mapping
; mode: long64
; setup:
        mov dword [PTE(DATA)], RWX + 3  ; DATA becomes a second view of the page
        mov dword [PTE(DATA) + 4], 0
        invlpg [DATA]
        mov dword [RWX], 0xc307b0
; code:
        mov edi, RWX
        call rdi
        mov bl, al
        mov byte [DATA + 1], 8
        call rdi
; out: rax=8 rbx=7 rdi=RWX
; out-mem: RWX = b0 08 c3
; out-mem: STACK+0xff8 = 13 00 00 01

; case: page-replaced-under-the-code
; mode: long64
; setup:
        mov dword [RWX], 0xc301b0       ; mov al, 1; ret
        mov dword [SUP], 0xc302b0       ; mov al, 2; ret
; code:
        mov edi, RWX
        call rdi
        mov bl, al
        mov dword [PTE(RWX)], SUP + 3
        invlpg [RWX]
        call rdi
; out: rax=2 rbx=1 rdi=RWX
; out-mem: RWX = b0 01 c3
; out-mem: SUP = b0 02 c3
; out-mem: STACK+0xff8 = 1e 00 00 01

; case: repeated-store-over-itself
; vendor: intel
; The instruction is fetched again after the iteration that changed it (measured).
; qemu-differs: goes on to the last iteration; SDM vol. 3, "Handling Self- and Cross-Modifying Code"
; mode: long64 cpl=3
; in: rcx=8 rdi=RWX rax=0x90
; in-mem: RWX = f3 aa 90 c3
        call rdi
; out: rcx=7 rdi=RWX+0x2
; out-mem: RWX = 90 90
; out-mem: STACK+0xff8 = 02 00 00 01


; case: repeated-store-over-itself-goes-on
; vendor: amd
; It stores to the end (measured), then what was stored runs.
; mode: long64 cpl=3
; in: rcx=8 rdi=RWX rax=0x90
; in-mem: RWX = f3 aa cc cc cc cc cc cc c3
        call rdi
; out: rcx=0 rdi=RWX+0x8
; out-mem: RWX = 90 90 90 90 90 90 90 90
; out-mem: STACK+0xff8 = 02 00 00 01
