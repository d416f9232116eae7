; MOVBE, CRC32, ADCX, ADOX.
; SDM vol. 2B, "MOVBE-Move Data After Swapping Bytes"; vol. 2A, "CRC32"; "ADCX"; "ADOX".
; mode: long64 cpl=3

; case: movbe-load-dword
; needs: movbe
; in: rax=-1 rsi=DATA
; in-mem: DATA = 11 22 33 44
        movbe eax, [rsi]
; out: rax=0x11223344

; case: movbe-load-word-keeps-upper-bits
; needs: movbe
; in: rax=-1 rsi=DATA
; in-mem: DATA = 11 22
        movbe ax, [rsi]
; out: rax=0xffffffffffff1122

; case: movbe-store-qword
; needs: movbe
; in: rax=0x1122334455667788 rdi=DATA2-3
        movbe [rdi], rax
; out-mem: DATA+0xffd = 11 22 33 44 55 66 77 88

; case: movbe-register-form-is-undefined
; needs: movbe
.here:  db 0x0f, 0x38, 0xf0, 0xc0
; fault: #UD at .here

; case: crc32-byte
; needs: sse4.2
; in: rax=0xffffffff rbx=0x61
        crc32 eax, bl
; out: rax=0x3e2fbccf

; case: crc32-word
; needs: sse4.2
; in: rax=0x12345678 rbx=0xbeef
        crc32 eax, bx
; out: rax=0xd78220dc

; case: crc32-dword
; needs: sse4.2
; in: rax=0x12345678 rbx=0xdeadbeef
        crc32 eax, ebx
; out: rax=0xf3ed4b20

; case: crc32-qword-clears-upper-half
; needs: sse4.2
; in: rax=0xffffffff00000000 rbx=0x0123456789abcdef
        crc32 rax, rbx
; out: rax=0xe9986aa9

; case: crc32-byte-to-qword
; needs: sse4.2
; in: rax=0xffffffff00000001 rbx=0x7f
        crc32 rax, bl
; out: rax=0xdde0eb2a

; case: adcx-only-carry
; needs: adx
; in: rax=0xffffffff rbx=1 flags=CF,OF,ZF,SF
        adcx eax, ebx
; out: rax=1

; case: adcx-clears-carry
; needs: adx
; in: rax=1 rbx=1 flags=CF
        adcx rax, rbx
; out: rax=3 flags=none

; case: adox-only-overflow
; needs: adx
; in: rax=0xffffffffffffffff rbx=0 flags=OF,CF
        adox rax, rbx
; out: rax=0

; case: adox-memory
; needs: adx
; in: rax=3 rsi=DATA flags=OF
; in-mem: DATA = u32:4
        adox eax, [rsi]
; out: rax=8 flags=none

; case: adcx-adox-interleave
; needs: adx
; in: rax=-1 rbx=-1 rcx=1
        adcx rax, rcx
        adox rbx, rcx
        adcx rax, rcx
        adox rbx, rcx
; out: rax=2 rbx=2
