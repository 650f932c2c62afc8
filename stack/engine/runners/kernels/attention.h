/* Rotary embedding, the key-value cache and attention over it.
 *
 * Per layer and slot the cache holds, for each key-value head, one Blocked matrix of keys, k = dimension and
 * n = position, and one of values, k = position and n = dimension:
 *
 *     keys   [positions / LANES][head_dim / 2][LANES][2]
 *     values [positions / 2][head_dim][2]
 *
 * so that scores and outputs are plain products and no head is ever copied, gathered or transposed. */
#pragma once
#include <math.h>

#include "gemm.h"

#define QUERY_ROWS 12 /* queries of a prompt that share one pass over the keys */

typedef struct {
    int heads, kv_heads, head_dim, positions;
    float scale, eps;
    const float *cos, *sin; /* [positions, head_dim / 2] */
} Attention;

INLINE Blocked keys_of(const Attention *a, const bf16 *cache, int slot, int head) {
    return (Blocked){cache + ((long)slot * a->kv_heads + head) * a->positions * a->head_dim,
                     (long)a->head_dim * LANES, 2 * LANES};
}

INLINE Blocked values_of(const Attention *a, const bf16 *cache, int slot, int head) {
    return (Blocked){cache + ((long)slot * a->kv_heads + head) * a->positions * a->head_dim, 2 * LANES,
                     2 * (long)a->head_dim};
}

/* out bf16 [n] = x [n] / rms(x) * weight. */
static void rms_norm(const float *x, const float *weight, int n, float eps, bf16 *out) {
    vf squares = splat(0);
    for (int i = 0; i < n; i += LANES) squares += load(x + i) * load(x + i);
    float scale = 1.0f / sqrtf(sum(squares) / (float)n + eps);
    for (int i = 0; i < n; i += LANES) store_bf16(out + i, load(x + i) * scale * load(weight + i));
}

/* Normalises one head (weight NULL: not) and turns it by its position; out bf16 [head_dim]. */
static void rotate(const Attention *a, const float *x, const float *weight, int position, bf16 *out) {
    const int half = a->head_dim / 2;
    const float *cos = a->cos + (long)position * half, *sin = a->sin + (long)position * half;
    float scale = 1.0f;
    if (weight) {
        vf squares = splat(0);
        for (int i = 0; i < a->head_dim; i += LANES) squares += load(x + i) * load(x + i);
        scale = 1.0f / sqrtf(sum(squares) / (float)a->head_dim + a->eps);
    }
    for (int i = 0; i < half; i += LANES) {
        vf left = load(x + i) * scale, right = load(x + half + i) * scale;
        if (weight) left *= load(weight + i), right *= load(weight + half + i);
        store_bf16(out + i, left * load(cos + i) - right * load(sin + i));
        store_bf16(out + half + i, right * load(cos + i) + left * load(sin + i));
    }
}

/* One token: qkv float [heads + 2 * kv_heads, head_dim] -> q bf16 [heads, head_dim] and its place in the cache. */
static void rope_and_store(const Attention *a, const float *qkv, const float *q_norm, const float *k_norm, int slot,
                           int position, bf16 *q, bf16 *keys, bf16 *values) {
    const int d = a->head_dim;
    bf16 key[d];
    for (int h = 0; h < a->kv_heads; h++) { /* a key goes to as many cache lines as it has pairs */
        const bf16 *to = keys_of(a, keys, slot, h).data + position / LANES * (long)d * LANES;
        for (int i = 0; i < d; i += 2) __builtin_prefetch(to + i * LANES, 1, 3);
    }
    for (int h = 0; h < a->heads; h++) rotate(a, qkv + h * d, q_norm, position, q + h * d);
    for (int h = 0; h < a->kv_heads; h++) {
        rotate(a, qkv + (a->heads + h) * d, k_norm, position, key);
        Blocked k = keys_of(a, keys, slot, h), v = values_of(a, values, slot, h);
        bf16 *to = (bf16 *)k.data + position / LANES * k.block + position % LANES * 2;
        for (int i = 0; i < d; i += 2) memcpy(to + i * LANES, key + i, 4);
        const float *value = qkv + (a->heads + a->kv_heads + h) * d;
        to = (bf16 *)v.data + position / 2 * v.step + position % 2;
        for (int i = 0; i < d; i++) to[2 * i] = to_bf16(value[i]);
    }
}

/* In place of `scores`, which may be longer than `n` up to `padded`: p bf16 [padded] = exp(scale * (score - max)),
 * 0 from n on. Returns 1 / sum. */
static float softmax(float *scores, int n, int padded, float scale, bf16 *p) {
    for (int t = n; t < padded; t++) scores[t] = -INFINITY;
    vf top = load(scores), total = splat(0);
    for (int t = LANES; t < padded; t += LANES) top = vmax(top, load(scores + t));
    float offset = max(top) * scale;
    for (int t = 0; t < padded; t += LANES) {
        vf e = vexp(load(scores + t) * scale - offset);
        total += e;
        store_bf16(p + t, e);
    }
    for (int t = n; t < padded; t++) p[t] = 0;
    return 1.0f / sum(total);
}

/* Space that attend() needs for `rows` query rows, in floats: scores, their bf16 probabilities, outputs. */
INLINE size_t attention_space(const Attention *a, int rows) {
    return (size_t)rows * ((size_t)a->positions * 3 / 2 + (size_t)a->head_dim);
}

/* Query rows q, q + stride, … that share a key-value head; row r sees positions [0, first + r * later].
 * What comes next in memory is fetched early, as the parts are too short for the CPU to see that they are read in
 * order: `next` are the keys that attend() will be called with after these. */
static void attend(const Attention *a, const bf16 *q, long stride, int rows, Blocked keys, Blocked values, int first,
                   int later, const bf16 *next, float *space, bf16 *out) {
    const int d = a->head_dim, blocks = (first + (rows - 1) * later) / LANES + 1, padded = blocks * LANES;
    float *scores = space, *y = space + (size_t)rows * padded;
    bf16 *p = (bf16 *)(y + rows * d);
    float inverse[rows];
    for (int b = 0; b < blocks; b += TILE_BLOCKS) {
        const int nb = blocks - b < TILE_BLOCKS ? blocks - b : TILE_BLOCKS, after = blocks - b - nb;
        const Blocked panel = {keys.data + b * keys.block, keys.block, keys.step};
        fetch(panel.data + nb * keys.block, (after < nb ? after : nb) * keys.block);
        fetch(values.data + (long)b * LANES * d, (long)nb * LANES * d);
        product(q, stride, rows, panel, d / 2, nb, scores + b * LANES, padded);
    }
    for (int r = 0; r < rows; r++)
        inverse[r] = softmax(scores + (long)r * padded, first + r * later + 1, padded, a->scale, p + (long)r * padded);
    fetch(next, TILE_BLOCKS * keys.block);
    product(p, padded, rows, values, padded / 2, d / LANES, y, d);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < d; i += LANES) store_bf16(out + r * stride + i, load(y + r * d + i) * inverse[r]);
}
