; Found by xenolith fuzz --insns --seed 1 --first 259994 --snippets 1.
; Expected values are from host; bt had otherwise
;   RIP = 0x0, not 0x5
; mode: compat16 cpl=3

; case: iret-bt-1-259994
; needs: avx
; in: esi=0x51bfffa ymm4=79bb1de8f5c5b777a74a16004c4886bd00000000000000000000000000000000
        db 0xc4, 0xe2, 0x5d, 0x2e, 0x00                     ; vmaskmovps [bx+si],ymm4,ymm0
        db 0xcf                                             ; iret
; fault: #GP(0x0) at 0x5
; out: unchanged
