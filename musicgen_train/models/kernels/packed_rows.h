/* Products of weights with a few dozen rows. The rows lie side by side, so that a vector holds one number of each row:
 * no sum within a vector is needed at the end, and the numbers of an input are read once for several outputs
 * (Goto & van de Geijn 2008, but without packing the weights). */
#ifndef PACKED_ROWS_H
#define PACKED_ROWS_H
#include "vectors.h"

/* Up to ONE_VECTOR rows form a group of one vector; more rows are divided into groups of two vectors. */
enum { ONE_VECTOR = LANES, TWO_VECTORS = 2 * LANES };
/* Outputs at a time: their sums, a group's numbers of one input, and one weight fit into sixteen registers. */
enum { OUTPUTS_OF_ONE = 8, OUTPUTS_OF_TWO = 6 };

static inline int64_t packed_width(int64_t rows) { return rows <= ONE_VECTOR ? ONE_VECTOR : TWO_VECTORS; }

/* Returns how many floats packed rows take: whole groups. The last may have unused lanes, whose products are ignored.
 * Pairs take half of it. */
static inline int64_t packed_size(int64_t rows, int64_t inputs) {
    const int64_t width = packed_width(rows);
    return (rows + width - 1) / width * width * inputs;
}

/* Copies numbers of a row, from its input `first` on, into groups of inputs x width; pairs have two to a word. */
static inline void pack_row(const enum type type, const float *numbers, int64_t row, int64_t first, int64_t count,
                            int64_t rows, int64_t inputs, float *packed) {
    const int64_t width = packed_width(rows), group = row / width * width;
    if (type == PAIRED) {
        uint16_t *const place = (uint16_t *)(packed + group * (inputs / 2) + row % width);
        for (int64_t i = first; i < first + count; i++)
            place[i / 2 * 2 * width + i % 2] = rounded_one(numbers[i - first]);
    } else {
        float *const place = packed + group * inputs + first * width + row % width;
        for (int64_t i = 0; i < count; i++) place[i * width] = numbers[i];
    }
}

/* products[r][o] = row r . weight[o] of one group and a few outputs, all kept in registers: `vectors`, `outputs` and
 * `type` are compile-time constants at every call. */
static inline __attribute__((always_inline)) void packed_tile(const int vectors, const int outputs,
                                                              const enum type type, const float *packed, int64_t rows,
                                                              int64_t inputs, const void *weight, float *products,
                                                              int64_t products_stride) {
    vec sums[OUTPUTS_OF_ONE][2];
#pragma GCC unroll 8
    for (int o = 0; o < outputs; o++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) sums[o][v] = (vec){0};
    for (int64_t i = 0; i < inputs; i += LANES) {
        /* Prefetch for the next tile: the processor by itself prefetches only along a row. */
#pragma GCC unroll 8
        for (int o = 0; o < outputs; o++) __builtin_prefetch(weight_at(type, weight, (outputs + o) * inputs + i));
        /* Convert bfloat16 weights in vectors: one at a time, converting would take longer than multiplying. */
        float made[OUTPUTS_OF_ONE][LANES];
        if (type == BFLOAT16)
#pragma GCC unroll 8
            for (int o = 0; o < outputs; o++) *(vec *)made[o] = weights_at(type, weight, o * inputs + i);
#pragma GCC unroll 2
        for (int64_t j = 0; j < LANES; j++) {
            const vec *const states = (const vec *)packed + (i + j) * vectors;
#pragma GCC unroll 8
            for (int o = 0; o < outputs; o++) {
                const vec word = all_of(type == BFLOAT16 ? &made[o][j] : (const float *)weight + o * inputs + i + j);
#pragma GCC unroll 2
                for (int v = 0; v < vectors; v++) sums[o][v] = add_product(type, sums[o][v], word, states[v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int o = 0; o < outputs; o++)
        for (int64_t r = 0; r < rows; r++) products[r * products_stride + o] = sums[o][r / LANES][r % LANES];
}

/* The same for all groups; all but the first read the weights from the L1 cache. */
static inline __attribute__((always_inline)) void packed_outputs(const int vectors, const int outputs,
                                                                 const enum type type, const float *packed,
                                                                 int64_t rows, int64_t inputs, const void *weight,
                                                                 float *products, int64_t products_stride) {
    const int64_t width = vectors * LANES;
    for (int64_t first = 0; first < rows; first += width, packed += inputs * width)
        packed_tile(vectors, outputs, type, packed, least(width, rows - first), inputs, weight,
                    products + first * products_stride, products_stride);
}

/* The same for the outputs from `begin` to `end`. */
static inline __attribute__((always_inline)) void packed_range(const int vectors, const int outputs,
                                                               const enum type type, const float *packed, int64_t rows,
                                                               int64_t inputs, const void *weight, int64_t begin,
                                                               int64_t end, float *products, int64_t products_stride) {
    int64_t o = begin;
    for (; o + outputs <= end; o += outputs)
        packed_outputs(vectors, outputs, type, packed, rows, inputs, weight_at(type, weight, o * inputs), products + o,
                       products_stride);
    for (; o + 4 <= end; o += 4)
        packed_outputs(vectors, 4, type, packed, rows, inputs, weight_at(type, weight, o * inputs), products + o,
                       products_stride);
    for (; o < end; o++)
        packed_outputs(vectors, 1, type, packed, rows, inputs, weight_at(type, weight, o * inputs), products + o,
                       products_stride);
}

/* products[r][o] = row r . weight[o] for the outputs from `begin` to `end`, all rows. */
static inline __attribute__((always_inline)) void multiply_packed(const enum type type, const float *packed,
                                                                  int64_t rows, int64_t inputs, const void *weight,
                                                                  int64_t begin, int64_t end, float *products,
                                                                  int64_t products_stride) {
    if (packed_width(rows) == ONE_VECTOR)
        packed_range(1, OUTPUTS_OF_ONE, type, packed, rows, inputs, weight, begin, end, products, products_stride);
    else
        packed_range(2, OUTPUTS_OF_TWO, type, packed, rows, inputs, weight, begin, end, products, products_stride);
}

#endif
