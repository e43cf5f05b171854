/* The rows of one tile of an attention matrix, float32: softmax, its statistics and its output in one pass, and back.

   What `rows.py` does in a dozen passes over a tile, in the order of flash attention (Dao 2022): keys come in chunks
   whose logits stay in the cache; when a chunk brings a larger logit, what was summed before it is rescaled (Milakov &
   Gimelshein 2018). Products are left to the BLAS that PyTorch brings. Vectors are GCC's and Clang's own, as wide as the
   widest machine has; the compiler splits them for others.

   NaN and infinities are left to arithmetic: not to be compiled with -ffast-math. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define CHUNK 512
#define ROWS 512
#define NEAR (1 << 19) /* weights that are held on the way back */
#define WIDE 16
#define LOG_2 0.693147181f
#define P_STEP (CHUNK + PAD) /* of weights in bfloat16, from one row to the next */
#define PAD 32 /* vectors are half as wide; matrix units take so many rows, columns and products at a time */
#define UP(n) (((n) + PAD - 1) / PAD * PAD)

typedef float floats __attribute__((vector_size(4 * WIDE)));
typedef int32_t ints __attribute__((vector_size(4 * WIDE)));

/* C = alpha · op(A) op(B) + beta · C, by columns */
typedef void Gemm(const char *op_a, const char *op_b, const int32_t *m, const int32_t *n, const int32_t *k,
                  const float *alpha, const float *a, const int32_t *lda, const float *b, const int32_t *ldb,
                  const float *beta, float *c, const int32_t *ldc);

/* (samples, heads, rows, columns): steps from one to the next, 0 where it broadcasts; columns lie side by side */
typedef struct {
    void *at;
    int64_t sample, head, row;
} Tensor;

typedef struct {
    Gemm *gemm;                 /* null: q, k and v are bfloat16, for matrix units */
    int32_t samples, heads, group, rows, keys, width, value_width, first_key;
    float scale, softcap;       /* softcap 0: none */
    Tensor q, k, v, out;        /* v and out only where value_width > 0 */
    Tensor seen;                /* bytes, for keys seen_from to seen_to alone; every row sees the other keys */
    int32_t seen_from, seen_to;
    Tensor bias;                /* here and below, null: none */
    Tensor q_at, k_at;          /* positions: a row of them each */
    Tensor raw;                 /* logsumexp, greatest logit, entropy, sink, distance, visible keys; */
    int64_t raw_step;           /* from one of them to the next */
    Tensor received;            /* a row of keys, to be added to */
    const int64_t *sinks;       /* keys, counted from -first_key; null: the logsumexp alone is wanted */
    int64_t sinks_sample;
    int32_t n_sinks;
    float *room;                /* of room_for(…) floats */
} Call;

/* What the pass back is given beside the call, whose out, raw and received then are gradients, and adds to. */
typedef struct {
    Tensor lse, q, k, v, bias;
    int32_t bias_step;          /* from one of its columns to the next: 0 where it has but one */
} Back;

/* What is known of a row so far. */
typedef struct {
    float top, total, dot, far, count;
} Row;

static inline floats load(const float *x) {
    floats v;
    memcpy(&v, x, sizeof v);
    return v;
}

static inline void store(float *x, floats v) { memcpy(x, &v, sizeof v); }

typedef uint16_t half; /* the upper half of a float */

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

/* Has this process matrix units? The kernel lends them to those who ask. */
int matrix_units(void) { return !syscall(SYS_arch_prctl, 0x1023, 18); }

/* Tiles of 16 rows of 64 bytes, until they are given back. */
static void take_units(void) {
    struct { uint8_t palette, start, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    _tile_loadconfig(&shape);
}

static void give_units(void) { _tile_release(); }

static inline void store_half(half *x, floats v) { _mm256_storeu_si256((void *)x, (__m256i)_mm512_cvtneps_pbh((__m512)v)); }

/* Packed: pairs of what is multiplied and added lie side by side, 16 pairs of 16 columns in a tile, and tiles one behind
   the other down the products. Here those of x transposed, x (n, width): width is even. */
static void pack_transposed(half *to, const half *x, int64_t step, int n, int width) {
    __m512i rows = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(step));
    for (int i = 0; i < UP(n); i += 16)
        for (int j = 0; j < UP(width); j += 2, to += 32) {
            int some = n - i > 16 ? 16 : n - i > 0 ? n - i : 0;
            __mmask16 there = j < width ? (1u << some) - 1 : 0;
            _mm512_storeu_si512(to, _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), there, rows, x + i * step + j, 2));
        }
}

/* Packed: x (n, width). */
static void pack(half *to, const half *x, int64_t step, int n, int width) {
    for (int j = 0; j < UP(width); j += 16)
        for (int i = 0; i < UP(n); i += 2, to += 32) {
            int some = width - j > 16 ? 16 : width - j > 0 ? width - j : 0;
            __mmask16 even = i < n ? (1u << some) - 1 : 0, odd = i + 1 < n ? even : 0;
            __m512i first = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(even, x + i * step + j));
            __m512i second = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(odd, x + (i + 1) * step + j));
            _mm512_storeu_si512(to, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
        }
}

/* c (m, n) = a (m, k) b, or that added to it; b is packed, sizes are padded. */
static void multiply(int m, int n, int k, const half *a, int64_t a_step, const half *b, float *c, int64_t c_step, int more) {
    for (int j = 0; j < n; j += 32)
        for (int i = 0; i < m; i += 32) {
            float *to = c + i * c_step + j, *below = to + 16 * c_step;
            if (more) {
                _tile_loadd(0, to, c_step * 4); _tile_loadd(1, to + 16, c_step * 4);
                _tile_loadd(2, below, c_step * 4); _tile_loadd(3, below + 16, c_step * 4);
            } else {
                _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
            }
            for (int l = 0; l < k; l += 32) {
                const half *left = a + i * a_step + l, *right = b + (int64_t)j * k + l * 16;
                _tile_loadd(4, left, a_step * 2); _tile_loadd(5, left + 16 * a_step, a_step * 2);
                _tile_loadd(6, right, 64); _tile_loadd(7, right + 16 * k, 64);
                _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, to, c_step * 4); _tile_stored(1, to + 16, c_step * 4);
            _tile_stored(2, below, c_step * 4); _tile_stored(3, below + 16, c_step * 4);
        }
}
#else
int matrix_units(void) { return 0; }
static void take_units(void) {}
static void give_units(void) {}
static inline void store_half(half *x, floats v) {}
static void pack_transposed(half *to, const half *x, int64_t step, int n, int width) {}
static void pack(half *to, const half *x, int64_t step, int n, int width) {}
static void multiply(int m, int n, int k, const half *a, int64_t a_step, const half *b, float *c, int64_t c_step, int more) {}
#endif

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

/* `n` is padded. */
static float greatest(const float *x, int n) {
    floats top = all(-INFINITY), other = top;
    for (int j = 0; j < n; j += 2 * WIDE) {
        top = larger(load(x + j), top);
        other = larger(load(x + j + WIDE), other);
    }
    top = larger(top, other);
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)top);
#else
    float found = top[0];
    for (int i = 1; i < WIDE; i++) found = top[i] > found ? top[i] : found;
    return found;
#endif
}

/* Adds a chunk of `n` logits x · scale to the sums of its row; where `keep`, each becomes exp(logit - top), as does
   `p`. */
static inline __attribute__((always_inline)) void add(Row *row, float *x, float scale, half *p, int n, const float *k_at,
                                                      float q_at, int measure, int far, int keep) {
    floats total = all(0), dot = all(0), way = all(0);
    float base = (row->top == -INFINITY ? 0 : row->top) / LOG_2, step = scale / LOG_2;
    for (int j = 0; j < n; j += WIDE) {
        floats shifted = load(x + j) * step - base, e = power_of_two(shifted);
        total += e;
        if (measure) dot += e * larger(all(-150), shifted); /* e is 0 there, and 0 · -inf would be NaN */
        if (far) way += e * size(load(k_at + j) - q_at);
        if (keep) store(x + j, e);
        if (p) store_half(p + j, e);
    }
    row->total += sum(total);
    if (measure) row->dot += sum(dot) * LOG_2;
    if (far) row->far += sum(way);
}

static void add_chunk(Row *row, float *x, float scale, half *p, int n, const float *k_at, float q_at, int measure,
                      int keep) {
    if (k_at && p && !keep) add(row, x, scale, p, n, k_at, q_at, 1, 1, 0);
    else if (k_at) add(row, x, scale, p, n, k_at, q_at, 1, 1, keep);
    else if (measure) add(row, x, scale, p, n, k_at, q_at, 1, 0, keep);
    else if (p && !keep) add(row, x, scale, p, n, k_at, q_at, 0, 0, 0);
    else add(row, x, scale, p, n, k_at, q_at, 0, 0, keep);
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

static inline void *at(const Tensor *t, int b, int h, int64_t row, size_t size) {
    return (char *)t->at + (b * t->sample + h * t->head + row * t->row) * (int64_t)size;
}

static inline int lesser(int a, int b) { return a < b ? a : b; }
static inline int greater(int a, int b) { return a > b ? a : b; }

/* Bias and visibility of a row's logits for the keys from `first`; returns how many it sees. */
static int prepare(const Call *c, int b, int h, int r, int first, float *x, int n) {
    if (c->bias.at) {
        const float *bias = (const float *)at(&c->bias, b, h, r, 4) + first;
        for (int j = 0; j < n; j++) x[j] += bias[j];
    }
    int from = greater(c->seen_from, first), to = lesser(c->seen_to, first + n);
    if (c->seen.at && from < to) {
        const uint8_t *seen = (const uint8_t *)at(&c->seen, b, h, r, 1) - c->seen_from;
        for (int j = from; j < to; j++) x[j - first] = seen[j] ? x[j - first] : -INFINITY;
    } else if (!c->bias.at) {
        return n;
    }
    int count = 0;
    for (int j = 0; j < n; j++) count += x[j] != -INFINITY;
    return count;
}

/* Makes `top` the row's shift: what was summed under a lesser one shrinks. */
static void lift(Row *row, float top, float *out, int width) {
    if (!(top > row->top)) return;
    if (row->total != 0) {
        float change = row->top - top, f = exponential_of(change);
        row->dot = change > -87 ? f * (row->dot + change * row->total) : 0;
        row->total *= f;
        row->far *= f;
        for (int j = 0; j < width; j++) out[j] *= f;
    }
    row->top = top;
}

static int chunks_of(const Call *c) { return (c->keys + CHUNK - 1) / CHUNK; }

/* Where things lie while rows are taken. */
typedef struct {
    int32_t step, out_step;     /* from one row to the next; x may hold whole rows, else a chunk of them */
    float *x, *out, *tops, *sinks; /* logits, then weights; outputs; tops (rows, chunks) when each chunk was added */
    half *q, *k, *v, *p;        /* what matrix units take: queries, packed keys and values of a chunk, and its weights */
} Room;

/* Rows whose logits are taken at once: few for matrix units, which lose nothing by it, so that they stay near. */
static int some_of(const Call *c, int n) { return c->gemm ? n : lesser(n, PAD); }

/* Shares out the room for `n` rows; returns its size. */
static int64_t share(const Call *c, int n, Room *room) {
    int halves = c->gemm == NULL, whole = c->received.at != NULL, some = UP(some_of(c, n));
    room->step = whole ? UP(c->keys) : CHUNK;
    if (halves) room->step += WIDE; /* or rows would lie a power of two apart, and share few lines of the cache */
    room->out_step = halves ? UP(c->value_width) : c->value_width;
    room->x = c->room;
    room->out = room->x + (int64_t)(whole ? UP(n) : some) * room->step;
    room->q = (half *)(room->out + (int64_t)UP(n) * room->out_step);
    room->p = room->q + halves * UP(n) * UP(c->width);
    room->k = room->p + halves * some * P_STEP;
    room->v = room->k + halves * CHUNK * UP(c->width);
    room->tops = (float *)(room->v + halves * CHUNK * UP(c->value_width));
    room->sinks = room->tops + (int64_t)n * chunks_of(c);
    return room->sinks + (int64_t)n * c->n_sinks - room->x + PAD;
}

/* Packs keys and values of a chunk. */
static void pack_chunk(const Call *c, const Room *room, int b, int kv, int start, int m) {
    pack_transposed(room->k, at(&c->k, b, kv, start, 2), greater(c->k.row, c->width), m, c->width);
    if (c->value_width) pack(room->v, at(&c->v, b, kv, start, 2), greater(c->v.row, c->value_width), m, c->value_width);
}

/* The products of rows `r` to `r + n` with `m` keys from `start`; by matrix units they are not scaled yet. */
static void products(const Call *c, const Room *room, int b, int h, int r, int32_t first, int32_t n, int start,
                     int32_t m, float *to) {
    const float zero = 0;
    int32_t q_step = greater(c->q.row, c->width), k_step = greater(c->k.row, c->width);
    if (c->gemm)
        c->gemm("T", "N", &m, &n, &c->width, &c->scale, at(&c->k, b, h / c->group, start, 4), &k_step,
                at(&c->q, b, h, first + r, 4), &q_step, &zero, to, &room->step);
    else
        multiply(UP(n), UP(m), UP(c->width), room->q + r * UP(c->width), UP(c->width), room->k, to, room->step, 0);
}

/* Adds to the outputs of rows `r` to `r + n` what `m` keys from `start` give. */
static void outputs(const Call *c, const Room *room, int b, int h, int r, int32_t n, int start, int32_t m,
                    const float *weights) {
    const float zero = 0, one = 1;
    int32_t v_step = greater(c->v.row, c->value_width);
    float *out = room->out + (int64_t)r * room->out_step;
    if (c->gemm)
        c->gemm("N", "N", &c->value_width, &n, &m, &one, at(&c->v, b, h / c->group, start, 4), &v_step, weights,
                &room->step, start ? &one : &zero, out, &room->out_step);
    else
        multiply(UP(n), UP(c->value_width), UP(m), room->p, P_STEP, room->v, out, room->out_step, start > 0);
}

/* Rows `first` to `first + n` of one head. */
static void head(const Call *c, const Room *room, int b, int h, int first, int n, Row *rows) {
    int whole = c->received.at != NULL, halves = !c->gemm, keep = whole || (c->value_width > 0 && !halves), chunk = 0;
    int some = some_of(c, n), late = halves && c->softcap <= 0 && !c->bias.at && c->scale > 0;
    const int64_t *sink = c->sinks ? c->sinks + b * c->sinks_sample : NULL;
    const float scale = late ? c->scale : 1; /* of what is told of logits below */
    float k_at[CHUNK] = {0};
    for (int r = 0; r < n; r++) {
        rows[r] = (Row){.top = -INFINITY};
        half *q = room->q + (int64_t)r * UP(c->width);
        if (halves) memcpy(memset(q, 0, UP(c->width) * 2), at(&c->q, b, h, first + r, 2), c->width * 2);
    }
    for (int i = 0; i < n * c->n_sinks; i++) room->sinks[i] = -INFINITY;
    for (int32_t start = 0, m; start < c->keys; start += m, chunk++) {
        m = lesser(CHUNK, c->keys - start);
        if (halves) pack_chunk(c, room, b, h / c->group, start, m);
        if (c->k_at.at) memcpy(k_at, (float *)at(&c->k_at, b, h, 0, 4) + start, m * 4);
        for (int from = 0; from < n; from += some) {
            int these = lesser(some, n - from);
            float *here = room->x + (whole ? start + (int64_t)from * room->step : 0);
            products(c, room, b, h, from, first, these, start, m, here);
            for (int i = 0; i < these; i++) {
                int r = from + i;
                float *logits = here + (int64_t)i * room->step;
                if (halves && !late)
                    for (int j = 0; j < m; j++) logits[j] *= c->scale;
                if (c->softcap > 0) soften(logits, m, c->softcap);
                rows[r].count += prepare(c, b, h, first + r, start, logits, m);
                for (int j = m; j < UP(m); j++) logits[j] = -INFINITY;
                for (int s = 0; s < c->n_sinks; s++) {
                    int64_t j = sink[s] - c->first_key - start;
                    if (j >= 0 && j < m) room->sinks[r * c->n_sinks + s] = logits[j] * scale;
                }
                lift(&rows[r], greatest(logits, UP(m)) * scale, room->out + (int64_t)r * room->out_step, c->value_width);
            }
            for (int i = 0; i < these; i++) { /* apart: here a row need not wait for the one before */
                int r = from + i;
                float *logits = here + (int64_t)i * room->step;
                float q_at = c->q_at.at ? ((float *)at(&c->q_at, b, h, 0, 4))[first + r] : 0;
                half *p = halves && c->value_width ? room->p + i * P_STEP : NULL;
                add_chunk(&rows[r], logits, scale, p, UP(m), c->k_at.at ? k_at : NULL, q_at, sink != NULL, keep);
                if (whole) room->tops[r * chunks_of(c) + chunk] = rows[r].top;
            }
            if (c->value_width) outputs(c, room, b, h, from, these, start, m, here);
        }
    }
}

/* Writes what `head` found. */
static void finish(const Call *c, const Room *room, int b, int h, int first, int n, const Row *rows) {
    int chunks = chunks_of(c);
    for (int r = 0; r < n; r++) {
        Row row = rows[r];
        int blank = row.top == -INFINITY && row.total == 0;
        float total = blank ? 1 : row.total, base = row.top == -INFINITY ? 0 : row.top, weight = 0, any = NAN;
        for (int i = 0; i < c->n_sinks; i++) {
            float logit = room->sinks[r * c->n_sinks + i];
            if (logit == -INFINITY) continue;
            weight += exponential_of(logit - base);
            any = weight;
        }
        /* the greatest of numbers with a NaN among them is NaN */
        float top = total != total && row.top < INFINITY ? NAN : row.top, log_total = logf(total);
        /* from the shifted logits: log Σ exp s - Σ A s with s as it came would lose digits where logits are large */
        float entropy = log_total - row.dot / total;
        if (entropy < 0) entropy = 0; /* by rounding; NaN stays */
        float found[] = {top + log_total, top,        entropy, any / total,
                         row.far / total, row.count};
        for (int i = 0; i < (c->sinks ? 6 : 1); i++)
            ((float *)at(&c->raw, b, h, first + r, 4))[i * c->raw_step] = found[i];
        float *to = at(&c->out, b, h, first + r, 4);
        for (int j = 0; j < c->value_width; j++) to[j] = room->out[(int64_t)r * room->out_step + j] / total;
        if (!c->received.at) continue;
        float *received = at(&c->received, b, h, 0, 4);
        for (int i = 0; i < chunks; i++) {
            const float *e = room->x + (int64_t)r * room->step + i * CHUNK;
            float then = room->tops[r * chunks + i], share = then == -INFINITY ? 1 : exponential_of(then - base);
            int m = lesser(CHUNK, c->keys - i * CHUNK);
            share /= total;
            for (int j = 0; j < m; j++) received[i * CHUNK + j] += e[j] * share;
        }
    }
}

/* Rows taken at a time: fewer where their weights are kept for `received`. */
static int block(const Call *c) {
    int most = lesser(c->gemm ? ROWS / 2 : ROWS, c->rows); /* packing is paid for once a block */
    return c->received.at ? lesser(most, greater(16, (1 << 22) / UP(c->keys))) : most;
}

int64_t room_for(const Call *c) {
    Room room;
    return share(c, block(c), &room);
}

void rows(const Call *c) {
    Row found[ROWS];
    Room room;
    int n = block(c);
    share(c, n, &room);
    unsigned before = flush(1, 0);
    if (!c->gemm) take_units();
    for (int b = 0; b < c->samples; b++)
        for (int h = 0; h < c->heads; h++)
            for (int r = 0; r < c->rows; r += n) {
                int some = lesser(n, c->rows - r);
                head(c, &room, b, h, r, some, found);
                finish(c, &room, b, h, r, some, found);
            }
    if (!c->gemm) give_units();
    flush(0, before);
}

/* What is asked of a row on the way back. */
typedef struct {
    float base, entropy, far, dot, best;
    int64_t best_at; /* of its greatest logit, where a gradient comes to that */
} Asked;

/* Makes of a chunk of logits weights, completes the gradient `g` in them, and adds to Σ weights · g. */
static inline __attribute__((always_inline)) void weigh(Asked *row, float *x, float *g, int n, const float *received,
                                                        const float *k_at, float q_at, int measure, int far) {
    floats dot = all(0);
    for (int j = 0; j < n; j += WIDE) {
        floats shifted = load(x + j) - row->base, grad = load(g + j);
        shifted = larger(all(-104), shifted);
        floats e = exponential(shifted);
        if (measure) grad += load(received + j) - row->entropy * (shifted + 1);
        if (far) {
            grad += row->far * size(load(k_at + j) - q_at);
        }
        dot += e * grad;
        store(x + j, e);
        store(g + j, grad);
    }
    row->dot += sum(dot);
}

/* d cap · tanh(x / cap) / dx, from what `soften` made of x */
static void slope(const float *softened, float *to, int n, float cap) {
    for (int j = 0; j < n; j += WIDE) {
        floats t = load(softened + j) / cap;
        store(to + j, 1 - t * t);
    }
}

/* Where a gradient comes to the greatest logit: which it is. */
static void look(Asked *row, const float *x, int m, int start) {
    float top = greatest(x, UP(m));
    if (!(top > row->best)) return;
    int j = 0;
    while (x[j] != top) j++;
    row->best = top, row->best_at = start + j;
}

/* Through the softmax: `g`, the gradient in the weights `x`, becomes the one in the logits. */
static void return_through(const float *x, float *g, int n, float dot, const float *slopes, float *bias,
                           int bias_step) {
    floats total = all(0);
    for (int j = 0; j < n; j += WIDE) {
        floats grad = load(x + j) * (load(g + j) - dot);
        total += grad;
        store(g + j, grad);
    }
    if (bias && bias_step)
        for (int j = 0; j < n; j++) bias[j] += g[j];
    else if (bias)
        *bias += sum(total);
    for (int j = 0; slopes && j < n; j += WIDE) store(g + j, load(g + j) * load(slopes + j));
}

/* Rows `first` to `first + n` of one head, back. Weights `x` and their gradients `g` (n, step) are of whole rows, since
   what goes through the softmax is less the mean of its row; so are `slopes`, of the soft cap. */
static void head_back(const Call *c, const Back *to, int b, int h, int first, int n, float *x, float *g, float *slopes,
                      int32_t step) {
    const float zero = 0, one = 1;
    int kv = h / c->group, measure = c->sinks || c->received.at;
    int32_t q_step = greater(c->q.row, c->width), k_step = greater(c->k.row, c->width);
    int32_t v_step = greater(c->v.row, c->value_width), out_step = greater(c->out.row, c->value_width);
    int32_t to_q = greater(to->q.row, c->width), to_k = greater(to->k.row, c->width);
    int32_t to_v = greater(to->v.row, c->value_width), m;
    const int64_t *sink = c->sinks ? c->sinks + b * c->sinks_sample : NULL;
    const float *q = at(&c->q, b, h, first, 4), *out = at(&c->out, b, h, first, 4);
    float k_at[CHUNK] = {0}, received[CHUNK] = {0}, raw[ROWS][6];
    Asked rows[ROWS];
    for (int r = 0; r < n; r++) {
        float lse = *(float *)at(&to->lse, b, h, first + r, 4);
        int blank = lse == -INFINITY; /* a row that sees nothing has no gradient, whatever is asked of it */
        for (int i = 0; i < 6; i++)
            raw[r][i] = blank || (i && !sink) ? 0 : ((float *)at(&c->raw, b, h, first + r, 4))[i * c->raw_step];
        rows[r] = (Asked){blank ? 0 : lse, raw[r][2], raw[r][4], 0, -INFINITY, -1};
    }
    for (int32_t start = 0; start < c->keys; start += m) {
        m = lesser(CHUNK, c->keys - start);
        c->gemm("T", "N", &m, &n, &c->width, &c->scale, at(&c->k, b, kv, start, 4), &k_step, q, &q_step, &zero,
                x + start, &step);
        if (c->value_width)
            c->gemm("T", "N", &m, &n, &c->value_width, &one, at(&c->v, b, kv, start, 4), &v_step, out, &out_step, &zero,
                    g + start, &step);
        if (c->k_at.at) memcpy(k_at, (float *)at(&c->k_at, b, h, 0, 4) + start, m * 4);
        if (c->received.at) memcpy(received, (float *)at(&c->received, b, h, 0, 4) + start, m * 4);
        for (int r = 0; r < n; r++) {
            float *logits = x + (int64_t)r * step + start, *grad = g + (int64_t)r * step + start;
            if (!c->value_width) memset(grad, 0, m * 4);
            if (c->softcap > 0) {
                soften(logits, m, c->softcap);
                slope(logits, slopes + (int64_t)r * step + start, m, c->softcap);
            }
            prepare(c, b, h, first + r, start, logits, m);
            for (int j = m; j < UP(m); j++) logits[j] = -INFINITY, grad[j] = 0;
            if (raw[r][1] != 0) look(&rows[r], logits, m, start);
            float q_at = c->q_at.at ? ((float *)at(&c->q_at, b, h, 0, 4))[first + r] : 0;
            if (c->k_at.at) weigh(&rows[r], logits, grad, m, received, k_at, q_at, 1, 1);
            else if (measure) weigh(&rows[r], logits, grad, m, received, k_at, q_at, 1, 0);
            else weigh(&rows[r], logits, grad, m, received, k_at, q_at, 0, 0);
            for (int i = 0; i < c->n_sinks; i++) {
                int64_t j = sink[i] - c->first_key - start;
                if (j >= 0 && j < m) grad[j] += raw[r][3], rows[r].dot += raw[r][3] * logits[j];
            }
        }
        if (c->value_width)
            c->gemm("N", "T", &c->value_width, &m, &n, &one, out, &out_step, x + start, &step, &one,
                    at(&to->v, b, kv, start, 4), &to_v);
    }
    for (int32_t start = 0; start < c->keys; start += m) {
        m = lesser(CHUNK, c->keys - start);
        for (int r = 0; r < n; r++) {
            int64_t here = (int64_t)r * step + start, best = rows[r].best_at - start;
            float *bias = to->bias.at ? at(&to->bias, b, h, first + r, 4) : NULL;
            if (best >= 0 && best < m) /* so that weight · gradient is what comes to the logit */
                g[here + best] += raw[r][1] / x[here + best];
            return_through(x + here, g + here, m, rows[r].dot - raw[r][0], c->softcap > 0 ? slopes + here : NULL,
                           bias ? bias + start * to->bias_step : NULL, to->bias_step);
        }
        c->gemm("N", "N", &c->width, &n, &m, &c->scale, at(&c->k, b, kv, start, 4), &k_step, g + start, &step,
                start ? &one : &zero, at(&to->q, b, h, first, 4), &to_q);
        c->gemm("N", "T", &c->width, &m, &n, &c->scale, q, &q_step, g + start, &step, &one,
                at(&to->k, b, kv, start, 4), &to_k);
    }
}

/* Rows taken at a time on the way back, whose weights and gradients are to stay near. */
static int block_back(const Call *c) { return lesser(lesser(ROWS / 2, c->rows), greater(64, NEAR / UP(c->keys))); }

int64_t room_for_back(const Call *c) { return (int64_t)block_back(c) * UP(c->keys) * (c->softcap > 0 ? 3 : 2); }

void rows_back(const Call *c, const Back *to) {
    int n = block_back(c);
    int64_t size = (int64_t)n * UP(c->keys);
    unsigned before = flush(1, 0);
    for (int b = 0; b < c->samples; b++)
        for (int h = 0; h < c->heads; h++)
            for (int r = 0; r < c->rows; r += n)
                head_back(c, to, b, h, r, lesser(n, c->rows - r), c->room, c->room + size, c->room + 2 * size,
                          UP(c->keys));
    flush(0, before);
}

/* From what `rows` found, (6, n), what is told of rows: logsumexp, greatest logit, greatest weight, entropy, normalized
   entropy, sink and distance, (7, n), and how many keys they see, (n). NaN where they see none. */
void told(const float *raw, int64_t n, float *found, int64_t *visible) {
    const float *lse = raw, *top = raw + n, *entropy = raw + 2 * n, *sink = raw + 3 * n, *far = raw + 4 * n;
    float count = 2, log_count = logf(2);
    for (int64_t i = 0; i < n; i++) {
        float seen = raw[5 * n + i], undefined = seen > 0 ? 0 : NAN;
        if (seen != count && seen >= 2) count = seen, log_count = logf(count); /* rows often see as many as the last */
        float numbers[] = {lse[i],     top[i],  expf(top[i] - lse[i]), entropy[i], seen < 2 ? NAN : entropy[i] / log_count,
                           sink[i], far[i]};
        for (int j = 0; j < 7; j++) found[j * n + i] = numbers[j] + undefined;
        visible[i] = (int64_t)seen;
    }
}
