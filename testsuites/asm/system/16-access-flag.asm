; STAC and CLAC, and control registers read into every register.
; SDM vol. 2A, "CLAC", "STAC"; vol. 2B, "MOV-Move to/from Control Registers".
; mode: long64

; case: flag-set-and-cleared-by-turns
; needs: smap
        mov ebp, 40
        xor edi, edi
.again: stc
        stac
        pushfq
        pop rax
        stac
        adc edi, 0
        clac
        pushfq
        pop rbx
        clac
        and eax, 0x40001
        and ebx, 0x40001
        lea edi, [rdi + rax]
        add edi, ebx
        dec ebp
        jnz .again
; out: rax=0x40001 rdi=0xa00050 flags=PF,ZF
; out-mem: STACK+0xff8 = 02

; case: stac-of-a-user
; needs: smap
; mode: long64 cpl=3
.here:  stac
; fault: #UD at .here

; case: clac-of-a-user
; needs: smap
; mode: long64 cpl=3
.here:  clac
; fault: #UD at .here

; case: control-registers-into-scratch-registers
        mov r10, cr0
        mov r11, cr4
        mov r9, cr3
; out: r9=0x1180000 r10=0x80050033 r11=0x50620

; case: control-registers-in-32-bit-code
; mode: pm32
        mov eax, cr0
        mov ebx, cr4
; out: eax=0x50033 ebx=0x50600

; case: swapgs-in-one-block
; setup:
        wrmsr_imm 0xc0000101, DATA
        wrmsr_imm 0xc0000102, DATA+0x100
; code:
        mov dword [gs:0], 1
        mov dword [gs:4], 2
        swapgs
        mov dword [gs:0], 3
        mov dword [gs:4], 4
        swapgs
        mov eax, [gs:0]
        mov ebx, [gs:4]
; out: rax=1 rbx=2
; out-mem: DATA = 01 00 00 00 02
; out-mem: DATA+0x100 = 03 00 00 00 04
