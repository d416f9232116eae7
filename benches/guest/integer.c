/* Integer work in registers and the first-level cache: arithmetic, branches, calls, indirect jumps. */
#include <string.h>
#include "bench.h"

static uint64_t alu(uint64_t count) {
    uint64_t a = SEED, b = 1, c = 2;
    for (uint64_t i = 0; i < count; i++) {
        a ^= a << 13;
        a ^= a >> 7;
        a ^= a << 17;
        b = b * 5 + a;
        c += (b >> 3) ^ (a & 0xff);
        b = (b << 9) | (b >> 55);
    }
    return a ^ b ^ c;
}

/* Steps of 3n+1: which way the branch goes can't be guessed. */
static uint64_t collatz(uint64_t count) {
    uint64_t steps = 0;
    for (uint64_t start = 1; start <= count; start++)
        for (uint64_t n = start; n != 1; steps++) {
            /* The empty statements keep compilers from conditional moves. */
            if (n & 1) {
                n = 3 * n + 1;
                __asm__ volatile("" : "+r"(n));
            } else {
                n >>= 1;
                __asm__ volatile("");
            }
        }
    return steps;
}

static uint64_t divide(uint64_t count) {
    uint64_t state = SEED, sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t n = next_random(&state);
        sum += n / ((n >> 40) | 1);
        sum += (uint32_t)n % ((uint32_t)(n >> 50) | 1);
        sum ^= (int64_t)n / ((int64_t)(n >> 20) | 1);
    }
    return sum;
}

/* 1024-bit products by schoolbook multiplication: MUL and carries. */
static uint64_t bignum(uint64_t count) {
    uint64_t a[16], b[16], product[32], state = SEED, hash = 0;
    for (int i = 0; i < 16; i++)
        a[i] = next_random(&state), b[i] = next_random(&state);
    for (uint64_t n = 0; n < count; n++) {
        memset(product, 0, sizeof product);
        for (int i = 0; i < 16; i++) {
            uint64_t carry = 0;
            for (int j = 0; j < 16; j++) {
                unsigned __int128 t = (unsigned __int128)a[i] * b[j] + product[i + j] + carry;
                product[i + j] = (uint64_t)t;
                carry = (uint64_t)(t >> 64);
            }
            product[i + 16] = carry;
        }
        hash = mix(hash, product[31]);
        memcpy(a, product + 7, sizeof a);
        a[0] |= 1, a[15] |= 1;
    }
    return hash;
}

static unsigned place_queens(unsigned all, unsigned columns, unsigned left, unsigned right) {
    unsigned free = all & ~(columns | left | right), found = 0;
    if (columns == all)
        return 1;
    while (free) {
        unsigned queen = free & -free;
        free ^= queen;
        found += place_queens(all, columns | queen, (left | queen) << 1, (right | queen) >> 1);
    }
    return found;
}

static uint64_t queens(uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++)
        sum += place_queens(0x3ff, 0, 0, 0);
    return sum;
}

__attribute__((noinline, optimize("no-optimize-sibling-calls"))) static uint64_t fib_of(unsigned n) {
    __asm__("" : "+r"(n));
    return n < 2 ? n : fib_of(n - 1) + fib_of(n - 2);
}

static uint64_t fib(uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++)
        sum += fib_of(20);
    return sum;
}

/* A byte-code machine as interpreters have it: an indirect jump an instruction. */
static uint64_t dispatch(uint64_t count) {
    static const uint8_t code[] = {0, 1, 2, 3, 0, 4, 1, 5, 2, 0, 6, 3, 4, 7};
    static const void *const labels[] = {&&add, &&xor, &&shift, &&push, &&pop, &&multiply, &&test, &&end};
    uint64_t a = SEED, stack[4] = {1, 2, 3, 4};
    unsigned top = 0, pc = 0;
#define NEXT goto *labels[code[pc++]]
    NEXT;
add: a += stack[top]; NEXT;
xor: a ^= a >> 11; NEXT;
shift: a = a << 7 | a >> 57; NEXT;
push: top = (top + 1) & 3; stack[top] = a; NEXT;
pop: a -= 3 * stack[top]; top = (top - 1) & 3; NEXT;
multiply: a *= 0x2545f4914f6cdd1du; NEXT;
test: if (a & 1) pc++; NEXT;
end: if (--count == 0) return a; pc = 0; NEXT;
#undef NEXT
}

#define TARGETS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define TARGET(n) \
    __attribute__((noinline)) static uint64_t target_##n(uint64_t x) { return x * (2 * n + 3) + (x >> (n + 5)); }
TARGETS(TARGET)

/* Calls through pointers, in an order that can't be guessed. */
static uint64_t pointers(uint64_t count) {
#define NAME(n) target_##n,
    static uint64_t (*const volatile table[])(uint64_t) = {TARGETS(NAME)};
    uint64_t x = SEED;
    for (uint64_t i = 0; i < count; i++)
        x = table[x >> 60](x) ^ i;
    return x;
}

static uint64_t sieve(uint64_t count) {
    enum { LIMIT = 1 << 15 };
    static uint8_t composite[LIMIT];
    uint64_t sum = 0;
    for (uint64_t n = 0; n < count; n++) {
        memset(composite, 0, sizeof composite);
        for (unsigned i = 2; i < LIMIT; i++) {
            if (composite[i])
                continue;
            sum += i;
            for (unsigned j = 2 * i; j < LIMIT; j += i)
                composite[j] = 1;
        }
    }
    return sum;
}

/* What C libraries do for strings: short ones, with whatever vectors the library finds. */
static uint64_t strings(uint64_t count) {
    char text[512], copy[512];
    uint64_t state = SEED, sum = 0;
    for (unsigned i = 0; i < sizeof text; i++)
        text[i] = 'a' + next_random(&state) % 26;
    for (uint64_t i = 0; i < count; i++) {
        unsigned start = next_random(&state) % 256, len = state >> 58;
        char kept = text[start + len];
        text[start + len] = 0;
        sum += strlen(text + start);
        strcpy(copy, text + start);
        sum += strcmp(copy, text + start) == 0;
        text[start + len] = kept;
        char *found = memchr(text + start, 'q', 200);
        sum += found ? found - text : 7;
        copy[0] ^= 1;
        sum += memcmp(copy, text + start, 64) > 0;
    }
    return sum;
}

static uint64_t rep_movs(uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        void *to = arena + (i & 7) * 16384, *from = arena + 131072;
        size_t len = 4096;
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(len) : : "memory");
    }
    return arena[16384 + 77];
}

static uint64_t rep_stos(uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        void *to = arena + (i & 7) * 16384;
        size_t len = 512;
        __asm__ volatile("rep stosq" : "+D"(to), "+c"(len) : "a"(i & 7) : "memory");
    }
    return arena[16384];
}

/* Short ones, as compilers emit them for structures. */
static uint64_t rep_short(uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        void *to = arena, *from = arena + 4096 + (i & 63);
        size_t len = 5 + (i & 7);
        __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(len) : : "memory");
        sum += arena[i & 31];
    }
    return sum;
}

static uint64_t atomics(uint64_t count) {
    static uint64_t cell, other;
    cell = other = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t old = __atomic_fetch_add(&cell, i, __ATOMIC_SEQ_CST);
        __atomic_compare_exchange_n(&other, &old, cell, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        __atomic_exchange_n(&other, i, __ATOMIC_SEQ_CST);
    }
    return cell + other;
}

static void touch_little(void) {
    for (unsigned i = 0; i < 1 << 20; i++)
        arena[i] = (uint8_t)(i * 7);
}

const struct workload integer_workloads[] = {
    {"int-alu", "integer", 50000000, alu, 0, 0},
    {"int-collatz", "integer", 500000, collatz, 0, 0},
    {"int-divide", "integer", 12000000, divide, 0, 0},
    {"int-bignum", "integer", 500000, bignum, 0, 0},
    {"int-queens", "integer", 1200, queens, 0, 0},
    {"int-fib", "integer", 4000, fib, 0, 0},
    {"int-dispatch", "integer", 15000000, dispatch, 0, 0},
    {"int-pointers", "integer", 20000000, pointers, 0, 0},
    {"int-sieve", "integer", 3000, sieve, 0, 0},
    {"int-strings", "integer", 2000000, strings, 0, 0},
    {"int-rep-movs", "integer", 2000000, rep_movs, touch_little, 0},
    {"int-rep-stos", "integer", 2000000, rep_stos, touch_little, 0},
    {"int-rep-short", "integer", 15000000, rep_short, touch_little, 0},
    {"int-atomics", "integer", 8000000, atomics, 0, 0},
    {0},
};
