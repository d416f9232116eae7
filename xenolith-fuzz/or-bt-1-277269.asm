; Found by xenolith fuzz --insns --seed 1 --first 277269 --snippets 1.
; Expected values are from host; bt had otherwise
;   end = lost - the engine panicked, not #PF(0x4) cr2=0x0
;   RIP = 0x0, not 0x1000000
;   RSP = 0x0, not 0x1021000
;   RFLAGS = 00000002 , not 00000202 IF
;   CS = 0x0, not 0x33
;   SS = 0x0, not 0x2b
; mode: long64 cpl=3

; case: or-bt-1-277269
        db 0x0a, 0x7c, 0xf5, 0x00                           ; or bh,[rbp+rsi*8]
; fault: #PF(0x4) at start
; out: cr2=0x0
