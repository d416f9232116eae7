; A boot sector that resets the machine in all the ways there are, and knows from the clock's memory which is next.
;
; It writes a letter to COM1 at each start and switches the power off at the last.
; Follows the Intel 82371SB data sheet ("Reset control"; a processor's shutdown is a reset) and the PS/2 technical
; reference ("System control port A", "Keyboard controller, pulse output port").

        org 0x7c00
        bits 16

COUNT   equ 0x60                ; in the clock's memory

start:  cli
        xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 0x7c00

        mov     al, COUNT
        out     0x70, al
        in      al, 0x71
        mov     bl, al
        mov     al, COUNT
        out     0x70, al
        mov     al, bl
        inc     al
        out     0x71, al

        mov     dx, 0x3f8
        mov     al, 'a'
        add     al, bl
        out     dx, al

        cmp     bl, 0
        je      fault
        cmp     bl, 1
        je      control
        cmp     bl, 2
        je      port_a
        cmp     bl, 3
        je      pulse
        cmp     bl, 4
        je      vector
        mov     dx, 0x604       ; soft off
        mov     ax, 0x2000
        out     dx, ax
stop:   hlt
        jmp     stop

fault:  lidt    [nothing]
        int3
control:
        mov     dx, 0xcf9
        mov     al, 6
        out     dx, al
        jmp     stop
port_a: in      al, 0x92
        or      al, 1
        out     0x92, al
        jmp     stop
pulse:  in      al, 0x64
        test    al, 2
        jnz     pulse
        mov     al, 0xfe
        out     0x64, al
        jmp     stop
vector: jmp     0xffff:0

nothing:
        dw      0, 0, 0

        times 510-($-$$) db 0
        dw      0xaa55
