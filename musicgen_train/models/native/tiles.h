/* Matrix products of many rows: tiles of sums that stay in registers (Goto & van de Geijn 2008). */
#ifndef TILES_H
#define TILES_H
/* A tile of ROWS x COLUMNS keeps the multipliers busy, and leaves registers for one row of a panel and one number. AVX-512
 * has registers for more; but rows that are left over, and steps of causal attention that nobody sees, then cost more than
 * a larger tile gains. */
#if defined(__AVX512F__) || defined(WIDE)
#define LANES 16
enum { ROWS = 8 };
#else
enum { ROWS = 6 };
#endif
#include "vectors.h"

enum { COLUMNS = 2 * LANES };

static inline __attribute__((always_inline)) void clear(vec sums[ROWS][2]) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = (vec){0};
}

/* sums[r] += numbers[r * row_step + d * depth_step] * panel[d] over the depth; a panel is depth x COLUMNS. */
static inline __attribute__((always_inline)) void add_products(const float *numbers, int64_t row_step,
                                                               int64_t depth_step, const float *panel, int64_t depth,
                                                               vec sums[ROWS][2]) {
    for (int64_t d = 0; d < depth; d++, numbers += depth_step, panel += COLUMNS) {
        const vec left = *(const vec *)panel, right = *(const vec *)(panel + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            sums[r][0] += numbers[r * row_step] * left;
            sums[r][1] += numbers[r * row_step] * right;
        }
    }
}

#endif
