; A boot sector that draws: text in colour, then the keys it is given, then 320x200 in 256 colours, then
; 640x480 in 16 colours. A key leads from one picture to the next.
;
; Modes and keys by the BIOS (IBM PC AT Technical Reference, INT 10h and 16h), pictures by its own stores.

        org 0x7c00
        bits 16

start:  xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 0x7c00
        mov     ax, 0x0003
        int     0x10

        ; Yellow on blue at row 10, column 20, stored into the text memory.
        push    word 0xb800
        pop     es
        mov     si, words
        mov     di, (10 * 80 + 20) * 2
        mov     ah, 0x1e
.next:  lodsb
        test    al, al
        jz      .key
        stosw
        jmp     .next
        ; What is typed appears behind it; Enter ends that.
.key:   push    ax
        xor     ah, ah
        int     0x16
        cmp     al, 13
        je      colours
        mov     dl, al
        pop     ax
        mov     al, dl
        stosw
        jmp     .key

        ; Each line of 320 bytes in the colour of its number.
colours: mov    ax, 0x0013
        int     0x10
        push    word 0xa000
        pop     es
        xor     di, di
        xor     ax, ax
.line:  mov     cx, 320
        rep     stosb
        inc     al
        cmp     al, 200
        jb      .line
        xor     ah, ah
        int     0x16

        ; Plane by plane: the left half white on the first line, by set/reset.
        mov     ax, 0x0012
        int     0x10
        mov     dx, 0x3ce
        mov     ax, 0x0f00
        out     dx, ax
        mov     ax, 0x0f01
        out     dx, ax
        xor     di, di
        mov     cx, 40
        rep     stosb
stop:   hlt
        jmp     stop

words:  db      "Drawn by the guest: ", 0

        times 510 - ($ - $$) db 0
        dw      0xaa55
