; CPUID, RDTSC, RDTSCP, RDPMC, NOP with operand, XGETBV, PREFETCH: what user code may do.
; SDM vol. 2A, "CPUID-CPU Identification"; vol. 2B, "RDTSC"; "NOP".
; mode: long64 cpl=3

; case: cpuid-clears-upper-halves
; in: rax=0x5_00000000 rbx=-1 rcx=-1 rdx=-1
        cpuid
        shr rax, 32
        shr rbx, 32
        shr rcx, 32
        shr rdx, 32
; out: rax=0 rcx=0 rdx=0 rbx=0 flags=ZF
; undef: flags=CF,OF,AF,SF,PF

; case: rdtsc-clears-upper-halves
; in: rax=-1 rdx=-1
        rdtsc
        shr rax, 32
        shr rdx, 32
; out: rax=0 rdx=0 flags=ZF
; undef: flags=CF,OF,AF,SF,PF

; case: rdtsc-grows
        rdtsc
        shl rdx, 32
        or rax, rdx
        mov rbx, rax
        rdtsc
        shl rdx, 32
        or rax, rdx
        cmp rbx, rax
        setbe cl
        xor eax, eax
        xor ebx, ebx
        xor edx, edx
; out: rcx=1 flags=PF,ZF
; undef: flags=AF

; case: rdtscp-clears-upper-halves
; needs: rdtscp
; in: rax=-1 rdx=-1 rcx=-1
        rdtscp
        shr rax, 32
        shr rdx, 32
        shr rcx, 32
; out: rax=0 rcx=0 rdx=0 flags=ZF
; undef: flags=CF,OF,AF,SF,PF

; case: xgetbv-0
; needs: xsave
; in: rcx=0
        xgetbv
        and eax, 7
; out: rax=7
; undef: flags=AF
; undef: rdx

; case: xgetbv-of-unknown-register
; needs: xsave
; in: rcx=0x55
.here:  xgetbv
; fault: #GP(0) at .here

; case: long-nop-makes-no-access
; in: rax=0x8000000000000000
        nop dword [rax + rax + 8]
        nop word [rax]
; out: unchanged

; case: prefetch-makes-no-fault
; in: rax=ABSENT
        prefetcht0 [rax]
        prefetchnta [rax + 64]
        prefetchw [rax]
; out: unchanged

; case: endbr64-is-a-nop
        db 0xf3, 0x0f, 0x1e, 0xfa
; out: unchanged

; case: clflush-of-data
; needs: clflush
; in: rdi=DATA
        clflush [rdi]
; out: unchanged

; case: clflush-of-absent-page
; needs: clflush
; qemu-differs: does not look at the address; SDM vol. 2A, "CLFLUSH": faults as a byte load does
; in: rdi=ABSENT
.here:  clflush [rdi]
; fault: #PF(4) at .here
; out: cr2=ABSENT

; case: fences
        lfence
        mfence
        sfence
; out: unchanged

; case: rdpmc-at-cpl-3-without-permission
.here:  rdpmc
; fault: #GP(0) at .here
