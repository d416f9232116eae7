/* The first program of a guest whose boot is timed: says so and waits, or, called as /off, switches the machine off.
 * Without a C library, so that a compiler for 64-bit code alone can build it for 32 bits, too. */
static long call(long number, long a, long b, long c) {
    long result;
#ifdef __x86_64__
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
#else
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
#endif
    return result;
}

#ifdef __x86_64__
enum { WRITE = 1, PAUSE = 34, REBOOT = 169 };
#else
enum { WRITE = 4, PAUSE = 29, REBOOT = 88 };
#endif

void _start(void) {
    static const char text[] = "init: the guest is up\n";
    call(WRITE, 1, (long)text, sizeof text - 1);
#ifdef OFF
    call(REBOOT, (long)0xfee1dead, 0x28121969, 0x4321fedc);
#endif
    for (;;)
        call(PAUSE, 0, 0, 0);
}
