/* Floating point without vectors: SSE2 scalars, the mathematics library, x87. Checksums are bits of the results:
 * nothing here may be rounded differently anywhere, so the library's functions that choose by processor
 * stay out of them. */
#include <math.h>
#include <string.h>
#include "bench.h"

static uint64_t bits_of(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Five bodies under gravitation: additions, products, a root and a division. */
#define BODIES(NAME, REAL, ROOT)                                                        \
    static uint64_t NAME(uint64_t count) {                                              \
        REAL p[5][3], v[5][3], m[5];                                                    \
        for (int i = 0; i < 5; i++) {                                                   \
            m[i] = (REAL)1 / (REAL)(i * i * 10 + 1);                                    \
            for (int k = 0; k < 3; k++) {                                               \
                p[i][k] = (REAL)((i * 7 + k * 3) % 11) - 5;                             \
                v[i][k] = (REAL)((i * 5 + k * 2) % 7 - 3) / 16;                         \
            }                                                                           \
        }                                                                               \
        for (uint64_t n = 0; n < count; n++) {                                          \
            for (int i = 0; i < 5; i++)                                                 \
                for (int j = i + 1; j < 5; j++) {                                       \
                    REAL d[3], square = (REAL)0.01;                                     \
                    for (int k = 0; k < 3; k++) {                                       \
                        d[k] = p[i][k] - p[j][k];                                       \
                        square += d[k] * d[k];                                          \
                    }                                                                   \
                    REAL f = (REAL)0.001 / (square * ROOT(square));                     \
                    for (int k = 0; k < 3; k++) {                                       \
                        v[i][k] -= d[k] * m[j] * f;                                     \
                        v[j][k] += d[k] * m[i] * f;                                     \
                    }                                                                   \
                }                                                                       \
            for (int i = 0; i < 5; i++)                                                 \
                for (int k = 0; k < 3; k++)                                             \
                    p[i][k] += v[i][k] * (REAL)0.001;                                   \
        }                                                                               \
        return bits_of((double)(p[0][0] + p[1][1] + p[4][2]));                          \
    }

BODIES(bodies_double, double, __builtin_sqrt)
BODIES(bodies_x87, long double, __builtin_sqrtl)

static uint64_t mandelbrot(uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t n = 0; n < count; n++) {
        float ci = (float)(n % 64) / 32 - 1;
        for (int column = 0; column < 64; column++) {
            float cr = (float)column / 24 - 2, r = 0, i = 0;
            int left = 100;
            while (left-- && r * r + i * i < 4) {
                float t = r * r - i * i + cr;
                i = 2 * r * i + ci;
                r = t;
            }
            sum += (unsigned)left;
        }
    }
    return sum;
}

static uint64_t matrix(uint64_t count) {
    enum { N = 64 };
    double (*a)[N] = (void *)arena, (*b)[N] = (void *)(arena + (1 << 20)), (*c)[N] = (void *)(arena + (2 << 20));
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            a[i][j] = i - j, b[i][j] = (i * j) % 7;
    for (uint64_t n = 0; n < count; n++)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                double sum = 0;
                for (int k = 0; k < N; k++)
                    sum += a[i][k] * b[k][j];
                c[i][j] = sum;
            }
    return bits_of(c[5][9] + c[63][62]);
}

/* An FFT of 1024 points, tables made by recurrence. */
static uint64_t fourier(uint64_t count) {
    enum { N = 1024 };
    static double re[N], im[N], wr[N / 2], wi[N / 2];
    const double c = 0.99998117528260111, s = 0.0061358846491544753; /* cos and sin of 2 pi / N */
    wr[0] = 1, wi[0] = 0;
    for (int i = 1; i < N / 2; i++) {
        wr[i] = wr[i - 1] * c - wi[i - 1] * s;
        wi[i] = wr[i - 1] * s + wi[i - 1] * c;
    }
    double sum = 0;
    for (uint64_t round = 0; round < count; round++) {
        for (int i = 0; i < N; i++)
            re[i] = (i * 37) % 101, im[i] = 0;
        for (int half = N / 2; half >= 1; half /= 2)
            for (int start = 0; start < N; start += 2 * half)
                for (int k = 0; k < half; k++) {
                    int a = start + k, b = a + half, w = k * (N / 2 / half);
                    double xr = re[a] - re[b], xi = im[a] - im[b];
                    re[a] += re[b], im[a] += im[b];
                    re[b] = xr * wr[w] - xi * wi[w];
                    im[b] = xr * wi[w] + xi * wr[w];
                }
        sum += re[round % N];
    }
    return bits_of(sum);
}

static uint64_t library(uint64_t count) {
    volatile double kept = 0;
    double x = 0.5, sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        x = x * 1.0000001 + 0.00001;
        sum += sin(x) + exp(-x) * log(x + 1) + pow(x, 0.3);
    }
    kept = sum;
    return kept > 0;
}

static uint64_t convert(uint64_t count) {
    double sum = 0;
    int64_t n = 12345;
    for (uint64_t i = 0; i < count; i++) {
        double x = (double)n * 1.25;
        float y = (float)x;
        n = (int64_t)(x + y) & 0xffffff;
        sum += (double)y + (int32_t)n;
    }
    return bits_of(sum) ^ (uint64_t)n;
}

/* Nothing but the register stack. */
static uint64_t x87_registers(uint64_t count) {
    double result;
    __asm__ volatile(
        "fldl %2\n fldl %3\n fldl %4\n fld1\n"
        "1: fadd %%st(1)\n fmul %%st(2)\n fadd %%st(3)\n fxch %%st(1)\n"
        "fadd %%st(2)\n fmul %%st(2)\n fxch %%st(1)\n fadd %%st(1)\n fmul %%st(2)\n fchs\n"
        "dec %1\n jnz 1b\n"
        "fstpl %0\n fstp %%st\n fstp %%st\n fstp %%st\n"
        : "=m"(result), "+r"(count)
        : "m"((double){0.25}), "m"((double){0.49}), "m"((double){1.5})
        : "st", "st(1)", "st(2)", "st(3)", "cc");
    return bits_of(result);
}

/* Horner's scheme with coefficients from memory. */
static uint64_t x87_memory(uint64_t count) {
    static double coefficients[64];
    for (int i = 0; i < 64; i++)
        coefficients[i] = 1.0 / (i + 3);
    long double sum = 0;
    for (uint64_t n = 0; n < count; n++) {
        long double x = (long double)(n & 15) / 32, y = 0;
        for (int i = 0; i < 64; i++)
            y = y * x + coefficients[i];
        sum += y;
    }
    return bits_of((double)sum);
}

static uint64_t x87_sine(uint64_t count) {
    long double x = 0.1L, sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        long double s;
        __asm__ volatile("fsin" : "=t"(s) : "0"(x));
        sum += s;
        x += 0.001L;
    }
    return sum > 0;
}

const struct workload float_workloads[] = {
    {"fp-bodies", "float", 500000, bodies_double, 0, 0},
    {"fp-mandelbrot", "float", 5000, mandelbrot, 0, 0},
    {"fp-matrix", "float", 250, matrix, 0, 0},
    {"fp-fourier", "float", 4500, fourier, 0, 0},
    {"fp-library", "float", 1000000, library, 0, 0},
    {"fp-convert", "float", 5000000, convert, 0, 0},
    {"x87-registers", "register", 6000000, x87_registers, 0, 0},
    {"x87-memory", "float", 300000, x87_memory, 0, 0},
    {"x87-bodies", "float", 120000, bodies_x87, 0, 0},
    {"x87-sine", "float", 1000000, x87_sine, 0, 0},
    {0},
};
