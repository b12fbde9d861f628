/* One layer of an LSTM (Hochreiter & Schmidhuber 1997; gates in torch.nn.LSTM's order) on a CPU, in float32.
 *
 * A step is bound by reading the weights once, from the processor's last-level cache. They are read in the checkpoint's
 * layout, and each thread computes the same units at every step. `lstm.py` says what is computed.
 *
 * Axes: T steps, B batch, U units.
 */
#include <omp.h>
#include <stdint.h>

#include "vectors.h"

typedef struct {
    int64_t steps, batch, units, threads;
    float *gates;         /* T x B x 4 U: the input's part of input gate, forget gate, cell and output gate */
    const float *weights; /* 4 U x U: outputs x inputs */
    float *cells;         /* B x U, zeros */
    float *output;        /* T x B x U */
} Layer;

/* Computes cells and output of one step from its gates, for some of the units of a row. */
static void update(const float *gates, int64_t units, int64_t begin, int64_t end, float *cells, float *output) {
    for (int64_t u = begin; u < end; u += LANES) {
        const vec input = sigmoid(*(const vec *)(gates + u)), forget = sigmoid(*(const vec *)(gates + units + u));
        const vec new = hyperbolic_tangent(*(const vec *)(gates + 2 * units + u));
        const vec cell = forget * *(const vec *)(cells + u) + input * new;
        *(vec *)(cells + u) = cell;
        *(vec *)(output + u) = sigmoid(*(const vec *)(gates + 3 * units + u)) * hyperbolic_tangent(cell);
    }
}

/* products: scratch memory, B x 4 U floats per thread. */
void lstm_steps(const Layer *layer, float *products) {
    const int64_t units = layer->units, batch = layer->batch, row = 4 * units;
#pragma omp parallel num_threads((int)layer->threads)
    {
        int64_t begin, end;
        share(units, LANES, omp_get_thread_num(), omp_get_num_threads(), &begin, &end);
        float *const own = products + omp_get_thread_num() * batch * row;
        for (int64_t step = 0; step < layer->steps; step++) {
            float *const gates = layer->gates + step * batch * row;
            float *const output = layer->output + step * batch * units;
            if (step)
                for (int gate = 0; gate < 4; gate++) {
                    const int64_t first = gate * units;
                    multiply(CACHE, FLOAT32, output - batch * units, batch, units, layer->weights, first + begin,
                             first + end, own, row);
                    for (int64_t r = 0; r < batch; r++)
                        for (int64_t u = first + begin; u < first + end; u++) gates[r * row + u] += own[r * row + u];
                }
            for (int64_t r = 0; r < batch; r++)
                update(gates + r * row, units, begin, end, layer->cells + r * units, output + r * units);
#pragma omp barrier
        }
    }
}
