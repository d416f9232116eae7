/*
 * The 64-bit report guest: paging rights at every level, accessed and dirty bits, INVLPG and its kin,
 * interrupt gates, single-step and breakpoints, code that changes, code over page ends.
 *
 * Every line is one small experiment with all its variations; who runs it must print the same (or be in the
 * table of testsuites/src/report.rs).
 */
#include "report.h"

struct event {
    u64 vector, error, rip, cs, rflags, rsp, ss, cr2, stack, rax, rcx, rbx, handler_flags;
};
extern volatile struct event event;
extern u64 gdt[], idt[], pml4[];
extern u8 tss[], kernel_top[], ist_top[];

extern int run_at(int cpl, u64 rip, u64 rdi, u64 rsi, u64 rflags, u64 cs, u64 ss, u64 rsp);

#define PAGE __attribute__((aligned(4096)))
static u64 t3[512] PAGE, t2[512] PAGE, t1[512] PAGE;    /* the victim's tables */
static u64 s3[512] PAGE, s2[512] PAGE, s1[512] PAGE;    /* sound ones, for code and stack */
static u8 frame[2][4096] PAGE, code[2][4096] PAGE, stack[4096] PAGE;
static u8 big[2][0x200000] __attribute__((aligned(0x200000)));

#define VICTIM 0x8000000000ull                          /* PML4 entry 1 */
#define SOUND 0x10000000000ull                          /* PML4 entry 2 */
#define USER_CODE (SOUND + 0x0000)
#define KERNEL_CODE (SOUND + 0x4000)
#define USER_STACK (SOUND + 0x9000)
#define ALIAS (SOUND + 0xa000)                          /* the code pages again, writable */

enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40, PS = 0x80, G = 0x100 };
#define NX (1ull << 63)
#define RSVD (1ull << 51)

static u64 cr0(void) { u64 v; __asm__ volatile("mov %%cr0, %0" : "=r"(v)); return v; }
static u64 cr4(void) { u64 v; __asm__ volatile("mov %%cr4, %0" : "=r"(v)); return v; }
static void set_cr0(u64 v) { __asm__ volatile("mov %0, %%cr0" : : "r"(v) : "memory"); }
static void set_cr4(u64 v) { __asm__ volatile("mov %0, %%cr4" : : "r"(v) : "memory"); }
static void flush(void)
{
    u64 v;
    __asm__ volatile("mov %%cr3, %0; mov %0, %%cr3" : "=r"(v) : : "memory");
}
static void invlpg(u64 va) { __asm__ volatile("invlpg (%0)" : : "r"(va) : "memory"); }
static void set_dr7(u64 v) { __asm__ volatile("mov %0, %%dr7" : : "r"(v)); }
static void set_dr6(u64 v) { __asm__ volatile("mov %0, %%dr6" : : "r"(v)); }
static u64 dr6(void) { u64 v; __asm__ volatile("mov %%dr6, %0" : "=r"(v)); return v; }
static void set_dr0(u64 v) { __asm__ volatile("mov %0, %%dr0" : : "r"(v)); }
static void set_dr1(u64 v) { __asm__ volatile("mov %0, %%dr1" : : "r"(v)); }

static u64 at(const void *p) { return (u64)p; }

#define SMEP (1ull << 20)
#define SMAP (1ull << 21)
#define FLAG_AC (1ull << 18)

static int has_smap(void)
{
    u32 a = 7, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return (b >> 20 & 1) && (b >> 7 & 1);
}

/* Code at the same place for both privileges. */
static void program(const void *bytes, u32 len)
{
    memset(code[0], 0xcc, 4096);
    copy(code[0], bytes, len);
}
#define PROGRAM(...)                                                                              \
    do {                                                                                          \
        static const u8 bytes[] = { __VA_ARGS__ };                                                \
        program(bytes, sizeof bytes);                                                             \
    } while (0)

static int attempt(int cpl, u64 offset, u64 rdi, u64 flags)
{
    if (cpl == 3)
        return run_at(3, USER_CODE + offset, rdi, 0, flags | 2, 0x23, 0x2b, USER_STACK + 0x800);
    return run_at(0, KERNEL_CODE + offset, rdi, 0, flags | 2, 0x08, 0x10, at(kernel_top) - 64);
}

/* What came of it: "-" for INT 0x81, else vector and error code. */
static void outcome(int vector)
{
    if (vector == 0x81) {
        put('-');
        return;
    }
    hex((u64)vector);
    if (vector == 8 || (vector >= 10 && vector <= 14) || vector == 17) {
        put(':');
        hex(event.error);
    }
}

static void sound_tables(void)
{
    pml4[2] = at(s3) | P | W | U;
    s3[0] = at(s2) | P | W | U;
    s2[0] = at(s1) | P | W | U;
    s1[0] = at(code[0]) | P | U;
    s1[1] = at(code[1]) | P | U;
    s1[4] = at(code[0]) | P;
    s1[5] = at(code[1]) | P;
    s1[9] = at(stack) | P | W | U;
    s1[10] = at(code[0]) | P | W | U;
    s1[11] = at(code[1]) | P | W | U;
}

static u64 *entry(int level)
{
    return level == 4 ? &pml4[1] : level == 3 ? &t3[0] : level == 2 ? &t2[0] : &t1[0];
}

static void good_tables(int large)
{
    pml4[1] = at(t3) | P | W | U;
    t3[0] = at(t2) | P | W | U;
    t2[0] = large ? at(big[0]) | P | W | U | PS : at(t1) | P | W | U;
    t1[0] = at(frame[0]) | P | W | U;
    flush();
}

/* Accessed bits of the levels from 4 down, and the last one's dirty bit. */
static u64 used(int large)
{
    u64 bits = 0;
    int level, last = large ? 2 : 1;
    for (level = 4; level >= last; level--)
        bits = bits << 1 | !!(*entry(level) & A);
    return bits << 1 | !!(*entry(last) & D);
}

enum { READ, WRITE, FETCH };

static int access(int kind, int cpl, u64 va, u64 flags)
{
    /* mov al, [rdi]; mov [rdi], al; jmp rdi: INT 0x81 behind, or there */
    static const u8 bytes[3][4] = {
        { 0x8a, 0x07, 0xcd, 0x81 }, { 0x88, 0x07, 0xcd, 0x81 }, { 0xff, 0xe7, 0xcc, 0xcc }
    };
    program(bytes[kind], 4);
    return attempt(cpl, 0, va, flags);
}

static void rights(int level, const char *name, u64 clear, u64 set, int large)
{
    u64 old0 = cr0(), old4 = cr4();
    int wp, sm, cpl, kind, ac;
    text("rights level=");
    hex((u64)level);
    text(large ? " large " : " ");
    text(name);
    for (wp = 0; wp < 2; wp++)
        for (sm = 0; sm <= (has_smap() ? 1 : 0); sm++)
            for (cpl = 0; cpl < 4; cpl += 3) {
                put(' ');
                for (kind = READ; kind <= FETCH; kind++)
                    for (ac = 0; ac <= sm; ac++) {
                        int vector;
                        u64 bits;
                        frame[0][0] = big[0][0] = 0xcd;
                        frame[0][1] = big[0][1] = 0x81;
                        good_tables(large);
                        *entry(level) = (*entry(level) & ~clear) | set;
                        flush();
                        set_cr4(sm ? old4 | SMEP | SMAP : old4);
                        set_cr0(wp ? old0 : old0 & ~(1ull << 16));
                        vector = access(kind, cpl, VICTIM, ac ? FLAG_AC : 0);
                        set_cr0(old0);
                        set_cr4(old4);
                        bits = used(large);
                        put(',');
                        outcome(vector);
                        if (vector == 14 && event.cr2 != VICTIM)
                            word("cr2", event.cr2);
                        if (vector == 0x81) {
                            put('/');
                            hex(bits);
                        }
                    }
            }
    put('\n');
}

static void all_rights(void)
{
    int level;
    for (level = 4; level >= 1; level--) {
        rights(level, "sound", 0, 0, 0);
        rights(level, "absent", P, 0, 0);
        rights(level, "read-only", W, 0, 0);
        rights(level, "supervisor", U, 0, 0);
        rights(level, "no-execute", 0, NX, 0);
        rights(level, "reserved", 0, RSVD, 0);
        rights(level, "supervisor,read-only", U | W, 0, 0);
        rights(level, "absent,reserved", P, RSVD, 0);
        rights(level, "reserved,no-execute", 0, RSVD | NX, 0);
    }
    rights(4, "page-size", 0, PS, 0);
    for (level = 4; level >= 2; level--) {
        rights(level, "sound", 0, 0, 1);
        rights(level, "absent", P, 0, 1);
        rights(level, "read-only", W, 0, 1);
        rights(level, "supervisor", U, 0, 1);
        rights(level, "no-execute", 0, NX, 1);
    }
    /* Bits 13 to 20 of a large page's entry are reserved. */
    rights(2, "reserved-13", 0, 1 << 13, 1);
    rights(2, "reserved-20", 0, 1 << 20, 1);
}

static void canonical(void)
{
    static const u64 places[] = { 0x7ffffffffffe, 0x7fffffffffff, 0x800000000000,
                                  0xffff7fffffffffff, 0xffff800000000000 };
    u32 n;
    int kind;
    for (n = 0; n < sizeof places / sizeof *places; n++)
        for (kind = READ; kind <= FETCH; kind++) {
            int vector = access(kind, 3, places[n], 0);
            text("canonical");
            word("at", places[n]);
            word("access", (u64)kind);
            put(' ');
            outcome(vector);
            if (vector == 14)
                word("cr2", event.cr2);
            word("rip", event.rip - USER_CODE);
            put('\n');
        }
}

static u8 peek(u64 va) { return *(volatile u8 *)va; }
static void poke(u64 va, u8 value) { *(volatile u8 *)va = value; }

static void line(const char *name, u64 value)
{
    text(name);
    word("is", value);
    put('\n');
}

/* Only what the manual guarantees is printed. */
static void tlb(void)
{
    u64 old4 = cr4();
    int vector;
    frame[0][8] = 1;
    frame[1][8] = 2;
    big[0][8] = 3;
    big[1][8] = 4;
    big[0][0x123008] = 5;
    big[1][0x123008] = 6;

    good_tables(0);
    (void)peek(VICTIM + 8);
    t1[0] = at(frame[1]) | P | W | U;
    invlpg(VICTIM + 0x567);
    line("tlb invlpg anywhere in the page", peek(VICTIM + 8));

    good_tables(0);
    (void)peek(VICTIM + 8);
    t1[0] = at(frame[1]) | P | W | U;
    flush();
    line("tlb load of cr3", peek(VICTIM + 8));

    good_tables(0);
    t1[0] |= G;
    (void)peek(VICTIM + 8);
    t1[0] = at(frame[1]) | P | W | U | G;
    invlpg(VICTIM);
    line("tlb invlpg of a global page", peek(VICTIM + 8));

    good_tables(0);
    t1[0] |= G;
    (void)peek(VICTIM + 8);
    t1[0] = at(frame[1]) | P | W | U | G;
    set_cr4(old4 & ~0x80ull);
    set_cr4(old4);
    line("tlb global page and cr4.pge off and on", peek(VICTIM + 8));

    good_tables(0);
    (void)peek(VICTIM + 8);
    t1[0] = at(frame[1]) | P | W | U;
    set_cr4(old4 ^ 0x10);
    set_cr4(old4);
    line("tlb change of cr4.pse", peek(VICTIM + 8) == 2 || peek(VICTIM + 8) == 1);

    good_tables(1);
    (void)peek(VICTIM + 0x123008);
    t2[0] = at(big[1]) | P | W | U | PS;
    invlpg(VICTIM + 0x1fffff);
    line("tlb invlpg at the end of a large page", peek(VICTIM + 0x123008));

    good_tables(1);
    (void)peek(VICTIM + 8);
    (void)peek(VICTIM + 0x123008);
    t2[0] = at(t1) | P | W | U;
    invlpg(VICTIM + 0x123000);
    line("tlb a large page becomes small ones", peek(VICTIM + 8));

    good_tables(0);
    t1[0] = 0;
    flush();
    vector = access(READ, 3, VICTIM + 8, 0);
    t1[0] = at(frame[0]) | P | W | U;
    text("tlb an absent page that comes needs no flush: ");
    outcome(vector);
    word("then", peek(VICTIM + 8));
    put('\n');

    good_tables(0);
    (void)peek(VICTIM + 8);
    t1[0] = 0;
    invlpg(VICTIM);
    vector = access(READ, 3, VICTIM + 8, 0);
    text("tlb a page that went: ");
    outcome(vector);
    put('\n');

    good_tables(0);
    poke(VICTIM + 16, 1);
    t1[0] &= ~(u64)W;
    invlpg(VICTIM);
    vector = access(WRITE, 3, VICTIM + 8, 0);
    text("tlb a page that became read-only: ");
    outcome(vector);
    put('\n');

    good_tables(0);
    (void)peek(VICTIM + 8);
    t1[0] |= NX;
    invlpg(VICTIM);
    vector = access(FETCH, 3, VICTIM, 0);
    text("tlb a page that became no-execute: ");
    outcome(vector);
    put('\n');

    good_tables(0);
    (void)access(READ, 3, VICTIM + 8, 0);
    *entry(3) &= ~(u64)U;
    invlpg(VICTIM);
    vector = access(READ, 3, VICTIM + 8, 0);
    text("tlb rights taken at an upper level: ");
    outcome(vector);
    put('\n');

    /* A fault drops the page's entries: what was wrong is looked up again. */
    good_tables(0);
    t1[0] &= ~(u64)W;
    flush();
    (void)peek(VICTIM + 8);
    vector = access(WRITE, 3, VICTIM + 8, 0);
    text("tlb a read-only page faults: ");
    outcome(vector);
    t1[0] |= W;
    vector = access(WRITE, 3, VICTIM + 8, 0);
    text(" made writable without a flush: ");
    outcome(vector);
    put('\n');
}

static void accessed_and_dirty(void)
{
    int large;
    for (large = 0; large < 2; large++) {
        text(large ? "accessed large:" : "accessed small:");
        good_tables(large);
        word("none", used(large));
        (void)peek(VICTIM + 8);
        word("read", used(large));
        poke(VICTIM + 8, 7);
        word("write", used(large));
        *entry(large ? 2 : 1) &= ~(u64)D;
        invlpg(VICTIM);
        (void)peek(VICTIM + 8);
        word("read-again", used(large));
        poke(VICTIM + 8, 7);
        word("write-again", used(large));
        *entry(4) &= ~(u64)A;
        *entry(3) &= ~(u64)A;
        *entry(large ? 2 : 1) &= ~(u64)(A | D);
        flush();
        __asm__ volatile("lock addb $0, (%0)" : : "r"(VICTIM + 8) : "memory", "cc");
        word("locked", used(large));
        *entry(large ? 2 : 1) &= ~(u64)(A | D);
        invlpg(VICTIM);
        /* A comparison that fails still writes. */
        __asm__ volatile("mov $99, %%al; lock cmpxchgb %%cl, (%0)" : : "r"(VICTIM + 8) : "rax", "memory", "cc");
        word("cmpxchg", used(large));
        *entry(large ? 2 : 1) &= ~(u64)(A | D);
        invlpg(VICTIM);
        __asm__ volatile("xor %%ecx, %%ecx; rep stosb" : : "D"(VICTIM + 8) : "rcx", "memory");
        word("rep-none", used(large) & 3);
        put('\n');
    }
}

/* INT n through a gate of every kind. */
static void gates(void)
{
    static const u16 targets[] = { 0x08, 0x20, 0x18, 0x10, 0, 0x50, 0x60, 0x70, 0x1000, 0x0b };
    u64 saved[2];
    u32 type, t, dpl, present, cpl, ist;
    /* 50: conforming 64-bit code; 60: code that isn't present; 70: code64 of DPL 1 */
    gdt[10] = 0x00af9f000000ffffull;
    gdt[12] = 0x00af1b000000ffffull;
    gdt[14] = 0x00afbb000000ffffull;
    saved[0] = idt[2 * 0x82];
    saved[1] = idt[2 * 0x82 + 1];
    PROGRAM(0xcd, 0x82, 0xcd, 0x81);
    for (type = 0; type < 16; type++)
        for (t = 0; t < sizeof targets / sizeof *targets; t++) {
            if (type != 0xe && type != 0xf && targets[t] != 8)
                continue;
            text("gate type=");
            hex(type);
            word("cs", targets[t]);
            for (present = 0; present < 2; present++)
                for (dpl = 0; dpl < 4; dpl++) {
                    put(' ');
                    for (cpl = 0; cpl < 4; cpl += 3)
                        for (ist = 0; ist < 2; ist++) {
                            int vector;
                            u64 low = saved[0] & 0xffff00000000ffffull;
                            low |= (u64)targets[t] << 16 | (u64)ist << 32;
                            low |= (u64)(type | dpl << 5 | present << 7) << 40;
                            idt[2 * 0x82] = low;
                            idt[2 * 0x82 + 1] = saved[1];
                            vector = attempt((int)cpl, 0, 0, 0x200);
                            put(',');
                            if (vector == 0x82) {
                                put('+');
                                hex((event.handler_flags >> 9 & 1) | (event.cs & 3) << 1);
                                if (ist && event.stack != at(ist_top))
                                    word("stack", event.stack - at(ist_top));
                            } else {
                                outcome(vector);
                            }
                        }
                }
            put('\n');
        }
    /* An offset that isn't canonical, and reserved bits behind it. */
    idt[2 * 0x82] = (saved[0] & ~(0xffull << 40)) | 0xeeull << 40;
    idt[2 * 0x82 + 1] = 0x12345678;
    text("gate to no canonical address ");
    outcome(attempt(3, 0, 0, 0));
    put('\n');
    idt[2 * 0x82] = saved[0];
    idt[2 * 0x82 + 1] = saved[1];
    /* Exceptions by INT, and INT3, INTO's place, ICEBP, from both privileges, whatever the gate's DPL. */
    for (cpl = 0; cpl < 4; cpl += 3) {
        text("software interrupts");
        word("cpl", cpl);
        for (t = 0; t < 20; t++) {
            u8 bytes[4] = { 0xcd, (u8)t, 0xcd, 0x81 };
            program(bytes, 4);
            put(' ');
            outcome(attempt((int)cpl, 0, 0, 0));
            word("rip", event.rip - (cpl ? USER_CODE : KERNEL_CODE));
        }
        PROGRAM(0xcc);
        text(" int3 ");
        outcome(attempt((int)cpl, 0, 0, 0));
        word("rip", event.rip - (cpl ? USER_CODE : KERNEL_CODE));
        PROGRAM(0xf1);
        text(" int1 ");
        outcome(attempt((int)cpl, 0, 0, 0));
        word("rip", event.rip - (cpl ? USER_CODE : KERNEL_CODE));
        PROGRAM(0x0f, 0x0b);
        text(" ud2 ");
        outcome(attempt((int)cpl, 0, 0, 0));
        PROGRAM(0xf4, 0xcd, 0x81);
        if (cpl) {
            text(" hlt ");
            outcome(attempt((int)cpl, 0, 0, 0));
        }
        put('\n');
    }
}

static void show_debug(int vector)
{
    put(' ');
    outcome(vector);
    if (vector == 1) {
        word("dr6", dr6() & 0xe00f);
        word("rip", event.rip - ((event.cs & 3) ? USER_CODE : KERNEL_CODE));
        word("rf", event.rflags >> 16 & 1);
        word("tf", event.rflags >> 8 & 1);
    }
    set_dr6(0xffff0ff0);
}

#define FLAG_TF 0x100ull
#define FLAG_RF 0x10000ull

static void debugging(void)
{
    int cpl;
    for (cpl = 0; cpl < 4; cpl += 3) {
        u64 base = cpl ? USER_CODE : KERNEL_CODE;
        text("debug");
        word("cpl", (u64)cpl);
        set_dr6(0xffff0ff0);
        PROGRAM(0x90, 0x90, 0xcd, 0x81);
        text("\n step:");
        show_debug(attempt(cpl, 0, 0, FLAG_TF));
        text("\n step over int:");
        PROGRAM(0xcd, 0x81);
        show_debug(attempt(cpl, 0, 0, FLAG_TF));
        text("\n step into a fault:");
        PROGRAM(0x0f, 0x0b);
        show_debug(attempt(cpl, 0, 0, FLAG_TF));
        text("\n step of pushf; popf:");
        PROGRAM(0x9d, 0x90, 0xcd, 0x81);
        *(u64 *)&stack[0x800] = 0x102;
        *(u64 *)(kernel_top - 64) = 0x102;
        show_debug(attempt(cpl, 0, 0, 0));
        text("\n step of a repeated string:");
        /* mov ecx, 3; rep lodsb; int 0x81 */
        PROGRAM(0xf3, 0xac, 0xcd, 0x81);
        show_debug(attempt(cpl, 0, 0, FLAG_TF));
        text("\n step over mov ss:");
        /* mov ax, ss; mov ss, ax; nop; nop */
        PROGRAM(0x8c, 0xd0, 0x8e, 0xd0, 0x90, 0x90, 0xcd, 0x81);
        show_debug(attempt(cpl, 2, 0, FLAG_TF));
        text("\n");
        /* Execution breakpoint. */
        PROGRAM(0x90, 0x90, 0x90, 0xcd, 0x81);
        set_dr0(base + 1);
        set_dr7(0x401);
        text(" break at:");
        show_debug(attempt(cpl, 0, 0, 0));
        text("\n break with rf:");
        show_debug(attempt(cpl, 1, 0, FLAG_RF));
        text("\n break and step:");
        show_debug(attempt(cpl, 1, 0, FLAG_TF));
        text("\n break behind mov ss:");
        PROGRAM(0x8c, 0xd0, 0x8e, 0xd0, 0x90, 0x90, 0xcd, 0x81);
        set_dr0(base + 4);
        show_debug(attempt(cpl, 0, 0, 0));
        set_dr7(0x400);
        text("\n");
        /* Data breakpoints: kinds and lengths against accesses. */
        {
            static const u64 kinds[] = { 0x1, 0x3 };    /* write; read or write */
            static const u64 lengths[] = { 0, 1, 3, 2 };
            u32 k, l, offset, kind;
            good_tables(0);
            for (k = 0; k < 2; k++)
                for (l = 0; l < 4; l++) {
                    text(" data");
                    word("kind", kinds[k]);
                    word("len", lengths[l]);
                    for (offset = 0; offset < 10; offset += 3)
                        for (kind = READ; kind <= WRITE; kind++) {
                            set_dr0(VICTIM + 0x40);
                            set_dr7(0x401 | kinds[k] << 16 | lengths[l] << 18);
                            show_debug(access((int)kind, cpl, VICTIM + 0x3f + offset, 0));
                            set_dr7(0x400);
                        }
                    put('\n');
                }
        }
        text(" two at once:");
        set_dr0(VICTIM + 0x40);
        set_dr1(base);
        set_dr7(0x405 | 0x3ull << 16);
        show_debug(access(READ, cpl, VICTIM + 0x40, 0));
        show_debug(access(READ, cpl, VICTIM + 0x40, FLAG_RF));
        set_dr7(0x400);
        put('\n');
        if (!cpl) {
            text(" general detect:");
            set_dr7(0x2400);
            /* mov rax, dr6 */
            PROGRAM(0x0f, 0x21, 0xf0, 0xcd, 0x81);
            show_debug(attempt(cpl, 0, 0, 0));
            set_dr7(0x400);
            put('\n');
        }
    }
}

/* Code that changes, by itself and by another address. */
static void changing_code(void)
{
    u64 there = ALIAS;
    int vector, n;
    /* mov byte [rdi], 7: the immediate of the next instruction; mov al, 1; int 0x81 */
    PROGRAM(0xc6, 0x07, 0x07, 0xb0, 0x01, 0xcd, 0x81);
    vector = run_at(3, ALIAS, ALIAS + 4, 0, 2, 0x23, 0x2b, USER_STACK + 0x800);
    text("code stores over the next instruction ");
    outcome(vector);
    word("al", event.rax & 0xff);
    put('\n');
    PROGRAM(0xb0, 0x01, 0xcd, 0x81);
    text("code changed through another address:");
    for (n = 1; n < 6; n++) {
        vector = attempt(3, 0, 0, 0);
        word("al", event.rax & 0xff);
        *(volatile u8 *)(there + 1) = (u8)(n + 1);
    }
    put('\n');
    /* A loop that changes its own immediate: inc byte [rip+1]; mov al, 0; dec ecx; jnz */
    PROGRAM(0xb1, 0x05, 0xfe, 0x05, 0x01, 0x00, 0x00, 0x00, 0xb0, 0x00, 0xfe, 0xc9, 0x75, 0xf4, 0xcd, 0x81);
    vector = run_at(3, ALIAS, 0, 0, 2, 0x23, 0x2b, USER_STACK + 0x800);
    text("a loop changes itself ");
    outcome(vector);
    word("al", event.rax & 0xff);
    put('\n');
    /* rep movsb over the code behind it: cannot be seen but as if done whole. */
    PROGRAM(0xf3, 0xa4, 0xb0, 0x01, 0xcd, 0x81);
    code[0][0x100] = 0xb0;
    code[0][0x101] = 0x55;
    {
        static const u8 set[] = { 0xb9, 2, 0, 0, 0, 0x48, 0x8d, 0x35, 0xf4, 0, 0, 0, 0x48, 0x8d, 0x3d,
                                  2, 0, 0, 0, 0xf3, 0xa4, 0xb0, 0x01, 0xcd, 0x81 };
        copy(code[0], set, sizeof set);
    }
    vector = run_at(3, ALIAS, 0, 0, 2, 0x23, 0x2b, USER_STACK + 0x800);
    text("a string instruction stores over what follows ");
    outcome(vector);
    word("al", event.rax & 0xff);
    put('\n');
    /* The page is remapped under its code. */
    PROGRAM(0xb0, 0x11, 0xcd, 0x81);
    memset(code[1], 0xcc, 16);
    code[1][0] = 0xb0;
    code[1][1] = 0x22;
    code[1][2] = 0xcd;
    code[1][3] = 0x81;
    vector = attempt(3, 0, 0, 0);
    text("code remapped:");
    word("al", event.rax & 0xff);
    s1[0] = at(code[1]) | P | U;
    invlpg(USER_CODE);
    vector = attempt(3, 0, 0, 0);
    word("then", event.rax & 0xff);
    s1[0] = at(code[0]) | P | U;
    invlpg(USER_CODE);
    put('\n');
    (void)vector;
}

/*
 * Two address spaces by turns, each with its PCID where there are PCIDs: user code that calls a function at the same
 * place, which is another function in each. What is done to one space while the other is current must be seen.
 */
static u64 other4[512] PAGE, other3[512] PAGE, other2[512] PAGE, other1[512] PAGE;
static u8 third[4096] PAGE;

enum { ONE, TWO };
#define PCIDE (1ull << 17)
#define KEEP (1ull << 63)
static u64 pcids;                                       /* all ones if there are */

static void go_to(int space, u64 keep)
{
    u64 to = space == TWO ? at(other4) | (2 & pcids) : at(pml4) | (1 & pcids);
    __asm__ volatile("mov %0, %%cr3" : : "r"(to | (keep & pcids)) : "memory");
}

/* Of a space that need not be current. Without PCIDs a switch does it. */
static void invpcid(u64 type, int space, u64 va)
{
    u64 what[2] = { space == TWO ? 2 : 1, va };
    if (pcids)
        __asm__ volatile("invpcid %1, %0" : : "r"(type), "m"(what) : "memory");
}

static int has_pcids(void)
{
    u32 a = 1, b, c = 0, d;
    u32 a7 = 7, b7, c7 = 0, d7;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    __asm__ volatile("cpuid" : "+a"(a7), "=b"(b7), "+c"(c7), "=d"(d7));
    return (c >> 17 & 1) && (b7 >> 10 & 1);
}

/* mov eax, value; ret */
static void function(u8 *page, u32 value)
{
    page[0] = 0xb8;
    copy(page + 1, &value, 4);
    page[5] = 0xc3;
}

/* Sixteen calls of the function, whose answers are summed up. */
static void visit(int space)
{
    int vector;
    go_to(space, KEEP);
    vector = attempt(3, 0, USER_CODE + 0x1000, 0);
    put(' ');
    if (vector == 0x81)
        hex(event.rbx);
    else
        outcome(vector);
}

static void spaces(void)
{
    u32 n;
    pcids = has_pcids() ? ~0ull : 0;
    /* mov ecx, 16; call rdi; add ebx, eax; dec ecx; jnz; int 0x81 */
    PROGRAM(0xb9, 16, 0, 0, 0, 0xff, 0xd7, 0x01, 0xc3, 0xff, 0xc9, 0x75, 0xf8, 0xcd, 0x81);
    copy(other4, pml4, 4096);
    copy(other3, s3, 4096);
    copy(other2, s2, 4096);
    copy(other1, s1, 4096);
    other4[2] = at(other3) | P | W | U;
    other3[0] = at(other2) | P | W | U;
    other2[0] = at(other1) | P | W | U;
    other1[1] = at(frame[0]) | P | U;
    function(code[1], 0xa1);
    function(frame[0], 0xb1);
    function(third, 0xc1);
    flush();
    if (pcids)
        set_cr4(cr4() | PCIDE);
    go_to(TWO, 0);
    go_to(ONE, 0);
    text("spaces by turns:");
    for (n = 0; n < 40; n++)
        visit(n & 1);
    text("\ncode changed from the other:");
    for (n = 0; n < 4; n++) {
        function(code[1], 0xa2 + n);
        visit(ONE);
        visit(TWO);
    }
    text("\npage changed from the other:");
    for (n = 0; n < 6; n++) {
        s1[1] = (n & 1 ? at(code[1]) : at(third)) | P | U;
        switch (n) {
        case 0:
        case 1:
            invpcid(0, ONE, USER_CODE + 0x1000);
            break;
        case 2:
            invpcid(1, ONE, 0);
            break;
        case 3:
            invpcid(3, ONE, 0);
            break;
        case 4:
            invpcid(2, ONE, 0);
            break;
        default:
            go_to(ONE, 0);
        }
        visit(ONE);
        visit(TWO);
    }
    text("\npage changed before leaving:");
    for (n = 0; n < 4; n++) {
        go_to(ONE, KEEP);
        s1[1] = (n & 1 ? at(code[1]) : at(third)) | P | U;
        invlpg(USER_CODE + 0x1000);
        visit(TWO);
        visit(ONE);
    }
    text("\npage gone, not executable, back:");
    for (n = 0; n < 6; n++) {
        s1[1] = n % 3 == 0 ? 0 : at(code[1]) | P | U | (n % 3 == 1 ? NX : 0);
        invpcid(0, ONE, USER_CODE + 0x1000);
        visit(ONE);
        visit(TWO);
    }
    text("\nthe other's flushed too much:");
    for (n = 0; n < 3; n++) {
        invpcid(n, TWO, USER_CODE + 0x1000);
        visit(TWO);
        visit(ONE);
    }
    put('\n');
    go_to(ONE, 0);
    if (pcids) {
        __asm__ volatile("mov %0, %%cr3" : : "r"(at(pml4)) : "memory");
        set_cr4(cr4() & ~PCIDE);
    }
    flush();
    sound_tables();
    flush();
}

/*
 * The same pages of code at many addresses: what they read beside them, where they come back to, an instruction over
 * their ends, and a second page that is another one at some of the addresses.
 */
enum { PLACES = 6, FIRST_PLACE = 16, PLACE_PAGES = 4 };

static void put_places(u32 round)
{
    u32 n;
    for (n = 0; n < PLACES; n++) {
        u64 *tables = s1 + FIRST_PLACE + PLACE_PAGES * n;
        u64 va = SOUND + 0x1000ull * (FIRST_PLACE + PLACE_PAGES * n);
        tables[0] = at(code[0]) | P | U;
        tables[1] = ((n + round) % 3 == 2 ? at(third) : at(code[1])) | P | U;
        tables[2] = at(frame[(n + round) & 1]) | P | U;
        invlpg(va);
        invlpg(va + 0x1000);
        invlpg(va + 0x2000);
    }
}

static void visit_places(void)
{
    u32 n;
    for (n = 0; n < PLACES; n++) {
        u64 va = SOUND + 0x1000ull * (FIRST_PLACE + PLACE_PAGES * n);
        put(' ');
        outcome(run_at(3, va, 0, 0, 2, 0x23, 0x2b, USER_STACK + 0x800));
        word("eax", event.rax);
        word("from", event.rbx - va);
        word("ecx", event.rcx);
    }
    put('\n');
}

static void places(void)
{
    /* mov eax, [rip + two pages on]; call to the next page; jmp to the last bytes */
    static const u8 first[] = { 0x8b, 0x05, 0xfa, 0x1f, 0, 0, 0xe8, 0x05, 0x10, 0, 0, 0xe9, 0xe8, 0x0f, 0, 0 };
    /* nop, mov ecx, ... */
    static const u8 last[] = { 0x90, 0x90, 0x90, 0x90, 0x90, 0xb9, 0x11, 0x22 };
    /* ..., int 0x81; at 16: add eax, [rip + a page on]; mov rbx, [rsp]; ret */
    static const u8 next[] = { 0x33, 0x44, 0xcd, 0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                               0x03, 0x05, 0xf2, 0x0f, 0, 0, 0x48, 0x8b, 0x1c, 0x24, 0xc3 };
    u32 n;
    memset(code[0], 0xcc, 4096);
    copy(code[0], first, sizeof first);
    copy(code[0] + 4096 - sizeof last, last, sizeof last);
    copy(code[1], next, sizeof next);
    copy(third, next, sizeof next);
    third[0] = 0x55;
    third[0x12] = 0xf6;                                 /* the next word */
    for (n = 0; n < 2; n++) {
        u32 values[4] = { 0x100 + n, 0, 0x2000 + n, 0x30000 + n };
        copy(frame[n], values, sizeof values);
    }
    for (n = 0; n < 4; n++) {
        text("places");
        put_places(n);
        visit_places();
    }
    text("places, first page changed");
    *(volatile u8 *)(ALIAS + 4096 - 2) = 0x77;
    visit_places();
    text("places, second page changed");
    *(volatile u8 *)(ALIAS + 0x1000) = 0x88;
    visit_places();
    for (n = 0; n < PLACES; n++) {
        u64 page = FIRST_PLACE + PLACE_PAGES * n + n % 3;
        s1[page] = 0;
        invlpg(SOUND + 0x1000 * page);
    }
    text("places, one page gone");
    visit_places();
    text("places, back");
    put_places(0);
    visit_places();
}

/* An instruction over a page end: every split, and a second page that is bad in every way. */
static void page_ends(void)
{
    static const u8 long_one[] = { 0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xcd, 0x81 };
    static const u64 bad[] = { 0, P, P | U | NX, P | U | RSVD };
    u32 n, split;
    for (n = 0; n < 5; n++) {
        text("page end second=");
        hex(n);
        for (split = 0; split <= 11; split++) {
            u32 i;
            memset(code[0], 0x90, 4096);
            memset(code[1], 0xcc, 64);
            for (i = 0; i < sizeof long_one; i++) {
                u32 place = 4096 - split + i;
                code[place >> 12][place & 4095] = long_one[i];
            }
            s1[1] = n < 4 ? (bad[n] ? at(code[1]) | bad[n] : 0) : at(code[1]) | P | U;
            invlpg(USER_CODE + 0x1000);
            put(' ');
            outcome(attempt(3, 4096 - split, 0, 0));
            if (event.vector == 14)
                word("cr2", event.cr2 - USER_CODE);
            word("rip", event.rip - USER_CODE);
        }
        put('\n');
    }
    s1[1] = at(code[1]) | P | U;
    invlpg(USER_CODE + 0x1000);
    /* The second page changes between two runs of the same instruction. */
    memset(code[0], 0x90, 4096);
    code[0][4095] = 0xb0;
    code[1][0] = 0x31;
    code[1][1] = 0xcd;
    code[1][2] = 0x81;
    text("page end changes:");
    (void)attempt(3, 4095, 0, 0);
    word("al", event.rax & 0xff);
    *(volatile u8 *)(ALIAS + 0x1000) = 0x32;
    (void)attempt(3, 4095, 0, 0);
    word("then", event.rax & 0xff);
    put('\n');
    /* The second page is taken away, and another is put there. */
    text("page end goes:");
    for (n = 0; n < 6; n++) {
        copy(frame[1], code[1], 16);
        frame[1][0] = 0x33;
        s1[1] = n % 3 == 0 ? 0 : at(n % 3 == 1 ? frame[1] : code[1]) | P | U;
        invlpg(USER_CODE + 0x1000);
        put(' ');
        outcome(attempt(3, 4095, 0, 0));
        word("al", event.rax & 0xff);
    }
    s1[1] = at(code[1]) | P | U;
    invlpg(USER_CODE + 0x1000);
    put('\n');
}

static void wrmsr(u32 number, u64 value)
{
    __asm__ volatile("wrmsr" : : "c"(number), "a"((u32)value), "d"((u32)(value >> 32)));
}

static u64 flags_now(void) { u64 v; __asm__ volatile("pushfq; pop %0" : "=r"(v)); return v; }
static void set_flags(u64 v) { __asm__ volatile("push %0; popfq" : : "r"(v) : "memory", "cc"); }
static void set_ds(u16 v) { __asm__ volatile("mov %0, %%ds" : : "r"(v)); }
static void set_es(u16 v) { __asm__ volatile("mov %0, %%es" : : "r"(v)); }
static u16 ds_now(void) { u16 v; __asm__ volatile("mov %%ds, %0" : "=r"(v)); return v; }

/* Code and data of each privilege again: gates don't need these. */
enum { RETURN_CODE = 10, RETURN_DATA = 11, RETURN_USER = 2 };

static int attempt_return(int cpl, u64 flags)
{
    u64 cs = 8 * (RETURN_CODE + (cpl ? RETURN_USER : 0)) + (u64)cpl;
    if (cpl == 3)
        return run_at(3, USER_CODE, 0, 0, flags | 2, cs, cs + 8, USER_STACK + 0x800);
    return run_at(0, KERNEL_CODE, 0, 0, flags | 2, cs, cs + 8, at(kernel_top) - 64);
}

/* An IRET, some times over: who has seen one may do the next faster. */
static void some_returns(int cpl, int times)
{
    while (times--) {
        put(' ');
        set_ds(0);
        set_es(0);
        outcome(attempt_return(cpl, 0));
    }
}

/* IRET again and again while what it looks at changes. */
static void returns(void)
{
    static const struct { const char *name; int ss; u64 clear, set; } changes[] = {
        { "cs absent", 0, 1ull << 47, 0 },       { "ss absent", 1, 1ull << 47, 0 },
        { "cs data", 0, 1ull << 43, 0 },         { "ss read-only", 1, 1ull << 41, 0 },
        { "cs dpl", 0, 3ull << 45, 1ull << 45 }, { "ss dpl", 1, 3ull << 45, 1ull << 45 },
        { "cs default", 0, 0, 1ull << 54 },      { "cs conforming", 0, 0, 1ull << 42 },
        { "cs accessed", 0, 1ull << 40, 0 },     { "ss accessed", 1, 1ull << 40, 0 },
        { "ss limit", 1, 0xffff, 0 },            { "cs available", 0, 0, 1ull << 52 },
    };
    static const u64 flags[] = { 0x1, 0x4, 0x10, 0x40, 0x80, 0x400, 0x800, 0x3000, 0x40000, 0x200000, 0x8d5 };
    struct { u16 limit; u64 base; } __attribute__((packed)) table;
    u32 n, cpl;
    copy(&gdt[RETURN_CODE], &gdt[1], 16);
    copy(&gdt[RETURN_CODE + RETURN_USER], &gdt[4], 16);
    PROGRAM(0x8c, 0xc8, 0x8c, 0xd1, 0x8c, 0xdb, 0xcd, 0x81);    /* mov eax, cs; mov ecx, ss; mov ebx, ds; int 0x81 */
    for (cpl = 0; cpl < 4; cpl += 3) {
        for (n = 0; n < sizeof changes / sizeof *changes; n++) {
            u32 at_entry = (changes[n].ss ? RETURN_DATA : RETURN_CODE) + (cpl ? RETURN_USER : 0);
            u64 old = gdt[at_entry];
            text("returns to ");
            hex(cpl);
            put(' ');
            text(changes[n].name);
            put(':');
            some_returns((int)cpl, 3);
            gdt[at_entry] = (old & ~changes[n].clear) | changes[n].set;
            some_returns((int)cpl, 3);
            word("accessed", gdt[at_entry] >> 40 & 1);
            gdt[at_entry] = old;
            some_returns((int)cpl, 2);
            put('\n');
        }
        text("returns with selectors:");
        some_returns((int)cpl, 2);
        word("cs", event.rax);
        word("ss", event.rcx);
        for (n = 0; n < 3; n++) {
            static const u16 selectors[] = { 0x10, 0x2b, 0 };
            put(' ');
            set_ds(selectors[n]);
            set_es(0);
            outcome(attempt_return((int)cpl, 0));
            word("ds", event.rbx);
            word("then", ds_now());
        }
        put('\n');
        text("returns with flags:");
        for (n = 0; n < sizeof flags / sizeof *flags; n++) {
            put(' ');
            set_ds(0);
            set_es(0);
            outcome(attempt_return((int)cpl, flags[n]));
            word("f", event.rflags);
        }
        put('\n');
        text("returns with a nested task:");
        some_returns((int)cpl, 1);
        set_flags(flags_now() | 1 << 14);
        some_returns((int)cpl, 1);
        set_flags(flags_now() & ~(1ull << 14));
        some_returns((int)cpl, 1);
        put('\n');
        text("returns by a short table:");
        some_returns((int)cpl, 1);
        __asm__ volatile("sgdt %0" : "=m"(table));
        table.limit = 0x4f;
        __asm__ volatile("lgdt %0" : : "m"(table));
        some_returns((int)cpl, 2);
        table.limit = 0x1ff;
        __asm__ volatile("lgdt %0" : : "m"(table));
        some_returns((int)cpl, 2);
        put('\n');
    }
}

extern void mode_trip(void);
extern u32 trip_words;

/* Out of 64-bit mode down to real mode and back, twice. */
static void modes(void)
{
    int n;
    u32 i;
    gdt[20] = 0x00009b000000ffff;
    gdt[21] = 0x000093000000ffff;
    for (n = 0; n < 2; n++) {
        mode_trip();
        text("modes:");
        for (i = 0; i < trip_words; i++) {
            put(' ');
            hex(((volatile u32 *)0x7000)[i]);
        }
        put('\n');
    }
}

extern u8 ap_start[], ap_end[];
static volatile u32 cross_phase, cross_value, cross_older, cross_ready, cross_go;

enum { LOOKING = 1, ASKED, OVER, PATIENT = 100000000 };
#define CROSSED 0x103                                   /* where an immediate behind one byte is aligned */

static u32 crossed(void)
{
    u32 value;
    __asm__ volatile("call *%1" : "=a"(value) : "r"(KERNEL_CODE + CROSSED) : "memory", "cc");
    return value;
}

/* The second processor runs what the first one changes: first without a word, then when it is told. */
void ap_main(void)
{
    u32 last = 0, told = 0;
    cross_phase = LOOKING;
    while (cross_phase == LOOKING) {
        u32 value = crossed();
        if (value < last)
            cross_older++;
        last = value;
        cross_value = value;
    }
    while (cross_phase == ASKED) {
        u32 a = 0, b, c, d;
        if (cross_go == told)
            continue;
        told = cross_go;
        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d) : : "memory");
        cross_value = crossed();
        cross_ready = told;
    }
    cross_ready = ~0u;
}

/* Waits until a word has a value, for as long. */
static int comes(volatile u32 *word, u32 value, u32 left)
{
    while (*word != value && --left)
        __asm__ volatile("pause");
    return left != 0;
}

static volatile u32 *map_apic(void)
{
    s1[32] = 0xfee00000 | P | W | 0x10;
    invlpg(SOUND + 0x20000);
    return (volatile u32 *)(SOUND + 0x20000);
}

/* User code with an interrupt pending: held off it goes on, let in it is interrupted. */
static void held_off(void)
{
    volatile u32 *apic = map_apic();
    u64 flags;
    PROGRAM(0xb9, 0x00, 0x40, 0, 0,                     /* mov ecx, 0x4000 */
            0xff, 0xc9, 0x75, 0xfc,                     /* dec ecx; jnz */
            0xcd, 0x81);
    apic[0xf0 / 4] = 0x1ff;
    text("held off:");
    for (flags = 0; flags <= 0x200; flags += 0x200) {
        put(' ');
        apic[0x300 / 4] = 0x44090;                      /* to itself */
        outcome(attempt(3, 0, 0, flags | 0x3000));
        word("at", event.rip - USER_CODE);
    }
    apic[0xb0 / 4] = 0;
    put('\n');
}

static void cross_modifying(void)
{
    volatile u32 *apic = map_apic();
    u8 *to = (u8 *)ALIAS + CROSSED;
    static const u8 returns_number[] = { 0xb8, 0, 0, 0, 0, 0xc3 };
    u32 n, seen = 0, right = 0;
    memset(code[0], 0xcc, 4096);
    copy(to, returns_number, sizeof returns_number);
    copy((void *)0x9000, ap_start, (u32)(ap_end - ap_start));
    apic[0xf0 / 4] = 0x1ff;
    apic[0x300 / 4] = 0xc4500;                          /* INIT to all others */
    for (n = 0; n < 10000; n++)
        in8(0x80);
    apic[0x300 / 4] = 0xc4609;                          /* start at 0x9000 */
    text("cross-modified code:");
    word("there", (u64)comes(&cross_phase, LOOKING, PATIENT));
    for (n = 1; n <= 200; n++) {
        /* Nothing says when it is seen without a serialising instruction. */
        u32 tries = 100;
        do
            *(volatile u32 *)(to + 1) = n;
        while (!comes(&cross_value, n, 1000000) && --tries);
        seen += !!tries;
    }
    word("seen", seen);
    word("older", cross_older);
    cross_phase = ASKED;
    for (n = 1; n <= 200; n++) {
        /* mov eax, n; ret, or xor eax, eax; sub eax, -n; ret */
        static const u8 other[] = { 0x31, 0xc0, 0x2d, 0, 0, 0, 0, 0xc3 };
        u32 number = n & 1 ? n : 0u - n;
        if (n & 1)
            copy(to, returns_number, sizeof returns_number);
        else
            copy(to, other, sizeof other);
        copy(to + (n & 1 ? 1 : 3), &number, 4);
        cross_go = n;
        right += (u32)(comes(&cross_ready, n, PATIENT) && cross_value == n);
    }
    word("told", right);
    cross_phase = OVER;
    word("over", (u64)comes(&cross_ready, ~0u, PATIENT));
    put('\n');
}

int main(void)
{
    text("report 64\n");
    /* SYSCALL could be used: then fast ways may be taken elsewhere, too. */
    wrmsr(0xc0000081, 0x0018000800000000);
    wrmsr(0xc0000082, KERNEL_CODE);
    wrmsr(0xc0000084, 0x47700);
    sound_tables();
    modes();
    returns();
    all_rights();
    canonical();
    tlb();
    accessed_and_dirty();
    gates();
    debugging();
    changing_code();
    spaces();
    places();
    page_ends();
    held_off();
    cross_modifying();
    text("end\n");
    return 0;
}
