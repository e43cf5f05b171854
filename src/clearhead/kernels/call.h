/* What a pass over a tile is given, and what each of its rows begins with: logits, biased and hidden. */

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
