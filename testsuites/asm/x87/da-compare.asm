; x87 comparisons and classification: condition codes and EFLAGS.
; SDM vol. 2A, "FCOM/FCOMP/FCOMPP"; "FCOMI/FCOMIP/FUCOMI/FUCOMIP"; "FXAM".
; mode: long64 cpl=3

; case: fcom-less
; in: st0=1.0 st1=2.0
        fcom
; out: fsw=0x3100

; case: fcom-greater-memory
; in: st0=3.0 rsi=DATA
; in-mem: DATA = f32:2.0
        fcom dword [rsi]
; out: unchanged

; case: fcompp-equal-pops-two
; in: st0=2.0 st1=2.0
        fcompp
; out: fsw=0x4000 ftw=0

; case: fcom-quiet-nan-is-invalid
; in: st0=2.0 st1=7fff_c000000000000000
        fcom
; out: fsw=0x7501

; case: fucom-quiet-nan-is-quiet
; in: st0=2.0 st1=7fff_c000000000000000
        fucom
; out: fsw=0x7500

; case: fcomi-less
; qemu-differs: leaves OF, SF and AF; SDM vol. 2A, "FCOMI": they are cleared
; in: st0=1.0 st1=2.0 flags=OF,SF,AF
        fcomi st0, st1
; out: flags=CF

; case: fucomip-unordered
; in: st0=7fff_c000000000000000 st1=2.0
        fucomip st0, st1
; out: flags=CF,PF,ZF fsw=0x3800 ftw=0x80

; case: ftst-zero
; in: st0=-0.0
        ftst
; out: fsw=0x7800

; case: fxam-normal-negative
; in: st0=-5.0
        fxam
; out: fsw=0x3e00

; case: fxam-empty
        fxam
; out: fsw=0x4100

; case: fxam-infinity
; in: st0=7fff_8000000000000000
        fxam
; out: fsw=0x3d00

; case: fxam-denormal
; in: st0=0000_0000000000000001
        fxam
; out: fsw=0x7c00

; case: fxam-nan
; in: st0=7fff_c000000000000000
        fxam
; out: fsw=0x3900

; case: fxam-unsupported
; in: st0=3fff_0000000000000001
        fxam
; out: unchanged

; case: ficom-word
; in: st0=-3.0 rsi=DATA
; in-mem: DATA = u16:0xfffd
        ficom word [rsi]
; out: fsw=0x7800

; case: fnstsw-ax
; in: st0=1.0 st1=2.0 rax=-1
        fcom
        fnstsw ax
; out: rax=0xffffffffffff3100 fsw=0x3100
