/*
 * The 32-bit report guest: segment loads, far transfers, call and interrupt gates, returns, limits, task
 * switches, virtual-8086 mode, 32-bit and PAE paging; and, in start32.asm, the way through all modes.
 */
#include "report.h"

struct event {
    u32 vector, error, eip, cs, eflags, esp, ss, cr2, eax, ecx, stack, ds, handler_flags, tr, handler_ss, ebx;
};
extern volatile struct event event;
extern u64 gdt[], idt[];
extern u8 tss[], kernel_top[], ring1_top[], ring2_top[];
extern volatile u32 task_seen[8];
extern u8 task_entry[];
extern u32 modes_pd[];

extern int run_at(u32 eip, u32 eflags, u32 cs, u32 ss, u32 esp, u32 ds, u32 eax, u32 edi);
extern void new_task_register(void);

#define PAGE __attribute__((aligned(4096)))
static u8 code[4096] PAGE, stack[4096] PAGE, frame[2][4096] PAGE;
static u8 task[4096] PAGE, task_stack[4096] PAGE;
static u64 pdpt[4] __attribute__((aligned(32)));
static u64 pae_pd[512] PAGE, pae_low[512] PAGE, pae_pt[512] PAGE;
static u32 pt[1024] PAGE;

static u32 at(const volatile void *p) { return (u32)p; }

#define PROGRAM(...)                                                                              \
    do {                                                                                          \
        static const u8 bytes[] = { __VA_ARGS__ };                                                \
        memset(code, 0xcc, 256);                                                                  \
        copy(code, bytes, sizeof bytes);                                                          \
    } while (0)

/* Code, data and stack selectors of a privilege. */
static const u32 code_of[] = { 0x08, 0xa9, 0xba, 0x1b }, data_of[] = { 0x10, 0xb1, 0xc2, 0x23 };

static int attempt(u32 cpl, u32 eax, u32 edi)
{
    u32 esp = cpl ? at(stack) + 0x800 : at(kernel_top) - 128;
    return run_at(at(code), 2, code_of[cpl], data_of[cpl], esp, data_of[cpl], eax, edi);
}

static int has_code(u32 vector)
{
    return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
}

static void outcome(int vector)
{
    if (vector == 0x81) {
        put('-');
        return;
    }
    hex((u32)vector);
    if (has_code((u32)vector)) {
        put(':');
        hex(event.error);
    }
}

/* A descriptor; limit in its own units, flags G D L AVL. */
static u64 descriptor(u32 base, u32 limit, u32 access, u32 flags)
{
    return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 |
           (u64)(limit >> 16 & 15) << 48 | (u64)flags << 52 | (u64)(base >> 24) << 56;
}

#define FREE 0x50

/* MOV to a segment register, every type, DPL, RPL and privilege. */
static void loads(void)
{
    /* mov ds, eax / mov ss, eax / mov fs, eax; int 0x81 */
    static const u8 registers[] = { 0xd8, 0xd0, 0xe0 };
    static const char *const names[] = { "ds", "ss", "fs" };
    u32 type, present, cpl, dpl, rpl, n;
    for (n = 0; n < 3; n++)
        for (type = 0; type < 32; type++)
            for (present = 0; present < 2; present++) {
                text("load ");
                text(names[n]);
                word("type", type);
                word("p", present);
                for (cpl = 0; cpl < 4; cpl += 3) {
                    put(' ');
                    for (dpl = 0; dpl < 4; dpl++)
                        for (rpl = 0; rpl < 4; rpl++) {
                            PROGRAM(0x8e, 0, 0xcd, 0x81);
                            code[1] = registers[n];
                            /* Expand-down: everything above the first page. */
                            u32 limit = (type & 0x1c) == 0x14 ? 0 : 0xfffff;
                            gdt[FREE / 8] = descriptor(0, limit, type | dpl << 5 | present << 7, 0xc);
                            put(',');
                            outcome(attempt(cpl, FREE | rpl, 0));
                            /* Loading sets the accessed bit. */
                            if (event.vector == 0x81 && type & 16 && !(gdt[FREE / 8] >> 40 & 1))
                                put('!');
                        }
                }
                put('\n');
            }
    for (n = 0; n < 3; n++) {
        static const u16 odd[] = { 0, 1, 2, 3, 0x1000, 0x4, 0x54 };
        u32 k;
        text("load ");
        text(names[n]);
        text(" odd selectors");
        for (cpl = 0; cpl < 4; cpl += 3)
            for (k = 0; k < sizeof odd / sizeof *odd; k++) {
                PROGRAM(0x8e, 0, 0xcd, 0x81);
                code[1] = registers[n];
                put(' ');
                outcome(attempt(cpl, odd[k], 0));
            }
        put('\n');
    }
}

/* JMP and CALL far to code segments, and through call gates. */
static void transfers(void)
{
    u32 type, dpl, rpl, cpl, call;
    for (type = 0x18; type < 0x20; type++)
        for (call = 0; call < 2; call++) {
            text(call ? "call far" : "jmp far");
            word("type", type);
            for (cpl = 0; cpl < 4; cpl++) {
                put(' ');
                for (dpl = 0; dpl < 4; dpl++)
                    for (rpl = 0; rpl < 4; rpl++) {
                        /* jmp far [edi]: to the INT behind it */
                        PROGRAM(0xff, 0x2f, 0xcd, 0x81);
                        if (call)
                            code[1] = 0x1f;
                        gdt[FREE / 8] = descriptor(0, 0xfffff, type | dpl << 5 | 0x80, 0xc);
                        *(u32 *)frame[0] = at(code) + 2;
                        *(u16 *)&frame[0][4] = (u16)(FREE | rpl);
                        put(',');
                        outcome(attempt(cpl, 0, at(frame[0])));
                        if (event.vector == 0x81) {
                            put('/');
                            hex(event.cs & 3);
                        }
                    }
            }
            put('\n');
        }
    /* Call gates: gate's DPL, target's DPL and kind, privilege. */
    for (type = 0; type < 4; type++)
        for (call = 0; call < 2; call++) {
            u32 conforming = type & 1, wide = !(type & 2);
            text(call ? "call gate" : "jmp gate");
            word("conforming", conforming);
            word("bits", wide ? 32 : 16);
            for (cpl = 0; cpl < 4; cpl++) {
                put(' ');
                for (dpl = 0; dpl < 4; dpl++)
                    for (rpl = 0; rpl < 4; rpl++) {
                        u32 target = at(code) + 2;
                        PROGRAM(0xff, 0x2f, 0xcd, 0x81);
                        if (call)
                            code[1] = 0x1f;
                        /* A 16-bit gate reaches 64 KiB: give it a base. */
                        gdt[FREE / 8] = wide ? descriptor(0, 0xfffff, 0x9b | rpl << 5 | conforming << 2, 0xc)
                                             : descriptor(at(code), 0xffff, 0x9b | rpl << 5 | conforming << 2, 4);
                        if (!wide)
                            target = 2;
                        gdt[FREE / 8 + 1] = (target & 0xffff) | (u64)FREE << 16 | (u64)(cpl ? 2 : 0) << 32 |
                                            (u64)((wide ? 0x8c : 0x84) | dpl << 5) << 40 |
                                            (u64)(target >> 16) << 48;
                        *(u32 *)frame[0] = 0;
                        *(u16 *)&frame[0][4] = FREE + 8;
                        put(',');
                        outcome(attempt(cpl, 0, at(frame[0])));
                        if (event.vector == 0x81) {
                            put('/');
                            hex(event.cs & 3);
                            if (cpl > (event.cs & 3) && call) {
                                /* Parameters were copied: old SS, ESP, two parameters, CS, EIP. */
                                u32 top = (event.cs & 3) == 0   ? at(kernel_top)
                                          : (event.cs & 3) == 1 ? at(ring1_top)
                                                                : at(ring2_top);
                                u32 sp = (event.cs & 3) ? event.esp : event.stack + 20;
                                put('/');
                                hex(top - sp);
                            }
                        }
                    }
            }
            put('\n');
        }
}

/* IRET and RETF to every selector, from privilege 0 and 3. */
static void returns(void)
{
    static const u16 codes[] = { 0x08, 0xa9, 0xba, 0x1b, 0x0b, 0x1a, 0x10, 0, 0x1000, FREE, FREE | 3 };
    static const u16 stacks[] = { 0x10, 0xb1, 0xc2, 0x23, 0x13, 0, 0x08, 0x1000 };
    u32 far, c, s, cpl;
    /* A conforming segment at FREE. */
    for (far = 0; far < 2; far++)
        for (cpl = 0; cpl < 4; cpl += 3)
            for (c = 0; c < sizeof codes / sizeof *codes; c++) {
                gdt[FREE / 8] = descriptor(0, 0xfffff, 0x9f, 0xc);
                text(far ? "retf" : "iret");
                word("cpl", cpl);
                word("cs", codes[c]);
                for (s = 0; s < sizeof stacks / sizeof *stacks; s++) {
                    u32 n = 0, *sp = (u32 *)(cpl ? at(stack) + 0x800 : at(kernel_top) - 128);
                    PROGRAM(0xcf, 0xcd, 0x81);
                    if (far)
                        code[0] = 0xcb;
                    sp[n++] = at(code) + 1;
                    sp[n++] = codes[c];
                    if (!far)
                        sp[n++] = 2;
                    sp[n++] = at(stack) + 0x900;
                    sp[n++] = stacks[s];
                    put(' ');
                    outcome(attempt(cpl, 0, 0));
                    if (event.vector == 0x81) {
                        put('/');
                        hex(event.cs);
                        if (event.cs & 3) {
                            put('/');
                            hex(event.ss);
                        }
                    }
                }
                put('\n');
            }
}

/* INT n through gates of both widths, and stacks in the TSS that are bad. */
static void gates(void)
{
    static const u16 targets[] = { 0x08, 0xa8, 0xb8, 0x18, 0x10, 0, FREE, 0x1000 };
    u64 saved = idt[0x82];
    u32 type, t, dpl, cpl;
    gdt[FREE / 8] = descriptor(0, 0xfffff, 0x9f, 0xc);
    PROGRAM(0xcd, 0x82, 0xcd, 0x81);
    for (type = 0; type < 16; type++)
        for (t = 0; t < sizeof targets / sizeof *targets; t++) {
            if ((type & 14) != 14 && targets[t] != 8)
                continue;
            if (type == 5 || type == 6 || type == 7)
                continue;
            text("gate type=");
            hex(type);
            word("cs", targets[t]);
            for (cpl = 0; cpl < 4; cpl++) {
                put(' ');
                for (dpl = 0; dpl < 4; dpl++) {
                    int vector;
                    idt[0x82] = (saved & 0xffff00000000ffffull) | (u64)targets[t] << 16 |
                                (u64)(type | dpl << 5 | 0x80) << 40;
                    vector = attempt(cpl, 0, 0);
                    put(',');
                    if (vector == 0x82) {
                        put('+');
                        hex(event.handler_flags >> 9 & 1);
                        hex(event.handler_ss);
                    } else {
                        outcome(vector);
                    }
                }
            }
            put('\n');
        }
    idt[0x82] = saved;
}

/* Accesses around the ends of segments. */
static void limits(void)
{
    static const struct {
        const char *name;
        u32 limit, access, flags;
    } kinds[] = {
        { "up", 0xff, 0xf3, 4 },       { "up-16", 0xff, 0xf3, 0 },     { "up-pages", 0, 0xf3, 12 },
        { "down", 0xff, 0xf7, 4 },     { "down-16", 0xff, 0xf7, 0 },   { "down-pages", 0, 0xf7, 12 },
        { "read-only", 0xff, 0xf1, 4 }, { "code", 0xff, 0xfb, 4 },     { "execute-only", 0xff, 0xf9, 4 },
        { "down-all", 0xfffff, 0xf7, 12 },
    };
    static const u32 offsets[] = { 0, 0xfc, 0xfd, 0xfe, 0xff, 0x100, 0x101, 0xffc, 0xfff, 0x1000,
                                   0xfffc, 0xffff };
    u32 k, o, write, size;
    for (k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (write = 0; write < 2; write++) {
            text("limit ");
            text(kinds[k].name);
            text(write ? " write" : " read");
            for (o = 0; o < sizeof offsets / sizeof *offsets; o++) {
                put(' ');
                for (size = 0; size < 3; size++) {
                    /* mov fs, eax; mov al/ax/eax, fs:[edi] or back; int 0x81 */
                    PROGRAM(0x8e, 0xe0, 0x64, 0x90, 0x8a, 0x07, 0xcd, 0x81);
                    code[3] = size == 1 ? 0x66 : 0x3e;
                    if (size != 1) {
                        code[2] = 0x3e;
                        code[3] = 0x64;
                    }
                    code[4] = (u8)(write ? (size ? 0x89 : 0x88) : (size ? 0x8b : 0x8a));
                    gdt[FREE / 8] = descriptor(at(frame[0]), kinds[k].limit, kinds[k].access, kinds[k].flags);
                    put(',');
                    outcome(attempt(3, FREE | 3, offsets[o]));
                }
            }
            put('\n');
        }
}

/* A second task at FREE, which runs task_entry. */
static void make_task(u32 access)
{
    u32 *t = (u32 *)task, n;
    for (n = 0; n < 26; n++)
        t[n] = 0;
    t[1] = at(kernel_top);
    t[2] = 0x10;
    t[8] = at(task_entry);
    t[9] = 2;
    t[10] = 0xa1a1;
    t[14] = at(task_stack) + 2048;
    for (n = 18; n < 24; n++)
        t[n] = 0x10;
    t[19] = 0x08;
    t[25] = 0x680000;
    gdt[FREE / 8] = descriptor(at(task), 0x67, access, 0);
    gdt[FREE / 8 + 1] = (u64)FREE << 16 | 0xe5ull << 40; /* task gate */
}

static void show_task(const char *name, int vector)
{
    u32 *old = (u32 *)tss, *new = (u32 *)task;
    text("task ");
    text(name);
    put(' ');
    outcome(vector);
    word("tr", event.tr);
    word("busy", (gdt[FREE / 8] >> 41 & 1) | (gdt[8] >> 41 & 1) << 1);
    if (event.tr == FREE) {
        word("nt", task_seen[0] >> 14 & 1);
        word("link", new[0] & 0xffff);
        word("ts", task_seen[4] >> 3 & 1);
        word("eax", task_seen[2]);
        word("sp", at(task_stack) + 2048 - task_seen[1]);
        /* What the old task left. */
        word("eip", old[8] - at(code));
        word("eflags", old[9] & 0x4002);
        word("cs", old[19]);
    }
    put('\n');
    new_task_register();
    __asm__ volatile("clts");
}

static void tasks(void)
{
    /* What is wrong with CS or SS faults without a stack, which no gate survives. */
    static const struct {
        const char *name;
        u32 field, value;
    } wrong[] = {
        { "absent ds", 21, 0x60 }, { "system ds", 21, 0x40 },   { "null ds", 21, 0 },
    };
    u32 n;
    gdt[0x60 / 8] = descriptor(0, 0xfffff, 0x13, 0xc);
    /* jmp far [edi], call far [edi], int */
    make_task(0x89);
    *(u32 *)frame[0] = 0;
    *(u16 *)&frame[0][4] = FREE;
    PROGRAM(0xff, 0x2f, 0xcd, 0x81);
    show_task("jmp", attempt(0, 0, at(frame[0])));
    make_task(0x89);
    PROGRAM(0xff, 0x1f, 0xcd, 0x81);
    show_task("call", attempt(0, 0, at(frame[0])));
    make_task(0x89);
    *(u16 *)&frame[0][4] = FREE + 8;
    PROGRAM(0xff, 0x1f, 0xcd, 0x81);
    show_task("call by gate", attempt(0, 0, at(frame[0])));
    make_task(0xe9);
    show_task("call by gate from 3", attempt(3, 0, at(frame[0])));
    make_task(0x8b);
    show_task("busy", attempt(0, 0, at(frame[0])));
    make_task(0x09);
    show_task("absent", attempt(0, 0, at(frame[0])));
    make_task(0x89);
    gdt[FREE / 8] = descriptor(at(task), 0x66, 0x89, 0);
    show_task("short", attempt(0, 0, at(frame[0])));
    make_task(0x89);
    *(u16 *)&frame[0][4] = FREE;
    PROGRAM(0xff, 0x1f, 0xcd, 0x81);
    show_task("from 3", attempt(3, 0, at(frame[0])));
    make_task(0x89);
    ((u32 *)task)[25] |= 1;
    show_task("with the trap bit", attempt(0, 0, at(frame[0])));
    {
        u64 saved = idt[0x82];
        make_task(0x89);
        idt[0x82] = (u64)FREE << 16 | 0xe5ull << 40;
        PROGRAM(0xcd, 0x82, 0xcd, 0x81);
        show_task("int", attempt(3, 0, 0));
        idt[0x82] = saved;
        /* An exception with an error code: it is pushed on the new task's stack. */
        saved = idt[13];
        make_task(0x89);
        idt[13] = (u64)FREE << 16 | 0xe5ull << 40;
        PROGRAM(0xf4, 0xcd, 0x81);
        show_task("exception", attempt(3, 0, 0));
        idt[13] = saved;
    }
    for (n = 0; n < sizeof wrong / sizeof *wrong; n++) {
        make_task(0x89);
        ((u32 *)task)[wrong[n].field] = wrong[n].value;
        PROGRAM(0xff, 0x2f, 0xcd, 0x81);
        *(u16 *)&frame[0][4] = FREE;
        show_task(wrong[n].name, attempt(0, 0, at(frame[0])));
    }
    /* IRET with NT: back to the task of the link. */
    make_task(0x8b);
    *(u32 *)tss = FREE;
    /* pushfd; or dword [esp], 0x4000; popfd; iretd */
    PROGRAM(0x9c, 0x81, 0x0c, 0x24, 0, 0x40, 0, 0, 0x9d, 0xcf, 0xcd, 0x81);
    show_task("iret", attempt(0, 0, 0));
    make_task(0x89);
    *(u32 *)tss = FREE;
    show_task("iret to a free task", attempt(0, 0, 0));
}

/* Virtual-8086 mode: what IOPL decides. */
static void virtual_8086(void)
{
    static const struct {
        const char *name;
        u8 bytes[6];
    } programs[] = {
        { "cli", { 0xfa, 0xcd, 0x81 } },        { "sti", { 0xfb, 0xcd, 0x81 } },
        { "pushf", { 0x9c, 0xcd, 0x81 } },      { "popf", { 0x9d, 0xcd, 0x81 } },
        { "int", { 0xcd, 0x81 } },              { "int3", { 0xcc } },
        { "iret", { 0xcf } },                   { "hlt", { 0xf4 } },
        { "in", { 0xec, 0xcd, 0x81 } },         { "lldt", { 0x0f, 0x00, 0xd0, 0xcd, 0x81 } },
        { "mov cr0", { 0x0f, 0x20, 0xc0, 0xcd, 0x81 } }, { "lock nop", { 0xf0, 0x90 } },
        { "into", { 0xce, 0xcd, 0x81 } },       { "arpl", { 0x63, 0xc0, 0xcd, 0x81 } },
        { "smsw", { 0x0f, 0x01, 0xe0, 0xcd, 0x81 } },
    };
    u8 *low = (u8 *)0x9000;
    u32 n, iopl;
    for (n = 0; n < sizeof programs / sizeof *programs; n++) {
        text("v86 ");
        text(programs[n].name);
        for (iopl = 0; iopl < 4; iopl += 3) {
            int vector;
            memset(low, 0x90, 64);
            copy(low, programs[n].bytes, 6);
            *(u16 *)0xa000 = 0x900;
            *(u16 *)0xa002 = 0x900;
            *(u16 *)0xa004 = 0x202;
            low[0x70] = 0xcd;
            low[0x71] = 0x81;
            vector = run_at(0, 0x20002 | iopl << 12, 0x900, 0xa00, 0, 0x900, 0x40, 0);
            put(' ');
            outcome(vector);
            word("ip", event.eip);
            word("cs", event.cs);
            word("flags", event.eflags & 0x23300);
            word("ss", event.ss);
        }
        put('\n');
    }
}

static void set_cr0(u32 v) { __asm__ volatile("mov %0, %%cr0" : : "r"(v) : "memory"); }
static void set_cr3(u32 v) { __asm__ volatile("mov %0, %%cr3" : : "r"(v) : "memory"); }
static void set_cr4(u32 v) { __asm__ volatile("mov %0, %%cr4" : : "r"(v) : "memory"); }
static u32 cr0(void) { u32 v; __asm__ volatile("mov %%cr0, %0" : "=r"(v)); return v; }
static u32 cr4(void) { u32 v; __asm__ volatile("mov %%cr4, %0" : "=r"(v)); return v; }

#define VICTIM 0x40000000u

/* Rights of 32-bit and PAE paging: clear these bits at that level. */
static void paging(u32 pae)
{
    static const struct {
        const char *name;
        u32 clear;
        u64 set;
    } flaws[] = {
        { "sound", 0, 0 },          { "absent", 1, 0 },       { "read-only", 2, 0 },
        { "supervisor", 4, 0 },     { "both", 6, 0 },         { "no-execute", 0, 1ull << 63 },
        { "reserved", 0, 1ull << 51 },
    };
    u32 old0 = cr0(), old4 = cr4(), level, f, wp, cpl, kind, n, large;
    for (n = 0; n < 512; n++)
        pae_low[n] = (u64)n << 21 | 0x87;
    for (n = 0; n < 1024; n++)
        modes_pd[n] = n < 64 ? n << 22 | 0x87 : 0;
    /* EFER.NXE, for PAE. */
    __asm__ volatile("mov $0xc0000080, %%ecx; rdmsr; or $0x800, %%eax; wrmsr" : : : "eax", "ecx", "edx");
    for (large = 0; large < 2; large++)
        for (level = 2; level >= 1; level--)
            for (f = 0; f < sizeof flaws / sizeof *flaws; f++) {
                if (!pae && flaws[f].set)
                    continue;
                if (large && level == 1)
                    continue;
                text(pae ? "pae" : "paging32");
                text(large ? " large" : "");
                word("level", level);
                put(' ');
                text(flaws[f].name);
                for (wp = 0; wp < 2; wp++)
                    for (cpl = 0; cpl < 4; cpl += 3) {
                        put(' ');
                        for (kind = 0; kind < 3; kind++) {
                            u64 upper = pae ? at(pae_pt) | 7 : at(pt) | 7, lower = at(frame[0]) | 7;
                            int vector;
                            if (large)
                                upper = 0x87;
                            if (level == 2)
                                upper = (upper & ~(u64)flaws[f].clear) | flaws[f].set;
                            else
                                lower = (lower & ~(u64)flaws[f].clear) | flaws[f].set;
                            pdpt[0] = at(pae_low) | 1;
                            pdpt[1] = at(pae_pd) | 1;
                            pae_pd[0] = upper;
                            pae_pt[0] = lower;
                            modes_pd[VICTIM >> 22] = (u32)upper;
                            pt[0] = (u32)lower;
                            /* mov al, [edi]; mov [edi], al; jmp edi */
                            if (kind == 0)
                                PROGRAM(0x8a, 0x07, 0xcd, 0x81);
                            else if (kind == 1)
                                PROGRAM(0x88, 0x07, 0xcd, 0x81);
                            else
                                PROGRAM(0xff, 0xe7);
                            /* At the large page's start lies the interrupt table of real mode. */
                            frame[0][0] = 0xcd;
                            frame[0][1] = 0x81;
                            *(volatile u16 *)0x500 = 0x81cd;
                            set_cr3(pae ? at(pdpt) : at(modes_pd));
                            set_cr4(pae ? old4 | 0x30 : old4 | 0x10);
                            set_cr0(wp ? old0 | 0x80010000u : (old0 | 0x80000000u) & ~0x10000u);
                            vector = attempt(cpl, 0, VICTIM + (large ? 0x500 : 0));
                            set_cr0(old0);
                            set_cr4(old4);
                            put(',');
                            outcome(vector);
                            if (vector == 0x81) {
                                u64 top = pae ? pae_pd[0] : modes_pd[VICTIM >> 22];
                                u64 leaf = pae ? pae_pt[0] : pt[0];
                                put('/');
                                hex((top >> 5 & 1) << 2 | ((large ? top : leaf) >> 5 & 3));
                            }
                        }
                    }
                put('\n');
            }
}

int main(void)
{
    text("report 32\n");
    loads();
    transfers();
    returns();
    gates();
    limits();
    tasks();
    virtual_8086();
    paging(0);
    paging(1);
    text("modes ");
    return 0;
}
