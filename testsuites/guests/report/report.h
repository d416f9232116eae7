/* What both report guests share: the serial line and small words. */
#ifndef REPORT_H
#define REPORT_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

static inline void out8(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline u8 in8(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static void put(char c)
{
    while (!(in8(0x3fd) & 0x20)) {
    }
    out8(0x3f8, (u8)c);
}

static void text(const char *s)
{
    while (*s)
        put(*s++);
}

/* A number in hexadecimal, without leading zeros. */
static void hex(u64 value)
{
    int shift = 60;
    while (shift > 0 && !(value >> shift & 15))
        shift -= 4;
    for (; shift >= 0; shift -= 4)
        put("0123456789abcdef"[value >> shift & 15]);
}

static void word(const char *name, u64 value)
{
    put(' ');
    text(name);
    put('=');
    hex(value);
}

static void *copy(void *to, const void *from, u32 len)
{
    u8 *d = to;
    const u8 *s = from;
    while (len--)
        *d++ = *s++;
    return to;
}

/* GCC may call them by itself. */
void *memcpy(void *to, const void *from, unsigned long len) { return copy(to, from, (u32)len); }
void *memset(void *to, int value, unsigned long len)
{
    u8 *d = to;
    while (len--)
        *d++ = (u8)value;
    return to;
}

#endif
