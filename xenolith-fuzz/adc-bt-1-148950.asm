; Found by xenolith fuzz --insns --seed 1 --first 148950 --snippets 1.
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

; case: adc-bt-1-148950
        db 0x12, 0xbc, 0xb5, 0x00, 0x00, 0x00, 0x00         ; adc bh,[ebp+esi*4]
; fault: #PF(0x4) at start
; out: cr2=0x0
