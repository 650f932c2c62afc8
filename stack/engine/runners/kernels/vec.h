/* Vectors of LANES floats in the compiler's own vector extension, so that one source serves every CPU:
 * AVX-512 (with its bf16 dot product where the CPU has it), AVX2, and anything else with 128-bit vectors. */
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define LANES 16
#define TILE_ROWS 6 /* 6 x 4 accumulators, 4 weights and 1 input fill the 32 registers */
#define TILE_BLOCKS 4
#elif defined(__AVX2__)
#define LANES 8
#define TILE_ROWS 4
#define TILE_BLOCKS 2
#else
#define LANES 4
#define TILE_ROWS 4
#define TILE_BLOCKS 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;
typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

INLINE vf load(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vu load_pairs(const bf16 *p) { vu v; memcpy(&v, p, sizeof v); return v; }
INLINE vf splat(float x) { return x - (vf){0}; }
/* Two neighbouring bf16 in every lane. */
INLINE vu splat_pair(const bf16 *p) { uint32_t x; memcpy(&x, p, sizeof x); return x - (vu){0}; }

/* acc[i] += w[i].lo * x[i].lo + w[i].hi * x[i].hi for bf16 pairs in 32-bit lanes. */
INLINE vf dot2(vf acc, vu w, vu x) {
#if defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)x);
#else
    acc += (vf)(w << 16) * (vf)(x << 16);
    return acc + (vf)(w & 0xffff0000u) * (vf)(x & 0xffff0000u);
#endif
}

/* Round to nearest, ties to even. */
INLINE vu bf16_bits(vf v) { vu u = (vu)v; return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16; }
INLINE void store_bf16(bf16 *p, vf v) {
#if defined(__AVX512BF16__)
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
    memcpy(p, &h, sizeof h);
#else
    vh h = __builtin_convertvector(bf16_bits(v), vh);
    memcpy(p, &h, sizeof h);
#endif
}
INLINE bf16 to_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (bf16)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
INLINE float from_bf16(bf16 x) {
    uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

INLINE vf vmax(vf a, vf b) { vi m = a > b; return (vf)(((vi)a & m) | ((vi)b & ~m)); }
INLINE float sum(vf v) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += v[i];
    return s;
}
INLINE float max(vf v) {
    float m = v[0];
    for (int i = 1; i < LANES; i++) m = v[i] > m ? v[i] : m;
    return m;
}

/* e^x to 2 ulp of float32, x clamped to [-87, 87]: 2^n by exponent bits times a polynomial on [-ln2/2, ln2/2]
 * (Cephes expf). */
INLINE vf vexp(vf x) {
    x = vmax(x, splat(-87.0f));
    x = -vmax(-x, splat(-87.0f));
    vf shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer in the low bits */
    vi n = (vi)shifted - 0x4b400000;
    vf k = shifted - 12582912.0f;
    vf r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vf)((n + 127) << 23);
}
