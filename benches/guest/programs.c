/* Programs from Debian's packages, run by name of the dynamic linker so that the same files serve in the guest
 * and, unpacked somewhere, on the host. A unit is one run; the checksum is over what they print. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bench.h"

#define WORDS_MAX 32

/* Runs `command` (words separated by spaces; `@` stands for the root, `#` for the count) and hashes its
 * output. */
static uint64_t run_program(const char *command, uint64_t count) {
    static char text[4096];
    char *words[WORDS_MAX + 5], linker[512], libraries[1024];
    size_t used = 0;
    for (const char *c = command; *c && used + 512 < sizeof text; c++) {
        if (*c == '@')
            used += (size_t)sprintf(text + used, "%s", root);
        else if (*c == '#')
            used += (size_t)sprintf(text + used, "%llu", (unsigned long long)count);
        else
            text[used++] = *c;
    }
    text[used] = 0;
    snprintf(linker, sizeof linker, "%s/lib64/ld-linux-x86-64.so.2", root);
    snprintf(libraries, sizeof libraries, "%s/lib/x86_64-linux-gnu:%s/usr/lib/x86_64-linux-gnu", root, root);
    words[0] = linker;
    words[1] = (char *)"--library-path";
    words[2] = libraries;
    /* A static program needs no linker. */
    unsigned first = strncmp(command, "@/bin/busybox ", 14) == 0 ? 3 : 0, n = 3;
    for (char *word = strtok(text, " "); word && n < WORDS_MAX; word = strtok(0, " "))
        words[n++] = word;
    words[n] = 0;

    int ends[2];
    if (pipe(ends)) {
        failed("no pipe");
        return 0;
    }
    pid_t child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0);
        dup2(ends[1], 1);
        dup2(null, 2);
        close(ends[0]);
        char home[512];
        snprintf(home, sizeof home, "%s/usr", root);
        setenv("PYTHONHOME", home, 1);
        setenv("PYTHONDONTWRITEBYTECODE", "1", 1);
        setenv("PYTHONHASHSEED", "0", 1);
        setenv("PERL_HASH_SEED", "0", 1);
        setenv("OPENSSL_CONF", "/dev/null", 1);
        snprintf(home, sizeof home, "%s/usr/lib/x86_64-linux-gnu/perl-base", root);
        setenv("PERL5LIB", home, 1);
        execv(words[first], words + first);
        _exit(99);
    }
    close(ends[1]);
    uint64_t hash = 0;
    static uint8_t buffer[65536];
    for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;)
        for (ssize_t i = 0; i < got; i++)
            hash = (hash ^ buffer[i]) * 0x100000001b3u;
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        failed(WIFSIGNALED(status) ? "the program was killed" : "the program failed");
    return hash;
}

/* `count` runs. */
#define TIMES(NAME, COMMAND)                                     \
    static uint64_t NAME(uint64_t count) {                       \
        uint64_t hash = 0;                                       \
        for (uint64_t i = 0; i < count; i++)                     \
            hash = mix(hash, run_program(COMMAND, count));       \
        return hash;                                             \
    }
/* One run that is told how much to do. */
#define ONCE(NAME, COMMAND) \
    static uint64_t NAME(uint64_t count) { return run_program(COMMAND, count); }

TIMES(gzip_pack, "@/usr/bin/gzip -c -n @/data/text")
TIMES(gzip_unpack, "@/usr/bin/gzip -dc @/data/text.gz")
TIMES(xz_pack, "@/usr/bin/xz -c -3 -T1 @/data/text")
TIMES(xz_unpack, "@/usr/bin/xz -dc -T1 @/data/text.xz")
TIMES(zstd_pack, "@/usr/bin/zstd -c -6 -q --single-thread @/data/text")
TIMES(zstd_unpack, "@/usr/bin/zstd -dc -q @/data/text.zst")
TIMES(openssl_sha, "@/usr/bin/openssl dgst -sha256 -binary @/data/long")
TIMES(openssl_aes, "@/usr/bin/openssl enc -aes-128-cbc -K 00112233445566778899aabbccddeeff -iv 0123456789abcdef0123456789abcdef -in @/data/long")
ONCE(python_mix, "@/usr/bin/python3.11 -S -s @/programs/mix.py #")
TIMES(python_start, "@/usr/bin/python3.11 -S -s -c pass")
ONCE(lua_mix, "@/usr/bin/lua5.4 @/programs/mix.lua #")
ONCE(perl_mix, "@/usr/bin/perl @/programs/mix.pl #")
TIMES(sqlite_mix, "@/usr/bin/sqlite3 -batch -init @/programs/mix.sql :memory: .quit")
TIMES(cc1, "@/usr/lib/gcc/x86_64-linux-gnu/12/cc1 -quiet -fpreprocessed -O2 @/data/source.i -o -")
/* Not to /dev/null: tcc makes its output anew, and root's would be in the device's place. */
TIMES(tcc, "@/usr/bin/tcc -c @/data/plain.i -o /tmp/xenolith-bench-plain.o")
TIMES(shell, "@/bin/busybox sh @/programs/mix.sh @/bin/busybox")

const struct workload program_workloads[] = {
    {"gzip-pack", "program", 1, gzip_pack, 0, 0},
    {"gzip-unpack", "program", 5, gzip_unpack, 0, 0},
    {"xz-pack", "program", 1, xz_pack, 0, 0},
    {"xz-unpack", "program", 3, xz_unpack, 0, 0},
    {"zstd-pack", "program", 2, zstd_pack, 0, 0},
    {"zstd-unpack", "program", 10, zstd_unpack, 0, 0},
    {"openssl-sha256", "program", 8, openssl_sha, 0, 0},
    {"openssl-aes128", "program", 4, openssl_aes, 0, 0},
    {"python-mix", "program", 10, python_mix, 0, 0},
    {"python-start", "program", 8, python_start, 0, 0},
    {"lua-mix", "program", 30, lua_mix, 0, 0},
    {"perl-mix", "program", 30, perl_mix, 0, 0},
    {"sqlite-mix", "program", 3, sqlite_mix, 0, 0},
    {"gcc", "program", 1, cc1, 0, 0},
    {"tcc", "program", 20, tcc, 0, 0},
    {"sys-shell", "system", 1, shell, 0, 0},
    {0},
};
