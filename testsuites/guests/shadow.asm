; A boot sector that tries what the chip set does with addresses: line 20 and the ROM's shadow.
;
; It writes a letter to COM1 for each thing that is as it should be, then switches the power off; the first thing
; that is not ends the machine through the debug-exit port with the letter's number.
; Follows the Intel 82441FX data sheet ("PAM") and the PS/2 technical reference ("Address line 20").

        org 0x7c00
        bits 16

LOW     equ 0x600               ; 0000:0600
HIGH    equ 0x610               ; ffff:0610, the same but for line 20
ENTRY   equ 0xfff0              ; f000:fff0, where processors start

%macro  expect 1                ; goes on if equal
        mov     bl, %1
        jne     fail
        call    print
%endmacro

start:  xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 0x7c00
        dec     ax
        mov     es, ax

        ; Port 0x92 closes the gate: what goes to 1 MiB and above wraps around.
        mov     byte [LOW], 0x11
        in      al, 0x92
        and     al, 0xfc
        out     0x92, al
        mov     byte [es:HIGH], 0x22
        cmp     byte [LOW], 0x22
        expect  'a'
        ; ... and opens it.
        in      al, 0x92
        or      al, 2
        out     0x92, al
        mov     byte [es:HIGH], 0x33
        cmp     byte [LOW], 0x22
        expect  'b'
        ; The keyboard controller has the same gate.
        mov     al, 0xdd
        call    i8042
        mov     byte [es:HIGH], 0x44
        cmp     byte [LOW], 0x44
        expect  'c'
        mov     al, 0xdf
        call    i8042
        cmp     byte [es:HIGH], 0x33
        expect  'd'

        ; The firmware runs from RAM that it has locked.
        mov     ax, 0xf000
        mov     es, ax
        mov     cl, [es:ENTRY]
        mov     byte [es:ENTRY], 0x99
        cmp     [es:ENTRY], cl
        expect  'e'
        ; Unlocked, it takes stores. No interrupts from here: their handlers are there.
        cli
        mov     al, 0x30
        call    pam
        mov     byte [es:ENTRY], 0x99
        cmp     byte [es:ENTRY], 0x99
        setz    ch
        ; Reads from the ROM, writes to RAM: the ROM's byte is still the old one.
        mov     al, 0x20
        call    pam
        cmp     [es:ENTRY], cl
        setz    dh
        mov     [es:ENTRY], cl
        mov     al, 0x10
        call    pam
        cmp     [es:ENTRY], cl
        setz    dl
        sti
        and     ch, dh
        and     ch, dl
        cmp     ch, 1
        expect  'f'
        ; Where there is no ROM, nobody answers while reads go to the bus.
        mov     eax, 0x8000005c
        mov     dx, 0xcf8
        out     dx, eax
        mov     al, 0           ; 0xd0000 to 0xd7fff
        mov     dx, 0xcfc
        out     dx, al
        mov     ax, 0xd000
        mov     es, ax
        cmp     byte [es:0], 0xff
        expect  'g'

        mov     dx, 0x604       ; soft off
        mov     ax, 0x2000
        out     dx, ax
        hlt

fail:   mov     al, bl
        out     0xf4, al
        hlt

print:  mov     al, bl
        mov     dx, 0x3f8
        out     dx, al
        ret

i8042:  push    ax
.busy:  in      al, 0x64
        test    al, 2
        jnz     .busy
        pop     ax
        out     0x64, al
        ret

pam:    push    dx              ; attribute register 0 = al
        push    ax
        mov     eax, 0x80000058
        mov     dx, 0xcf8
        out     dx, eax
        pop     ax
        mov     dx, 0xcfd
        out     dx, al
        pop     dx
        ret

        times   510 - ($ - $$) db 0
        dw      0xaa55
