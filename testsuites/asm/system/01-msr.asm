; RDMSR and WRMSR: known registers, unknown ones, values that are refused.
; SDM vol. 4, "Model-Specific Registers"; vol. 2B, "RDMSR"; vol. 2D, "WRMSR".
; mode: long64

; case: efer-shows-lma
; in: rcx=0xc0000080 rax=-1 rdx=-1
        rdmsr
; out: rax=0xd01 rdx=0

; case: efer-reserved-bit
; qemu-differs: does not check; SDM vol. 2D, "WRMSR": #GP(0) for reserved bits
; in: rcx=0xc0000080
        rdmsr
        or eax, 2
; undef: flags=AF
.here:  wrmsr
; fault: #GP(0) at .here
; out: rax=0xd03 flags=PF

; case: efer-lme-cannot-change-with-paging
; qemu-differs: does not check; SDM vol. 3, "Initializing IA-32e Mode": #GP(0) for changing LME while paging is on
; in: rcx=0xc0000080
        rdmsr
        and eax, ~0x100
; undef: flags=AF
.here:  wrmsr
; fault: #GP(0) at .here
; out: rax=0xc01 flags=none

; case: unknown-msr-read
; qemu-differs: reads zero; SDM vol. 2B, "RDMSR": #GP(0) for a reserved or unimplemented MSR
; in: rcx=0x5a5a5a5a
.here:  rdmsr
; fault: #GP(0) at .here

; case: unknown-msr-write
; qemu-differs: ignores writes to unknown MSRs; SDM vol. 2D, "WRMSR": #GP(0) for a reserved or unimplemented MSR
; in: rcx=0x5a5a5a5a
.here:  wrmsr
; fault: #GP(0) at .here

; case: lstar-noncanonical
; in: rcx=0xc0000082 rdx=0x80000000
; qemu-differs: does not check; SDM vol. 2D, "WRMSR": #GP(0) if the value is not canonical
.here:  wrmsr
; fault: #GP(0) at .here

; case: fs-base-write-and-use
; in: rcx=0xc0000100 rax=DATA
; in-mem: DATA+0x10 = u32:0xfeed
        xor edx, edx
        wrmsr
        mov ebx, [fs:0x10]
; out: rbx=0xfeed flags=PF,ZF

; case: fs-base-noncanonical
; in: rcx=0xc0000100 rdx=0x8000
; qemu-differs: does not check; SDM vol. 2D, "WRMSR": #GP(0) if the value is not canonical
.here:  wrmsr
; fault: #GP(0) at .here

; case: swapgs-exchanges-bases
; setup:
        wrmsr_imm 0xc0000101, DATA
        wrmsr_imm 0xc0000102, DATA2
; code:
        swapgs
        mov byte [gs:0], 1
        swapgs
        mov byte [gs:0], 2
; out-mem: DATA = 02
; out-mem: DATA+0x1000 = 01

; case: mov-to-fs-replaces-the-base
; setup:
        wrmsr_imm 0xc0000100, DATA
; code:
        mov eax, KDATA
        mov fs, ax
        mov ecx, 0xc0000100
        rdmsr
; out: rcx=0xc0000100 fs=0x18

; case: pat-reserved-type
; in: rcx=0x277 rax=0x02
; qemu-differs: does not check; SDM vol. 3, "IA32_PAT MSR": #GP(0) for the reserved types 2, 3 and above 7
.here:  wrmsr
; fault: #GP(0) at .here

; case: tsc-aux-and-rdtscp
; needs: rdtscp
; in: rcx=0xc0000103 rax=0x77
        xor edx, edx
        wrmsr
        rdtscp
        xor eax, eax
        xor edx, edx
; out: rax=0 rcx=0x77 flags=PF,ZF

; case: rdpid
; needs: rdpid
; setup:
        wrmsr_imm 0xc0000103, 0x55
; code:
        rdpid rax
; out: rax=0x55

; case: rdmsr-clears-upper-halves
; in: rcx=0xffffffffc0000081 rax=-1 rdx=-1
        rdmsr
; out: rax=0 rdx=0x230010

; case: rdtsc-with-tsd-at-cpl-0
; setup:
        cr4_set 4
; code:
        rdtsc
        xor eax, eax
        xor edx, edx
; out: flags=PF,ZF

; case: rdtsc-with-tsd-at-cpl-3
; mode: long64 cpl=3
; setup:
        cr4_set 4
; code:
.here:  rdtsc
; fault: #GP(0) at .here
