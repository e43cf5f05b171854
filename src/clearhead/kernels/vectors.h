/* Vectors of floats, as wide as the widest machine has: GCC's and Clang's own, which the compiler splits for others. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define WIDE 16
#define LOG_2 0.693147181f

typedef float floats __attribute__((vector_size(4 * WIDE)));
typedef int32_t ints __attribute__((vector_size(4 * WIDE)));

static inline floats load(const float *x) {
    floats v;
    memcpy(&v, x, sizeof v);
    return v;
}

static inline void store(float *x, floats v) { memcpy(x, &v, sizeof v); }

static inline floats all(float x) { return (floats){0} + x; }

static inline floats where(ints condition, floats yes, floats no) {
    return (floats)((condition & (ints)yes) | (~condition & (ints)no));
}

/* a where it is larger, else b: what is not a number stays one where it is b */
static inline floats larger(floats a, floats b) {
#ifdef __AVX512F__
    return (floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return where(a > b, a, b);
#endif
}

static inline floats size(floats x) { return (floats)((ints)x & 0x7fffffff); }

typedef float eight __attribute__((vector_size(32)));
typedef float four __attribute__((vector_size(16)));

static inline float sum(floats v) {
    eight a[2];
    four b[2];
    memcpy(a, &v, sizeof a);
    a[0] += a[1];
    memcpy(b, a, sizeof b);
    b[0] += b[1];
    return (b[0][0] + b[0][1]) + (b[0][2] + b[0][3]);
}

/* 2^x for x ≤ 0, within 2e-7 of itself; 0 where floats end. NaN stays NaN. */
static inline floats power_of_two(floats x) {
#ifdef __AVX512DQ__
    floats r = (floats)_mm512_reduce_ps((__m512)x, 9); /* x - floor(x), 0 of -inf */
    floats p = r * 1.86713e-3f + 9.01703e-3f;
    p = p * r + 5.57999134e-2f;
    p = p * r + 0.24016445f;
    p = p * r + 0.693151312f;
    p = p * r + 1;
    return (floats)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
    const float shifter = 12582912.0f; /* 1.5 · 2^23: what is added to it is rounded to a whole number */
    floats shifted = x + shifter, r = (x - (shifted - shifter)) * LOG_2;
    floats p = r * 1.39337e-3f + 8.36318e-3f;
    p = p * r + 4.166646e-2f;
    p = p * r + 1.6666577e-1f;
    p = p * r + 5.0e-1f;
    p = p * r * r + r + 1.0f;
    floats power = (floats)(((ints)shifted << 23) + 0x3f800000);
    return where(x < -126.0f, all(0), p * power);
#endif
}

/* 2^x within 8e-5 of itself, where what is made of it is rounded to 4e-3. */
static inline floats about_power_of_two(floats x) {
#ifdef __AVX512DQ__
    floats r = (floats)_mm512_reduce_ps((__m512)x, 9);
    floats p = r * 7.80245065e-2f + 0.226067178f;
    p = p * r + 0.695833533f;
    p = p * r + 0.999925219f;
    return (floats)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
    return power_of_two(x);
#endif
}

static inline floats exponential(floats x) { return power_of_two(x * (1 / LOG_2)); }

static inline float exponential_of(float x) { return exponential(all(x))[0]; }

/* cap · tanh(x / cap) */
static void soften(float *x, int n, float cap) {
    for (int j = 0; j < n; j += WIDE) {
        floats z = load(x + j) / cap, big = size(z), square = z * z;
        floats e = exponential(-2 * big), far = (1 - e) / (1 + e);
        floats near = square * -8.8632355e-3f + 2.1869488e-2f; /* the series, where 1 - e would lose digits */
        near = near * square - 5.3968254e-2f;
        near = near * square + 1.3333333e-1f;
        near = near * square - 3.3333333e-1f;
        near = near * square * big + big;
        floats t = where(big < 0.4f, near, far);
        store(x + j, cap * where(z < 0, -t, t));
    }
}

static inline float most(floats x) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)x);
#else
    float found = x[0];
    for (int i = 1; i < WIDE; i++) found = x[i] > found ? x[i] : found;
    return found;
#endif
}

/* `n` is padded. */
static float greatest(const float *x, int n) {
    floats top = all(-INFINITY), other = top;
    for (int j = 0; j < n; j += 2 * WIDE) {
        top = larger(load(x + j), top);
        other = larger(load(x + j + WIDE), other);
    }
    return most(larger(top, other));
}

/* Is a condition true anywhere? */
static inline int any(ints condition) {
#ifdef __AVX512F__
    return _mm512_test_epi32_mask((__m512i)condition, (__m512i)condition) != 0;
#else
    int found = 0;
    for (int i = 0; i < WIDE; i++) found |= condition[i];
    return found;
#endif
}

/* Numbers too small for a float's full digits become 0 (or what was so before): arithmetic is 100 times slower on them. */
static unsigned flush(int tiny, unsigned before) {
#ifdef __SSE__
    unsigned now = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(tiny ? now | 0x8040 : before);
    return now;
#else
    return 0;
#endif
}
