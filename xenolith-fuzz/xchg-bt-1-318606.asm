; Found by xenolith fuzz --insns --seed 1 --first 318606 --snippets 1.
; Expected values are from host; bt had otherwise
;   end = lost - the engine panicked, not #PF(0x6) cr2=0x0
;   RIP = 0x0, not 0x1000000
;   RSP = 0x0, not 0x1021000
;   RFLAGS = 00000002 , not 00000202 IF
;   CS = 0x0, not 0x33
;   SS = 0x0, not 0x2b
; mode: long64 cpl=3

; case: xchg-bt-1-318606
        db 0x86, 0x3c, 0xbe                                 ; xchg bh,[rsi+rdi*4]
; fault: #PF(0x6) at start
; out: cr2=0x0
