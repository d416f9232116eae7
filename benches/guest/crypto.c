/* Hashes and ciphers in plain C, written from their standards: CRC-32, FNV-1a, SHA-256 (FIPS 180-4), AES-128
 * with tables (FIPS 197). What OpenSSL makes of the processor's own instructions is in programs.c. */
#include <string.h>
#include "bench.h"

#define BYTES 65536
static uint8_t *const text = arena;

static void fill(void) {
    uint64_t state = SEED;
    for (unsigned i = 0; i < BYTES; i++)
        text[i] = (uint8_t)next_random(&state);
}

static uint64_t crc32(uint64_t count) {
    static uint32_t table[256];
    uint32_t crc = ~0u;
    for (unsigned i = 0; i < 256; i++) {
        uint32_t x = i;
        for (int bit = 0; bit < 8; bit++)
            x = x >> 1 ^ (x & 1 ? 0xedb88320u : 0);
        table[i] = x;
    }
    for (uint64_t n = 0; n < count; n++)
        for (unsigned i = 0; i < BYTES; i++)
            crc = crc >> 8 ^ table[(crc ^ text[i]) & 255];
    return ~crc;
}

static uint64_t fnv(uint64_t count) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (uint64_t n = 0; n < count; n++)
        for (unsigned i = 0; i < BYTES; i++)
            hash = (hash ^ text[i]) * 0x100000001b3u;
    return hash;
}

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static uint32_t sha_round[64];

/* The constants are the fractions of the cube roots of the first 64 primes. */
static void sha_setup(void) {
    unsigned found = 0;
    fill();
    for (unsigned p = 2; found < 64; p++) {
        unsigned d = 2;
        while (d * d <= p && p % d)
            d++;
        if (d * d <= p)
            continue;
        /* The largest x with x^3 <= p * 2^96, by bits: x < 2^35. */
        unsigned __int128 x = 0;
        for (int bit = 34; bit >= 0; bit--) {
            unsigned __int128 t = x | (unsigned __int128)1 << bit;
            if (t * t * t <= (unsigned __int128)p << 96)
                x = t;
        }
        sha_round[found++] = (uint32_t)x;
    }
}

static void sha_block(uint32_t state[8], const uint8_t *block) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] + (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t t1 = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) +
                      ((s[4] & s[5]) ^ (~s[4] & s[6])) + sha_round[i] + w[i];
        uint32_t t2 = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) +
                      ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        state[i] += s[i];
}

static uint64_t sha256(uint64_t count) {
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    for (uint64_t n = 0; n < count; n++)
        for (unsigned i = 0; i < BYTES; i += 64)
            sha_block(state, text + i);
    return (uint64_t)state[0] << 32 | state[7];
}

static uint8_t sbox[256];
static uint32_t aes_table[4][256], aes_key[44];

static uint8_t times2(uint8_t x) { return (uint8_t)(x << 1 ^ (x & 0x80 ? 0x1b : 0)); }

static void aes_setup(void) {
    uint8_t power[256], logarithm[256], x = 1;
    fill();
    for (unsigned i = 0; i < 255; i++) {
        power[i] = x;
        logarithm[x] = (uint8_t)i;
        x ^= times2(x); /* 3 generates the field */
    }
    for (unsigned i = 0; i < 256; i++) {
        uint8_t inverse = i == 0 ? 0 : power[(255 - logarithm[i]) % 255], s = 0x63;
        for (int n = 0; n < 5; n++)
            s ^= (uint8_t)(inverse << n | inverse >> (8 - n));
        sbox[i] = s;
        uint8_t two = times2(s);
        uint32_t column = (uint32_t)two << 24 | s << 16 | s << 8 | (two ^ s);
        for (int n = 0; n < 4; n++)
            aes_table[n][i] = n == 0 ? column : rotate(column, 8 * n);
    }
    uint32_t constant = 1;
    for (unsigned i = 0; i < 44; i++) {
        if (i < 4) {
            aes_key[i] = 0x01234567u * (i + 1);
            continue;
        }
        uint32_t t = aes_key[i - 1];
        if (i % 4 == 0) {
            t = rotate(t, 24);
            t = (uint32_t)sbox[t >> 24] << 24 | sbox[t >> 16 & 255] << 16 | sbox[t >> 8 & 255] << 8 | sbox[t & 255];
            t ^= constant << 24;
            constant = times2((uint8_t)constant);
        }
        aes_key[i] = aes_key[i - 4] ^ t;
    }
}

static void aes_block(uint32_t s[4]) {
    uint32_t t[4];
    for (int i = 0; i < 4; i++)
        s[i] ^= aes_key[i];
    for (int round = 1; round < 10; round++) {
        for (int i = 0; i < 4; i++)
            t[i] = aes_table[0][s[i] >> 24] ^ aes_table[1][s[(i + 1) & 3] >> 16 & 255] ^
                   aes_table[2][s[(i + 2) & 3] >> 8 & 255] ^ aes_table[3][s[(i + 3) & 3] & 255] ^
                   aes_key[4 * round + i];
        memcpy(s, t, sizeof t);
    }
    for (int i = 0; i < 4; i++)
        t[i] = ((uint32_t)sbox[s[i] >> 24] << 24 | sbox[s[(i + 1) & 3] >> 16 & 255] << 16 |
                sbox[s[(i + 2) & 3] >> 8 & 255] << 8 | sbox[s[(i + 3) & 3] & 255]) ^
               aes_key[40 + i];
    memcpy(s, t, sizeof t);
}

static uint64_t aes(uint64_t count) {
    uint32_t s[4] = {0};
    for (uint64_t n = 0; n < count; n++)
        for (unsigned i = 0; i < BYTES; i += 16) {
            uint32_t block[4];
            memcpy(block, text + i, 16);
            for (int j = 0; j < 4; j++)
                s[j] ^= block[j];
            aes_block(s);
        }
    return (uint64_t)s[0] << 32 | s[3];
}

/* RC4-like: byte swaps, each load waiting for the last store. */
static uint64_t bytes(uint64_t count) {
    uint8_t state[256], i = 0, j = 0;
    uint64_t sum = 0;
    for (unsigned n = 0; n < 256; n++)
        state[n] = (uint8_t)(n * 167);
    for (uint64_t n = 0; n < count * BYTES; n++) {
        uint8_t a = state[++i];
        j = (uint8_t)(j + a);
        uint8_t b = state[j];
        state[i] = b;
        state[j] = a;
        sum += state[(uint8_t)(a + b)];
    }
    return sum;
}

const struct workload crypto_workloads[] = {
    {"hash-crc32", "crypto", 800, crc32, fill, 0},
    {"hash-fnv", "crypto", 1500, fnv, fill, 0},
    {"hash-sha256", "crypto", 200, sha256, sha_setup, 0},
    {"aes-c", "crypto", 200, aes, aes_setup, 0},
    {"cipher-bytes", "crypto", 1000, bytes, 0, 0},
    {0},
};
