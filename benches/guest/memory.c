/* Work whose time is in loads and stores: pointer chasing over several sizes, tables, trees, sorting. */
#include <stdlib.h>
#include <string.h>
#include "bench.h"

/* A cycle through all lines of the first `bytes` of the arena, in random order (Sattolo). */
static void make_chain(uint64_t bytes) {
    uint32_t lines = bytes / 64, *order = malloc(lines * sizeof *order);
    uint64_t state = SEED;
    if (!order) {
        failed("no memory");
        return;
    }
    for (uint32_t i = 0; i < lines; i++)
        order[i] = i;
    for (uint32_t i = lines - 1; i > 0; i--) {
        uint32_t j = next_random(&state) % i, kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
    for (uint32_t i = 0; i < lines; i++)
        *(void **)(arena + order[i] * 64ull) = arena + order[(i + 1) % lines] * 64ull;
    free(order);
}

static void chain_16k(void) { make_chain(16 << 10); }
static void chain_256k(void) { make_chain(256 << 10); }
static void chain_4m(void) { make_chain(4 << 20); }
static void chain_64m(void) { make_chain(64 << 20); }

static uint64_t chase(uint64_t count) {
    void **at = (void **)arena;
    for (uint64_t i = 0; i < count; i++)
        at = *at;
    return (uint8_t *)at - arena;
}

/* The same reach, but loads that don't wait for each other. */
static uint64_t random_read(uint64_t count) {
    uint64_t state = SEED, sum = 0;
    for (uint64_t i = 0; i < count; i++)
        sum += arena[next_random(&state) & ((64u << 20) - 1)];
    return sum;
}

static void fill_64m(void) {
    for (unsigned i = 0; i < 64u << 20; i += 8)
        *(uint64_t *)(arena + i) = i * SEED;
}

static uint64_t copy_16m(uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        memcpy(arena + (32 << 20), arena, 16 << 20);
        arena[i] ^= 1;
    }
    return arena[(32 << 20) + 1234567];
}

static uint64_t sum_words(uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t n = 0; n < count; n++)
        for (unsigned i = 0; i < 16384; i += 8) {
            uint64_t word = *(uint64_t *)(arena + i);
            __asm__("" : "+r"(word)); /* one load a step: no vectors */
            sum += word;
        }
    return sum;
}

/* Open addressing, half inserts, half lookups. */
static uint64_t hash_table(uint64_t count) {
    enum { SLOTS = 1 << 17 };
    struct slot { uint64_t key, value; } *table = (struct slot *)arena;
    uint64_t state = SEED, sum = 0, used = 0;
    memset(table, 0, SLOTS * sizeof *table);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t key = (next_random(&state) & 0x1ffff) | 1ull << 40;
        uint32_t at = (key * SEED) >> 47;
        while (table[at].key && table[at].key != key)
            at = (at + 1) % SLOTS;
        if (table[at].key == key)
            sum += table[at].value++;
        else if (used < SLOTS / 2) {
            table[at].key = key;
            table[at].value = i;
            used++;
        }
    }
    return sum;
}

struct node { struct node *left, *right; uint64_t key; };

static uint64_t tree(uint64_t count) {
    uint64_t state = SEED, sum = 0;
    for (uint64_t round = 0; round < count; round++) {
        struct node *nodes = (struct node *)arena, *top = 0;
        for (unsigned n = 0; n < 10000; n++) {
            struct node **at = &top;
            uint64_t key = next_random(&state);
            while (*at)
                at = key < (*at)->key ? &(*at)->left : &(*at)->right;
            nodes[n] = (struct node){0, 0, key};
            *at = &nodes[n];
        }
        for (unsigned n = 0; n < 10000; n++) {
            struct node *at = top;
            uint64_t key = next_random(&state);
            while (at) {
                at = key < at->key ? at->left : at->right;
                sum++;
            }
        }
    }
    return sum;
}

static uint64_t allocate(uint64_t count) {
    void *kept[256] = {0};
    uint64_t state = SEED, sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        unsigned which = next_random(&state) & 255;
        free(kept[which]);
        size_t size = 16 + ((state >> 20) & 1023);
        unsigned char *block = kept[which] = malloc(size);
        if (!block)
            continue;
        block[0] = block[size - 1] = (unsigned char)i;
        sum += block[size / 2 * 0];
    }
    for (unsigned i = 0; i < 256; i++)
        free(kept[i]);
    return sum;
}

#define ITEMS 100000
static uint32_t items[ITEMS], spare[ITEMS];

static void shuffle(void) {
    uint64_t state = SEED;
    for (unsigned i = 0; i < ITEMS; i++)
        items[i] = (uint32_t)next_random(&state);
}

static uint64_t sorted(void) {
    uint64_t hash = 0;
    for (unsigned i = 0; i < ITEMS; i += 97)
        hash = mix(hash, items[i]);
    return hash;
}

static void quick(uint32_t *from, uint32_t *to) {
    while (to - from > 12) {
        uint32_t pivot = from[(to - from) / 2], *left = from, *right = to;
        for (;;) {
            while (*left < pivot)
                left++;
            while (*right > pivot)
                right--;
            if (left >= right)
                break;
            uint32_t kept = *left;
            *left++ = *right;
            *right-- = kept;
        }
        if (right - from < to - right - 1) {
            quick(from, right);
            from = right + 1;
        } else {
            quick(right + 1, to);
            to = right;
        }
    }
    for (uint32_t *i = from + 1; i <= to; i++) {
        uint32_t kept = *i, *j = i;
        for (; j > from && j[-1] > kept; j--)
            *j = j[-1];
        *j = kept;
    }
}

static uint64_t sort_quick(uint64_t count) {
    uint64_t hash = 0;
    for (uint64_t n = 0; n < count; n++) {
        shuffle();
        quick(items, items + ITEMS - 1);
        hash = mix(hash, sorted());
    }
    return hash;
}

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint64_t sort_library(uint64_t count) {
    uint64_t hash = 0;
    for (uint64_t n = 0; n < count; n++) {
        shuffle();
        qsort(items, ITEMS, sizeof items[0], compare);
        hash = mix(hash, sorted());
    }
    return hash;
}

static uint64_t sort_radix(uint64_t count) {
    uint64_t hash = 0;
    for (uint64_t n = 0; n < count; n++) {
        shuffle();
        for (unsigned shift = 0; shift < 32; shift += 8) {
            uint32_t start[257] = {0};
            for (unsigned i = 0; i < ITEMS; i++)
                start[(items[i] >> shift & 255) + 1]++;
            for (unsigned i = 0; i < 256; i++)
                start[i + 1] += start[i];
            for (unsigned i = 0; i < ITEMS; i++)
                spare[start[items[i] >> shift & 255]++] = items[i];
            memcpy(items, spare, sizeof items);
        }
        hash = mix(hash, sorted());
    }
    return hash;
}

const struct workload memory_workloads[] = {
    {"mem-chase-16k", "memory", 60000001, chase, chain_16k, 0},
    {"mem-chase-256k", "memory", 25000000, chase, chain_256k, 0},
    {"mem-chase-4m", "memory", 6000000, chase, chain_4m, 0},
    {"mem-chase-64m", "memory", 800000, chase, chain_64m, 0},
    {"mem-random-64m", "memory", 10000000, random_read, fill_64m, 0},
    {"mem-copy-16m", "memory", 80, copy_16m, fill_64m, 0},
    {"mem-sum-16k", "memory", 100000, sum_words, fill_64m, 0},
    {"mem-hash-table", "memory", 8000000, hash_table, fill_64m, 0},
    {"mem-tree", "memory", 80, tree, fill_64m, 0},
    {"mem-malloc", "memory", 8000000, allocate, 0, 0},
    {"sort-quick", "memory", 30, sort_quick, 0, 0},
    {"sort-library", "memory", 15, sort_library, 0, 0},
    {"sort-radix", "memory", 180, sort_radix, 0, 0},
    {0},
};
