; Found by xenolith fuzz --insns --seed 1 --first 147517 --snippets 1.
; Expected values are from host; bt had otherwise
;   end = lost - the engine panicked, not #PF(0x4) cr2=0x0
;   RIP = 0x0, not 0x1000000
;   RSP = 0x0, not 0x1021000
;   RFLAGS = 00000002 , not 00000202 IF
;   ES = 0x0, not 0x2b
;   CS = 0x0, not 0x23
;   SS = 0x0, not 0x2b
;   DS = 0x0, not 0x2b
; mode: compat32 cpl=3

; case: and-bt-1-147517
        db 0x22, 0x7c, 0xbd, 0x00                           ; and bh,[ebp+edi*4]
; fault: #PF(0x4) at start
; out: cr2=0x0
