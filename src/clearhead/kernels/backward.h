/* Back: the weights of whole rows are formed again from their logsumexp, and gradients go through them. */

#define NEAR (1 << 19) /* weights that are held */

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
        raw[r][0] += raw[r][5], raw[r][1] -= raw[r][5]; /* of the logsumexp less the greatest logit */
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
static int block_back(const Call *c) { return lesser(lesser(FEW, c->rows), greater(64, NEAR / UP(c->keys))); }

/* Floats that `rows_back` needs beside. */
int64_t room_for_back(const Call *c, const Part *parts, int64_t n) {
    int64_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        Call part = call_of(c, &parts[i]);
        int64_t size = (int64_t)block_back(&part) * UP(part.keys) * (c->softcap > 0 ? 3 : 2);
        most = size > most ? size : most;
    }
    return most;
}

static Back back_of(const Back *to, const Part *p, int group) {
    Back one = *to;
    int b = p->sample, h = p->head, kv = h / group;
    move(&one.lse, b, h, p->row, 0, 4), move(&one.q, b, h, p->row, 0, 4);
    move(&one.k, b, kv, p->key, 0, 4), move(&one.v, b, kv, p->key, 0, 4), move(&one.bias, b, h, 0, 0, 4);
    return one;
}

/* The rows of one part; returns how many. */
static int64_t part_back(const Call *c, const Back *to) {
    int n = block_back(c);
    int64_t size = (int64_t)n * UP(c->keys), taken = 0;
    for (int h = 0; h < c->heads; h++)
        for (int r = 0; r < c->rows; r += n) {
            int some = lesser(n, c->rows - r);
            head_back(c, to, 0, h, r, some, c->room, c->room + size, c->room + 2 * size, UP(c->keys));
            taken += some;
        }
    return taken;
}

/* Returns how many rows were taken. */
int64_t rows_back(const Call *c, const Back *to, const Part *parts, int64_t n) {
    unsigned before = flush(1, 0);
    int64_t taken = 0;
    for (int64_t i = 0; i < n; i++) {
        Call part = call_of(c, &parts[i]);
        Back back = back_of(to, &parts[i], c->group);
        taken += part_back(&part, &back);
    }
    flush(0, before);
    return taken;
}
