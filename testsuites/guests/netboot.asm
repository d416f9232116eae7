; A program that the network's boot firmware loads: says so on the serial port and ends the machine.
;
; Loaded at 0x7c00 as the Preboot Execution Environment has it (Intel, PXE 2.1, "Network Bootstrap Program").

        org 0x7c00
        bits 16

start:  mov     si, words
        mov     dx, 0x3f8
next:   cs      lodsb
        test    al, al
        jz      done
        out     dx, al
        jmp     next
done:   mov     dx, 0xf4
        mov     al, 20
        out     dx, al
stop:   hlt
        jmp     stop

words:  db      "loaded over the network", 13, 10, 0

        ; More than one block of a transfer, of any size that is agreed on.
        times 5000 - ($ - $$) db 0x90
