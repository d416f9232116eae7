; Found by xenolith fuzz --insns --seed 1 --first 570593 --snippets 1.
; Expected values are from host; bt had otherwise
;   end = lost - the engine panicked, not #PF(0x6) cr2=0x0
;   RIP = 0x0, not 0x1000000
;   RSP = 0x0, not 0x1021000
;   RFLAGS = 00000002 , not 00000202 IF
;   CS = 0x0, not 0x33
;   SS = 0x0, not 0x2b
; mode: long64 cpl=3

; case: add-bt-1-570593
        db 0x00, 0x3c, 0xef                                 ; add [rdi+rbp*8],bh
; fault: #PF(0x6) at start
; out: cr2=0x0
