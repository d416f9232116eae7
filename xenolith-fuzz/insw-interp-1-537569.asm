; Found by xenolith fuzz --insns --seed 1 --first 537569 --snippets 1.
; Expected values are from host; interp had otherwise
;   RIP = 0x0, not 0x6
; mode: compat16 cpl=3

; case: insw-interp-1-537569
; needs: avx
; in: edi=0x6d ymm3=5c78ecfdff1cd04fc6d19486597f03c700000000000000000000000000000000
        db 0xc4, 0xe2, 0x65, 0x2e, 0x6d, 0x8f               ; vmaskmovps [di-71h],ymm3,ymm5
        db 0x6d                                             ; insw
; fault: #GP(0x0) at 0x6
; out: unchanged
