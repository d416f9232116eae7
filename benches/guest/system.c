/* Work for the kernel, and code that changes: calls, switches, processes, memory, signals, files. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "bench.h"

static uint64_t call(uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        syscall(SYS_getppid);
    return count;
}

static uint64_t get_time(uint64_t count) {
    struct timespec t;
    for (uint64_t i = 0; i < count; i++)
        clock_gettime(CLOCK_MONOTONIC, &t);
    return count;
}

/* A byte to a child and back; `both` is a pair of two-way ends. */
static uint64_t ping_pong(uint64_t count, int to[2], int from[2]) {
    char byte = 1;
    uint64_t sum = 0;
    pid_t child = fork();
    if (child == 0) {
        for (uint64_t i = 0; i < count; i++)
            if (read(to[0], &byte, 1) != 1 || write(from[1], &byte, 1) != 1)
                _exit(1);
        _exit(0);
    }
    for (uint64_t i = 0; i < count; i++) {
        byte = (char)i;
        if (write(to[1], &byte, 1) != 1 || read(from[0], &byte, 1) != 1) {
            failed("ping-pong broke");
            break;
        }
        sum += (unsigned char)byte;
    }
    int status = 0;
    waitpid(child, &status, 0);
    return sum + (unsigned)status;
}

static uint64_t pipes(uint64_t count) {
    int to[2], from[2];
    if (pipe(to) || pipe(from)) {
        failed("no pipe");
        return 0;
    }
    uint64_t sum = ping_pong(count, to, from);
    close(to[0]), close(to[1]), close(from[0]), close(from[1]);
    return sum;
}

static uint64_t sockets(uint64_t count) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) {
        failed("no socket");
        return 0;
    }
    int to[2] = {pair[1], pair[0]}, from[2] = {pair[0], pair[1]};
    uint64_t sum = ping_pong(count, to, from);
    close(pair[0]), close(pair[1]);
    return sum;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn_changed = PTHREAD_COND_INITIALIZER;
static int turn;

static void take_turns(uint64_t count, int mine) {
    for (uint64_t i = 0; i < count; i++) {
        pthread_mutex_lock(&lock);
        while (turn != mine)
            pthread_cond_wait(&turn_changed, &lock);
        turn = !mine;
        pthread_cond_signal(&turn_changed);
        pthread_mutex_unlock(&lock);
    }
}

static void *other_thread(void *count) {
    take_turns(*(uint64_t *)count, 1);
    return 0;
}

static uint64_t threads(uint64_t count) {
    pthread_t other;
    turn = 0;
    if (pthread_create(&other, 0, other_thread, &count)) {
        failed("no thread");
        return 0;
    }
    take_turns(count, 0);
    pthread_join(other, 0);
    return (unsigned)turn;
}

static uint64_t forks(uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        int status = 0;
        pid_t child = fork();
        if (child == 0)
            _exit((int)(i & 63));
        waitpid(child, &status, 0);
        sum += (unsigned)WEXITSTATUS(status);
    }
    return sum;
}

static uint64_t fork_exec(uint64_t count, const char *path, char *const words[]) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        int status = 0;
        pid_t child = fork();
        if (child == 0) {
            execv(path, words);
            _exit(99);
        }
        waitpid(child, &status, 0);
        sum += (unsigned)WEXITSTATUS(status);
    }
    return sum;
}

/* This static program, which ends at once. */
static uint64_t exec_static(uint64_t count) {
    char *const words[] = {(char *)"bench", (char *)"nothing", 0};
    return fork_exec(count, "/proc/self/exe", words);
}

/* A program that the dynamic linker puts together. */
static uint64_t exec_dynamic(uint64_t count) {
    char linker[512], libraries[512], program[512];
    snprintf(linker, sizeof linker, "%s/lib64/ld-linux-x86-64.so.2", root);
    snprintf(libraries, sizeof libraries, "%s/lib/x86_64-linux-gnu", root);
    snprintf(program, sizeof program, "%s/usr/bin/zstd", root);
    char *const words[] = {linker, (char *)"--library-path", libraries, program, (char *)"-qV", 0};
    int kept = dup(1), null = open("/dev/null", O_WRONLY);
    dup2(null, 1);
    uint64_t sum = fork_exec(count, linker, words);
    dup2(kept, 1);
    close(kept), close(null);
    return sum;
}

static uint64_t map_and_touch(uint64_t count) {
    enum { BYTES = 1 << 20 };
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint8_t *at = mmap(0, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) {
            failed("no memory");
            return 0;
        }
        madvise(at, BYTES, MADV_NOHUGEPAGE);
        for (unsigned page = 0; page < BYTES; page += 4096)
            at[page] = (uint8_t)i, sum += at[page + 1];
        munmap(at, BYTES);
    }
    return sum;
}

/* Copy on write after a fork: 256 pages. */
static uint64_t copy_on_write(uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        int status = 0;
        pid_t child = fork();
        if (child == 0) {
            for (unsigned page = 0; page < 256; page++)
                arena[page * 4096] ^= 1;
            _exit(7);
        }
        waitpid(child, &status, 0);
        sum += (unsigned)WEXITSTATUS(status);
    }
    return sum;
}

static void touch_little(void) { memset(arena, 1, 1 << 20); }

static volatile sig_atomic_t caught;
static void on_signal(int number) {
    (void)number;
    caught++;
}

static uint64_t signals(uint64_t count) {
    struct sigaction action = {.sa_handler = on_signal}, before;
    sigaction(SIGUSR1, &action, &before);
    caught = 0;
    pid_t me = getpid();
    for (uint64_t i = 0; i < count; i++)
        kill(me, SIGUSR1);
    sigaction(SIGUSR1, &before, 0);
    return (uint64_t)caught;
}

static uint8_t *guarded;
static void on_fault(int number) {
    (void)number;
    caught++;
    mprotect(guarded, 4096, PROT_READ | PROT_WRITE);
}

/* As garbage collectors do it: a store faults, the handler allows it. */
static uint64_t fault_signals(uint64_t count) {
    struct sigaction action = {.sa_handler = on_fault}, before;
    sigaction(SIGSEGV, &action, &before);
    guarded = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    caught = 0;
    for (uint64_t i = 0; i < count; i++) {
        mprotect(guarded, 4096, PROT_READ);
        *(volatile uint8_t *)guarded = 1;
    }
    munmap(guarded, 4096);
    sigaction(SIGSEGV, &before, 0);
    return (uint64_t)caught;
}

static int file = -1;

/* 4 MiB on a file system in memory. */
static void make_file(void) {
    if (file >= 0)
        return;
    file = memfd_create("bench", 0);
    for (unsigned i = 0; i < 4; i++) {
        memset(arena, (int)i + 1, 1 << 20);
        if (write(file, arena, 1 << 20) != 1 << 20)
            failed("no file");
    }
}

static uint64_t read_large(uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        if (pread(file, arena, 65536, (off_t)(i % 64) * 65536) != 65536)
            failed("a short read");
        sum += arena[i % 65536];
    }
    return sum;
}

static uint64_t read_small(uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        if (pread(file, arena, 512, (off_t)(i % 8192) * 512) != 512)
            failed("a short read");
        sum += arena[i % 512];
    }
    return sum;
}

static uint64_t write_small(uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        if (pwrite(file, arena, 4096, (off_t)(i % 1024) * 4096) != 4096)
            failed("a short write");
    int kept = file;
    file = -1;
    close(kept);
    return count;
}

static uint64_t map_file(uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint8_t *at = mmap(0, 1 << 20, PROT_READ, MAP_SHARED, file, 0);
        for (unsigned page = 0; page < 256; page++)
            sum += at[page * 4096];
        munmap(at, 1 << 20);
    }
    return sum;
}

static uint64_t paths(uint64_t count) {
    struct stat found;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        sum += stat("/proc/self", &found) == 0;
        int opened = open("/dev/null", O_RDONLY);
        sum += opened >= 0;
        close(opened);
    }
    return sum;
}

#define CODE_BYTES (1u << 20)
static uint8_t *code;

static void map_code(void) {
    if (!code)
        code = mmap(0, CODE_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED)
        failed("no memory for code");
}

/* mov eax, N; lea eax, [rax+rdi]; ret */
static unsigned write_function(uint8_t *at, uint32_t number) {
    static const uint8_t bytes[] = {0xb8, 0, 0, 0, 0, 0x8d, 0x04, 0x38, 0xc3};
    memcpy(at, bytes, sizeof bytes);
    memcpy(at + 1, &number, 4);
    return sizeof bytes;
}

typedef uint32_t function(uint32_t);

/* One function whose constant is changed before each call. */
static uint64_t self_modifying(uint64_t count) {
    uint64_t sum = 0;
    write_function(code, 0);
    for (uint64_t i = 0; i < count; i++) {
        *(volatile uint32_t *)(code + 1) = (uint32_t)i;
        sum += ((function *)code)(3);
    }
    return sum;
}

/* Data that is written in the very page of code that runs. */
static uint64_t mixed_page(uint64_t count) {
    uint64_t sum = 0;
    volatile uint32_t *data = (volatile uint32_t *)(code + 2048);
    write_function(code, 5);
    for (uint64_t i = 0; i < count; i++) {
        *data += 3;
        sum += ((function *)code)((uint32_t)i);
    }
    return sum + *data * 0;
}

/* A compiler at run time: functions of 200 instructions with a loop, each new, each called ten times. */
static uint64_t fresh_code(uint64_t count) {
    uint64_t sum = 0, state = SEED;
    unsigned at = 0;
    for (uint64_t i = 0; i < count; i++) {
        if (at + 2048 > CODE_BYTES)
            at = 0;
        uint8_t *start = code + at, *p = start;
        *p++ = 0x89, *p++ = 0xf8; /* mov eax, edi */
        for (int n = 0; n < 200; n++) {
            uint64_t word = next_random(&state);
            switch (word >> 62) {
            case 0: *p++ = 0x05, memcpy(p, &word, 4), p += 4; break;          /* add eax, imm32 */
            case 1: *p++ = 0x35, memcpy(p, &word, 4), p += 4; break;          /* xor eax, imm32 */
            case 2: *p++ = 0xc1, *p++ = 0xc0, *p++ = word & 31; break;        /* rol eax, imm8 */
            default: *p++ = 0x8d, *p++ = 0x44, *p++ = 0x38, *p++ = word & 127; /* lea eax, [rax+rdi+imm8] */
            }
        }
        *p++ = 0xc3;
        at += (unsigned)(p - start + 15) & ~15u;
        for (uint32_t n = 0; n < 10; n++)
            sum += ((function *)start)(n);
    }
    return sum;
}

/* The same functions in new mappings, as a program that loads and unloads. */
static uint64_t fresh_mappings(uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint8_t *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        unsigned at = 0;
        for (unsigned n = 0; n < 16; n++)
            at += write_function(page + at, (uint32_t)(i + n));
        mprotect(page, 4096, PROT_READ | PROT_EXEC);
        for (unsigned n = 0; n < at; n += 9)
            sum += ((function *)(page + n))(1);
        munmap(page, 4096);
    }
    return sum;
}

const struct workload system_workloads[] = {
    {"sys-getppid", "system", 1000000, call, 0, 0},
    {"sys-time", "system", 2000000, get_time, 0, 0},
    {"sys-pipe", "system", 15000, pipes, 0, 0},
    {"sys-socket", "system", 12000, sockets, 0, 0},
    {"sys-threads", "system", 15000, threads, 0, 0},
    {"sys-fork", "system", 500, forks, 0, 0},
    {"sys-fork-exec", "system", 250, exec_static, 0, 0},
    {"sys-exec-dynamic", "system", 60, exec_dynamic, 0, 0},
    {"sys-map-touch", "system", 150, map_and_touch, 0, 0},
    {"sys-copy-on-write", "system", 200, copy_on_write, touch_little, 0},
    {"sys-signal", "system", 60000, signals, 0, 0},
    {"sys-fault-signal", "system", 30000, fault_signals, 0, 0},
    {"sys-read-64k", "system", 25000, read_large, make_file, 0},
    {"sys-read-512", "system", 200000, read_small, make_file, 0},
    {"sys-write-4k", "system", 100000, write_small, make_file, 0},
    {"sys-map-file", "system", 1000, map_file, make_file, 0},
    {"sys-paths", "system", 50000, paths, 0, 0},
    {"code-modified", "system", 200000, self_modifying, map_code, 0},
    {"code-mixed-page", "system", 1000000, mixed_page, map_code, 0},
    {"code-fresh", "system", 10000, fresh_code, map_code, 0},
    {"code-mappings", "system", 5000, fresh_mappings, map_code, 0},
    {0},
};
