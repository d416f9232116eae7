/* The measuring guest: one static program that is the guest's first program and, on the host, the native column.
 *
 * Problem: the same work must be timed natively, in Xenolith and in QEMU, in turns, without starting a guest for
 * each. Scheme: the program reads commands, runs a workload for each `run` and prints one line. As the
 * first program of a guest it reads them from the console, or takes them from the kernel's command line.
 *
 *   list                    "workload NAME GROUP COUNT" for each, then "end"
 *   run NAME PERMILLE       "begin NAME" when its preparation is done, then "result NAME COUNT NANOSECONDS CHECKSUM CPU-NANOSECONDS"
 *                           or "failed NAME REASON"
 *   quit                    switches the machine off, or ends the process
 *
 * On the kernel's command line: bench=NAME,NAME (or bench=GROUP, or bench=all), bench.scale=PERMILLE,
 * bench.runs=N; then the machine is switched off. Times are CLOCK_MONOTONIC; CPU time is that of the process
 * and the children that it waited for.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "bench.h"

const char *root = "";
uint8_t arena[ARENA_BYTES] __attribute__((aligned(4096)));

static const char *failure;
static char features[4096];

void failed(const char *what) {
    if (!failure)
        failure = what;
}

static const struct workload *const tables[] = {
    integer_workloads, memory_workloads, crypto_workloads, float_workloads,
    vector_workloads,  program_workloads, system_workloads,
};

static void each(void (*visit)(const struct workload *, void *), void *with) {
    for (size_t t = 0; t < LEN(tables); t++)
        for (const struct workload *w = tables[t]; w->name; w++)
            visit(w, with);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t cpu_time(void) {
    uint64_t sum = 0;
    for (int child = 0; child < 2; child++) {
        struct rusage used;
        getrusage(child ? RUSAGE_CHILDREN : RUSAGE_SELF, &used);
        sum += (uint64_t)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000u;
        sum += (uint64_t)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
    }
    return sum * 1000;
}

static int has_feature(const char *name) {
    char padded[64];
    if (!name)
        return 1;
    snprintf(padded, sizeof padded, " %s ", name);
    return strstr(features, padded) != 0;
}

static void read_features(void) {
    FILE *info = fopen("/proc/cpuinfo", "r");
    char line[sizeof features];
    while (info && fgets(line, sizeof line, info))
        if (strncmp(line, "flags", 5) == 0) {
            line[strcspn(line, "\n")] = ' ';
            strcpy(features, line);
            break;
        }
    if (info)
        fclose(info);
}

static void run(const struct workload *w, uint64_t permille) {
    uint64_t count = w->count * permille / 1000;
    if (count == 0)
        count = 1;
    failure = 0;
    if (!has_feature(w->needs)) {
        printf("failed %s the processor has no %s\n", w->name, w->needs);
        return;
    }
    /* Forgotten, so that no workload pays for what another touched. */
    madvise(arena, sizeof arena, MADV_DONTNEED);
    if (w->setup)
        w->setup();
    printf("begin %s\n", w->name);
    uint64_t cpu = cpu_time(), start = now();
    uint64_t sum = w->run(count);
    uint64_t end = now();
    cpu = cpu_time() - cpu;
    if (failure)
        printf("failed %s %s\n", w->name, failure);
    else
        printf("result %s %llu %llu %016llx %llu\n", w->name, (unsigned long long)count,
               (unsigned long long)(end - start), (unsigned long long)sum, (unsigned long long)cpu);
}

static void print_entry(const struct workload *w, void *nothing) {
    (void)nothing;
    printf("workload %s %s %llu\n", w->name, w->group, (unsigned long long)w->count);
}

struct wish {
    const char *names;
    uint64_t permille;
    unsigned found;
};

/* Whether `name` is in a list separated by commas. */
static int listed(const char *name, const char *list) {
    size_t len = strlen(name);
    for (const char *at = list; *at; at += strcspn(at, ","), at += *at == ',')
        if (strncmp(at, name, len) == 0 && (at[len] == 0 || at[len] == ','))
            return 1;
    return 0;
}

static void run_if_wished(const struct workload *w, void *with) {
    struct wish *wish = with;
    if (listed(w->name, wish->names) || listed(w->group, wish->names) || listed("all", wish->names)) {
        wish->found++;
        run(w, wish->permille);
    }
}

static void serve(void) {
    char line[256];
    printf("ready\n");
    while (fgets(line, sizeof line, stdin)) {
        char *verb = strtok(line, " \r\n"), *name = strtok(0, " \r\n"), *permille = strtok(0, " \r\n");
        if (!verb)
            continue;
        if (strcmp(verb, "quit") == 0)
            return;
        if (strcmp(verb, "list") == 0) {
            each(print_entry, 0);
            printf("end\n");
        } else if (strcmp(verb, "run") == 0 && name) {
            struct wish wish = {name, permille ? strtoull(permille, 0, 10) : 1000, 0};
            each(run_if_wished, &wish);
            if (!wish.found)
                printf("failed %s there is no such workload\n", name);
        } else {
            printf("failed %s commands are: list, run NAME [PERMILLE], quit\n", verb);
        }
    }
}

/* The value of `name=` on the kernel's command line. */
static const char *option(char *line, const char *name, char *value, size_t size) {
    size_t len = strlen(name);
    for (char *at = line; (at = strstr(at, name)); at += len)
        if ((at == line || at[-1] == ' ') && at[len] == '=') {
            size_t length = strcspn(at + len + 1, " \n");
            snprintf(value, size, "%.*s", (int)length, at + len + 1);
            return value;
        }
    return 0;
}

static void be_init(void) {
    char line[4096] = "", names[1024], number[32];
    mkdir("/proc", 0755), mkdir("/dev", 0755), mkdir("/tmp", 0777), mkdir("/sys", 0755);
    mount("proc", "/proc", "proc", 0, 0);
    mount("dev", "/dev", "devtmpfs", 0, 0);
    mount("sys", "/sys", "sysfs", 0, 0);
    mount("tmp", "/tmp", "tmpfs", 0, 0);
    read_features();
    FILE *command_line = fopen("/proc/cmdline", "r");
    if (command_line) {
        if (!fgets(line, sizeof line, command_line))
            line[0] = 0;
        fclose(command_line);
    }
    if (option(line, "bench", names, sizeof names)) {
        struct wish wish = {names, 1000, 0};
        int runs = 1;
        if (option(line, "bench.scale", number, sizeof number))
            wish.permille = strtoull(number, 0, 10);
        if (option(line, "bench.runs", number, sizeof number))
            runs = atoi(number);
        while (runs-- > 0)
            each(run_if_wished, &wish);
    } else {
        serve();
    }
    sync();
    reboot(RB_POWER_OFF);
}

int main(int argc, char **argv) {
    setvbuf(stdout, 0, _IOLBF, 0);
    if (argc > 1 && strcmp(argv[1], "nothing") == 0)
        return 42;
    if (getpid() == 1) {
        be_init();
        return 1;
    }
    read_features();
    if (argc > 1)
        root = argv[1];
    serve();
    return 0;
}
