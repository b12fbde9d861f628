/* Vectors of numbers, functions of them, and the division of work among threads. */
#ifndef VECTORS_H
#define VECTORS_H
#include <stdint.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

/* Numbers in a vector; a file may ask for more before it includes this one. */
#ifndef LANES
#define LANES 8
#endif
/* They need no alignment. If a processor's registers are narrower, the compiler splits them. */
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static inline __attribute__((always_inline)) float sum_of(vec v) {
#pragma GCC unroll 8
    for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++) v[i] += v[i + half];
    return v[0];
}

/* How weights are stored and multiplied: as floats; as bfloat16 numbers that are converted to floats; or as pairs of
 * consecutive bfloat16 numbers, which some processors multiply directly. A pair is as large as a float; either is
 * called a word. */
enum type { FLOAT32, BFLOAT16, PAIRED };

/* PAIRS is 1 if pairs are multiplied directly; WIDE forces it on any processor, in more instructions. */
#if (defined(__AVX512BF16__) || defined(WIDE)) && !defined(NARROW)
enum { PAIRS = 1 };
#else
enum { PAIRS = 0 };
#endif

/* Returns the address of a weight; `type` is a compile-time constant at every call of this and the next function. */
static inline __attribute__((always_inline)) const void *weight_at(const enum type type, const void *weights,
                                                                   int64_t index) {
    return (const char *)weights + index * (type == BFLOAT16 ? 2 : 4);
}

/* Reads a vector of weights, starting at `index`. */
static inline __attribute__((always_inline)) vec weights_at(const enum type type, const void *weights, int64_t index) {
    const void *const place = weight_at(type, weights, index);
    if (type != BFLOAT16) return *(const vec *)place;
    return (vec)(__builtin_convertvector(*(const halves *)place, ints) << 16); /* the upper half of a float */
}

/* Rounds to bfloat16, to nearest even, as torch does; NaN stays NaN. */
static inline uint16_t rounded_one(float x) {
    typedef uint32_t bits __attribute__((may_alias));
    const bits whole = *(const bits *)&x;
    return x == x ? (uint16_t)((whole + 0x7fff + ((whole >> 16) & 1)) >> 16) : 0x7fc0;
}

/* sums + one * other; for pairs, the products of both numbers are added. `type` is a compile-time constant. */
static inline __attribute__((always_inline)) vec add_product(const enum type type, vec sums, vec one, vec other) {
    if (type != PAIRED) return sums + one * other;
#if LANES == 8 && defined(__AVX512BF16__) && defined(__AVX512VL__)
    return (vec)_mm256_dpbf16_ps((__m256)sums, (__m256bh)one, (__m256bh)other);
#else
    const ints upper = (ints){0} - 0x10000;
    return sums + (vec)((ints)one & upper) * (vec)((ints)other & upper) +
           (vec)((ints)one << 16) * (vec)((ints)other << 16);
#endif
}

/* Repeats one word in all lanes. */
static inline vec all_of(const void *place) {
    typedef int32_t word __attribute__((aligned(2), may_alias));
    return (vec)((ints){0} + *(const word *)place);
}

/* Where weights are read from: prefetching helps for MEMORY, and costs time for CACHE. */
enum source { MEMORY, CACHE };

/* Multiplies a few rows by a few outputs, all kept in registers: `rows`, `outputs`, `source` and `type` are
 * compile-time constants at every call. */
static inline __attribute__((always_inline)) void tile(const int rows, const int outputs, const enum source source,
                                                       const enum type type, const float *states,
                                                       int64_t states_stride, const void *weight,
                                                       int64_t weight_stride, int64_t inputs, float *products,
                                                       int64_t products_stride) {
    vec sums[4][4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int o = 0; o < outputs; o++) sums[r][o] = (vec){0};
    for (int64_t i = 0; i < inputs; i += LANES) {
        vec weights[4];
#pragma GCC unroll 4
        for (int o = 0; o < outputs; o++) {
            /* Prefetch for the next tile: the processor by itself prefetches only along a row. */
            if (source == MEMORY) __builtin_prefetch(weight_at(type, weight, (o + 4) * weight_stride + i));
            weights[o] = weights_at(type, weight, o * weight_stride + i);
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const vec state = *(const vec *)(states + r * states_stride + i);
#pragma GCC unroll 4
            for (int o = 0; o < outputs; o++) sums[r][o] += state * weights[o];
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int o = 0; o < outputs; o++) products[r * products_stride + o] = sum_of(sums[r][o]);
}

/* products[r][o] = states[r] . weight[o] for the outputs from `begin` to `end`, all rows. */
static inline __attribute__((always_inline)) void multiply(const enum source source, const enum type type,
                                                           const float *states, int64_t rows, int64_t inputs,
                                                           const void *weight, int64_t begin, int64_t end,
                                                           float *products, int64_t products_stride) {
    int64_t o = begin;
    for (; o + 4 <= end; o += 4) {
        const void *w = weight_at(type, weight, o * inputs);
        int64_t r = 0;
        /* Two outputs at a time: with four rows, more would not fit into sixteen registers. */
        for (; r + 4 <= rows; r += 4) {
            const float *x = states + r * inputs;
            float *y = products + r * products_stride + o;
            tile(4, 2, source, type, x, inputs, w, inputs, inputs, y, products_stride);
            tile(4, 2, source, type, x, inputs, weight_at(type, w, 2 * inputs), inputs, inputs, y + 2,
                 products_stride);
        }
        for (; r + 2 <= rows; r += 2)
            tile(2, 4, source, type, states + r * inputs, inputs, w, inputs, inputs, products + r * products_stride + o,
                 products_stride);
        if (r < rows)
            tile(1, 4, source, type, states + r * inputs, inputs, w, inputs, inputs, products + r * products_stride + o,
                 products_stride);
    }
    for (; o < end; o++)
        for (int64_t r = 0; r < rows; r++)
            tile(1, 1, source, type, states + r * inputs, inputs, weight_at(type, weight, o * inputs), inputs, inputs,
                 products + r * products_stride + o, products_stride);
}

/* exp(x) = power + power * rest for x <= 0: power = 2^k and rest = exp(r) - 1, |r| <= log(2) / 2. Below -88 it is 0. */
static inline void split_exponential(vec x, vec *power, vec *rest) {
    const float to_integer = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    const ints out_of_range = x < -88.0f;
    x = (vec)(((ints)x & ~out_of_range) | ((ints)((vec){0} - 88.0f) & out_of_range));
    const vec rounded = x * 1.442695041f + to_integer;
    const vec k = rounded - to_integer;
    const vec r = x - k * 0.693359375f - k * -2.12194440e-4f; /* log(2) in two parts (Cody & Waite 1980) */
    *power = (vec)(((ints)rounded << 23) + 0x3f800000);
    /* Taylor's series. */
    vec series = r * (1 / 5040.0f) + 1 / 720.0f;
    series = series * r + 1 / 120.0f;
    series = series * r + 1 / 24.0f;
    series = series * r + 1 / 6.0f;
    series = series * r + 0.5f;
    *rest = series * (r * r) + r;
}

/* exp(x) for x <= 0. */
static inline vec exponential(vec x) {
    vec power, rest;
    split_exponential(x, &power, &rest);
    return power * rest + power;
}

/* exp(x) - 1 for x <= 0. */
static inline vec exponential_less_one(vec x) {
    vec power, rest;
    split_exponential(x, &power, &rest);
    return power * rest + (power - 1.0f);
}

/* ELU (Clevert et al. 2015). */
static inline vec elu(vec x) {
    const ints positive = x > 0.0f;
    const vec below = exponential_less_one((vec)((ints)x & ~positive));
    return (vec)(((ints)x & positive) | ((ints)below & ~positive));
}

/* Half of erfc(|x| / sqrt(2)), the probability of a normal variable above |x|, with a relative error of 4e-7.
 *
 * erfc(z) = t p(t) exp(-z^2) with t = 1 / (1 + z / 2), as in Press et al., "Numerical Recipes", 6.2; the coefficients
 * of p were fitted for z up to 7, by least squares weighted until the largest relative error was small. */
static inline vec normal_tail(vec x) {
    const vec size = (vec)((ints)x & INT32_MAX);
    const vec t = 1.0f / (1.0f + size * 0.353553391f);
    vec series = t * -0.05639391f + 0.27127683f;
    series = series * t - 0.45905859f;
    series = series * t + 0.24504026f;
    series = series * t - 0.00317808f;
    series = series * t + 0.19240407f;
    series = series * t + 0.24581641f;
    series = series * t + 0.28198275f;
    series = series * t + 0.28211023f;
    return 0.5f * t * series * exponential(x * x * -0.5f);
}

/* GELU (Hendrycks & Gimpel 2016): x times the normal distribution function at x. */
static inline vec gelu(vec x) {
    const vec tail = normal_tail(x);
    const ints positive = x > 0.0f;
    return x * (vec)(((ints)(1.0f - tail) & positive) | ((ints)tail & ~positive));
}

/* 1 / (1 + exp(-x)) */
static inline vec sigmoid(vec x) {
    const ints positive = x > 0.0f;
    const vec power = exponential((vec)((ints)x | INT32_MIN)); /* exp(-|x|) */
    const vec above = (vec)(((ints)((vec){0} + 1.0f) & positive) | ((ints)power & ~positive));
    return above / (power + 1.0f);
}

/* The hyperbolic tangent: -p / (p + 2) with p = exp(-2 |x|) - 1, with the sign of x. */
static inline vec hyperbolic_tangent(vec x) {
    const ints sign = (ints)x & INT32_MIN;
    const vec power = exponential_less_one((vec)((ints)(x * 2.0f) | INT32_MIN));
    return (vec)((ints)(-power / (power + 2.0f)) | sign);
}

/* Computes the range of `total` that a thread does: whole groups of `group`. */
static inline void share(int64_t total, int64_t group, int64_t thread, int64_t threads, int64_t *begin, int64_t *end) {
    const int64_t groups = (total + group - 1) / group;
    *begin = groups * thread / threads * group;
    *end = groups * (thread + 1) / threads * group;
    if (*end > total) *end = total;
    if (*begin > total) *begin = total;
}

#endif
