/* There: keys come in chunks; the rows' softmax, statistics and output in one pass over each. */

#define CHUNK 512
#define ROWS 1024      /* of a block, of matrix units: packing is paid for once a block */
#define FEW (ROWS / 4) /* of a block of others */
#define HELD (1 << 22) /* weights that are held for `received` */
#define GROUP 64 /* rows whose logits are formed at once by matrix units, which lose nothing by it: they stay near */
#define P_STEP (CHUNK + PAD) /* of weights in bfloat16, from one row to the next */

/* What is known of a row so far: its greatest logit, and sums of exponentials less that. */
typedef struct {
    float top, total, dot, far, count;
} Row;

/* Some rows of a block and a chunk of keys, and their logits, which become weights. */
typedef struct {
    int b, h, row;         /* where the block begins */
    int from, n, start, m; /* rows, counted from there, and keys */
    float *x;              /* (n, step) */
    float scale;           /* of what lies there before it becomes weights */
} Piece;

/* Adds a chunk of `n` logits x · scale to the sums of its row; where `keep`, each becomes exp(logit - top), as does
   `p`. Unless a logit exceeds `limit`: then `p` is of no use, the sums are as they were, and 0 is returned. */
static inline __attribute__((always_inline)) int add(Row *row, float *x, float scale, half *p, int n, const float *k_at,
                                                     float q_at, float limit, int measure, int far, int keep) {
    floats total = all(0), dot = all(0), way = all(0), peak = all(-INFINITY);
    float base = row->top == -INFINITY ? 0 : row->top;
    for (int j = 0; j < n; j += 2 * WIDE) {
        floats e[2];
        for (int i = 0; i < 2; i++) {
            floats logit = load(x + j + i * WIDE), shifted = (logit * scale - base) * (1 / LOG_2);
            e[i] = p && !measure ? about_power_of_two(shifted) : power_of_two(shifted);
            total += e[i];
            if (measure) dot += e[i] * larger(all(-150), shifted); /* e is 0 there, and 0 · -inf would be NaN */
            if (far) way += e[i] * size(load(k_at + j + i * WIDE) - q_at);
            if (keep) store(x + j + i * WIDE, e[i]);
            else peak = larger(logit, peak);
        }
        if (p) store_halves(p + j, e[0], e[1]);
    }
    if (any(peak > limit)) return 0;
    row->total += sum(total);
    if (measure) row->dot += sum(dot) * LOG_2;
    if (far) row->far += sum(way);
    return 1;
}

static int add_chunk(Row *row, float *x, float scale, half *p, int n, const float *k_at, float q_at, float limit,
                     int measure, int keep) {
    if (k_at && p && !keep) return add(row, x, scale, p, n, k_at, q_at, limit, 1, 1, 0);
    if (k_at) return add(row, x, scale, p, n, k_at, q_at, limit, 1, 1, keep);
    if (measure) return add(row, x, scale, p, n, k_at, q_at, limit, 1, 0, keep);
    if (p && !keep) return add(row, x, scale, p, n, k_at, q_at, limit, 0, 0, 0);
    return add(row, x, scale, p, n, k_at, q_at, limit, 0, 0, keep);
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

/* Rows whose logits are formed at once. */
static int some_of(const Call *c, int n) { return c->gemm ? n : lesser(n, GROUP); }

/* Are logits written over by their weights? Else they stay until these are right. */
static int kept(const Call *c) { return c->received.at || (c->gemm && c->value_width > 0); }

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

/* Queries one behind the other, as wide as matrix units take them. */
static void pack_rows(const Call *c, const Room *room, int b, int h, int first, int n) {
    for (int r = 0; r < n; r++) {
        half *q = room->q + (int64_t)r * UP(c->width);
        memcpy(memset(q, 0, UP(c->width) * 2), at(&c->q, b, h, first + r, 2), c->width * 2);
    }
}

/* Packs keys and values of a chunk. */
static void pack_chunk(const Call *c, const Room *room, int b, int kv, int start, int m) {
    pack_transposed(room->k, at(&c->k, b, kv, start, 2), greater(c->k.row, c->width), m, c->width);
    if (c->value_width) pack(room->v, at(&c->v, b, kv, start, 2), greater(c->v.row, c->value_width), m, c->value_width);
}

/* The products of rows with keys; by matrix units they are not scaled yet. */
static void products(const Call *c, const Room *room, const Piece *piece) {
    const float zero = 0;
    int32_t q_step = greater(c->q.row, c->width), k_step = greater(c->k.row, c->width), n = piece->n, m = piece->m;
    const half *q = room->q + (int64_t)piece->from * UP(c->width);
    if (c->gemm)
        c->gemm("T", "N", &m, &n, &c->width, &c->scale, at(&c->k, piece->b, piece->h / c->group, piece->start, 4), &k_step,
                at(&c->q, piece->b, piece->h, piece->row + piece->from, 4), &q_step, &zero, piece->x, &room->step);
    else if (UP(c->width) == 64)
        multiply_64(UP(n), UP(m), q, room->k, piece->x, room->step);
    else
        multiply(UP(n), UP(m), UP(c->width), q, UP(c->width), room->k, piece->x, room->step, 0);
}

/* Adds to the outputs of rows what these keys give. */
static void outputs(const Call *c, const Room *room, const Piece *piece) {
    const float zero = 0, one = 1;
    int32_t v_step = greater(c->v.row, c->value_width), n = piece->n, m = piece->m;
    float *out = room->out + (int64_t)piece->from * room->out_step;
    if (c->gemm)
        c->gemm("N", "N", &c->value_width, &n, &m, &one, at(&c->v, piece->b, piece->h / c->group, piece->start, 4), &v_step,
                piece->x, &room->step, piece->start ? &one : &zero, out, &room->out_step);
    else
        multiply(UP(n), UP(c->value_width), UP(m), room->p, P_STEP, room->v, out, room->out_step, piece->start > 0);
}

/* Makes of products logits: scaled, where that is not left for later, capped, biased and hidden. */
static void to_logits(const Call *c, const Room *room, const Piece *piece, Row *rows) {
    const int64_t *sink = c->sinks ? c->sinks + piece->b * c->sinks_sample : NULL;
    int m = piece->m;
    for (int i = 0; i < piece->n; i++) {
        int r = piece->from + i;
        float *logits = piece->x + (int64_t)i * room->step;
        if (!c->gemm && piece->scale != c->scale)
            for (int j = 0; j < m; j++) logits[j] *= c->scale;
        if (c->softcap > 0) soften(logits, m, c->softcap);
        rows[r].count += prepare(c, piece->b, piece->h, piece->row + r, piece->start, logits, m);
        for (int j = m; j < UP(m); j++) logits[j] = -INFINITY;
        for (int s = 0; s < c->n_sinks; s++) {
            int64_t j = sink[s] - c->first_key - piece->start;
            if (j >= 0 && j < m) room->sinks[r * c->n_sinks + s] = logits[j] * piece->scale;
        }
        /* here, and not below, where each row would wait for its own */
        if (kept(c) || rows[r].top == -INFINITY)
            lift(&rows[r], greatest(logits, UP(m)) * piece->scale, room->out + (int64_t)r * room->out_step, c->value_width);
    }
}

/* Makes of logits weights, and adds them to the sums of their rows. */
static void sum_up(const Call *c, const Room *room, const Piece *piece, Row *rows) {
    int measure = c->sinks != NULL, keep = kept(c), m = UP(piece->m);
    float k_at[CHUNK] = {0}, each = 1 / piece->scale;
    const float *way = c->k_at.at ? k_at : NULL;
    if (way) memcpy(k_at, (float *)at(&c->k_at, piece->b, piece->h, 0, 4) + piece->start, piece->m * 4);
    for (int i = 0; i < piece->n; i++) {
        int r = piece->from + i;
        float *logits = piece->x + (int64_t)i * room->step, limit = rows[r].top * each;
        float q_at = c->q_at.at ? ((float *)at(&c->q_at, piece->b, piece->h, 0, 4))[piece->row + r] : 0;
        half *p = !c->gemm && c->value_width ? room->p + (int64_t)i * P_STEP : NULL;
        if (!add_chunk(&rows[r], logits, piece->scale, p, m, way, q_at, limit, measure, keep)) {
            lift(&rows[r], greatest(logits, m) * piece->scale, room->out + (int64_t)r * room->out_step, c->value_width);
            add_chunk(&rows[r], logits, piece->scale, p, m, way, q_at, INFINITY, measure, keep);
        }
        if (c->received.at) room->tops[r * chunks_of(c) + piece->start / CHUNK] = rows[r].top;
    }
}

/* Rows `first` to `first + n` of one head. */
static void head(const Call *c, const Room *room, int b, int h, int first, int n, Row *rows) {
    int whole = c->received.at != NULL, some = some_of(c, n);
    int later = !c->gemm && c->softcap <= 0 && !c->bias.at && c->scale > 0;
    for (int r = 0; r < n; r++) rows[r] = (Row){.top = -INFINITY};
    for (int i = 0; i < n * c->n_sinks; i++) room->sinks[i] = -INFINITY;
    if (!c->gemm) pack_rows(c, room, b, h, first, n);
    for (int32_t start = 0, m; start < c->keys; start += m) {
        m = lesser(CHUNK, c->keys - start);
        if (!c->gemm) pack_chunk(c, room, b, h / c->group, start, m);
        for (int from = 0; from < n; from += some) {
            float *x = room->x + (whole ? start + (int64_t)from * room->step : 0);
            Piece piece = {b, h, first, from, lesser(some, n - from), start, m, x, later ? c->scale : 1};
            products(c, room, &piece);
            to_logits(c, room, &piece, rows);
            sum_up(c, room, &piece, rows);
            if (c->value_width) outputs(c, room, &piece);
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
        float found[] = {top + log_total, top, entropy, any / total, row.far / total, log_total, row.count};
        for (int i = 0; i < (c->sinks ? 7 : 1); i++)
            ((float *)at(&c->raw, b, h, first + r, 4))[i * c->raw_step] = found[i];
        float *out = room->out + (int64_t)r * room->out_step, *to = c->gemm ? at(&c->out, b, h, first + r, 4) : out;
        for (int j = 0; j < c->value_width; j++) to[j] = out[j] / total;
        if (!c->gemm) to_halves(at(&c->out, b, h, first + r, 2), to, c->value_width);
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
    int most = lesser(c->gemm ? FEW : ROWS, c->rows);
    return c->received.at ? lesser(most, greater(16, HELD / UP(c->keys))) : most;
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

/* The rows of one part; returns how many. */
static int64_t part_rows(const Call *c) {
    Row found[ROWS];
    Room room;
    int64_t written = 0;
    int n = block(c);
    share(c, n, &room);
    for (int h = 0; h < c->heads; h++)
        for (int r = 0; r < c->rows; r += n) {
            int some = lesser(n, c->rows - r);
            head(c, &room, 0, h, r, some, found);
            finish(c, &room, 0, h, r, some, found);
            written += some;
        }
    return written;
}

/* Returns how many rows were written. */
int64_t rows(const Call *c, const Part *parts, int64_t n) {
    unsigned before = flush(1, 0);
    int64_t written = 0;
    if (!c->gemm) take_units();
    for (int64_t i = 0; i < n; i++) {
        Call part = call_of(c, &parts[i]);
        written += part_rows(&part);
    }
    if (!c->gemm) give_units();
    flush(0, before);
    return written;
}
