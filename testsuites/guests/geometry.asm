; A boot sector that says by which cylinders, heads and sectors the firmware knows its drive, and reads the third
; sector by them.
;
; It writes to COM1: the cylinders, heads and sectors of a track, each in four hexadecimal digits, and the text in the
; third sector. It ends the machine through the debug-exit port: with 0 if all went well.
; Follows Ralf Brown's interrupt list, INT 13h functions 02h and 08h.

        org 0x7c00
        bits 16
        %include "boot.inc"

BUFFER  equ 0x8000

start:  begin

        mov     ah, 0x08
        int     0x13
        mov     al, 1
        jc      end
        mov     [heads], dh
        mov     al, cl          ; the cylinder's upper bits
        shr     al, 6
        mov     ah, al
        mov     al, ch
        inc     ax
        and     cx, 0x3f
        push    cx
        call    number
        movzx   ax, byte [heads]
        inc     ax
        call    number
        pop     ax
        call    number

        xor     ax, ax
        mov     es, ax
        mov     bx, BUFFER
        mov     ax, 0x0201
        mov     cx, 3           ; cylinder 0, sector 3
        mov     dh, 0
        mov     dl, [drive]
        int     0x13
        mov     al, 2
        jc      end
        mov     si, BUFFER
.next:  lodsb
        test    al, al
        jz      .done
        mov     bl, al
        call    put
        jmp     .next
.done:  mov     al, 0
end:    mov     dx, 0xf4
        out     dx, al
        cli
        hlt

; AX in hexadecimal and a space.
number: mov     cx, 4
.digit: rol     ax, 4
        push    ax
        and     al, 15
        cmp     al, 10
        sbb     al, 0x69
        das
        or      al, 0x20        ; small letters
        mov     bl, al
        call    put
        pop     ax
        loop    .digit
        mov     bl, ' '
        jmp     put

        shared
heads   db      0

        times 510 - ($ - $$) db 0
        dw      0xaa55
