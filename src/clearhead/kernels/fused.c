/* The rows of one tile of an attention matrix, float32: softmax, its statistics and its output in one pass, and back.

   What `rows.py` does in a dozen passes over a tile, in the order of flash attention (Dao 2022): keys come in chunks
   whose logits stay in the cache; when a chunk brings a larger logit, what was summed before it is rescaled (Milakov &
   Gimelshein 2018). Products are left to the BLAS that PyTorch brings, and those of bfloat16 to matrix units.

   NaN and infinities are left to arithmetic: not to be compiled with -ffast-math. */

#include "vectors.h"
#include "matrix_units.h"
#include "call.h"
#include "forward.h"
#include "backward.h"

/* Where rows and keys are cut, for whoever asks: a chunk of keys, rows of a block, and pairs of a block that are held. */
const int32_t chunk = CHUNK, group = GROUP, most_rows = ROWS, few_rows = FEW, held = HELD, near = NEAR;

/* From what `rows` found, (7, n), what is told of rows: logsumexp, greatest logit, greatest weight, entropy, normalized
   entropy, sink and distance, (7, n), and how many keys they see, (n). NaN where they see none. */
void told(const float *raw, int64_t n, float *found, int64_t *visible) {
    const float *lse = raw, *top = raw + n, *entropy = raw + 2 * n, *sink = raw + 3 * n, *far = raw + 4 * n,
                *log_total = raw + 5 * n;
    float count = 2, log_count = logf(2);
    for (int64_t i = 0; i < n; i++) {
        float seen = raw[6 * n + i], undefined = seen > 0 ? 0 : NAN;
        if (seen != count && seen >= 2) count = seen, log_count = logf(count); /* rows often see as many as the last */
        float numbers[] = {lse[i],     top[i],  expf(-log_total[i]), entropy[i], seen < 2 ? NAN : entropy[i] / log_count,
                           sink[i], far[i]};
        for (int j = 0; j < 7; j++) found[j * n + i] = numbers[j] + undefined;
        visible[i] = (int64_t)seen;
    }
}
