/* Matrix products of many rows: tiles of sums that stay in registers (Goto & van de Geijn 2008). */
#ifndef TILES_H
#define TILES_H
/* A tile of ROWS x COLUMNS keeps the multipliers busy, and leaves registers for one row of a panel and one number.
 * AVX-512 has registers for more, but then left-over rows cost more than a larger tile gains. */
#if (defined(__AVX512F__) || defined(WIDE)) && !defined(NARROW)
#define LANES 16
enum { ROWS = 8 };
#else
enum { ROWS = 6 };
#endif
#include "vectors.h"

enum { COLUMNS = 2 * LANES };

static inline __attribute__((always_inline)) void clear(const int rows, vec sums[ROWS][2]) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = (vec){0};
}

/* sums[r] += row r of the left side times a panel, summed over the depth; both consist of words (`vectors.h`).
 *
 * `rows`: at most ROWS; a compile-time constant at every call, as is `type`.
 * `left`, `row_step`, `depth_step`: the first word, and the bytes to the next row's word and to the next in depth.
 * `panel`: `depth` x COLUMNS words. */
static inline __attribute__((always_inline)) void add_products(const enum type type, const int rows, const void *left,
                                                               int64_t row_step, int64_t depth_step,
                                                               const float *panel, int64_t depth,
                                                               vec sums[ROWS][2]) {
    const char *words = left;
    for (int64_t d = 0; d < depth; d++, words += depth_step, panel += COLUMNS) {
        const vec first = *(const vec *)panel, second = *(const vec *)(panel + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const vec word = all_of(words + r * row_step);
            sums[r][0] = add_product(type, sums[r][0], word, first);
            sums[r][1] = add_product(type, sums[r][1], word, second);
        }
    }
}

#endif
