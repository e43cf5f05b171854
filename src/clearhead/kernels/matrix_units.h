/* Products of bfloat16 with float32 sums, by matrix units (AMX): packing, and the loop over tiles in the cache. */

#define PAD 32 /* vectors are half as wide; matrix units take so many rows, columns and products at a time */
#define UP(n) (((n) + PAD - 1) / PAD * PAD)

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
    __asm__ volatile("" : : "r"(&shape) : "memory"); /* GCC believes that only its first bytes are read */
    _tile_loadconfig(&shape);
}

static void give_units(void) { _tile_release(); }

static inline void store_halves(half *x, floats a, floats b) {
    _mm512_storeu_si512(x, (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
}

static void to_halves(half *to, const float *x, int n) {
    for (int j = 0; j < n; j += 16) {
        __mmask16 some = n - j > 15 ? -1 : (1u << (n - j)) - 1;
        _mm256_mask_storeu_epi16(to + j, some, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some, x + j)));
    }
}

/* Rows become columns, and columns rows: four times the rows of the two halves interleave. */
static inline void transpose(__m512i x[16]) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (int round = 0; round < 4; round++) {
        __m512i y[16];
        for (int i = 0; i < 8; i++) {
            y[2 * i] = _mm512_permutex2var_epi32(x[i], low, x[i + 8]);
            y[2 * i + 1] = _mm512_permutex2var_epi32(x[i], high, x[i + 8]);
        }
        memcpy(x, y, sizeof y);
    }
}

/* Packed: pairs of what is multiplied and added lie side by side, 16 pairs of 16 columns in a tile, and tiles one behind
   the other down the products. Here those of x transposed, x (n, width): width is even. */
static void pack_transposed(half *to, const half *x, int64_t step, int n, int width) {
    for (int i = 0; i < UP(n); i += 16)
        for (int j = 0; j < UP(width); j += 32, to += 512) {
            int some = width - j > 32 ? 32 : width - j;
            __m512i rows[16];
            for (int r = 0; r < 16; r++)
                rows[r] = _mm512_maskz_loadu_epi16(i + r < n ? (1ull << some) - 1 : 0, x + (i + r) * step + j);
            transpose(rows);
            memcpy(to, rows, sizeof rows);
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

/* c (m, n) = a (m, 64) b: as below, but 32 columns of b stay in their tiles while rows pass. */
static void multiply_64(int m, int n, const half *a, const half *b, float *c, int64_t c_step) {
    for (int j = 0; j < n; j += 32) {
        const half *right = b + (int64_t)j * 64;
        _tile_loadd(4, right, 64); _tile_loadd(5, right + 512, 64);
        _tile_loadd(6, right + 1024, 64); _tile_loadd(7, right + 1536, 64);
        for (int i = 0; i < m; i += 16) {
            float *to = c + i * c_step + j;
            _tile_zero(0); _tile_loadd(2, a + i * 64, 128); _tile_zero(1);
            _tile_dpbf16ps(0, 2, 4); _tile_dpbf16ps(1, 2, 6); _tile_loadd(3, a + i * 64 + 32, 128);
            _tile_dpbf16ps(0, 3, 5); _tile_dpbf16ps(1, 3, 7);
            _tile_stored(0, to, c_step * 4); _tile_stored(1, to + 16, c_step * 4);
        }
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
static inline void store_halves(half *x, floats a, floats b) {}
static void to_halves(half *to, const float *x, int n) {}
static void pack_transposed(half *to, const half *x, int64_t step, int n, int width) {}
static void pack(half *to, const half *x, int64_t step, int n, int width) {}
static void multiply_64(int m, int n, const half *a, const half *b, float *c, int64_t c_step) {}
static void multiply(int m, int n, int k, const half *a, int64_t a_step, const half *b, float *c, int64_t c_step, int more) {}
#endif
