/* Attention for training on a CPU, computed in float32: softmax(Q K^T / sqrt(H)) V (Vaswani et al. 2017), and its
 * gradients.
 *
 * As in FlashAttention (Dao et al. 2022), weights of a block of queries are made, used and dropped, and made again in the
 * backward pass from the logarithm of each softmax's sum. Of causal attention only what is seen is computed. A thread
 * does one head after the other; `attention.py` says what is computed.
 *
 * Axes: B batch, N heads, S queries, L keys, H head width; W is L, filled up to whole panels.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tiles.h"

/* Queries of a block: what is made of them fits the second cache, and sums over them are long enough to be worth it. */
enum { BLOCK = 60 / ROWS * ROWS };

/* (B, N, S or L, H), the last axis in one piece; the steps of the others. */
typedef struct {
    void *numbers;
    int64_t batch_step, head_step, step;
} States;

typedef struct {
    int64_t batch, heads, queries, keys, head_width, causal, threads;
    int64_t type; /* of all states */
    States query, key, value, output;
    const uint8_t *seen; /* B x L: 0 for keys that no query sees; null where all are seen */
    float *sums;         /* B x N x S: the logarithm of each softmax's sum */
    States output_gradient, query_gradient, key_gradient, value_gradient; /* of the backward pass alone */
} Attention;

/* What a thread works in. */
typedef struct {
    float *keys_across, *keys_along, *values_across, *values_along; /* panels of W x H numbers each */
    float *unseen;                                                  /* W: 0, or minus infinity for what is not seen */
    float *weights, *gradients;                                     /* BLOCK x W */
    float *queries_along, *outputs_along;                           /* panels of BLOCK x H */
    float *key_gradients, *value_gradients;                         /* W x H */
    float *made[5]; /* S or L x H: of bfloat16, what a head is given and what becomes of it */
} Scratch;

/* One head of states, in float32. */
typedef struct {
    float *numbers;
    int64_t step;
} Head;

static int64_t filled_up(int64_t length) { return (length + COLUMNS - 1) / COLUMNS * COLUMNS; }

static void *head_at(const Attention *of, const States *states, int64_t batch, int64_t head) {
    const int64_t index = batch * states->batch_step + head * states->head_step;
    return (char *)states->numbers + index * (of->type == BFLOAT16 ? 2 : 4);
}

/* A head that is written later: where it is, or in `room`. */
static Head room_for(const Attention *of, const States *states, int64_t batch, int64_t head, float *room) {
    if (of->type == BFLOAT16) return (Head){room, of->head_width};
    return (Head){head_at(of, states, batch, head), states->step};
}

/* A head that is given: where it is, or made in `room`. */
static Head head_of(const Attention *of, const States *states, int64_t batch, int64_t head, int64_t length,
                    float *room) {
    if (of->type == BFLOAT16) {
        const void *const given = head_at(of, states, batch, head);
        for (int64_t l = 0; l < length; l++)
            for (int64_t h = 0; h < of->head_width; h += LANES)
                *(vec *)(room + l * of->head_width + h) = weights_at(BFLOAT16, given, l * states->step + h);
    }
    return room_for(of, states, batch, head, room);
}

/* Writes a head to its place, if it is not there yet. */
static void put_head(const Attention *of, const States *states, int64_t batch, int64_t head, int64_t length,
                     const float *made) {
    char *const place = head_at(of, states, batch, head);
    if (place == (const char *)made) return;
    for (int64_t l = 0; l < length; l++)
        for (int64_t h = 0; h < of->head_width; h += LANES) {
            const vec numbers = *(const vec *)(made + l * of->head_width + h);
            if (of->type == BFLOAT16)
                *(halves *)(place + 2 * (l * states->step + h)) = rounded(numbers);
            else
                *(vec *)(place + 4 * (l * states->step + h)) = numbers;
        }
}

/* Panels of states whose columns are the inner axis, for products with what is as long as the steps: H/COLUMNS panels of
 * `length` x COLUMNS. */
static void pack_along(const float *states, int64_t step, int64_t length, int64_t head_width, float *panels) {
    for (int64_t p = 0; p < head_width; p += COLUMNS)
        for (int64_t l = 0; l < length; l++, panels += COLUMNS)
            memcpy(panels, states + l * step + p, COLUMNS * sizeof(float));
}

/* Panels of states whose columns are the steps, for products with what is as wide as they are: W/COLUMNS panels of H x
 * COLUMNS. Steps that fill up the last one are zeros. */
static void pack_across(const float *states, int64_t step, int64_t length, int64_t head_width, float factor,
                        float *panels) {
    for (int64_t p = 0; p < length; p += COLUMNS, panels += head_width * COLUMNS)
        for (int64_t c = 0; c < COLUMNS; c++)
            for (int64_t h = 0; h < head_width; h++)
                panels[h * COLUMNS + c] = p + c < length ? factor * states[(p + c) * step + h] : 0.0f;
}

/* to = numbers x panels, or += where `add`; `numbers` has `rows` rows, and `to` as many of `columns`. */
static inline __attribute__((always_inline)) void multiply_panels(const float *numbers, int64_t row_step,
                                                                  int64_t depth_step, int64_t rows,
                                                                  const float *panels, int64_t depth,
                                                                  int64_t panel_step, int64_t columns, float *to,
                                                                  int64_t to_step, const int add) {
    for (int64_t p = 0; p < columns; p += COLUMNS, panels += panel_step)
        for (int64_t row = 0; row < rows; row += ROWS) {
            const int64_t left = least(ROWS, rows - row);
            vec sums[ROWS][2];
            clear(sums);
            if (left == ROWS)
                add_products(numbers + row * row_step, row_step, depth_step, panels, depth, sums);
            else
                /* Row after row, each into a tile of its own: there are few of them. */
                for (int64_t r = 0; r < left; r++) {
                    vec of_row[ROWS][2];
                    clear(of_row);
                    add_products(numbers + (row + r) * row_step, 0, depth_step, panels, depth, of_row);
                    memcpy(sums[r], of_row[0], sizeof of_row[0]);
                }
            for (int64_t r = 0; r < left; r++)
                for (int half = 0; half < 2; half++) {
                    vec *const place = (vec *)(to + (row + r) * to_step + p + half * LANES);
                    if (add)
                        *place += sums[r][half];
                    else
                        *place = sums[r][half];
                }
        }
}

/* Keys that a block of queries sees at most, from the first one on. */
static int64_t keys_of(const Attention *of, int64_t last_query) {
    return of->causal ? least(of->keys, last_query) : of->keys;
}

/* Scores of a block of queries, minus infinity where nothing is seen; as wide as whole panels for its keys. */
static void score_block(const Attention *of, const Scratch *in, Head queries, int64_t first, int64_t rows,
                        int64_t width) {
    multiply_panels(queries.numbers + first * queries.step, queries.step, 1, rows, in->keys_across, of->head_width,
                    of->head_width * COLUMNS, width, in->weights, width, 0);
    for (int64_t r = 0; r < rows; r++) {
        float *const scores = in->weights + r * width;
        for (int64_t c = 0; c < width; c += LANES) *(vec *)(scores + c) += *(const vec *)(in->unseen + c);
        if (of->causal)
            for (int64_t c = first + r + 1; c < width; c++) scores[c] = -INFINITY;
    }
}

static void prepare_head(const Attention *of, const Scratch *in, int64_t batch, Head keys) {
    pack_across(keys.numbers, keys.step, of->keys, of->head_width, 1.0f / sqrtf((float)of->head_width),
                in->keys_across);
    for (int64_t l = 0; l < filled_up(of->keys); l++)
        in->unseen[l] = l >= of->keys || (of->seen && !of->seen[batch * of->keys + l]) ? -INFINITY : 0.0f;
}

static float largest(const float *numbers, int64_t length) {
    vec most = {0};
    most -= INFINITY;
    for (int64_t i = 0; i < length; i += LANES) {
        const vec next = *(const vec *)(numbers + i);
        const ints more = next > most;
        most = (vec)(((ints)next & more) | ((ints)most & ~more));
    }
    float highest = most[0];
    for (int i = 1; i < LANES; i++) highest = most[i] > highest ? most[i] : highest;
    return highest;
}

static void attend_head(const Attention *of, const Scratch *in, int64_t batch, int64_t head) {
    const Head queries = head_of(of, &of->query, batch, head, of->queries, in->made[0]);
    const Head output = room_for(of, &of->output, batch, head, in->made[1]);
    float *const sums = of->sums + (batch * of->heads + head) * of->queries;
    prepare_head(of, in, batch, head_of(of, &of->key, batch, head, of->keys, in->made[2]));
    const Head values = head_of(of, &of->value, batch, head, of->keys, in->made[2]);
    pack_along(values.numbers, values.step, of->keys, of->head_width, in->values_along);

    for (int64_t first = 0; first < of->queries; first += BLOCK) {
        const int64_t rows = least(BLOCK, of->queries - first);
        const int64_t seen = keys_of(of, first + rows), width = filled_up(seen);
        float shares[BLOCK];
        score_block(of, in, queries, first, rows, width);
        for (int64_t r = 0; r < rows; r++) {
            float *const scores = in->weights + r * width;
            const float highest = largest(scores, width);
            vec sum = {0};
            for (int64_t c = 0; c < width; c += LANES) {
                const vec weight = exponential(*(const vec *)(scores + c) - highest);
                *(vec *)(scores + c) = weight;
                sum += weight;
            }
            const float total = sum_of(sum);
            shares[r] = 1.0f / total;
            sums[first + r] = highest + logf(total);
        }
        float *const mixed = output.numbers + first * output.step;
        multiply_panels(in->weights, width, 1, rows, in->values_along, seen, of->keys * COLUMNS, of->head_width, mixed,
                        output.step, 0);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t h = 0; h < of->head_width; h += LANES) *(vec *)(mixed + r * output.step + h) *= shares[r];
    }
    put_head(of, &of->output, batch, head, of->queries, output.numbers);
}

/* From weights and the gradients by them to gradients by scores, in the place of the latter. */
static void through_softmax(const Attention *of, const Scratch *in, Head output, Head output_gradient, int64_t first,
                            const float *sums, int64_t rows, int64_t width) {
    const float scale = 1.0f / sqrtf((float)of->head_width);
    for (int64_t r = 0; r < rows; r++) {
        vec product = {0};
        for (int64_t h = 0; h < of->head_width; h += LANES)
            product += *(const vec *)(output.numbers + (first + r) * output.step + h) *
                       *(const vec *)(output_gradient.numbers + (first + r) * output_gradient.step + h);
        const float mean = sum_of(product);
        for (int64_t c = 0; c < width; c += LANES) {
            vec *const weight = (vec *)(in->weights + r * width + c), *const gradient = (vec *)(in->gradients + r * width + c);
            /* Rounding may leave a score above the logarithm of all of them. */
            const vec off = *weight - sums[r];
            const ints above = off > 0.0f;
            *weight = exponential((vec)((ints)off & ~above));
            *gradient = *weight * (*gradient - mean) * scale;
        }
    }
}

static void attend_head_backward(const Attention *of, const Scratch *in, int64_t batch, int64_t head) {
    const int64_t head_width = of->head_width;
    const Head queries = head_of(of, &of->query, batch, head, of->queries, in->made[0]);
    const Head output = head_of(of, &of->output, batch, head, of->queries, in->made[1]);
    const Head gradients = head_of(of, &of->output_gradient, batch, head, of->queries, in->made[2]);
    const Head query_gradients = room_for(of, &of->query_gradient, batch, head, in->made[3]);
    const float *const sums = of->sums + (batch * of->heads + head) * of->queries;
    const Head keys = head_of(of, &of->key, batch, head, of->keys, in->made[4]);
    prepare_head(of, in, batch, keys);
    pack_along(keys.numbers, keys.step, of->keys, head_width, in->keys_along);
    const Head values = head_of(of, &of->value, batch, head, of->keys, in->made[4]);
    pack_across(values.numbers, values.step, of->keys, head_width, 1.0f, in->values_across);
    memset(in->key_gradients, 0, (size_t)(of->keys * head_width) * sizeof(float));
    memset(in->value_gradients, 0, (size_t)(of->keys * head_width) * sizeof(float));

    for (int64_t first = 0; first < of->queries; first += BLOCK) {
        const int64_t rows = least(BLOCK, of->queries - first);
        const int64_t seen = keys_of(of, first + rows), width = filled_up(seen);
        const float *const block = queries.numbers + first * queries.step;
        const float *const gradient = gradients.numbers + first * gradients.step;
        score_block(of, in, queries, first, rows, width);
        multiply_panels(gradient, gradients.step, 1, rows, in->values_across, head_width, head_width * COLUMNS, width,
                        in->gradients, width, 0);
        through_softmax(of, in, output, gradients, first, sums + first, rows, width);

        multiply_panels(in->gradients, width, 1, rows, in->keys_along, seen, of->keys * COLUMNS, head_width,
                        query_gradients.numbers + first * query_gradients.step, query_gradients.step, 0);
        pack_along(block, queries.step, rows, head_width, in->queries_along);
        pack_along(gradient, gradients.step, rows, head_width, in->outputs_along);
        multiply_panels(in->gradients, 1, width, seen, in->queries_along, rows, rows * COLUMNS, head_width,
                        in->key_gradients, head_width, 1);
        multiply_panels(in->weights, 1, width, seen, in->outputs_along, rows, rows * COLUMNS, head_width,
                        in->value_gradients, head_width, 1);
    }
    put_head(of, &of->query_gradient, batch, head, of->queries, query_gradients.numbers);
    put_head(of, &of->key_gradient, batch, head, of->keys, in->key_gradients);
    put_head(of, &of->value_gradient, batch, head, of->keys, in->value_gradients);
}

/* Runs `of_head` for every head, each thread with memory of its own. Returns 0, or 1 where there is no memory. */
static int for_each_head(const Attention *of,
                         void (*of_head)(const Attention *, const Scratch *, int64_t batch, int64_t head)) {
    const int64_t width = filled_up(of->keys), panels = width * of->head_width, block = BLOCK * of->head_width;
    const int64_t longest = of->queries > of->keys ? of->queries : of->keys;
    const int64_t made = of->type == BFLOAT16 ? longest * of->head_width : 0;
    int failed = 0;
#pragma omp parallel num_threads((int)of->threads)
    {
        float *const memory =
            malloc((size_t)(6 * panels + width + 2 * BLOCK * width + 2 * block + 5 * made) * sizeof(float));
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
            float *const rest = memory + 6 * panels;
            float *const last = rest + width + 2 * BLOCK * width + 2 * block;
            const Scratch in = {
                .keys_across = memory,
                .keys_along = memory + panels,
                .values_across = memory + 2 * panels,
                .values_along = memory + 3 * panels,
                .key_gradients = memory + 4 * panels,
                .value_gradients = memory + 5 * panels,
                .unseen = rest,
                .weights = rest + width,
                .gradients = rest + width + BLOCK * width,
                .queries_along = rest + width + 2 * BLOCK * width,
                .outputs_along = rest + width + 2 * BLOCK * width + block,
                .made = {last, last + made, last + 2 * made, last + 3 * made, last + 4 * made},
            };
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < of->batch * of->heads; task++)
                of_head(of, &in, task / of->heads, task % of->heads);
        }
        free(memory);
    }
    return failed;
}

int attend(const Attention *of) { return for_each_head(of, attend_head); }

int attend_backward(const Attention *of) { return for_each_head(of, attend_head_backward); }

/* Head widths are multiples of this. */
int64_t panel_width(void) { return COLUMNS; }
