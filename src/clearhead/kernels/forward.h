/* There: keys come in chunks; the rows' softmax, statistics and output in one pass over each. */

#define CHUNK 512
#define ROWS 512
#define P_STEP (CHUNK + PAD) /* of weights in bfloat16, from one row to the next */

/* What is known of a row so far. */
typedef struct {
    float top, total, dot, far, count;
} Row;

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

/* Floats that `rows` needs beside. */
int64_t room_for(const Call *c, const Part *parts, int64_t n) {
    int64_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        Room room;
        Call part = call_of(c, &parts[i]);
        int64_t size = share(&part, block(&part), &room);
        most = size > most ? size : most;
    }
    return most;
}

/* The rows of one part. */
static void part_rows(const Call *c) {
    Row found[ROWS];
    Room room;
    int n = block(c);
    share(c, n, &room);
    for (int h = 0; h < c->heads; h++)
        for (int r = 0; r < c->rows; r += n) {
            int some = lesser(n, c->rows - r);
            head(c, &room, 0, h, r, some, found);
            finish(c, &room, 0, h, r, some, found);
        }
}

void rows(const Call *c, const Part *parts, int64_t n) {
    unsigned before = flush(1, 0);
    if (!c->gemm) take_units();
    for (int64_t i = 0; i < n; i++) {
        Call part = call_of(c, &parts[i]);
        part_rows(&part);
    }
    if (!c->gemm) give_units();
    flush(0, before);
}
