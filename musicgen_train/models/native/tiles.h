/* Matrix products of many rows: tiles of sums that stay in registers (Goto & van de Geijn 2008). */
#ifndef TILES_H
#define TILES_H
/* A tile of ROWS x COLUMNS keeps the multipliers busy, and leaves registers for one row of a panel and one number. AVX-512
 * has registers for more; but rows that are left over, and steps of causal attention that nobody sees, then cost more than
 * a larger tile gains. */
#if (defined(__AVX512F__) || defined(WIDE)) && !defined(NARROW)
#define LANES 16
enum { ROWS = 8 };
#else
enum { ROWS = 6 };
#endif
#include "vectors.h"

/* Whether pairs of bfloat16 numbers are multiplied as they are. */
#if LANES == 16 && (defined(__AVX512BF16__) || defined(WIDE))
enum { PAIRS = 1 };
#else
enum { PAIRS = 0 };
#endif
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

enum { COLUMNS = 2 * LANES };

static inline __attribute__((always_inline)) void clear(const int rows, vec sums[ROWS][2]) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = (vec){0};
}

/* Two bfloat16 numbers each, the first in the lower half. */
static inline vec paired(halves first, halves second) {
    return (vec)(__builtin_convertvector(first, ints) | __builtin_convertvector(second, ints) << 16);
}

/* sums + the products of both numbers of each pair. */
static inline __attribute__((always_inline)) vec add_pairs(vec sums, vec pairs, vec others) {
#if LANES == 16 && defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)sums, (__m512bh)pairs, (__m512bh)others);
#else
    const ints upper = (ints){0} - 0x10000;
    return sums + (vec)((ints)pairs & upper) * (vec)((ints)others & upper) +
           (vec)((ints)pairs << 16) * (vec)((ints)others << 16);
#endif
}

/* sums[r] += the products of row r of the left side with a panel, over the depth. Both are made of words: floats, or
 * pairs that follow one another in depth.
 *
 * `rows`: at most ROWS; a constant wherever this is called, as `type` is.
 * `left`, `row_step`, `depth_step`: the first word, and how many bytes it is to the next row's and the next in depth.
 * `panel`: `depth` x COLUMNS words. */
static inline __attribute__((always_inline)) void add_products(const enum type type, const int rows, const void *left,
                                                               int64_t row_step, int64_t depth_step,
                                                               const float *panel, int64_t depth,
                                                               vec sums[ROWS][2]) {
    typedef int32_t word __attribute__((aligned(2), may_alias));
    const char *words = left;
    for (int64_t d = 0; d < depth; d++, words += depth_step, panel += COLUMNS) {
        const vec first = *(const vec *)panel, second = *(const vec *)(panel + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            if (type == FLOAT32) {
                const float number = *(const float *)(words + r * row_step);
                sums[r][0] += number * first;
                sums[r][1] += number * second;
            } else {
                const vec pair = (vec)((ints){0} + *(const word *)(words + r * row_step));
                sums[r][0] = add_pairs(sums[r][0], pair, first);
                sums[r][1] = add_pairs(sums[r][1], pair, second);
            }
        }
    }
}

#endif
