; BOUND, ARPL, INTO, LES/LDS: instructions that 64-bit mode gave away.
; SDM vol. 2A, "BOUND-Check Array Index Against Bounds"; "ARPL-Adjust RPL Field of Segment Selector".
; mode: pm32 cpl=3

; case: bound-inside
; in: eax=5 esi=DATA
; in-mem: DATA = u32:0,5
        bound eax, [esi]
; out: unchanged

; case: bound-below-signed
; in: eax=-1 esi=DATA
; in-mem: DATA = u32:0,5
.here:  bound eax, [esi]
; fault: #BR at .here

; case: bound-above
; in: eax=6 esi=DATA
; in-mem: DATA = u32:0,5
.here:  bound eax, [esi]
; fault: #BR at .here

; case: bound-word
; in: eax=0x17fff esi=DATA
; in-mem: DATA = u16:0x8000,0x7ffe
.here:  bound ax, [esi]
; fault: #BR at .here

; case: bound-register-form-is-undefined
; host: no, it is an EVEX prefix there
.here:  db 0x62, 0xc0
; fault: #UD at .here

; case: into-with-overflow
; in: flags=OF
        into
.after:
; fault: #OF at end

; case: into-without-overflow
        into
; out: unchanged

; case: into-is-undefined-in-64-bit-mode
; qemu-differs: 10.0 runs it; SDM vol. 2A, "INTO": invalid in 64-bit mode
; mode: long64 cpl=3
; in: flags=OF
.here:  db 0xce
; fault: #UD at .here

; case: arpl-raises-rpl
; in: eax=0x1230 ebx=3
        arpl ax, bx
; out: eax=0x1233 flags=ZF

; case: arpl-leaves-higher-rpl
; in: eax=0x1233 ebx=1 flags=ZF
        arpl ax, bx
; out: flags=none

; case: arpl-memory
; in: edi=DATA ebx=2
; in-mem: DATA = 08 00
        arpl [edi], bx
; out: flags=ZF
; out-mem: DATA = 0a

; case: arpl-in-real-mode-is-undefined
; mode: real
.here:  arpl ax, bx
; fault: #UD at .here

; case: les-loads-selector-and-offset
; in: esi=DATA
; in-mem: DATA = 78 56 34 12 2b 00
        les eax, [esi]
; out: eax=0x12345678

; case: lds-null
; in: esi=DATA
; in-mem: DATA = 78 56 34 12 00 00
        lds ecx, [cs:esi]
; out: ecx=0x12345678 ds=0

; case: les-word
; in: eax=-1 esi=DATA
; in-mem: DATA = 78 56 2b 00
        les ax, [esi]
; out: eax=0xffff5678

; case: les-bad-selector-leaves-the-register
; in: eax=1 esi=DATA
; in-mem: DATA = 78 56 34 12 18 00
.here:  les eax, [esi]
; fault: #GP(0x18) at .here

; case: les-register-form-is-undefined
; host: no, it is a VEX prefix there
.here:  db 0xc4, 0xc0, 0x00, 0x00
; fault: #UD at .here

; case: les-in-real-mode
; mode: real
; in: ebx=0x10
; in-mem: DATA16+0x10 = 34 12 00 80
        les si, [bx]
; out: esi=0x1234 es=0x8000
