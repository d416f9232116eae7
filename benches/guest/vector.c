/* SSE2, AVX2 and FMA kernels, each in registers only, over 16 KiB and over 48 MiB. */
#include <immintrin.h>
#include <string.h>
#include "bench.h"

#define SSE __attribute__((target("sse4.2")))
#define AVX __attribute__((target("avx2")))
#define FMA __attribute__((target("avx2,fma")))
#define SMALL 16384u
#define LARGE (48u << 20)

static void fill_halves(unsigned bytes) {
    float *x = (float *)arena, *y = (float *)(arena + ARENA_BYTES / 2);
    for (unsigned i = 0; i < bytes / sizeof *x; i++)
        x[i] = y[i] = (float)(i % 1021) / 1024;
}

static void fill_small(void) { fill_halves(8 * SMALL); }
static void fill_large(void) { fill_halves(LARGE); }

static uint64_t fold(const void *bytes, size_t len) {
    uint64_t hash = 0, word;
    for (size_t i = 0; i + 8 <= len; i += 8) {
        memcpy(&word, (const uint8_t *)bytes + i, 8);
        hash = mix(hash, word);
    }
    return hash;
}

/* Eight chains, so that throughput counts. Values stay near 1. */
#define REGISTERS(NAME, ATTRIBUTE, TYPE, SET, STEP)                                       \
    ATTRIBUTE static uint64_t NAME(uint64_t count) {                                      \
        TYPE a[8], m = SET(0.75f), c = SET(0.25f);                                        \
        for (int i = 0; i < 8; i++)                                                       \
            a[i] = SET((float)i);                                                         \
        TYPE a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3], a4 = a[4], a5 = a[5], a6 = a[6], a7 = a[7]; \
        for (uint64_t i = 0; i < count; i++) {                                            \
            a0 = STEP(a0), a1 = STEP(a1), a2 = STEP(a2), a3 = STEP(a3);                   \
            a4 = STEP(a4), a5 = STEP(a5), a6 = STEP(a6), a7 = STEP(a7);                   \
            __asm__ volatile("" : "+x"(a0), "+x"(a1), "+x"(a2), "+x"(a3));                \
            __asm__ volatile("" : "+x"(a4), "+x"(a5), "+x"(a6), "+x"(a7));                \
        }                                                                                 \
        a[0] = a0, a[1] = a1, a[2] = a2, a[3] = a3, a[4] = a4, a[5] = a5, a[6] = a6, a[7] = a7; \
        return fold(a, sizeof a);                                                         \
    }

#define SSE_FLOAT(x) _mm_add_ps(_mm_mul_ps(x, m), c)
#define AVX_FLOAT(x) _mm256_add_ps(_mm256_mul_ps(x, m), c)
#define FMA_FLOAT(x) _mm256_fmadd_ps(x, m, c)
REGISTERS(sse_registers, SSE, __m128, _mm_set1_ps, SSE_FLOAT)
REGISTERS(avx_registers, AVX, __m256, _mm256_set1_ps, AVX_FLOAT)
REGISTERS(fma_registers, FMA, __m256, _mm256_set1_ps, FMA_FLOAT)

#define SET_SSE_WORDS(x) _mm_set1_epi32((int)((x) * 64) + 3)
#define SET_AVX_WORDS(x) _mm256_set1_epi32((int)((x) * 64) + 3)
#define SSE_WORDS(x) _mm_xor_si128(_mm_add_epi32(_mm_mullo_epi16(x, m), c), _mm_srli_epi32(x, 3))
#define AVX_WORDS(x) _mm256_xor_si256(_mm256_add_epi32(_mm256_mullo_epi16(x, m), c), _mm256_srli_epi32(x, 3))
REGISTERS(sse_words, SSE, __m128i, SET_SSE_WORDS, SSE_WORDS)
REGISTERS(avx_words, AVX, __m256i, SET_AVX_WORDS, AVX_WORDS)

/* y = y * 0.5 + x, over `bytes` each. */
#define STREAM(NAME, ATTRIBUTE, WIDTH, LOAD, STORE, STEP, BYTES)                          \
    ATTRIBUTE static uint64_t NAME(uint64_t count) {                                      \
        float *x = (float *)arena, *y = (float *)(arena + ARENA_BYTES / 2);               \
        for (uint64_t n = 0; n < count; n++)                                              \
            for (unsigned i = 0; i < BYTES / sizeof(float); i += WIDTH)                   \
                STORE(y + i, STEP(LOAD(y + i), LOAD(x + i)));                             \
        return fold(y, SMALL);                                                            \
    }

#define SSE_STEP(a, b) _mm_add_ps(_mm_mul_ps(a, _mm_set1_ps(0.5f)), b)
#define AVX_STEP(a, b) _mm256_add_ps(_mm256_mul_ps(a, _mm256_set1_ps(0.5f)), b)
#define FMA_STEP(a, b) _mm256_fmadd_ps(a, _mm256_set1_ps(0.5f), b)
STREAM(sse_small, SSE, 4, _mm_load_ps, _mm_store_ps, SSE_STEP, SMALL)
STREAM(avx_small, AVX, 8, _mm256_load_ps, _mm256_store_ps, AVX_STEP, SMALL)
STREAM(fma_small, FMA, 8, _mm256_load_ps, _mm256_store_ps, FMA_STEP, SMALL)
STREAM(sse_large, SSE, 4, _mm_load_ps, _mm_store_ps, SSE_STEP, LARGE)
STREAM(avx_large, AVX, 8, _mm256_load_ps, _mm256_store_ps, AVX_STEP, LARGE)
STREAM(fma_large, FMA, 8, _mm256_load_ps, _mm256_store_ps, FMA_STEP, LARGE)

/* The inner kernel of a matrix product: 4 by 16 floats in registers. */
FMA static uint64_t fma_matrix(uint64_t count) {
    enum { N = 64 };
    float (*a)[N] = (void *)arena, (*b)[N] = (void *)(arena + SMALL), (*c)[N] = (void *)(arena + 2 * SMALL);
    for (uint64_t n = 0; n < count; n++)
        for (int i = 0; i < N; i += 4)
            for (int j = 0; j < N; j += 16) {
                __m256 sum[4][2] = {0};
                for (int k = 0; k < N; k++) {
                    __m256 left = _mm256_load_ps(&b[k][j]), right = _mm256_load_ps(&b[k][j + 8]);
                    for (int r = 0; r < 4; r++) {
                        __m256 factor = _mm256_broadcast_ss(&a[i + r][k]);
                        sum[r][0] = _mm256_fmadd_ps(factor, left, sum[r][0]);
                        sum[r][1] = _mm256_fmadd_ps(factor, right, sum[r][1]);
                    }
                }
                for (int r = 0; r < 4; r++) {
                    _mm256_store_ps(&c[i + r][j], sum[r][0]);
                    _mm256_store_ps(&c[i + r][j + 8], sum[r][1]);
                }
            }
    return fold(c, SMALL);
}

/* Sums of absolute differences of blocks, as video encoders search for motion. */
SSE static uint64_t sse_sad(uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t n = 0; n < count; n++) {
        const uint8_t *one = arena + (n & 63), *other = arena + SMALL;
        __m128i total = _mm_setzero_si128();
        for (int row = 0; row < 16; row++)
            total = _mm_add_epi64(total, _mm_sad_epu8(_mm_loadu_si128((const void *)(one + row * 256)),
                                                      _mm_load_si128((const void *)(other + row * 256))));
        sum += (uint64_t)_mm_cvtsi128_si64(total) + (uint64_t)_mm_extract_epi64(total, 1);
    }
    return sum;
}

/* Bytes classified by two shuffles, as parsers of text do it. */
AVX static uint64_t avx_shuffle(uint64_t count) {
    const __m256i low = _mm256_setr_epi8(1, 2, 4, 8, 16, 32, 64, 1, 2, 4, 8, 16, 32, 64, 1, 2,
                                         1, 2, 4, 8, 16, 32, 64, 1, 2, 4, 8, 16, 32, 64, 1, 2);
    const __m256i nibble = _mm256_set1_epi8(15);
    uint64_t sum = 0;
    for (uint64_t n = 0; n < count; n++)
        for (unsigned i = 0; i < SMALL; i += 32) {
            __m256i x = _mm256_load_si256((const void *)(arena + i));
            __m256i a = _mm256_shuffle_epi8(low, _mm256_and_si256(x, nibble));
            __m256i b = _mm256_shuffle_epi8(low, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble));
            __m256i hit = _mm256_cmpeq_epi8(_mm256_and_si256(a, b), _mm256_setzero_si256());
            sum += (unsigned)__builtin_popcount((unsigned)_mm256_movemask_epi8(hit)) + n;
        }
    return sum;
}

const struct workload vector_workloads[] = {
    {"sse-registers", "register", 20000000, sse_registers, 0, 0},
    {"sse-words", "register", 20000000, sse_words, 0, 0},
    {"avx-registers", "register", 20000000, avx_registers, 0, "avx2"},
    {"avx-words", "register", 20000000, avx_words, 0, "avx2"},
    {"fma-registers", "register", 20000000, fma_registers, 0, "fma"},
    {"sse-small", "float", 30000, sse_small, fill_small, 0},
    {"avx-small", "float", 30000, avx_small, fill_small, "avx2"},
    {"fma-small", "float", 30000, fma_small, fill_small, "fma"},
    {"fma-matrix", "float", 1000, fma_matrix, fill_small, "fma"},
    {"sse-sad", "float", 1000000, sse_sad, fill_small, 0},
    {"avx-shuffle", "float", 20000, avx_shuffle, fill_small, "avx2"},
    {"sse-large", "float", 2, sse_large, fill_large, 0},
    {"avx-large", "float", 2, avx_large, fill_large, "avx2"},
    {"fma-large", "float", 2, fma_large, fill_large, "fma"},
    {0},
};
