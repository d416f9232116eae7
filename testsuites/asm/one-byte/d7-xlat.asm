; XLAT: AL is an unsigned index, the base is BX, EBX or RBX.
; SDM vol. 2D, "XLAT/XLATB-Table Look-up Translation".
; mode: long64 cpl=3

; case: unsigned-index
; in: rax=0xff80 rbx=DATA
; in-mem: DATA+0x80 = 5a
        xlatb
; out: rax=0xff5a

; case: address-size-32
; in: rax=1 rbx=0x1_01010000
; in-mem: DATA+1 = 77
        a32 xlatb
; out: rax=0x77

; case: absent-page
; in: rax=0x10 rbx=ABSENT
.here:  xlatb
; fault: #PF(4) at .here
; out: cr2=ABSENT+0x10
