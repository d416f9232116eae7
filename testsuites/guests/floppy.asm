; A floppy's boot sector that reads the rest of itself, writes a sector and reads it back, by the firmware.
;
; It writes a letter to COM1 for each step, and the text from the floppy's second cylinder; then it ends the
; machine through the debug-exit port: with 0 if all went well, else with the letter of the step that failed.
; Follows Ralf Brown's interrupt list, INT 13h functions 02h, 03h and 08h.

        org 0x7c00
        bits 16
        %include "boot.inc"

PER_TRACK equ 18
CYLINDER  equ PER_TRACK * 2     ; sectors of a cylinder of 1440 KiB
FAR_TEXT  equ 0x8000
BUFFER    equ 0xa000

start:  begin

        ; The drive is what the image is: 80 cylinders of two sides with 18 sectors.
        mov     ah, 0x08
        int     0x13
        mov     bl, 'a'
        jc      fail
        cmp     cx, 0x4f12
        jne     fail
        cmp     dh, 1
        jne     fail
        call    put

        ; Eight sectors over the end of a side, and from another cylinder.
        mov     bl, 'b'
        xor     ax, ax
        mov     es, ax
        mov     bx, FAR_TEXT
        mov     ax, 0x0208
        mov     cx, 0x0101      ; cylinder 1, sector 1
        mov     dh, 0
        mov     dl, [drive]
        int     0x13
        mov     bl, 'b'
        jc      fail
        call    put
        mov     si, FAR_TEXT
.text:  lodsb
        test    al, al
        jz      .read
        mov     bl, al
        call    put
        jmp     .text
.read:  cmp     word [FAR_TEXT + 7 * 512], 0x1234
        mov     bl, 'c'
        jne     fail
        call    put

        ; The last sector of the disk, there and back.
        mov     di, BUFFER
        mov     cx, 256
        mov     ax, 0x5aa5
        rep stosw
        mov     ax, 0x0301
        call    last
        mov     bl, 'd'
        jc      fail
        call    put
        mov     di, BUFFER
        mov     cx, 256
        xor     ax, ax
        rep stosw
        mov     ax, 0x0201
        call    last
        mov     bl, 'e'
        jc      fail
        cmp     word [BUFFER + 510], 0x5aa5
        jne     fail
        call    put
        ; A sector that isn't there.
        mov     ax, 0x0201
        mov     bx, BUFFER
        mov     cx, 0x0013
        mov     dh, 0
        mov     dl, [drive]
        int     0x13
        mov     bl, 'f'
        jnc     fail
        call    put
        mov     bl, 0
fail:   mov     al, bl
        out     0xf4, al
.stop:  hlt
        jmp     .stop

last:   mov     bx, BUFFER
        mov     cx, 0x4f12
        mov     dh, 1
        mov     dl, [drive]
        int     0x13
        ret

        shared

        times 510 - ($ - $$) db 0
        dw      0xaa55

        times CYLINDER * 512 - ($ - $$) db 0
        db      " text from the second cylinder ", 0
        times (CYLINDER + 7) * 512 - ($ - $$) db 0
        dw      0x1234
        times (CYLINDER + 8) * 512 - ($ - $$) db 0
