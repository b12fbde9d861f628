/* One step of generation on a CPU, from the ids of one column to the logits of the next. Products are computed in the
 * type of the weights; everything between them is float32.
 *
 * A step is bound by reading every weight once. Each matrix is read in the checkpoint's layout, row by row, divided
 * among all threads; a row is used for all rows of the batch while it is in the L1 cache, and threads exchange only the
 * small activations between two products. `decode_step.py` fills the structures below and says what is computed.
 *
 * Axes: R rows, D width, N heads, H head width, F inner width, S steps, L text length, K codebooks, V codes.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#include "packed_rows.h"
#include "vectors.h"

typedef struct {
    const float *self_norm_weight, *self_norm_bias; /* D */
    const void *query, *key, *value, *self_out;     /* D x D, as all matrices: outputs x inputs */
    const float *cross_norm_weight, *cross_norm_bias;
    const void *cross_query, *cross_out;
    const float *final_norm_weight, *final_norm_bias;
    const void *fc1, *fc2;               /* F x D and D x F */
    float *keys, *values;                /* R x N x capacity x H */
    const float *text_keys, *text_values; /* text_rows x N x L x H; the first `text_rows` rows have a text */
} Layer;

typedef struct {
    int64_t rows, width, heads, inner_width, num_layers, num_codebooks, vocab_size;
    int64_t capacity, text_rows, text_length, threads, activation;
    int64_t type; /* of matrices and embeddings; norms, keys and values are float32 */
    float norm_epsilon;
    const void *const *embeddings; /* K pointers to V + 1 rows of D */
    const Layer *layers;
    const float *final_norm_weight, *final_norm_bias;
    const void *const *heads_weights; /* K pointers to V x D */
    const float *positions;            /* S x D */
    const uint8_t *text_seen;          /* text_rows x L: 0 for padding; null without padding */
    float *scratch;                    /* `decode_step_scratch` floats */
    float *logits;                     /* R x K x V */
} Step;

enum { GELU = 0, RELU = 1 };

/* More rows than this are packed side by side, which makes their products faster. */
enum { FEW_ROWS = 4 };

/* The rows that weights are multiplied with: one after the other, or side by side as in `packed_rows.h`. */
typedef struct {
    float *numbers; /* `packed_size` floats */
    int64_t rows, inputs;
    enum type type; /* of the products; if PAIRED, numbers are rounded to bfloat16 */
} States;

static States states_of(const Step *step, float *numbers, int64_t rows, int64_t inputs) {
    /* With a few rows a step waits for the weights, so pairs gain nothing; and pairs have to fill whole vectors. */
    const int as_pairs = PAIRS && step->type == BFLOAT16 && rows > FEW_ROWS && inputs % (2 * LANES) == 0;
    return (States){numbers, rows, inputs, as_pairs ? PAIRED : (enum type)step->type};
}

/* Writes numbers of a row, from its input `first` on. */
static void put(const States *states, int64_t row, int64_t first, const float *numbers, int64_t count) {
    if (states->rows <= FEW_ROWS)
        memcpy(states->numbers + row * states->inputs + first, numbers, (size_t)count * sizeof(float));
    else
        pack_row(states->type, numbers, row, first, count, states->rows, states->inputs, states->numbers);
}

/* products[r][o] = row r . weight[o] for the outputs from `begin` to `end`; each weight is read once. */
static inline __attribute__((always_inline)) void product_of_type(const enum type type, const States *states,
                                                                  const void *weight, int64_t begin, int64_t end,
                                                                  float *products, int64_t products_stride) {
    const float *const numbers = states->numbers;
    const int64_t rows = states->rows, inputs = type == PAIRED ? states->inputs / 2 : states->inputs;
    if (rows <= FEW_ROWS)
        multiply(MEMORY, type, numbers, rows, inputs, weight, begin, end, products, products_stride);
    else
        multiply_packed(type, numbers, rows, inputs, weight, begin, end, products, products_stride);
}

static void product(const States *states, const void *weight, int64_t begin, int64_t end, float *products,
                    int64_t products_stride) {
    if (states->type == PAIRED)
        product_of_type(PAIRED, states, weight, begin, end, products, products_stride);
    else if (states->type == BFLOAT16)
        product_of_type(BFLOAT16, states, weight, begin, end, products, products_stride);
    else
        product_of_type(FLOAT32, states, weight, begin, end, products, products_stride);
}

/* sums[r][o] += row r . weight[o]; `products` is scratch memory. Rows of both have `outputs` floats. */
static void add_to_residual(const States *states, const void *weight, int64_t outputs, int64_t begin,
                            int64_t end, float *products, float *sums) {
    product(states, weight, begin, end, products, outputs);
    for (int64_t r = 0; r < states->rows; r++)
        for (int64_t o = begin; o < end; o++) sums[r * outputs + o] += products[r * outputs + o];
}

/* Layer normalization (Ba et al. 2016) of the first `normal->rows` rows; `row` is scratch memory for one of them. */
static void normalize(const float *states, const float *weight, const float *bias, float epsilon, float *row,
                      const States *normal) {
    const int64_t width = normal->inputs;
    for (int64_t r = 0; r < normal->rows; r++) {
        const float *x = states + r * width;
        vec sum = {0}, squares = {0};
        for (int64_t i = 0; i < width; i += LANES) sum += *(const vec *)(x + i);
        const float mean = sum_of(sum) / (float)width;
        for (int64_t i = 0; i < width; i += LANES) {
            const vec off = *(const vec *)(x + i) - mean;
            squares += off * off;
        }
        const float scale = 1.0f / sqrtf(sum_of(squares) / (float)width + epsilon);
        for (int64_t i = 0; i < width; i += LANES)
            *(vec *)(row + i) =
                (*(const vec *)(x + i) - mean) * scale * *(const vec *)(weight + i) + *(const vec *)(bias + i);
        put(normal, r, 0, row, width);
    }
}

/* softmax(q K^T / sqrt(H)) V (Vaswani et al. 2017) of one query; `seen` may be null. */
static void attend(const float *query, const float *keys, const float *values, int64_t length, int64_t head_width,
                   const uint8_t *seen, float *scores, float *mixed) {
    const float scale = 1.0f / sqrtf((float)head_width);
    multiply(MEMORY, FLOAT32, query, 1, head_width, keys, 0, length, scores, length);
    float highest = -INFINITY, total = 0.0f;
    for (int64_t s = 0; s < length; s++) {
        scores[s] = seen && !seen[s] ? -INFINITY : scores[s] * scale;
        highest = scores[s] > highest ? scores[s] : highest;
    }
    for (int64_t s = 0; s < length; s++) {
        scores[s] = expf(scores[s] - highest);
        total += scores[s];
    }
    memset(mixed, 0, (size_t)head_width * sizeof(float));
    for (int64_t s = 0; s < length; s++)
        for (int64_t i = 0; i < head_width; i += LANES)
            *(vec *)(mixed + i) += scores[s] * *(const vec *)(values + s * head_width + i);
    for (int64_t i = 0; i < head_width; i += LANES) *(vec *)(mixed + i) /= total;
}

static inline vec activated(vec x, int64_t activation) {
    if (activation == GELU) return gelu(x);
    return (vec)((ints)x & (ints)(x > 0.0f));
}

static int64_t longest(const Step *step) {
    return step->capacity > step->text_length ? step->capacity : step->text_length;
}

static int64_t widest(const Step *step) {
    return step->inner_width > step->width ? step->inner_width : step->width;
}

/* Returns the floats of scratch memory that each thread needs: normalized states, products, one row, scores. */
static int64_t scratch_of_a_thread(const Step *step) {
    return packed_size(step->rows, step->width) + (step->rows + 1) * widest(step) + longest(step);
}

/* Returns the floats of scratch memory that a step needs. */
int64_t decode_step_scratch(const Step *step) {
    const int64_t rows = step->rows, width = step->width, inner_width = step->inner_width;
    const int64_t shared = 4 * rows * width + packed_size(rows, width) + packed_size(rows, inner_width);
    return shared + step->threads * scratch_of_a_thread(step);
}

/* ids: batch x K, used `rows / batch` times; length: steps in the cache, the index at which this one is written. */
void decode_step(const Step *step, const int64_t *ids, int64_t batch, int64_t length) {
    const int64_t rows = step->rows, width = step->width, heads = step->heads, inner_width = step->inner_width;
    const int64_t head_width = width / heads, text_rows = step->text_rows, text_length = step->text_length;
    float *const hidden = step->scratch;            /* R x D */
    float *const projected = hidden + rows * width; /* R x 3 D: queries, keys and values side by side */
    float *const mixed = projected + rows * 3 * width;
    float *const inner = mixed + packed_size(rows, width);
    float *const of_threads = inner + packed_size(rows, inner_width);
    const States all_mixed = states_of(step, mixed, rows, width), text_mixed = states_of(step, mixed, text_rows, width);
    const States all_inner = states_of(step, inner, rows, inner_width);

#pragma omp parallel num_threads((int)step->threads)
    {
        const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
        float *const normal = of_threads + thread * scratch_of_a_thread(step);
        float *const products = normal + packed_size(rows, width); /* R x D or F */
        float *const row = products + rows * widest(step);
        float *const scores = row + widest(step);
        const States all_normal = states_of(step, normal, rows, width);
        const States text_normal = states_of(step, normal, text_rows, width);
        int64_t begin, end;

        share(width, LANES, thread, threads, &begin, &end);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = begin; i < end; i += LANES) {
                vec sum = {0};
                for (int64_t k = 0; k < step->num_codebooks; k++) {
                    const int64_t id = ids[r % batch * step->num_codebooks + k];
                    const int64_t place = id * width + i;
                    sum += step->type == BFLOAT16 ? weights_at(BFLOAT16, step->embeddings[k], place)
                                                  : weights_at(FLOAT32, step->embeddings[k], place);
                }
                *(vec *)(hidden + r * width + i) = sum + *(const vec *)(step->positions + length * width + i);
            }
#pragma omp barrier

        for (const Layer *layer = step->layers; layer < step->layers + step->num_layers; layer++) {
            /* Every thread normalizes all rows for itself, which is faster than a barrier. */
            normalize(hidden, layer->self_norm_weight, layer->self_norm_bias, step->norm_epsilon, row, &all_normal);
            share(width, 4, thread, threads, &begin, &end);
            const void *const projections[3] = {layer->query, layer->key, layer->value};
            for (int part = 0; part < 3; part++)
                product(&all_normal, projections[part], begin, end, projected + part * width, 3 * width);
#pragma omp barrier
            share(rows * heads, 1, thread, threads, &begin, &end);
            for (int64_t task = begin; task < end; task++) {
                const int64_t first = task % heads * head_width;
                const float *const own = projected + task / heads * 3 * width + first;
                float *const keys = layer->keys + task * step->capacity * head_width;
                float *const values = layer->values + task * step->capacity * head_width;
                memcpy(keys + length * head_width, own + width, (size_t)head_width * sizeof(float));
                memcpy(values + length * head_width, own + 2 * width, (size_t)head_width * sizeof(float));
                attend(own, keys, values, length + 1, head_width, NULL, scores, row);
                put(&all_mixed, task / heads, first, row, head_width);
            }
#pragma omp barrier
            share(width, 4, thread, threads, &begin, &end);
            add_to_residual(&all_mixed, layer->self_out, width, begin, end, products, hidden);
#pragma omp barrier

            if (text_rows) {
                normalize(hidden, layer->cross_norm_weight, layer->cross_norm_bias, step->norm_epsilon, row,
                          &text_normal);
                product(&text_normal, layer->cross_query, begin, end, projected, width);
#pragma omp barrier
                int64_t first, last;
                share(text_rows * heads, 1, thread, threads, &first, &last);
                for (int64_t task = first; task < last; task++) {
                    const int64_t text_row = task / heads, at = task % heads * head_width;
                    const uint8_t *const seen = step->text_seen ? step->text_seen + text_row * text_length : NULL;
                    attend(projected + text_row * width + at, layer->text_keys + task * text_length * head_width,
                           layer->text_values + task * text_length * head_width, text_length, head_width, seen, scores,
                           row);
                    put(&text_mixed, text_row, at, row, head_width);
                }
#pragma omp barrier
                add_to_residual(&text_mixed, layer->cross_out, width, begin, end, products, hidden);
#pragma omp barrier
            }

            normalize(hidden, layer->final_norm_weight, layer->final_norm_bias, step->norm_epsilon, row, &all_normal);
            int64_t first, last;
            share(inner_width, LANES, thread, threads, &first, &last);
            product(&all_normal, layer->fc1, first, last, products, inner_width);
            for (int64_t r = 0; r < rows; r++) {
                float *const own = products + r * inner_width;
                for (int64_t o = first; o < last; o += LANES)
                    *(vec *)(own + o) = activated(*(const vec *)(own + o), step->activation);
                put(&all_inner, r, first, own + first, last - first);
            }
#pragma omp barrier
            add_to_residual(&all_inner, layer->fc2, width, begin, end, products, hidden);
#pragma omp barrier
        }

        normalize(hidden, step->final_norm_weight, step->final_norm_bias, step->norm_epsilon, row, &all_normal);
        share(step->vocab_size, 4, thread, threads, &begin, &end);
        for (int64_t k = 0; k < step->num_codebooks; k++)
            product(&all_normal, step->heads_weights[k], begin, end, step->logits + k * step->vocab_size,
                    step->num_codebooks * step->vocab_size);
    }
}
