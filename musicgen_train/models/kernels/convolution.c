/* Convolutions of EnCodec on a CPU, in float32: bias, residual and ELU are applied while the sums are in registers.
 *
 * Activations are (L, C), so the inputs of an output lie in one or a few runs of memory: a convolution is a matrix
 * product whose rows overlap, and no input is copied. `convolution.py` says what is computed.
 *
 * Axes: B batch, L steps of the output, G runs of taps, I inputs of a run, O outputs, P panels of COLUMNS outputs.
 */
#include <omp.h>
#include <stdint.h>
#include <string.h>

/* Sums stay in registers: a tile of ROWS x COLUMNS keeps the multipliers busy, and leaves registers for one row of a
 * panel and one number (Goto & van de Geijn 2008). AVX-512 has registers for more, but then left-over rows cost more than
 * a larger tile gains. */
#if (defined(__AVX512F__) || defined(WIDE)) && !defined(NARROW)
#define LANES 16
enum { ROWS = 8 };
#else
enum { ROWS = 6 };
#endif
#include "vectors.h"

enum { COLUMNS = 2 * LANES, BLOCK = 16 * ROWS };

typedef struct {
    int64_t batch, steps, runs, inputs, outputs, threads;
    const float *input;   /* B x ...; step l, run g read `inputs` floats from l * input_step + g * input_run on */
    int64_t input_batch, input_step, input_run;
    const float *weights; /* P x G x I x COLUMNS */
    const float *bias;    /* O */
    const float *residual; /* B x L x O, added to the sums; may be null */
    int64_t residual_batch;
    float *output; /* B x L x O; may be null */
    int64_t output_batch;
    float *activated; /* ELU of the same; may be null */
    int64_t activated_batch;
} Convolution;

/* sums[r] += the inputs of step r times a panel; `rows` is a compile-time constant at every call.
 *
 * `input_step`: floats from the inputs of a step to those of the next.
 * `panel`: `inputs` x COLUMNS floats. */
static inline __attribute__((always_inline)) void add_products(const int rows, const float *input, int64_t input_step,
                                                               const float *panel, int64_t inputs,
                                                               vec sums[ROWS][2]) {
    for (int64_t i = 0; i < inputs; i++, input++, panel += COLUMNS) {
        const vec first = *(const vec *)panel, second = *(const vec *)(panel + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const vec number = all_of(input + r * input_step);
            sums[r][0] += number * first;
            sums[r][1] += number * second;
        }
    }
}

/* Adds bias and residual, and writes the results, for a row of a tile. */
static inline void finish(const Convolution *of, vec sums[2], int64_t batch, int64_t at, const float *bias) {
    for (int half = 0; half < 2; half++, at += LANES, bias += LANES) {
        vec sum = sums[half] + *(const vec *)bias;
        if (of->residual) sum += *(const vec *)(of->residual + batch * of->residual_batch + at);
        if (of->output) *(vec *)(of->output + batch * of->output_batch + at) = sum;
        if (of->activated) *(vec *)(of->activated + batch * of->activated_batch + at) = elu(sum);
    }
}

/* The same for the last panel, which may be narrower, number by number. */
static void finish_part(const Convolution *of, const vec sums[2], int64_t batch, int64_t at, const float *bias,
                        int64_t columns) {
    for (int64_t o = 0; o < columns; o++) {
        float sum = sums[o / LANES][o % LANES] + bias[o];
        if (of->residual) sum += of->residual[batch * of->residual_batch + at + o];
        if (of->output) of->output[batch * of->output_batch + at + o] = sum;
        if (of->activated) of->activated[batch * of->activated_batch + at + o] = elu((vec){0} + sum)[0];
    }
}

/* Computes a tile: `rows` steps from `step` on, of one panel. */
static inline __attribute__((always_inline)) void convolve_tile(const Convolution *of, const int rows, int64_t batch,
                                                                int64_t step, int64_t panel) {
    const float *input = of->input + batch * of->input_batch + step * of->input_step;
    const float *weights = of->weights + panel * COLUMNS * of->runs * of->inputs;
    const float *const bias = of->bias + panel * COLUMNS;
    const int64_t columns = least(COLUMNS, of->outputs - panel * COLUMNS);
    vec sums[ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = (vec){0};
    for (int64_t run = 0; run < of->runs; run++, input += of->input_run, weights += of->inputs * COLUMNS)
        add_products(rows, input, of->input_step, weights, of->inputs, sums);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t at = (step + r) * of->outputs + panel * COLUMNS;
        if (columns == COLUMNS)
            finish(of, sums[r], batch, at, bias);
        else
            finish_part(of, sums[r], batch, at, bias, columns);
    }
}

/* Computes some steps of one row of the batch, for some of the panels. */
static void convolve_block(const Convolution *of, int64_t batch, int64_t begin, int64_t end, int64_t first_panel,
                           int64_t last_panel) {
    for (int64_t panel = first_panel; panel < last_panel; panel++) {
        int64_t step = begin;
        for (; step + ROWS <= end; step += ROWS) convolve_tile(of, ROWS, batch, step, panel);
        for (; step + 2 <= end; step += 2) convolve_tile(of, 2, batch, step, panel);
        if (step < end) convolve_tile(of, 1, batch, step, panel);
    }
}

void convolve(const Convolution *of) {
    const int64_t panels = (of->outputs + COLUMNS - 1) / COLUMNS;
    const int64_t blocks = (of->steps + BLOCK - 1) / BLOCK;
    /* With few steps, the outputs are divided among threads too. */
    const int64_t groups = least(panels, (8 * of->threads + of->batch * blocks - 1) / (of->batch * blocks));
    /* Dynamic, so that other threads do more if another process takes a core. */
#pragma omp parallel for num_threads((int)of->threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < of->batch * blocks * groups; task++) {
        const int64_t group = task % groups, block = task / groups % blocks, batch = task / groups / blocks;
        convolve_block(of, batch, block * BLOCK, least(of->steps, (block + 1) * BLOCK), panels * group / groups,
                       panels * (group + 1) / groups);
    }
}

enum padding { CONSTANT, REFLECT, REPLICATE };

/* Writes a step of padding, `beyond` steps before (direction -1) or after (direction 1) the one at the edge. */
static void pad_step(float *edge, int64_t direction, int64_t beyond, int64_t width, enum padding mode) {
    float *const target = edge + direction * beyond * width;
    if (mode == CONSTANT)
        memset(target, 0, width * sizeof *target);
    else
        memcpy(target, mode == REFLECT ? edge - direction * beyond * width : edge, width * sizeof *target);
}

/* Fills `left` steps before and `right` steps after those of each row, as torch.nn.functional.pad does. */
void pad_ends(float *steps, int64_t batch, int64_t batch_stride, int64_t length, int64_t width, int64_t left,
              int64_t right, int64_t mode) {
    for (int64_t row = 0; row < batch; row++, steps += batch_stride) {
        for (int64_t i = 1; i <= left; i++) pad_step(steps, -1, i, width, (enum padding)mode);
        for (int64_t i = 1; i <= right; i++) pad_step(steps + (length - 1) * width, 1, i, width, (enum padding)mode);
    }
}

int64_t panel_width(void) { return COLUMNS; }
