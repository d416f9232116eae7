; Found by xenolith fuzz --insns --seed 1 --first 38547 --snippets 1.
; Expected values are from host; bt had otherwise
;   end = lost - the engine panicked, not #PF(0x6) cr2=0x0
;   RIP = 0x0, not 0x1000000
;   RSP = 0x0, not 0x1021000
;   RFLAGS = 00000002 , not 00000202 IF
;   ES = 0x0, not 0x2b
;   CS = 0x0, not 0x23
;   SS = 0x0, not 0x2b
;   DS = 0x0, not 0x2b
; mode: compat32 cpl=3

; case: adc-bt-1-38547
        db 0x10, 0x7c, 0xfe, 0x00                           ; adc [esi+edi*8],bh
; fault: #PF(0x6) at start
; out: cr2=0x0
