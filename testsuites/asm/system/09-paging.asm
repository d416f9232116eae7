; Page faults with each error code, accessed and dirty bits, write protection, execution rights.
; SDM vol. 3, "Paging".
; mode: long64 cpl=3

; case: user-read-absent
.here:  mov al, [ABSENT]
; fault: #PF(4) at .here
; out: cr2=ABSENT

; case: user-write-absent
.here:  mov [ABSENT], al
; fault: #PF(6) at .here
; out: cr2=ABSENT

; case: user-write-read-only
.here:  mov [RO], al
; fault: #PF(7) at .here
; out: cr2=RO

; case: user-read-supervisor
; host: no, a process has no supervisor page of its own
.here:  mov al, [SUP]
; fault: #PF(5) at .here
; out: cr2=SUP

; case: user-write-supervisor
; host: no, a process has no supervisor page of its own
.here:  mov [SUP], al
; fault: #PF(7) at .here
; out: cr2=SUP

; case: user-fetch-no-execute
.here:  mov eax, DATA
        jmp rax
; fault: #PF(0x15) at DATA
; out: rax=DATA cr2=DATA

; case: user-fetch-supervisor
; host: no, a process has no supervisor page of its own
.here:  mov eax, SUP
        jmp rax
; fault: #PF(0x15) at SUP
; out: rax=SUP cr2=SUP

; case: reserved-bit-read
; host: no, a process has no such page
; qemu-differs: leaves P clear; SDM vol. 3, "Page-Fault Exceptions": RSVD is set only if P is
.here:  mov al, [RSVD]
; fault: #PF(0xd) at .here
; out: cr2=RSVD

; case: reserved-bit-write
; host: no, a process has no such page
; qemu-differs: leaves P clear; SDM vol. 3, "Page-Fault Exceptions": RSVD is set only if P is
.here:  mov [RSVD + 8], al
; fault: #PF(0xf) at .here
; out: cr2=RSVD+0x8

; case: supervisor-read-absent
; mode: long64
.here:  mov al, [ABSENT]
; fault: #PF(0) at .here
; out: cr2=ABSENT

; case: supervisor-write-absent
; mode: long64
.here:  mov [ABSENT], al
; fault: #PF(2) at .here
; out: cr2=ABSENT

; case: supervisor-write-read-only-with-wp
; mode: long64
.here:  mov [RO], al
; fault: #PF(3) at .here
; out: cr2=RO

; case: supervisor-write-read-only-without-wp
; mode: long64
; watch: RO 16
; setup:
        mov rax, cr0
        and eax, ~0x10000
        mov cr0, rax
; code:
        mov byte [RO], 5
; out-mem: RO = 05

; case: supervisor-fetch-no-execute
; mode: long64
        mov eax, SUP
        jmp rax
; fault: #PF(0x11) at SUP
; out: rax=SUP cr2=SUP

; case: accessed-and-dirty-by-read
; watch: PT+0x80 8
        mov al, [DATA]
; out-mem: PT+0x80 = 27 00 01 01

; case: accessed-and-dirty-by-write
; watch: PT+0x80 8
        mov byte [DATA], 1
; out-mem: DATA = 01
; out-mem: PT+0x80 = 67 00 01 01

; case: accessed-bits-of-all-levels
; watch: PD+0x40 8
; watch: PDPT 8
; watch: PML4 8
        mov al, [DATA]
; out-mem: 0x1180000 = 27 10 18 01
; out-mem: 0x1181000 = 27 20 18 01
; out-mem: 0x1182040 = 27 30 18 01

; case: faulting-write-sets-no-dirty-bit
; watch: PT+0xa0 8
.here:  mov byte [RO], 1
; fault: #PF(7) at .here
; out: cr2=RO

; case: user-page-under-supervisor-directory
; setup:
        mov dword [PD + 11 * 8], PT + 3         ; the case region once more, at 11 * 2 MiB
; code:
.here:  mov al, [11 * 0x200000 + DATA - CODE]
; fault: #PF(5) at .here
; out: cr2=0x1610000

; case: read-only-directory-makes-pages-read-only
; setup:
        mov dword [PD + 11 * 8], PT + 5
; code:
        mov al, [11 * 0x200000 + DATA - CODE]
.here:  mov [11 * 0x200000 + DATA - CODE], al
; fault: #PF(7) at .here
; out: cr2=0x1610000

; case: no-execute-directory-pointer
; setup:
        mov dword [PDPT + 8], PD + 7            ; everything once more, at 1 GiB
        mov dword [PDPT + 12], 0x80000000
; code:
        mov rax, 0x40000000 + CODE
        jmp rax
; fault: #PF(0x15) at 0x41000000
; out: rax=0x41000000 cr2=0x41000000

; case: no-execute-bit-is-reserved-without-nxe
; qemu-differs: leaves P clear; SDM vol. 3, "Page-Fault Exceptions": RSVD is set only if P is
; mode: pae32 cpl=3
; setup:
        mov ecx, 0xc0000080
        rdmsr
        and eax, ~0x800
        wrmsr
        mov eax, cr3
        mov cr3, eax
; code:
.here:  mov al, [DATA]
; fault: #PF(0xd) at .here
; out: cr2=DATA

; case: smep-stops-supervisor-fetch-from-user-page
; needs: smep
; mode: long64
; setup:
        cr4_set 0x100000
; code:
        nop
; fault: #PF(0x11) at start
; out: cr2=CODE

; case: smap-stops-supervisor-read-of-user-page
; needs: smap
; mode: long64
; setup:
        cr4_set 0x200000
; code:
.here:  mov al, [DATA]
; fault: #PF(1) at .here
; out: cr2=DATA

; case: smap-with-ac-allows
; needs: smap
; mode: long64
; setup:
        cr4_set 0x200000
; code:
        stac
        mov al, [DATA]
        clac
; out: unchanged

; case: stac-at-cpl-3-is-undefined
; needs: smap
.here:  stac
; fault: #UD at .here

; case: smap-supervisor-page-is-free
; needs: smap
; mode: long64
; setup:
        cr4_set 0x200000
; code:
        mov al, [SUP]
; out: unchanged

; case: stale-entry-is-flushed-by-invlpg
; mode: long64
        mov al, [DATA]
        mov dword [PTE(DATA)], 0
        invlpg [DATA]
.here:  mov al, [DATA]
; fault: #PF(0) at .here
; out: cr2=DATA

; case: stale-entry-is-flushed-by-cr3-load
; mode: long64
        mov al, [DATA]
        mov dword [PTE(DATA)], 0
        mov rax, cr3
        mov cr3, rax
.here:  mov al, [DATA]
; fault: #PF(0) at .here
; out: rax=0x1180000 cr2=DATA

; case: global-entry-is-flushed-by-cr4-pge
; mode: long64
        mov rax, cr4
        or eax, 0x80
        mov cr4, rax
        or dword [PTE(DATA)], 0x100
        mov bl, [DATA]
        mov dword [PTE(DATA)], 0
        and eax, ~0x80
        mov cr4, rax
; undef: flags=AF
.here:  mov bl, [DATA]
; fault: #PF(0) at .here
; out: rax=0x50620 cr2=DATA

; case: remap-and-invlpg
; mode: long64
; in-mem: DATA = 11
; in-mem: DATA2 = 22
        mov al, [DATA]
        mov dword [PTE(DATA)], DATA2 + 7
        invlpg [DATA]
        mov bl, [DATA]
; out: rax=0x11 rbx=0x22

; case: invlpg-of-noncanonical-address-does-nothing
; mode: long64
; in: rax=0x8000000000000000
        invlpg [rax]
; out: unchanged

; case: invpcid-all-contexts
; needs: invpcid
; mode: long64
; in: rax=2
        mov bl, [DATA2]
        mov dword [PTE(DATA2)], 0
        invpcid rax, [DATA]
.here:  mov bl, [DATA2]
; fault: #PF(0) at .here
; out: cr2=DATA+0x1000

; case: invpcid-bad-type
; needs: invpcid
; mode: long64
; in: rax=4
.here:  invpcid rax, [DATA]
; fault: #GP(0) at .here

; case: two-megabyte-page
; mode: long64
; in-mem: DATA+8 = u32:0x1234
; setup:
        mov dword [PD + 0x100 * 8], (CODE & ~0x1fffff) + 0x83
; code:
        mov eax, [0x100 * 0x200000 + DATA - CODE + 8]
; out: rax=0x1234

; case: page-crossing-write-with-second-page-read-only
; setup:
        mov dword [PTE(DATA2)], DATA2 + 5
        invlpg [DATA2]
; code:
        mov eax, -1
.here:  mov [DATA2 - 2], eax
; fault: #PF(7) at .here
; out: rax=0xffffffff cr2=DATA+0x1000

; case: high-half-alias
; host: no, the high half is the kernel's there
; in-mem: DATA+8 = u32:7
        mov rax, HIGH + DATA
        mov ebx, [rax + 8]
; out: rax=0xffff800001010000 rbx=7

; case: high-half-fault-address
; host: no, the high half is the kernel's there
        mov rax, HIGH + ABSENT
.here:  mov ebx, [rax + 8]
; fault: #PF(4) at .here
; out: rax=0xffff800001012000 cr2=0xffff800001012008

; case: cr2-keeps-the-full-address-of-a-32-bit-fault
; mode: compat32 cpl=3
.here:  mov eax, [0xfffffff0]
; fault: #PF(4) at .here
; out: cr2=0xfffffff0

; case: 32-bit-paging-user-write-supervisor
; mode: paging32 cpl=3
; host: no, a process has no supervisor page of its own
.here:  mov [SUP], eax
; fault: #PF(7) at .here
; out: cr2=SUP

; case: 32-bit-paging-four-megabyte-page
; mode: paging32
; in-mem: DATA+8 = u32:0x1234
; setup:
        mov dword [PD32 + 0x100 * 4], (CODE & ~0x3fffff) + 0x83
; code:
        mov eax, [0x100 * 0x400000 + DATA - CODE + 8]
; out: eax=0x1234

; case: 32-bit-paging-large-page-reserved-bit
; mode: paging32
; qemu-differs: leaves P clear; SDM vol. 3, "Page-Fault Exceptions": RSVD is set only if P is
; setup:
        mov dword [PD32 + 0x100 * 4], (CODE & ~0x3fffff) + 0x200083
; code:
.here:  mov eax, [0x100 * 0x400000]
; fault: #PF(9) at .here
; out: cr2=0x40000000

; case: 32-bit-paging-ps-bit-ignored-without-pse
; mode: paging32
; in-mem: DATA+8 = u32:0x1234
; setup:
        mov edi, TSS3                           ; the harness itself needs a table then: identity
        mov eax, 3
.entry: stosd
        add eax, 0x1000
        cmp eax, 0x400003
        jb .entry
        mov dword [PD32], TSS3 + 3
        or byte [PD32 + (CODE >> 22) * 4], 0x80
        mov eax, cr4
        and eax, ~0x10
        mov cr4, eax
; code:
        mov eax, [DATA + 8]
; out: eax=0x1234

; case: 32-bit-paging-accessed-and-dirty
; mode: paging32 cpl=3
; watch: PT32+0x40 4
; watch: PD32+0x10 4
        mov byte [DATA], 1
; out-mem: DATA = 01
; out-mem: 0x1185010 = 27 60 18 01
; out-mem: 0x1186040 = 67 00 01 01

; case: pae-execute-disable
; mode: pae32 cpl=3
        mov eax, STACK_MID
        jmp eax
; fault: #PF(0x15) at STACK+0x1000
; out: eax=STACK+0x1000 cr2=STACK+0x1000

; case: pae-absent-directory-pointer
; mode: pae32
.here:  mov eax, [0x40000000]
; fault: #PF(0) at .here
; out: cr2=0x40000000

; case: pae-supervisor-write-protect
; mode: pae32
.here:  mov [RO], eax
; fault: #PF(3) at .here
; out: cr2=RO

; case: long-mode-ia32-high-address-is-absent
; mode: long64
        mov rax, 0x7f0000000000
.here:  mov rbx, [rax]
; fault: #PF(0) at .here
; out: rax=0x7f0000000000 cr2=0x7f0000000000

; case: fetch-across-page-end
; mode: long64
; in: rax=RWX+0xfff
; setup:
        mov byte [RWX + 0xfff], 0x0f
; code:
        jmp rax
; fault: #PF(0x10) at RWX+0xfff
; out: cr2=RWX+0x1000
; out-mem: RWX+0xfff = 0f

; case: flush-of-a-part-of-a-large-page-that-was-kept
; mode: long64
; qemu: no, its emulator of Debian 12 has no INVPCID
; SDM vol. 3, "Operations that Invalidate TLBs and Paging-Structure Caches".
; in-mem: DATA = u64:0x1111
; setup:
        mov rax, cr4
        or rax, 0x80                            ; global pages
        mov cr4, rax
; code:
        mov qword [abs PD + 0x80], 0x12001e3    ; another frame for what begins at 0x2000000, and is large
        invlpg [abs 0x2000000]
        mov qword [abs 0x2010000], 0x2222
        mov qword [abs PD + 0x80], 0x10001e3    ; DATA's
        invlpg [abs 0x2000000]
        mov rcx, [abs 0x2010000]
        mov eax, 2                              ; all, global ones too
        invpcid rax, [abs DATA + 16]
        mov rdx, [abs 0x2010000]
        mov qword [abs PD + 0x80], 0x12001e3
        invlpg [abs 0x2000000]
        mov rbx, [abs 0x2010000]
; out: rax=2 rbx=0x2222 rcx=0x1111 rdx=0x1111

; case: code-of-another-frame-after-a-flush-of-everything
; mode: long64
; qemu-differs: runs the old code after INVLPG of another part of the page; SDM vol. 3, "Operations that Invalidate TLBs and Paging-Structure Caches"
; in: rsi=RWX+0x1000000 rsp=STACK_MID
; setup:
        mov rax, cr4
        or rax, 0x80                            ; global pages
        mov cr4, rax
; code:
        mov qword [abs PD + 0x80], 0x12001e3    ; another frame for what begins at 0x2000000, and is large
        invlpg [abs 0x2000000]
        mov dword [rsi], 0x00c302b0             ; mov al, 2; ret
        mov qword [abs PD + 0x80], 0x10001e3    ; RWX's
        invlpg [abs 0x2000000]
        mov dword [rsi], 0x00c301b0             ; mov al, 1; ret
        xor eax, eax
        call rsi
        mov ebx, eax
        call rsi
        add ebx, eax
        mov rdi, cr4
        mov qword [abs PD + 0x80], 0x12001e3
        and dil, 0x7f
        mov cr4, rdi
        or dil, 0x80
        mov cr4, rdi
        call rsi
        mov ecx, eax
        mov qword [abs PD + 0x80], 0x10001e3
        invlpg [abs 0x2000000]
        call rsi
        mov edx, eax
; out: rax=1 rcx=2 rdx=1 rbx=2 rdi=0x506a0 flags=PF,SF
; out-mem: RWX = b0 01 c3
; out-mem: STACK+0xff8 = 75 00 00 01
