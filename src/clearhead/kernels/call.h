/* What a pass over tiles is given, and what each of their rows begins with: logits, biased and hidden. */

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
    Gemm *gemm;                 /* null: q, k, v and out are bfloat16, for matrix units */
    int32_t heads, group, rows, keys, width, value_width, first_key; /* heads, rows, keys, first_key: of one part at a time */
    float scale, softcap;       /* softcap 0: none */
    Tensor q, k, v, out;        /* v and out only where value_width > 0 */
    Tensor spans;               /* int32, the first key that a row may see and the one behind the last; here and below, */
    Tensor seen;                /* null: none; bytes, of the only part, for its keys seen_from to seen_to alone; */
    int32_t seen_from, seen_to; /* all other keys of their spans rows do see */
    Tensor bias;                /* of the only part */
    Tensor q_at, k_at;          /* positions: a row of them each */
    Tensor raw;                 /* logsumexp, greatest logit, entropy, sink, distance, the first less the second, visible keys; */
    int64_t raw_step;           /* from one of them to the next */
    Tensor received;            /* a row of keys, to be added to */
    const int64_t *sinks;       /* keys; null: the logsumexp alone is wanted */
    int64_t sinks_sample;
    int32_t n_sinks;
    float *room;                /* of room_for(…) floats */
} Call;

/* What the pass back is given beside the call, whose out, raw and received then are gradients, and adds to. */
typedef struct {
    Tensor lse, q, k, v, bias;
    int32_t bias_step;          /* from one of its columns to the next: 0 where it has but one */
} Back;

/* Some rows and some keys of some heads of a sample. */
typedef struct {
    int32_t sample, head, heads, row, rows, key, keys;
} Part;

static inline void *at(const Tensor *t, int b, int h, int64_t row, size_t size) {
    return (char *)t->at + (b * t->sample + h * t->head + row * t->row) * (int64_t)size;
}

static inline int lesser(int a, int b) { return a < b ? a : b; }
static inline int greater(int a, int b) { return a > b ? a : b; }

/* From there on; `size` is a number's. */
static void move(Tensor *t, int sample, int head, int row, int column, size_t size) {
    if (t->at) t->at = (char *)at(t, sample, head, row, size) + column * size;
}

/* The call for one of its parts alone, now the first sample and the first head. */
static Call call_of(const Call *c, const Part *p) {
    Call one = *c;
    int size = c->gemm ? 4 : 2, b = p->sample, h = p->head, kv = h / c->group;
    one.heads = p->heads, one.rows = p->rows, one.keys = p->keys, one.first_key = p->key;
    move(&one.q, b, h, p->row, 0, size), move(&one.k, b, kv, p->key, 0, size), move(&one.v, b, kv, p->key, 0, size);
    move(&one.out, b, h, p->row, 0, size), move(&one.raw, b, h, p->row, 0, 4), move(&one.spans, b, h, p->row, 0, 4);
    move(&one.q_at, b, h, 0, p->row, 4), move(&one.k_at, b, h, 0, p->key, 4), move(&one.received, b, h, 0, p->key, 4);
    move(&one.seen, b, h, 0, 0, 1), move(&one.bias, b, h, 0, 0, 4);
    if (one.sinks) one.sinks += b * one.sinks_sample;
    return one;
}

/* Bias and visibility of a row's logits for the keys from `first`; returns how many it sees. */
static int prepare(const Call *c, int b, int h, int r, int first, float *x, int n) {
    if (c->bias.at) {
        const float *bias = (const float *)at(&c->bias, b, h, r, 4) + first;
        /* a key whose bias is -inf is not seen, whatever stands there */
        for (int j = 0; j < n; j++) x[j] = bias[j] == -INFINITY ? -INFINITY : x[j] + bias[j];
    }
    int here = 0, behind = n;
    if (c->spans.at) {
        const int32_t *span = at(&c->spans, b, h, r, 4);
        here = lesser(n, greater(0, span[0] - c->first_key - first));
        behind = greater(here, lesser(n, span[1] - c->first_key - first));
        for (int j = 0; j < here; j++) x[j] = -INFINITY;
        for (int j = behind; j < n; j++) x[j] = -INFINITY;
    }
    int from = greater(c->seen_from, first), to = lesser(c->seen_to, first + n);
    if (c->seen.at && from < to) {
        const uint8_t *seen = (const uint8_t *)at(&c->seen, b, h, r, 1) - c->seen_from;
        for (int j = from; j < to; j++) x[j - first] = seen[j] ? x[j - first] : -INFINITY;
    } else if (!c->bias.at) {
        return behind - here;
    }
    int count = 0;
    for (int j = 0; j < n; j++) count += x[j] != -INFINITY;
    return count;
}
