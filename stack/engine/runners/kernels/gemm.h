/* Matrix products of bf16 with float32 accumulation.
 *
 * A right-hand matrix W [k, n] is stored in blocks of LANES columns, two k together, so that one vector holds what
 * one bf16 dot product takes: element (i, j) is at
 *
 *     (j / LANES) * block + (i / 2) * step + (j % LANES) * 2 + i % 2
 *
 * For packed weights step = 2 * LANES and block = k * LANES; the key and value caches have strides of their own. */
#pragma once
#include "vec.h"

#define BUFFER_ROWS 48 /* a multiple of every TILE_ROWS */
#define BUFFER_COLUMNS (TILE_BLOCKS * LANES)
#define K_PART 4096 /* k is cut so that TILE_BLOCKS blocks stay in the L2 cache */

typedef struct { const bf16 *data; long block, step; } Blocked;

/* out[r][b * LANES ..] (+)= x[r, :2 * pairs] . w[:2 * pairs, block b], for r < R and b < B, all in registers.
 * Meanwhile fetches blocks [first, last) at `next` into the cache. */
INLINE void tile(const int R, const int B, const bf16 *x, long x_stride, Blocked w, int pairs, float *out,
                 long out_stride, bool add, const bf16 *next, int first, int last) {
    vf acc[TILE_ROWS][TILE_BLOCKS];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) acc[r][b] = add ? load(out + r * out_stride + b * LANES) : splat(0);
    for (int i = 0; i < pairs; i++) {
        vu column[TILE_BLOCKS];
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) column[b] = load_pairs(w.data + b * w.block + i * w.step);
        for (int b = first; b < last; b++) __builtin_prefetch(next + b * w.block + i * w.step, 0, 2);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            vu pair = splat_pair(x + r * x_stride + 2 * i);
#pragma GCC unroll 4
            for (int b = 0; b < B; b++) acc[r][b] = dot2(acc[r][b], column[b], pair);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) store(out + r * out_stride + b * LANES, acc[r][b]);
}

typedef void Tile(const bf16 *x, long x_stride, Blocked w, int pairs, float *out, long out_stride, bool add,
                  const bf16 *next, int first, int last);
#define TILE(R, B)                                                                                              \
    static void tile_##R##_##B(const bf16 *x, long x_stride, Blocked w, int pairs, float *out, long out_stride, \
                               bool add, const bf16 *next, int first, int last) {                               \
        tile(R, B, x, x_stride, w, pairs, out, out_stride, add, next, first, last);                             \
    }
#if TILE_BLOCKS == 4
#define TILES(R) TILE(R, 1) TILE(R, 2) TILE(R, 3) TILE(R, 4)
#define NAMES(R) {tile_##R##_1, tile_##R##_2, tile_##R##_3, tile_##R##_4}
#else
#define TILES(R) TILE(R, 1) TILE(R, 2)
#define NAMES(R) {tile_##R##_1, tile_##R##_2}
#endif
TILES(1) TILES(2) TILES(3) TILES(4)
#if TILE_ROWS == 6
TILES(5) TILES(6)
static Tile *const TILE_TABLE[][TILE_BLOCKS] = {NAMES(1), NAMES(2), NAMES(3), NAMES(4), NAMES(5), NAMES(6)};
#else
static Tile *const TILE_TABLE[][TILE_BLOCKS] = {NAMES(1), NAMES(2), NAMES(3), NAMES(4)};
#endif

/* The next of `left` things in parts of at most `most`, as even as can be: 8 by 6 is 4 + 4, not 6 + 2. */
INLINE int part(int left, int most) { int parts = (left + most - 1) / most; return (left + parts - 1) / parts; }

/* Fetches `count` elements into the L2 cache. */
INLINE void fetch(const bf16 *p, long count) {
    for (long i = 0; i < count; i += 32) __builtin_prefetch(p + i, 0, 2);
}

/* out [rows, blocks * LANES] = x [rows, 2 * pairs] . w, by one thread. */
static void product(const bf16 *x, long x_stride, int rows, Blocked w, int pairs, int blocks, float *out,
                    long out_stride) {
    for (int b = 0, nb; b < blocks; b += nb) {
        nb = part(blocks - b, TILE_BLOCKS);
        Blocked panel = {w.data + b * w.block, w.block, w.step};
        for (int r = 0, nr; r < rows; r += nr) {
            nr = part(rows - r, TILE_ROWS);
            TILE_TABLE[nr - 1][nb - 1](x + r * x_stride, x_stride, panel, pairs, out + r * out_stride + b * LANES,
                                       out_stride, false, NULL, 0, 0);
        }
    }
}

typedef enum {
    STORE,  /* float out [rows, n] = y */
    ADD,    /* float out [rows, n] += y */
    SWIGLU, /* bf16 out [rows, n / 2] = silu(gate) * up; blocks of gate and up alternate */
    MASK,   /* bf16 out [rows, n] = y where the row wants the adapter that owns the column, else 0 */
} Then;

typedef struct {
    const bf16 *weight; /* packed [k, n] */
    const float *bias;  /* [n], padded to whole blocks and in their order; or NULL */
    int k, n;
} Linear;

/* What adapters change in a product: y = (1 + scale) * (x . W) + inner . B, or which columns of it a row has. */
typedef struct {
    const int *adapters; /* [rows]: each row's adapter, -1 for none */
    const int *owners;   /* [n], for MASK: each column's adapter */
    const bf16 *inner;   /* [rows, ranks], as MASK has left it */
    int ranks;
    Blocked b;           /* [ranks, n] */
    const float *scale;  /* [scaled, n padded to whole blocks], of DoRA; or NULL */
    int scaled;
} Added;

/* buffer[r] = (1 + scale) * buffer[r] + inner[r] . B for `blocks` blocks of columns. */
static void add_adapters(const Added *added, int row, int rows, int block, int blocks, int all_blocks, float *buffer) {
    for (int r = 0; added->scale && r < rows; r++) {
        const int adapter = added->adapters[row + r];
        if (adapter < 0 || adapter >= added->scaled) continue;
        const float *scale = added->scale + ((long)adapter * all_blocks + block) * LANES;
        float *y = buffer + r * BUFFER_COLUMNS;
        for (int c = 0; c < blocks * LANES; c += LANES) store(y + c, load(y + c) * (1.0f + load(scale + c)));
    }
    const Blocked b = {added->b.data + block * added->b.block, added->b.block, added->b.step};
    for (int r = 0, nr; r < rows; r += nr) {
        nr = part(rows - r, TILE_ROWS);
        TILE_TABLE[nr - 1][blocks - 1](added->inner + (long)(row + r) * added->ranks, added->ranks, b, added->ranks / 2,
                                       buffer + r * BUFFER_COLUMNS, BUFFER_COLUMNS, true, NULL, 0, 0);
    }
}

/* out[r] = v where the row's adapter owns the column; n is a whole number of blocks. */
INLINE void store_masked(bf16 *out, vf v, const int *owners, int adapter) {
    vi owner;
    memcpy(&owner, owners, sizeof owner);
    store_bf16(out, (vf)((vi)v & (owner == adapter)));
}

static void epilogue(const float *buffer, int rows, int column, int blocks, const Linear *linear, Then then,
                     void *out, long stride, const int *adapters, const int *owners) {
    for (int r = 0; r < rows; r++) {
        const float *y = buffer + r * BUFFER_COLUMNS;
        for (int b = 0; b < blocks; b++) {
            int c = column + b * LANES, n = linear->n - c;
            vf v = load(y + b * LANES);
            if (linear->bias) v += load(linear->bias + c);
            if (then == SWIGLU) {
                vf up = load(y + ++b * LANES);
                if (linear->bias) up += load(linear->bias + c + LANES);
                store_bf16((bf16 *)out + r * stride + c / 2, v / (1.0f + vexp(-v)) * up);
                continue;
            }
            if (then == MASK) {
                store_masked((bf16 *)out + r * stride + c, v, owners + c, adapters[r]);
                continue;
            }
            float *o = (float *)out + r * stride + c;
            if (n < LANES) {
                for (int i = 0; i < n; i++) o[i] = then == ADD ? o[i] + v[i] : v[i];
            } else {
                store(o, then == ADD ? v + load(o) : v);
            }
        }
    }
}

/* out = then(x [rows, k] . W + bias): this thread's share of the columns. `added` is NULL where no adapter counts. */
static void linear_share(const Pool *pool, int thread, const Linear *linear, const bf16 *x, int rows, Then then,
                         void *out, long stride, const Added *added) {
    const int unit = then == SWIGLU ? 2 : 1, k = linear->k, tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    _Alignas(64) float buffer[BUFFER_ROWS * BUFFER_COLUMNS];
    const int all_blocks = (linear->n + LANES - 1) / LANES;
    int block, end;
    share(pool, thread, all_blocks, unit, &block, &end);
    for (int nb; block < end; block += nb) {
        nb = part((end - block) / unit, TILE_BLOCKS / unit) * unit;
        const bf16 *panel = linear->weight + (long)block * k * LANES;
        int ahead = block + nb < end ? nb : 0; /* the next panel is fetched while this one is used */
        for (int row = 0, done = 0; row < rows; row += BUFFER_ROWS) {
            int nrows = rows - row < BUFFER_ROWS ? rows - row : BUFFER_ROWS, before = done;
            for (int from = 0; from < k; from += K_PART) {
                int nk = k - from < K_PART ? k - from : K_PART;
                Blocked w = {panel + (long)from * LANES, (long)k * LANES, 2 * LANES};
                done = before;
                for (int r = 0, nr; r < nrows; r += nr, done++) {
                    nr = part(nrows - r, TILE_ROWS);
                    TILE_TABLE[nr - 1][nb - 1](x + (long)(row + r) * k + from, k, w, nk / 2,
                                               buffer + r * BUFFER_COLUMNS, BUFFER_COLUMNS, from > 0,
                                               w.data + nb * w.block, done * ahead / tiles,
                                               (done + 1) * ahead / tiles);
                }
            }
            if (added && then != MASK) add_adapters(added, row, nrows, block, nb, all_blocks, buffer);
            const bool narrow = then == SWIGLU || then == MASK;
            void *o = narrow ? (void *)((bf16 *)out + row * stride) : (void *)((float *)out + row * stride);
            epilogue(buffer, nrows, block * LANES, nb, linear, then, o, stride, added ? added->adapters + row : NULL,
                     added ? added->owners : NULL);
        }
    }
}

/* Packs w [rows, k] of row stride k as consecutive blocks; `spacing` elements from one block to the next. */
static void pack(const bf16 *w, int rows, int k, bf16 *out, long spacing) {
    for (int block = 0; block * LANES < rows; block++) {
        int n = rows - block * LANES < LANES ? rows - block * LANES : LANES;
        bf16 *o = out + block * spacing;
        if (n < LANES) memset(o, 0, sizeof(bf16) * (size_t)k * LANES);
        for (int i = 0; i < k; i += 2)
            for (int j = 0; j < n; j++) memcpy(o + i * LANES + 2 * j, w + (long)(block * LANES + j) * k + i, 4);
    }
}
