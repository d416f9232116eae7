; INT3, INT n, ICEBP, UD: software interrupts and their return addresses.
; SDM vol. 2A, "INT n/INTO/INT3/INT1-Call to Interrupt Procedure"; vol. 3, "Exception and Interrupt Reference".
; mode: long64 cpl=3

; case: int3
        int3
.after:
; fault: #BP at end

; case: int-3-two-byte-form
        db 0xcd, 3
.after:
; fault: #BP at end

; case: int-n-with-gate-of-dpl-0
; qemu-differs: error code vector * 16 + 2 in long mode; SDM vol. 3, "Error Code": vector index in bits 3 and up, IDT flag
.here:  int 0x40
; fault: #GP(0x202) at .here

; case: int-n-with-gate-of-dpl-3
; host: no, a system call there
        int 0x80
.after:
; fault: int 0x80 at end

; case: int-1-two-byte-form-needs-gate-dpl-3
; qemu-differs: error code vector * 16 + 2 in long mode; SDM vol. 3, "Error Code"
.here:  int 1
; fault: #GP(0xa) at .here

; case: icebp-skips-the-privilege-check
; host: no, KVM on AMD reports the instruction's own address
; qemu-differs: stops for a debugger of its own; SDM vol. 2A, "INT1": #DB after the instruction
        db 0xf1
.after:
; fault: #DB at end

; case: ud2
        nop
.here:  ud2
; fault: #UD at .here

; case: ud1-register
.here:  db 0x0f, 0xb9, 0xc0
; fault: #UD at .here

; case: int3-in-32-bit-code
; mode: pm32 cpl=3
        int3
.after:
; fault: #BP at end

; case: int-n-in-real-mode
; mode: real
        int 0x21
.after:
; fault: int 0x21 at end

; case: int-n-in-v86-with-iopl-0
; mode: v86
.here:  int 0x21
; fault: #GP(0) at .here

; case: int3-in-v86-needs-no-iopl
; mode: v86
        int3
.after:
; fault: #BP at end

; case: length-limit-of-15-bytes
.here:  times 14 db 0x66
        nop                             ; 15 bytes: allowed
; out: unchanged

; case: length-limit-exceeded
.here:  times 15 db 0x66
        nop
; fault: #GP(0) at .here
