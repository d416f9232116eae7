; MOVS, CMPS, STOS, LODS, SCAS: counts, direction, address size, segments, faults in the middle.
; SDM vol. 1, "String Operations"; vol. 2B, "REP/REPE/REPZ/REPNE/REPNZ-Repeat String Operation Prefix".
; mode: long64 cpl=3

; case: movsb-single
; in: rsi=RO rdi=DATA rcx=9
; in-mem: RO = 5a
        movsb
; out: rsi=RO+0x1 rdi=DATA+0x1
; out-mem: DATA = 5a

; case: rep-movsb
; in: rsi=RO+1 rdi=DATA+3 rcx=5
; in-mem: RO = 00 01 02 03 04 05 06
        rep movsb
; out: rcx=0 rsi=RO+0x6 rdi=DATA+0x8
; out-mem: DATA+0x3 = 01 02 03 04 05

; case: rep-movsq-backward
; in: rsi=RO+8 rdi=DATA+0x18 rcx=2 flags=DF
; in-mem: RO = u64:0x1111111111111111,0x2222222222222222
        rep movsq
; out: rcx=0 rsi=0x1013ff8 rdi=DATA+0x8
; out-mem: DATA+0x10 = 11 11 11 11 11 11 11 11 22 22 22 22 22 22 22 22

; case: rep-movsb-of-15
; in: rsi=RO+1 rdi=DATA+3 rcx=15 flags=CF,PF,AF,ZF,SF,OF
; in-mem: RO = 01 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71 78
        rep movsb
; out: rcx=0 rsi=RO+0x10 rdi=DATA+0x12
; out-mem: DATA+0x3 = 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a

; case: rep-stosb-of-15
; in: rax=0x8877665544332211 rdi=DATA+3 rcx=15 flags=CF,PF,AF,ZF,SF,OF
        rep stosb
; out: rcx=0 rdi=DATA+0x12
; out-mem: DATA+0x3 = 11 11 11 11 11 11 11 11 11 11 11 11 11 11 11

; case: rep-movsb-of-16
; in: rsi=RO+1 rdi=DATA+3 rcx=16 flags=CF,PF,AF,ZF,SF,OF
; in-mem: RO = 01 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71 78 7f
        rep movsb
; out: rcx=0 rsi=RO+0x11 rdi=DATA+0x13
; out-mem: DATA+0x3 = 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71

; case: rep-stosb-of-16
; in: rax=0x8877665544332211 rdi=DATA+3 rcx=16 flags=CF,PF,AF,ZF,SF,OF
        rep stosb
; out: rcx=0 rdi=DATA+0x13
; out-mem: DATA+0x3 = 11 11 11 11 11 11 11 11 11 11 11 11 11 11 11 11

; case: rep-movsw-of-15
; in: rsi=RO+1 rdi=DATA+3 rcx=15 flags=CF,PF,AF,ZF,SF,OF
; in-mem: RO = 01 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71 78 7f 86 8d 94 9b a2 a9 b0 b7 be c5 cc d3 da e1
        rep movsw
; out: rcx=0 rsi=RO+0x1f rdi=DATA+0x21
; out-mem: DATA+0x3 = 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71
; out-mem: DATA+0x13 = 78 7f 86 8d 94 9b a2 a9 b0 b7 be c5 cc d3

; case: rep-stosw-of-15
; in: rax=0x8877665544332211 rdi=DATA+3 rcx=15 flags=CF,PF,AF,ZF,SF,OF
        rep stosw
; out: rcx=0 rdi=DATA+0x21
; out-mem: DATA+0x3 = 11 22 11 22 11 22 11 22 11 22 11 22 11 22 11 22
; out-mem: DATA+0x13 = 11 22 11 22 11 22 11 22 11 22 11 22 11 22

; case: rep-movsw-of-16
; in: rsi=RO+1 rdi=DATA+3 rcx=16 flags=CF,PF,AF,ZF,SF,OF
; in-mem: RO = 01 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71 78 7f 86 8d 94 9b a2 a9 b0 b7 be c5 cc d3 da e1 e8 ef
        rep movsw
; out: rcx=0 rsi=RO+0x21 rdi=DATA+0x23
; out-mem: DATA+0x3 = 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71
; out-mem: DATA+0x13 = 78 7f 86 8d 94 9b a2 a9 b0 b7 be c5 cc d3 da e1

; case: rep-stosw-of-16
; in: rax=0x8877665544332211 rdi=DATA+3 rcx=16 flags=CF,PF,AF,ZF,SF,OF
        rep stosw
; out: rcx=0 rdi=DATA+0x23
; out-mem: DATA+0x3 = 11 22 11 22 11 22 11 22 11 22 11 22 11 22 11 22
; out-mem: DATA+0x13 = 11 22 11 22 11 22 11 22 11 22 11 22 11 22 11 22

; case: rep-movsd-of-15
; in: rsi=RO+1 rdi=DATA+3 rcx=15 flags=CF,PF,AF,ZF,SF,OF
; in-mem: RO = 01 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71 78 7f 86 8d 94 9b a2 a9 b0 b7 be c5 cc d3 da e1 e8 ef f6 fd 04 0b 12 19 20 27 2e 35 3c 43 4a 51 58 5f 66 6d 74 7b 82 89 90 97 9e a5 ac b3
        rep movsd
; out: rcx=0 rsi=RO+0x3d rdi=DATA+0x3f
; out-mem: DATA+0x3 = 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71
; out-mem: DATA+0x13 = 78 7f 86 8d 94 9b a2 a9 b0 b7 be c5 cc d3 da e1
; out-mem: DATA+0x23 = e8 ef f6 fd 04 0b 12 19 20 27 2e 35 3c 43 4a 51
; out-mem: DATA+0x33 = 58 5f 66 6d 74 7b 82 89 90 97 9e a5

; case: rep-stosd-of-15
; in: rax=0x8877665544332211 rdi=DATA+3 rcx=15 flags=CF,PF,AF,ZF,SF,OF
        rep stosd
; out: rcx=0 rdi=DATA+0x3f
; out-mem: DATA+0x3 = 11 22 33 44 11 22 33 44 11 22 33 44 11 22 33 44
; out-mem: DATA+0x13 = 11 22 33 44 11 22 33 44 11 22 33 44 11 22 33 44
; out-mem: DATA+0x23 = 11 22 33 44 11 22 33 44 11 22 33 44 11 22 33 44
; out-mem: DATA+0x33 = 11 22 33 44 11 22 33 44 11 22 33 44

; case: rep-movsd-of-16
; in: rsi=RO+1 rdi=DATA+3 rcx=16 flags=CF,PF,AF,ZF,SF,OF
; in-mem: RO = 01 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71 78 7f 86 8d 94 9b a2 a9 b0 b7 be c5 cc d3 da e1 e8 ef f6 fd 04 0b 12 19 20 27 2e 35 3c 43 4a 51 58 5f 66 6d 74 7b 82 89 90 97 9e a5 ac b3 ba c1 c8 cf
        rep movsd
; out: rcx=0 rsi=RO+0x41 rdi=DATA+0x43
; out-mem: DATA+0x3 = 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71
; out-mem: DATA+0x13 = 78 7f 86 8d 94 9b a2 a9 b0 b7 be c5 cc d3 da e1
; out-mem: DATA+0x23 = e8 ef f6 fd 04 0b 12 19 20 27 2e 35 3c 43 4a 51
; out-mem: DATA+0x33 = 58 5f 66 6d 74 7b 82 89 90 97 9e a5 ac b3 ba c1

; case: rep-stosd-of-16
; in: rax=0x8877665544332211 rdi=DATA+3 rcx=16 flags=CF,PF,AF,ZF,SF,OF
        rep stosd
; out: rcx=0 rdi=DATA+0x43
; out-mem: DATA+0x3 = 11 22 33 44 11 22 33 44 11 22 33 44 11 22 33 44
; out-mem: DATA+0x13 = 11 22 33 44 11 22 33 44 11 22 33 44 11 22 33 44
; out-mem: DATA+0x23 = 11 22 33 44 11 22 33 44 11 22 33 44 11 22 33 44
; out-mem: DATA+0x33 = 11 22 33 44 11 22 33 44 11 22 33 44 11 22 33 44

; case: rep-movsq-of-15
; in: rsi=RO+1 rdi=DATA+3 rcx=15 flags=CF,PF,AF,ZF,SF,OF
; in-mem: RO = 01 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71 78 7f 86 8d 94 9b a2 a9 b0 b7 be c5 cc d3 da e1 e8 ef f6 fd 04 0b 12 19 20 27 2e 35 3c 43 4a 51 58 5f 66 6d 74 7b 82 89 90 97 9e a5 ac b3 ba c1 c8 cf d6 dd e4 eb f2 f9 00 07 0e 15 1c 23 2a 31 38 3f 46 4d 54 5b 62 69 70 77 7e 85 8c 93 9a a1 a8 af b6 bd c4 cb d2 d9 e0 e7 ee f5 fc 03 0a 11 18 1f 26 2d 34 3b 42 49 50 57
        rep movsq
; out: rcx=0 rsi=RO+0x79 rdi=DATA+0x7b
; out-mem: DATA+0x3 = 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71
; out-mem: DATA+0x13 = 78 7f 86 8d 94 9b a2 a9 b0 b7 be c5 cc d3 da e1
; out-mem: DATA+0x23 = e8 ef f6 fd 04 0b 12 19 20 27 2e 35 3c 43 4a 51
; out-mem: DATA+0x33 = 58 5f 66 6d 74 7b 82 89 90 97 9e a5 ac b3 ba c1
; out-mem: DATA+0x43 = c8 cf d6 dd e4 eb f2 f9 00 07 0e 15 1c 23 2a 31
; out-mem: DATA+0x53 = 38 3f 46 4d 54 5b 62 69 70 77 7e 85 8c 93 9a a1
; out-mem: DATA+0x63 = a8 af b6 bd c4 cb d2 d9 e0 e7 ee f5 fc 03 0a 11
; out-mem: DATA+0x73 = 18 1f 26 2d 34 3b 42 49

; case: rep-stosq-of-15
; in: rax=0x8877665544332211 rdi=DATA+3 rcx=15 flags=CF,PF,AF,ZF,SF,OF
        rep stosq
; out: rcx=0 rdi=DATA+0x7b
; out-mem: DATA+0x3 = 11 22 33 44 55 66 77 88 11 22 33 44 55 66 77 88
; out-mem: DATA+0x13 = 11 22 33 44 55 66 77 88 11 22 33 44 55 66 77 88
; out-mem: DATA+0x23 = 11 22 33 44 55 66 77 88 11 22 33 44 55 66 77 88
; out-mem: DATA+0x33 = 11 22 33 44 55 66 77 88 11 22 33 44 55 66 77 88
; out-mem: DATA+0x43 = 11 22 33 44 55 66 77 88 11 22 33 44 55 66 77 88
; out-mem: DATA+0x53 = 11 22 33 44 55 66 77 88 11 22 33 44 55 66 77 88
; out-mem: DATA+0x63 = 11 22 33 44 55 66 77 88 11 22 33 44 55 66 77 88
; out-mem: DATA+0x73 = 11 22 33 44 55 66 77 88

; case: rep-movsq-of-16
; in: rsi=RO+1 rdi=DATA+3 rcx=16 flags=CF,PF,AF,ZF,SF,OF
; in-mem: RO = 01 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71 78 7f 86 8d 94 9b a2 a9 b0 b7 be c5 cc d3 da e1 e8 ef f6 fd 04 0b 12 19 20 27 2e 35 3c 43 4a 51 58 5f 66 6d 74 7b 82 89 90 97 9e a5 ac b3 ba c1 c8 cf d6 dd e4 eb f2 f9 00 07 0e 15 1c 23 2a 31 38 3f 46 4d 54 5b 62 69 70 77 7e 85 8c 93 9a a1 a8 af b6 bd c4 cb d2 d9 e0 e7 ee f5 fc 03 0a 11 18 1f 26 2d 34 3b 42 49 50 57 5e 65 6c 73 7a 81 88 8f
        rep movsq
; out: rcx=0 rsi=RO+0x81 rdi=DATA+0x83
; out-mem: DATA+0x3 = 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71
; out-mem: DATA+0x13 = 78 7f 86 8d 94 9b a2 a9 b0 b7 be c5 cc d3 da e1
; out-mem: DATA+0x23 = e8 ef f6 fd 04 0b 12 19 20 27 2e 35 3c 43 4a 51
; out-mem: DATA+0x33 = 58 5f 66 6d 74 7b 82 89 90 97 9e a5 ac b3 ba c1
; out-mem: DATA+0x43 = c8 cf d6 dd e4 eb f2 f9 00 07 0e 15 1c 23 2a 31
; out-mem: DATA+0x53 = 38 3f 46 4d 54 5b 62 69 70 77 7e 85 8c 93 9a a1
; out-mem: DATA+0x63 = a8 af b6 bd c4 cb d2 d9 e0 e7 ee f5 fc 03 0a 11
; out-mem: DATA+0x73 = 18 1f 26 2d 34 3b 42 49 50 57 5e 65 6c 73 7a 81

; case: rep-stosq-of-16
; in: rax=0x8877665544332211 rdi=DATA+3 rcx=16 flags=CF,PF,AF,ZF,SF,OF
        rep stosq
; out: rcx=0 rdi=DATA+0x83
; out-mem: DATA+0x3 = 11 22 33 44 55 66 77 88 11 22 33 44 55 66 77 88
; out-mem: DATA+0x13 = 11 22 33 44 55 66 77 88 11 22 33 44 55 66 77 88
; out-mem: DATA+0x23 = 11 22 33 44 55 66 77 88 11 22 33 44 55 66 77 88
; out-mem: DATA+0x33 = 11 22 33 44 55 66 77 88 11 22 33 44 55 66 77 88
; out-mem: DATA+0x43 = 11 22 33 44 55 66 77 88 11 22 33 44 55 66 77 88
; out-mem: DATA+0x53 = 11 22 33 44 55 66 77 88 11 22 33 44 55 66 77 88
; out-mem: DATA+0x63 = 11 22 33 44 55 66 77 88 11 22 33 44 55 66 77 88
; out-mem: DATA+0x73 = 11 22 33 44 55 66 77 88 11 22 33 44 55 66 77 88

; case: overlapping-rep-movsw-reads-what-it-wrote
; in: rsi=DATA rdi=DATA+1 rcx=6 flags=ZF
; in-mem: DATA = 01 08 0f 16 1d 24 2b 32 39 40 47 4e
        rep movsw
; out: rcx=0 rsi=DATA+0xc rdi=DATA+0xd
; out-mem: DATA+0x1 = 01 08 08 16 16 24 24 32 32 40 40 4e

; case: overlapping-rep-movsd-reads-what-it-wrote
; in: rsi=DATA rdi=DATA+3 rcx=6 flags=ZF
; in-mem: DATA = 01 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71 78 7f 86 8d 94 9b a2
        rep movsd
; out: rcx=0 rsi=DATA+0x18 rdi=DATA+0x1b
; out-mem: DATA+0x3 = 01 08 0f 16 08 0f 16 32 0f 16 32 4e 16 32 4e 6a
; out-mem: DATA+0x13 = 32 4e 6a 86 4e 6a 86 a2

; case: overlapping-rep-movsq-reads-what-it-wrote
; in: rsi=DATA rdi=DATA+7 rcx=6 flags=ZF
; in-mem: DATA = 01 08 0f 16 1d 24 2b 32 39 40 47 4e 55 5c 63 6a 71 78 7f 86 8d 94 9b a2 a9 b0 b7 be c5 cc d3 da e1 e8 ef f6 fd 04 0b 12 19 20 27 2e 35 3c 43 4a
        rep movsq
; out: rcx=0 rsi=DATA+0x30 rdi=DATA+0x37
; out-mem: DATA+0x7 = 01 08 0f 16 1d 24 2b 32 08 0f 16 1d 24 2b 32 6a
; out-mem: DATA+0x17 = 0f 16 1d 24 2b 32 6a a2 16 1d 24 2b 32 6a a2 da
; out-mem: DATA+0x27 = 1d 24 2b 32 6a a2 da 12 24 2b 32 6a a2 da 12 4a

; case: rep-movsd-up-to-the-end-of-a-page
; in: rsi=RO+0xff8 rdi=DATA2-8 rcx=2 flags=SF
; in-mem: RO+0xff8 = u32:0x11223344,0x55667788
        rep movsd
; out: rcx=0 rsi=RO+0x1000 rdi=DATA+0x1000
; out-mem: DATA+0xff8 = 44 33 22 11 88 77 66 55

; case: rep-movsd-behind-the-end-of-a-page-by-a-byte
; in: rsi=RO+0xff0 rdi=DATA2-7 rcx=2 flags=SF
; in-mem: RO+0xff0 = u32:0x11223344,0x55667788
        rep movsd
; out: rcx=0 rsi=RO+0xff8 rdi=DATA+0x1001
; out-mem: DATA+0xff9 = 44 33 22 11 88 77 66 55

; case: few-movsq-fault-in-the-middle
; in: rsi=RO rdi=ABSENT-20 rcx=4 flags=CF,OF
; in-mem: RO = u64:1,2,3,4
.here:  rep movsq
; fault: #PF(6) at .here
; out: rcx=2 rsi=RO+0x10 rdi=DATA+0x1ffc cr2=ABSENT
; out-mem: DATA+0x1fec = 01
; out-mem: DATA+0x1ff4 = 02

; case: rep-with-zero-count-does-nothing
; in: rsi=ABSENT rdi=ABSENT
        rep movsq
; out: unchanged

; case: overlapping-copy-by-bytes-replicates
; in: rsi=DATA rdi=DATA+1 rcx=7
; in-mem: DATA = 11 22 33 44
        rep movsb
; out: rcx=0 rsi=DATA+0x7 rdi=DATA+0x8
; out-mem: DATA+0x1 = 11 11 11 11 11 11 11

; case: rep-movsw-crossing-pages
; in: rsi=RO rdi=DATA2-3 rcx=3
; in-mem: RO = 01 02 03 04 05 06
        rep movsw
; out: rcx=0 rsi=RO+0x6 rdi=DATA+0x1003
; out-mem: DATA+0xffd = 01 02 03 04 05 06

; case: rep-movsb-faults-in-the-middle-of-the-destination
; in: rsi=RO rdi=ABSENT-3 rcx=8
; in-mem: RO = 01 02 03 04 05 06 07 08
.here:  rep movsb
; fault: #PF(6) at .here
; out: rcx=5 rsi=RO+0x3 rdi=ABSENT cr2=ABSENT
; out-mem: DATA+0x1ffd = 01 02 03

; case: rep-movsb-faults-in-the-middle-of-the-source
; in: rsi=RO+0xffe rdi=DATA rcx=8
; in-mem: RO+0xffe = 77 88
.here:  rep movsb
; fault: #PF(4) at .here
; out: rcx=6 rsi=RO+0x1000 rdi=DATA+0x2 cr2=RO+0x1000
; out-mem: DATA = 77 88

; case: rep-stosd-runs-into-absent-page
; in: rax=0xa5a5a5a5 rdi=ABSENT-8 rcx=5
.here:  rep stosd
; fault: #PF(6) at .here
; out: rcx=3 rdi=ABSENT cr2=ABSENT
; out-mem: DATA+0x1ff8 = a5 a5 a5 a5 a5 a5 a5 a5

; case: rep-stosq-with-address-size-32
; in: rax=-1 rdi=0x1_01010000 rcx=0x1_00000002
        a32 rep stosq
; out: rcx=0 rdi=DATA+0x10
; out-mem: DATA = ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff ff

; case: stosb-keeps-upper-rdi-in-64-bit-addressing
; in: rax=0x41 rdi=DATA
        stosb
; out: rdi=DATA+0x1
; out-mem: DATA = 41

; case: lodsb-keeps-upper-bits
; in: rax=-1 rsi=DATA
; in-mem: DATA = 12
        lodsb
; out: rax=0xffffffffffffff12 rsi=DATA+0x1

; case: lodsd-clears-upper-half
; in: rax=-1 rsi=DATA
; in-mem: DATA = u32:0x12345678
        lodsd
; out: rax=0x12345678 rsi=DATA+0x4

; case: rep-lodsb-loads-the-last
; in: rsi=DATA rcx=3
; in-mem: DATA = 01 02 03 04
        rep lodsb
; out: rax=3 rcx=0 rsi=DATA+0x3

; case: lodsb-with-fs-override-null-base
; host: no, the base of FS is the C library's
; in: rsi=DATA
; in-mem: DATA = 42
        fs lodsb
; out: rax=0x42 rsi=DATA+0x1

; case: repe-cmpsb-stops-at-difference
; in: rsi=DATA rdi=DATA+0x10 rcx=8
; in-mem: DATA = 01 02 03 04
; in-mem: DATA+0x10 = 01 02 04 04
        repe cmpsb
; out: rcx=5 rsi=DATA+0x3 rdi=DATA+0x13 flags=CF,PF,AF,SF

; case: repe-cmpsb-runs-out
; in: rsi=DATA rdi=DATA+0x10 rcx=4
; in-mem: DATA = 01 02 03 04
; in-mem: DATA+0x10 = 01 02 03 04
        repe cmpsb
; out: rcx=0 rsi=DATA+0x4 rdi=DATA+0x14 flags=PF,ZF

; case: repne-cmpsw-stops-at-equal
; in: rsi=DATA rdi=DATA+0x10 rcx=4
; in-mem: DATA = u16:1,2,3,4
; in-mem: DATA+0x10 = u16:9,9,3,9
        repne cmpsw
; out: rcx=1 rsi=DATA+0x6 rdi=DATA+0x16 flags=PF,ZF

; case: repe-cmpsb-with-zero-count-keeps-flags
; in: flags=CF,SF
        repe cmpsb
; out: unchanged

; case: cmpsd-compares-source-with-destination
; in: rsi=DATA rdi=DATA+4
; in-mem: DATA = u32:1,2
        cmpsd
; out: rsi=DATA+0x4 rdi=DATA+0x8 flags=CF,PF,AF,SF

; case: repne-scasb-strlen
; in: rdi=DATA rcx=-1 rax=0
; in-mem: DATA = 61 62 63 00
        repne scasb
; out: rcx=0xfffffffffffffffb rdi=DATA+0x4 flags=PF,ZF

; case: repne-scasb-whose-count-leads-out-of-the-page
; in: rax=0 rcx=-1 rdi=DATA+0x3 rdx=1
; in-mem: DATA = 61 62 63 64 65 66 67 68
        repne scasb
; out: rcx=0xfffffffffffffff9 rdi=DATA+0x9 flags=PF,ZF

; case: repe-scasb-that-meets-another-byte
; in: rax=0x61 rcx=-1 rdi=DATA
; in-mem: DATA = 61 61 61 62
        repe scasb
; out: rcx=0xfffffffffffffffb rdi=DATA+0x4 flags=CF,PF,AF,SF

; case: repe-scasb-in-32-bit-code
; mode: pm32
; in: rax=0x61 rcx=-1 rdi=DATA
; in-mem: DATA = 61 61 61 62
        repe scasb
; out: ecx=0xfffffffb edi=DATA+0x4 flags=CF,PF,AF,SF

; case: repne-scasb-whose-count-ends-first
; mode: pm32
; in: rax=0x7a rcx=5 rdi=DATA
; in-mem: DATA = 61 62 63 64 65 66 67 68
        repne scasb
; out: ecx=0 edi=DATA+0x5

; case: repe-scasd-backward
; in: rdi=DATA+8 rcx=3 rax=7 flags=DF
; in-mem: DATA = u32:1,7,7
        repe scasd
; out: rcx=0 rdi=0x100fffc flags=PF,DF

; case: scasb-faults-in-the-middle
; vendor: intel
; qemu-differs: leaves the flags of the last comparison; SDM vol. 2B, "REP": EFLAGS are as before the instruction
; in: rdi=ABSENT-2 rcx=5 rax=9
.here:  repne scasb
; fault: #PF(4) at .here
; out: rcx=3 rdi=ABSENT cr2=ABSENT

; case: scasb-faults-in-the-middle-on-amd
; vendor: amd
; in: rdi=ABSENT-2 rcx=5 rax=9
.here:  repne scasb
; fault: #PF(4) at .here
; out: rcx=3 rdi=ABSENT flags=PF cr2=ABSENT

; case: rep-movsb-of-nothing-truncates-registers
; vendor: intel
; qemu-differs: leaves them; as measured, Intel's processors write what the address size leaves of them
; in: rsi=0x1100000004 rdi=0x2200000008 rcx=0x3300000000
        a32 rep movsb
; out: rcx=0 rsi=4 rdi=8

; case: rep-movsb-of-nothing-on-amd
; vendor: amd
; in: rsi=0x1100000004 rdi=0x2200000008 rcx=0x3300000000
        a32 rep movsb
; out: unchanged

; case: rep-movsb-16-bit-addresses-wrap
; mode: real
; in: esi=0x1ffff edi=0x3 ecx=0x10002
; in-mem: DATA16 = 22
; in-mem: DATA16+0xffff = 11
        rep movsb
; out: ecx=0x10000 esi=0x10001 edi=5
; out-mem: EXTRA16+0x3 = 11 22

; case: rep-movsw-of-few-keeps-upper-halves
; mode: real
; in: esi=0x55550010 edi=0x66660020 ecx=0x77770003 flags=CF,ZF
; in-mem: DATA16+0x10 = u16:0x1111,0x2222,0x3333
        rep movsw
; out: ecx=0x77770000 esi=0x55550016 edi=0x66660026
; out-mem: EXTRA16+0x20 = 11 11 22 22 33 33

; case: rep-stosd-of-few-keeps-upper-halves
; mode: pm16
; in: eax=0x12345678 edi=0x66660020 ecx=0x77770003 flags=CF,ZF
        rep stosd
; out: ecx=0x77770000 edi=0x6666002c
; out-mem: EXTRA16+0x20 = 78 56 34 12 78 56 34 12 78 56 34 12

; case: rep-stosb-source-override-does-not-move-destination
; mode: real
; in: eax=0x77 edi=4 ecx=2
        ds rep stosb
; out: ecx=0 edi=6
; out-mem: EXTRA16+0x4 = 77 77

; case: movsw-with-es-source-override
; mode: real
; in: esi=2 edi=8
; in-mem: EXTRA16+2 = 34 12
        es movsw
; out: esi=4 edi=0xa
; out-mem: EXTRA16+0x8 = 34 12

; case: rep-movsd-with-32-bit-addresses-in-real-mode
; mode: real
; in: esi=0x10 edi=0x20 ecx=2
; in-mem: DATA16+0x10 = u32:0x11111111,0x22222222
        a32 rep movsd
; out: ecx=0 esi=0x18 edi=0x28
; out-mem: EXTRA16+0x20 = 11 11 11 11 22 22 22 22

; case: insb-at-cpl-3-without-permission
; in: rdx=0x60 rdi=DATA
.here:  insb
; fault: #GP(0) at .here

; case: rep-outsb-with-zero-count-still-checks-permission
; host: no, CPUs disagree whether a count of zero checks the port
; in: rdx=0x60 rsi=DATA rcx=1
.here:  rep outsb
; fault: #GP(0) at .here
