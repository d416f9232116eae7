; A boot sector that reads the 8 MiB behind it by the firmware, 32 KiB a call, again and again.
;
; It writes to COM1, as eight hexadecimal digits a line: the sum of all that it read, in words of 32 bits; then for
; each further time how long that took, in ticks of the ACPI timer (3.579545 MHz). Then it ends the machine through
; the debug-exit port: with 0 if all went well, else with 1. Follows the BIOS Enhanced Disk Drive Specification,
; function 42h.

        org 0x7c00
        bits 16
        %include "boot.inc"

SECTORS  equ 64                 ; a call
CALLS    equ 256
ROUNDS   equ 8
PLACE    equ 0x1000             ; what it is read to
PM_TIMER equ 0x608

start:  begin
        call    line            ; behind what the firmware wrote

        ; Once to add it up, which the times are then free of.
        xor     ebp, ebp
        mov     di, sum
        call    pass
        mov     eax, ebp
        call    print
        mov     bx, ROUNDS
.time:  push    bx
        mov     di, nothing
        mov     dx, PM_TIMER
        in      eax, dx
        push    eax
        call    pass
        mov     dx, PM_TIMER
        in      eax, dx
        pop     ecx
        sub     eax, ecx
        and     eax, 0xffffff   ; all timers have 24 bits
        call    print
        pop     bx
        dec     bx
        jnz     .time
        xor     ax, ax
exit:   out     0xf4, al
        hlt
        jmp     exit

; Reads all, and calls DI for each piece.
pass:   mov     dword [packet.sector], 1
        mov     cx, CALLS
.call:  pushad
        mov     ah, 0x42
        mov     dl, [drive]
        mov     si, packet
        int     0x13
        popad
        mov     al, 1
        jc      exit
        call    di
        add     dword [packet.sector], SECTORS
        loop    .call
        ret

; Adds a piece to EBP.
sum:    push    ds
        push    cx
        push    PLACE
        pop     ds
        xor     si, si
        mov     cx, SECTORS * 512 / 4
.add:   lodsd
        add     ebp, eax
        loop    .add
        pop     cx
        pop     ds
nothing:
        ret

; Writes EAX and a new line.
print:  mov     cx, 8
.digit: rol     eax, 4
        mov     bl, al
        and     bx, 15
        mov     bl, [digits + bx]
        call    put
        loop    .digit
line:   mov     bl, 10
        jmp     put

        shared
digits: db      "0123456789abcdef"

        align   4
packet: db      16, 0
        dw      SECTORS, 0, PLACE
.sector:
        dd      0, 0

        times   510 - ($ - $$) db 0
        dw      0xaa55
