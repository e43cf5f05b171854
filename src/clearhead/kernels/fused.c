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

#define CHUNK 512
#define ROWS 256
#define NEAR (1 << 19) /* weights that are held on the way back */
#define WIDE 16
#define UP(n) (((n) + WIDE - 1) / WIDE * WIDE)

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
    Gemm *gemm;
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

static inline floats all(float x) { return (floats){0} + x; }

static inline floats where(ints condition, floats yes, floats no) {
    return (floats)((condition & (ints)yes) | (~condition & (ints)no));
}

static inline float sum(floats v) {
    for (int half = WIDE / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] += v[i + half];
    return v[0];
}

/* exp(x) for x ≤ 0, within 2e-7 of itself; 0 below -87, where floats thin out. NaN stays NaN. */
static inline floats exponential(floats x) {
    const float shifter = 12582912.0f; /* 1.5 · 2^23: what is added to it is rounded to a whole number */
    floats shifted = x * 1.44269504f + shifter, n = shifted - shifter;
    floats r = x - n * 0.693145752f - n * 1.42860677e-6f; /* x = n log 2 + r */
    floats p = r * 1.39337e-3f + 8.36318e-3f;
    p = p * r + 4.166646e-2f;
    p = p * r + 1.6666577e-1f;
    p = p * r + 5.0e-1f;
    p = p * r * r + r + 1.0f;
    floats power = (floats)(((ints)shifted << 23) + 0x3f800000);
    return where(x < -87.0f, all(0), p * power);
}

static inline float exponential_of(float x) { return exponential(all(x))[0]; }

/* cap · tanh(x / cap) */
static void soften(float *x, int n, float cap) {
    for (int j = 0; j < n; j += WIDE) {
        floats z = load(x + j) / cap, size = where(z < 0, -z, z), square = z * z;
        floats e = exponential(-2 * size), far = (1 - e) / (1 + e);
        floats near = square * -8.8632355e-3f + 2.1869488e-2f; /* the series, where 1 - e would lose digits */
        near = near * square - 5.3968254e-2f;
        near = near * square + 1.3333333e-1f;
        near = near * square - 3.3333333e-1f;
        near = near * square * size + size;
        floats t = where(size < 0.4f, near, far);
        store(x + j, cap * where(z < 0, -t, t));
    }
}

static float greatest(const float *x, int n) {
    floats top = all(-INFINITY);
    for (int j = 0; j < n; j += WIDE) {
        floats v = load(x + j);
        top = where(v > top, v, top);
    }
    for (int half = WIDE / 2; half; half /= 2)
        for (int i = 0; i < half; i++) top[i] = top[i + half] > top[i] ? top[i + half] : top[i];
    return top[0];
}

/* Adds a chunk of `n` logits to the sums of its row; where `keep`, each becomes exp(logit - top). */
static inline __attribute__((always_inline)) void add(Row *row, float *x, int n, const float *k_at, float q_at,
                                                      int measure, int far, int keep) {
    floats total = all(0), dot = all(0), way = all(0);
    float base = row->top == -INFINITY ? 0 : row->top;
    for (int j = 0; j < n; j += WIDE) {
        floats shifted = load(x + j) - base;
        shifted = where(shifted < -104.0f, all(-104.0f), shifted); /* e is 0 there, and 0 · -inf would be NaN */
        floats e = exponential(shifted);
        total += e;
        if (measure) dot += e * shifted;
        if (far) {
            floats d = load(k_at + j) - q_at;
            way += e * where(d < 0, -d, d);
        }
        if (keep) store(x + j, e);
    }
    row->total += sum(total);
    if (measure) row->dot += sum(dot);
    if (far) row->far += sum(way);
}

static void add_chunk(Row *row, float *x, int n, const float *k_at, float q_at, int measure, int keep) {
    if (k_at && keep) add(row, x, n, k_at, q_at, 1, 1, 1);
    else if (k_at) add(row, x, n, k_at, q_at, 1, 1, 0);
    else if (measure && keep) add(row, x, n, k_at, q_at, 1, 0, 1);
    else if (measure) add(row, x, n, k_at, q_at, 1, 0, 0);
    else add(row, x, n, k_at, q_at, 0, 0, keep);
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

/* From one row of logits to the next: all of a row's weights are kept for `received`, else those of a chunk. */
static int32_t step_of(const Call *c) { return c->received.at ? UP(c->keys) : CHUNK; }

/* Rows `first` to `first + n` of one head. `x` (n, step) holds logits, `out` (n, value_width), tops (n, chunks). */
static void head(const Call *c, int b, int h, int first, int n, Row *rows, float *x, int32_t step, float *out,
                 float *tops, float *sinks) {
    const float zero = 0, one = 1;
    int kv = h / c->group, whole = c->received.at != NULL, keep = whole || c->value_width > 0, chunk = 0;
    int chunks = chunks_of(c);
    int32_t q_step = greater(c->q.row, c->width), k_step = greater(c->k.row, c->width);
    int32_t v_step = greater(c->v.row, c->value_width);
    const int64_t *sink = c->sinks ? c->sinks + b * c->sinks_sample : NULL;
    float k_at[CHUNK] = {0};
    for (int r = 0; r < n; r++) rows[r] = (Row){.top = -INFINITY};
    for (int i = 0; i < n * c->n_sinks; i++) sinks[i] = -INFINITY;
    for (int32_t start = 0, m; start < c->keys; start += m, chunk++) {
        m = lesser(CHUNK, c->keys - start);
        float *here = x + (whole ? start : 0);
        c->gemm("T", "N", &m, &n, &c->width, &c->scale, at(&c->k, b, kv, start, 4), &k_step,
                at(&c->q, b, h, first, 4), &q_step, &zero, here, &step);
        if (c->k_at.at) memcpy(k_at, (float *)at(&c->k_at, b, h, 0, 4) + start, m * 4);
        for (int r = 0; r < n; r++) {
            float *logits = here + (int64_t)r * step;
            if (c->softcap > 0) soften(logits, m, c->softcap);
            rows[r].count += prepare(c, b, h, first + r, start, logits, m);
            for (int j = m; j < UP(m); j++) logits[j] = -INFINITY;
            for (int i = 0; i < c->n_sinks; i++) {
                int64_t j = sink[i] - c->first_key - start;
                if (j >= 0 && j < m) sinks[r * c->n_sinks + i] = logits[j];
            }
            lift(&rows[r], greatest(logits, m), out + (int64_t)r * c->value_width, c->value_width);
            float q_at = c->q_at.at ? ((float *)at(&c->q_at, b, h, 0, 4))[first + r] : 0;
            add_chunk(&rows[r], logits, m, c->k_at.at ? k_at : NULL, q_at, sink != NULL, keep);
            if (whole) tops[r * chunks + chunk] = rows[r].top;
        }
        if (c->value_width)
            c->gemm("N", "N", &c->value_width, &n, &m, &one, at(&c->v, b, kv, start, 4), &v_step, here, &step,
                    start ? &one : &zero, out, &c->value_width);
    }
}

/* Writes what `head` found. */
static void finish(const Call *c, int b, int h, int first, int n, Row *rows, float *x, int32_t step, const float *out,
                   const float *tops, const float *sinks) {
    int chunks = chunks_of(c);
    for (int r = 0; r < n; r++) {
        Row row = rows[r];
        int blank = row.top == -INFINITY && row.total == 0;
        float total = blank ? 1 : row.total, base = row.top == -INFINITY ? 0 : row.top, weight = 0, any = NAN;
        for (int i = 0; i < c->n_sinks; i++) {
            float logit = sinks[r * c->n_sinks + i];
            if (logit == -INFINITY) continue;
            weight += exponential_of(logit - base);
            any = weight;
        }
        /* the greatest of numbers with a NaN among them is NaN */
        float top = total != total && row.top < INFINITY ? NAN : row.top, log_total = logf(total);
        /* from the shifted logits: log Σ exp s - Σ A s with s as it came would lose digits where logits are large */
        float found[] = {top + log_total, top,        log_total - row.dot / total, any / total,
                         row.far / total, row.count};
        for (int i = 0; i < (c->sinks ? 6 : 1); i++)
            ((float *)at(&c->raw, b, h, first + r, 4))[i * c->raw_step] = found[i];
        float *to = at(&c->out, b, h, first + r, 4);
        for (int j = 0; j < c->value_width; j++) to[j] = out[(int64_t)r * c->value_width + j] / total;
        if (!c->received.at) continue;
        float *received = at(&c->received, b, h, 0, 4);
        for (int i = 0; i < chunks; i++) {
            const float *e = x + (int64_t)r * step + i * CHUNK;
            float then = tops[r * chunks + i], share = then == -INFINITY ? 1 : exponential_of(then - base);
            int m = lesser(CHUNK, c->keys - i * CHUNK);
            share /= total;
            for (int j = 0; j < m; j++) received[i * CHUNK + j] += e[j] * share;
        }
    }
}

/* Rows taken at a time: fewer where their weights are kept for `received`. */
static int block(const Call *c) {
    int most = lesser(ROWS, c->rows);
    return c->received.at ? lesser(most, greater(16, (1 << 22) / UP(c->keys))) : most;
}

int64_t room_for(const Call *c) {
    return block(c) * ((int64_t)step_of(c) + c->value_width + chunks_of(c) + c->n_sinks) + WIDE;
}

void rows(const Call *c) {
    Row found[ROWS];
    int n = block(c);
    int32_t step = step_of(c);
    float *x = c->room, *out = x + (int64_t)n * step, *tops = out + (int64_t)n * c->value_width;
    float *sinks = tops + (int64_t)n * chunks_of(c);
    for (int b = 0; b < c->samples; b++)
        for (int h = 0; h < c->heads; h++)
            for (int r = 0; r < c->rows; r += n) {
                int some = lesser(n, c->rows - r);
                head(c, b, h, r, some, found, x, step, out, tops, sinks);
                finish(c, b, h, r, some, found, x, step, out, tops, sinks);
            }
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
        shifted = where(shifted < -104.0f, all(-104.0f), shifted);
        floats e = exponential(shifted);
        if (measure) grad += load(received + j) - row->entropy * (shifted + 1);
        if (far) {
            floats d = load(k_at + j) - q_at;
            grad += row->far * where(d < 0, -d, d);
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
    float top = greatest(x, m);
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
static int block_back(const Call *c) { return lesser(lesser(ROWS, c->rows), greater(64, NEAR / UP(c->keys))); }

int64_t room_for_back(const Call *c) { return (int64_t)block_back(c) * UP(c->keys) * (c->softcap > 0 ? 3 : 2); }

void rows_back(const Call *c, const Back *to) {
    int n = block_back(c);
    int64_t size = (int64_t)n * UP(c->keys);
    for (int b = 0; b < c->samples; b++)
        for (int h = 0; h < c->heads; h++)
            for (int r = 0; r < c->rows; r += n)
                head_back(c, to, b, h, r, lesser(n, c->rows - r), c->room, c->room + size, c->room + 2 * size,
                          UP(c->keys));
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
