; Found by xenolith fuzz --insns --seed 1 --first 617398 --snippets 1.
; Expected values are from host; bt had otherwise
;   RIP = 0x0, not 0x10000
;   FSW = 0000, not 3800
;   FTW = 00, not 80
;   [0x20000] = unchanged, not 000000000000000b
; mode: compat16 cpl=3

; case: (bad)-bt-1-617398
; in: edi=0xfffd
        db 0xdb, 0x6d, 0xfb                                 ; fld tword [di-5]
        db 0x80                                             ; (bad)
; fault: #GP(0x0) at 0x10000
; out: fsw=0x3800 ftw=0x80
; out-mem: DATA16 = 0b 00 00 00 00 00 00 00
