/* What the parts of the measuring guest share. See main.c for the whole. */
#ifndef BENCH_H
#define BENCH_H

#include <stddef.h>
#include <stdint.h>

/* One thing to measure. `run` does `count` units of work and returns a checksum that depends on nothing
 * but `count`, so that a wrong result shows. `setup`, if any, is not timed. */
struct workload {
    const char *name;
    const char *group;
    uint64_t count; /* some tenths of a second on a processor of the 2020s */
    uint64_t (*run)(uint64_t count);
    void (*setup)(void);
    const char *needs; /* a processor feature as in /proc/cpuinfo, or NULL */
};

extern const struct workload integer_workloads[], memory_workloads[], crypto_workloads[],
    float_workloads[], vector_workloads[], system_workloads[], program_workloads[];

/* Where the packages are unpacked: "" in the guest, a folder on the host. */
extern const char *root;

/* A checksum nobody can compute by hand means that something failed: this says what, and the workload's
 * result is dropped. */
void failed(const char *what);

/* xorshift64: the same on every machine. */
static inline uint64_t next_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static inline uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 32;
}

#define SEED 0x9e3779b97f4a7c15u
#define LEN(array) (sizeof(array) / sizeof((array)[0]))

/* 128 MiB for whoever runs; first touched in the setup of the one who needs it. */
#define ARENA_BYTES (128u << 20)
extern uint8_t arena[ARENA_BYTES];

#endif
