; What CR0.EM, MP, TS, NE and CR4.OSFXSR, OSXMMEXCPT, OSXSAVE, XCR0 do to vector instructions.
; SDM vol. 3, "System Programming for Instruction Set Extensions"; table "Actions Taken for Combinations of EM, MP, TS".
; mode: long64

; case: x87-with-ts
; setup:
        cr0_set 8
; code:
.here:  fld1
; fault: #NM at .here

; case: fwait-with-ts-and-mp
; setup:
        cr0_set 8
; code:
.here:  fwait
; fault: #NM at .here

; case: fwait-with-ts-without-mp
; setup:
        mov rax, cr0
        and eax, ~2
        or eax, 8
        mov cr0, rax
; code:
        fwait
; out: unchanged

; case: x87-with-em
; setup:
        cr0_set 4
; code:
.here:  fninit
; fault: #NM at .here

; case: mmx-with-em-is-undefined
; setup:
        cr0_set 4
; code:
.here:  paddb mm0, mm1
; fault: #UD at .here

; case: mmx-with-ts
; setup:
        cr0_set 8
; code:
.here:  paddb mm0, mm1
; fault: #NM at .here

; case: sse-with-em-is-undefined
; setup:
        cr0_set 4
; code:
.here:  addps xmm0, xmm1
; fault: #UD at .here

; case: sse-with-ts
; setup:
        cr0_set 8
; code:
.here:  addps xmm0, xmm1
; fault: #NM at .here

; case: sse-without-osfxsr-is-undefined
; setup:
        mov rax, cr4
        and eax, ~0x200
        mov cr4, rax
; code:
.here:  addps xmm0, xmm1
; fault: #UD at .here

; case: avx-without-osxsave-is-undefined
; needs: avx
; setup:
        mov rax, cr4
        and eax, ~0x40000
        mov cr4, rax
; code:
.here:  vaddps ymm0, ymm0, ymm1
; fault: #UD at .here

; case: avx-without-xcr0-avx-is-undefined
; needs: avx
; setup:
        xor ecx, ecx
        xor edx, edx
        mov eax, 3
        xsetbv
; code:
.here:  vaddps ymm0, ymm0, ymm1
; fault: #UD at .here

; case: avx-with-ts
; needs: avx
; setup:
        cr0_set 8
; code:
.here:  vaddps ymm0, ymm0, ymm1
; fault: #NM at .here

; case: avx-in-v86-is-undefined
; mode: v86
; needs: avx
.here:  db 0xc5, 0xf8, 0x77             ; vzeroupper
; fault: #UD at .here

; case: bmi-ignores-ts
; needs: bmi1
; in: rbx=6 rcx=3
; undef: flags=AF,PF
; setup:
        cr0_set 8
; code:
        andn rax, rbx, rcx
; out: rax=1

; case: simd-exception-without-osxmmexcpt-is-undefined
; qemu-differs: never raises SIMD exceptions; SDM vol. 1, "SSE Floating-Point Exceptions": #UD if OSXMMEXCPT is clear
; in: xmm0=f32:1.0 mxcsr=0x1d80
; setup:
        mov rax, cr4
        and eax, ~0x400
        mov cr4, rax
; code:
.here:  divps xmm0, xmm1
; fault: #UD at .here
; out: mxcsr=0x1d84

; case: fxsave-with-ts
; setup:
        cr0_set 8
; code:
.here:  fxsave [DATA]
; fault: #NM at .here

; case: xsave-with-ts
; qemu-differs: does not look at TS; SDM vol. 2D, "XSAVE": #NM if CR0.TS is set
; needs: xsave
; setup:
        cr0_set 8
; code:
.here:  xsave [DATA]
; fault: #NM at .here

; case: xsave-without-osxsave-is-undefined
; needs: xsave
; setup:
        mov rax, cr4
        and eax, ~0x40000
        mov cr4, rax
; code:
.here:  xsave [DATA]
; fault: #UD at .here

; case: ldmxcsr-with-ts
; setup:
        cr0_set 8
; code:
.here:  ldmxcsr [DATA]
; fault: #NM at .here

; case: xsetbv-without-x87
; needs: xsave
; in: rax=6
.here:  xsetbv
; fault: #GP(0) at .here

; case: xsetbv-avx-without-sse
; needs: xsave avx
; in: rax=5
.here:  xsetbv
; fault: #GP(0) at .here

; case: xsetbv-unknown-component
; needs: xsave
; in: rax=7 rdx=0x40000000
.here:  xsetbv
; fault: #GP(0) at .here

; case: xsetbv-unknown-register
; needs: xsave
; in: rax=7 rcx=1
.here:  xsetbv
; fault: #GP(0) at .here

; case: xgetbv-without-osxsave-is-undefined
; needs: xsave
; setup:
        mov rax, cr4
        and eax, ~0x40000
        mov cr4, rax
; code:
.here:  xgetbv
; fault: #UD at .here

; case: cpuid-osxsave-follows-cr4
; needs: xsave
; setup:
        mov rax, cr4
        and eax, ~0x40000
        mov cr4, rax
; code:
        mov eax, 1
        cpuid
        mov eax, ecx
        shr eax, 27
        and eax, 1
        xor ebx, ebx
        xor ecx, ecx
        xor edx, edx
; out: flags=PF,ZF
; undef: flags=AF

; case: x87-error-with-ne
; in: st0=1.0 st1=0.0 fcw=0x37b
; qemu-differs: stores the masked result; SDM vol. 1, "Divide-By-Zero Exception (#Z)"
        fdiv st0, st1
.here:  fwait
; fault: #MF at .here
; out: fsw=0xb084

; case: device-not-available-before-memory-fault
; setup:
        cr0_set 8
; code:
.here:  fld dword [ABSENT]
; fault: #NM at .here

; case: nm-in-real-mode
; mode: real
; setup:
        mov eax, cr0
        or al, 8
        mov cr0, eax
; code:
.here:  fld1
; fault: #NM at .here

; case: rdfsbase-without-cr4-bit
; needs: fsgsbase
; setup:
        mov rax, cr4
        and eax, ~0x10000
        mov cr4, rax
; code:
.here:  rdfsbase rax
; fault: #UD at .here
