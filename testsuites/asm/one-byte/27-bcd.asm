; DAA, DAS, AAA, AAS, AAM, AAD: 32-bit code only.
; SDM vol. 2A, "DAA-Decimal Adjust AL After Addition" and its relatives.
; mode: pm32 cpl=3

; case: daa-both-digits
; in: eax=0x12ae
; undef: flags=OF
        daa
; out: eax=0x1214 flags=CF,PF,AF

; case: daa-carry-in
; in: eax=0x31 flags=CF
; undef: flags=OF
        daa
; out: eax=0x91 flags=CF,SF

; case: daa-adjust-in
; in: eax=0x93 flags=AF
; undef: flags=OF
        daa
; out: eax=0x99 flags=PF,AF,SF

; case: daa-nothing-to-do
; in: eax=0x45
; undef: flags=OF
        daa
; out: unchanged

; case: daa-9a-carries
; in: eax=0x9a
; undef: flags=OF
        daa
; out: eax=0 flags=CF,PF,AF,ZF

; case: das-after-borrow
; in: eax=0xee flags=CF,AF
; undef: flags=OF
        das
; out: eax=0x88 flags=CF,PF,AF,SF

; case: das-low-digit
; in: eax=0x2f
; undef: flags=OF
        das
; out: eax=0x29 flags=AF

; case: das-borrow-from-low-adjust
; in: eax=0x03 flags=AF
; undef: flags=OF
        das
; out: eax=0xfd flags=CF,AF,SF

; case: aaa-adjusts-ah
; in: eax=0x020b
; undef: flags=OF,SF,ZF,PF
        aaa
; out: eax=0x301 flags=CF,AF

; case: aaa-carry-into-ah-wraps-in-ax
; in: eax=0xfffa
; undef: flags=OF,SF,ZF,PF
        aaa
; out: eax=0x100 flags=CF,AF

; case: aaa-no-adjust-clears-high-nibble
; in: eax=0x0155
; undef: flags=OF,SF,ZF,PF
        aaa
; out: eax=0x105

; case: aas-adjusts
; in: eax=0x02ff
; undef: flags=OF,SF,ZF,PF
        aas
; out: eax=0x109 flags=CF,AF

; case: aas-borrows-through-ah
; in: eax=0x0100 flags=AF
; undef: flags=OF,SF,ZF,PF
        aas
; out: eax=0xff0a flags=CF,AF

; case: aam-base-10
; in: eax=0x1263
; undef: flags=OF,AF,CF
        aam
; out: eax=0x909 flags=PF

; case: aam-base-16
; in: eax=0x00f7
; undef: flags=OF,AF,CF
        aam 16
; out: eax=0xf07

; case: aam-zero-divides
; in: eax=0x1234
.here:  aam 0
; fault: #DE at .here

; case: aad-base-10
; in: eax=0xffff0905
; undef: flags=OF,AF,CF
        aad
; out: eax=0xffff005f flags=PF

; case: aad-wraps-in-al
; in: eax=0xff80
; undef: flags=OF,AF,CF
        aad 2
; out: eax=0x7e flags=PF

; case: daa-is-undefined-in-64-bit-mode
; mode: long64 cpl=3
.here:  db 0x27
; fault: #UD at .here

; case: aam-is-undefined-in-64-bit-mode
; qemu-differs: 10.0 runs it; SDM vol. 2A, "AAM": invalid in 64-bit mode
; mode: long64 cpl=3
.here:  db 0xd4, 0x0a
; fault: #UD at .here
