/* Attention for training on a CPU: softmax(Q K^T / sqrt(H)) V (Vaswani et al. 2017), and its gradients.
 *
 * As in FlashAttention (Dao et al. 2022), weights of a block of queries are made, used and dropped, and made again in
 * the backward pass from the logarithm of each softmax's sum. Of causal attention only what is seen is computed. A
 * thread does one head after the other; `attention.py` says what is computed.
 *
 * Softmax and sums are float32. Products are of floats, or, of bfloat16 states and where the processor multiplies
 * bfloat16, of pairs: weights and gradients are then rounded before they are multiplied, as FlashAttention does. A
 * float and a pair take the same room, called a word here, so that one code does both.
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

/* What a thread works in; panels are of W x H numbers or, of a block, BLOCK x H. */
typedef struct {
    float *keys_across, *keys_along, *values_across, *values_along;
    float *queries_along, *outputs_along;   /* of a block */
    float *unseen;                          /* W: 0, or minus infinity for what is not seen; only where some is not */
    float *weights, *gradients, *rounded;   /* BLOCK x W */
    float *mixed;                           /* BLOCK x H */
    float *key_gradients, *value_gradients; /* W x H */
    float *made[4]; /* S or L x H: heads of bfloat16 in float32, where that is multiplied */
} Scratch;

/* One head of states, in the type that is multiplied; the step is in bytes. */
typedef struct {
    const char *numbers;
    int64_t step;
} Head;

static int64_t filled_up(int64_t length) { return (length + COLUMNS - 1) / COLUMNS * COLUMNS; }

static int64_t size_of(int64_t type) { return type == BFLOAT16 ? 2 : 4; }

/* What is multiplied of states of a type: never BFLOAT16, of which floats are made. */
static enum type multiplied(int64_t type) { return type == BFLOAT16 && PAIRS ? PAIRED : FLOAT32; }

/* Numbers in a word, and words of so many numbers. */
static inline int64_t numbers_of(const enum type type) { return type == PAIRED ? 2 : 1; }

static inline int64_t words(const enum type type, int64_t numbers) {
    return (numbers + numbers_of(type) - 1) / numbers_of(type);
}

static char *head_at(const Attention *of, const States *states, int64_t batch, int64_t head) {
    return (char *)states->numbers + (batch * states->batch_step + head * states->head_step) * size_of(of->type);
}

static int is_taken_as_it_is(const Attention *of) { return of->type == FLOAT32 || multiplied(of->type) == PAIRED; }

/* A head where it is, or made in `room`. */
static Head head_of(const Attention *of, const States *states, int64_t batch, int64_t head, int64_t length,
                    float *room) {
    const char *const place = head_at(of, states, batch, head);
    if (is_taken_as_it_is(of)) return (Head){place, states->step * size_of(of->type)};
    for (int64_t l = 0; l < length; l++)
        for (int64_t h = 0; h < of->head_width; h += LANES)
            *(vec *)(room + l * of->head_width + h) = weights_at(BFLOAT16, place, l * states->step + h);
    return (Head){(const char *)room, of->head_width * 4};
}

/* Writes some steps of a head, from one on: H numbers each, one after the other. */
static void put_steps(const Attention *of, const States *states, int64_t batch, int64_t head, int64_t first,
                      int64_t length, const float *made) {
    char *const place = head_at(of, states, batch, head) + first * states->step * size_of(of->type);
    for (int64_t l = 0; l < length; l++)
        for (int64_t h = 0; h < of->head_width; h += LANES) {
            const vec numbers = *(const vec *)(made + l * of->head_width + h);
            if (of->type == BFLOAT16)
                *(halves *)(place + 2 * (l * states->step + h)) = rounded(numbers);
            else
                *(vec *)(place + 4 * (l * states->step + h)) = numbers;
        }
}

/* Panels of states whose columns are the inner axis, for products with what is as long as the steps: H/COLUMNS panels
 * of `length` x COLUMNS. */
static inline __attribute__((always_inline)) void pack_along(const enum type type, const char *states, int64_t step,
                                                             int64_t length, int64_t head_width, float *panels) {
    for (int64_t p = 0; p < head_width; p += LANES) {
        float *const panel = panels + p / COLUMNS * COLUMNS * words(type, length) + p % COLUMNS;
        if (type == FLOAT32)
            for (int64_t l = 0; l < length; l++)
                *(vec *)(panel + l * COLUMNS) = *(const vec *)(states + l * step + 4 * p);
        else
            for (int64_t l = 0; l < length; l += 2) {
                const halves none = {0}, *const next = (const halves *)(states + (l + 1) * step + 2 * p);
                *(vec *)(panel + l / 2 * COLUMNS) =
                    paired(*(const halves *)(states + l * step + 2 * p), l + 1 < length ? *next : none);
            }
    }
}

/* Panels of states whose columns are the steps, for products with what is as wide as they are: W/COLUMNS panels of H x
 * COLUMNS. Steps that fill up the last one are zeros. */
static void pack_across(const char *states, int64_t step, int64_t length, int64_t words_wide, float *panels) {
    for (int64_t p = 0; p < length; p += COLUMNS, panels += words_wide * COLUMNS) {
        const int64_t columns = least(COLUMNS, length - p);
        for (int64_t c = 0; c < columns; c++) {
            const char *const state = states + (p + c) * step;
            /* The rows of a head lie far apart. */
            for (int64_t w = 0; w < words_wide; w += 16) __builtin_prefetch(state + 8 * step + 4 * w);
            for (int64_t w = 0; w < words_wide; w += 4) {
                float four[4];
                memcpy(four, state + 4 * w, sizeof four);
                for (int i = 0; i < 4; i++) panels[(w + i) * COLUMNS + c] = four[i];
            }
        }
        for (int64_t w = 0; w < words_wide && columns < COLUMNS; w++)
            memset(panels + w * COLUMNS + columns, 0, (size_t)(COLUMNS - columns) * sizeof(float));
    }
}

/* The left side of a product: where it is, and the steps, in bytes, to the next row and the next word in depth. */
typedef struct {
    const char *numbers;
    int64_t row_step, depth_step;
} Operand;

static inline __attribute__((always_inline)) void multiply_rows(const enum type type, const int rows, Operand left,
                                                                const float *panel, int64_t depth, float *to,
                                                                int64_t to_step, const int add) {
    vec sums[ROWS][2];
    clear(rows, sums);
    add_products(type, rows, left.numbers, left.row_step, left.depth_step, panel, depth, sums);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            vec *const place = (vec *)(to + r * to_step + half * LANES);
            if (add)
                *place += sums[r][half];
            else
                *place = sums[r][half];
        }
}

/* Where causal attention leaves nothing to do, of query `diagonal` + r and what it does not see: in the result, in rows
 * of the left side from some depth on, or up to it. */
enum unseen { IN_RESULT, AT_END, AT_START };

/* to = left x panels, or += where `add`: `rows` rows of `columns` numbers. `depth` is in words. */
static inline __attribute__((always_inline)) void multiply_panels(const enum type type, Operand left, int64_t rows,
                                                                  const float *panels, int64_t depth,
                                                                  int64_t panel_depth, int64_t columns, float *to,
                                                                  int64_t to_step, const int add,
                                                                  const enum unseen unseen, int64_t diagonal) {
    for (int64_t p = 0; p < columns; p += COLUMNS, panels += panel_depth * COLUMNS)
        for (int64_t row = unseen == IN_RESULT && p > diagonal ? (p - diagonal) / ROWS * ROWS : 0, of_tile; row < rows;
             row += of_tile) {
            of_tile = rows - row >= ROWS ? ROWS : least(rows - row, 2); /* two, or one, where they are left over */
            const int64_t begin = unseen == AT_START && row > diagonal ? (row - diagonal) / numbers_of(type) : 0;
            const int64_t end = unseen == AT_END ? least(depth, words(type, diagonal + row + of_tile)) : depth;
            const Operand part = {left.numbers + row * left.row_step + begin * left.depth_step, left.row_step,
                                  left.depth_step};
            const float *const panel = panels + begin * COLUMNS;
            float *const place = to + row * to_step + p;
            if (of_tile == ROWS)
                multiply_rows(type, ROWS, part, panel, end - begin, place, to_step, add);
            else if (of_tile == 2)
                multiply_rows(type, 2, part, panel, end - begin, place, to_step, add);
            else
                multiply_rows(type, 1, part, panel, end - begin, place, to_step, add);
        }
}

/* Keys that a block of queries sees at most, from the first one on. */
static int64_t keys_of(const Attention *of, int64_t last_query) {
    return of->causal ? least(of->keys, last_query) : of->keys;
}

/* For `multiply_panels`, of a block that begins with query `first`. */
static int64_t diagonal_of(const Attention *of, int64_t first) { return of->causal ? first : of->keys + of->queries; }

/* Products of a block of queries with the keys, as wide as whole panels for those it sees. */
static inline __attribute__((always_inline)) void multiply_scores(const enum type type, const Attention *of,
                                                                  const Scratch *in, Head queries, int64_t first,
                                                                  int64_t rows, int64_t width) {
    const int64_t depth = words(type, of->head_width);
    multiply_panels(type, (Operand){queries.numbers + first * queries.step, queries.step, 4}, rows, in->keys_across,
                    depth, depth, width, in->weights, width, 0, IN_RESULT, diagonal_of(of, first));
}

/* Makes what a query does not see of its products with all keys minus infinity, up to whole vectors, and zero after
 * them. Returns how many there are before the zeros. */
static int64_t hide_unseen(const Attention *of, const Scratch *in, int64_t query, int64_t width, float *products) {
    const int64_t seen = keys_of(of, query + 1), filled = (seen + LANES - 1) / LANES * LANES;
    if (of->seen)
        for (int64_t c = 0; c < filled; c += LANES) *(vec *)(products + c) += *(const vec *)(in->unseen + c);
    for (int64_t c = seen; c < filled; c++) products[c] = -INFINITY;
    memset(products + filled, 0, (size_t)(width - filled) * sizeof(float));
    return filled;
}

static float scale_of(const Attention *of) { return 1.0f / sqrtf((float)of->head_width); }

static void prepare_head(const Attention *of, const Scratch *in, int64_t batch, Head keys) {
    pack_across(keys.numbers, keys.step, of->keys, words(multiplied(of->type), of->head_width), in->keys_across);
    for (int64_t l = 0; of->seen && l < filled_up(of->keys); l++)
        in->unseen[l] = l >= of->keys || of->seen[batch * of->keys + l] ? 0.0f : -INFINITY;
}

static inline vec larger(vec one, vec other) {
    const ints more = other > one;
    return (vec)(((ints)other & more) | ((ints)one & ~more));
}

static float largest(const float *numbers, int64_t length) {
    /* Several at once, since each waits for the one before it. */
    vec most[4];
    for (int i = 0; i < 4; i++) most[i] = (vec){0} - INFINITY;
    int64_t i = 0;
    for (; i + 4 * LANES <= length; i += 4 * LANES)
#pragma GCC unroll 4
        for (int m = 0; m < 4; m++) most[m] = larger(most[m], *(const vec *)(numbers + i + m * LANES));
    for (; i < length; i += LANES) most[0] = larger(most[0], *(const vec *)(numbers + i));
    const vec all = larger(larger(most[0], most[1]), larger(most[2], most[3]));
    float highest = all[0];
    for (int l = 1; l < LANES; l++) highest = all[l] > highest ? all[l] : highest;
    return highest;
}

/* Rows of a block as the left side of a product whose depth are the keys; pairs are made in `in->rounded`. */
static inline __attribute__((always_inline)) Operand along_keys(const enum type type, const Scratch *in,
                                                                const float *numbers, int64_t rows, int64_t width) {
    if (type == FLOAT32) return (Operand){(const char *)numbers, 4 * width, 4};
    uint16_t *const made = (uint16_t *)in->rounded;
    for (int64_t i = 0; i < rows * width; i += LANES) *(halves *)(made + i) = rounded(*(const vec *)(numbers + i));
    return (Operand){(const char *)made, 2 * width, 4};
}

/* The same where the depth are the rows; pairs are made in place. */
static inline __attribute__((always_inline)) Operand along_rows(const enum type type, float *numbers, int64_t rows,
                                                                int64_t width) {
    if (type == FLOAT32) return (Operand){(const char *)numbers, 4, 4 * width};
    for (int64_t r = 0; r < rows; r += 2)
        for (int64_t c = 0; c < width; c += LANES) {
            float *const row = numbers + r * width + c;
            const halves none = {0}, next = r + 1 < rows ? rounded(*(const vec *)(row + width)) : none;
            *(vec *)row = paired(rounded(*(const vec *)row), next);
        }
    return (Operand){(const char *)numbers, 4, 8 * width};
}

static inline __attribute__((always_inline)) void attend_head_in(const enum type type, const Attention *of,
                                                                 const Scratch *in, int64_t batch, int64_t head) {
    const Head queries = head_of(of, &of->query, batch, head, of->queries, in->made[0]);
    float *const sums = of->sums + (batch * of->heads + head) * of->queries;
    prepare_head(of, in, batch, head_of(of, &of->key, batch, head, of->keys, in->made[1]));
    const Head values = head_of(of, &of->value, batch, head, of->keys, in->made[1]);
    pack_along(type, values.numbers, values.step, of->keys, of->head_width, in->values_along);
    const float scale = scale_of(of);

    for (int64_t first = 0; first < of->queries; first += BLOCK) {
        const int64_t rows = least(BLOCK, of->queries - first);
        const int64_t seen = keys_of(of, first + rows), width = filled_up(seen);
        float highest[BLOCK], shares[BLOCK];
        int64_t lengths[BLOCK];
        multiply_scores(type, of, in, queries, first, rows, width);
        for (int64_t r = 0; r < rows; r++) {
            lengths[r] = hide_unseen(of, in, first + r, width, in->weights + r * width);
            highest[r] = largest(in->weights + r * width, lengths[r]);
        }
        for (int64_t r = 0; r < rows; r++) {
            float *const weights = in->weights + r * width;
            vec sum = {0};
            for (int64_t c = 0; c < lengths[r]; c += LANES) {
                const vec weight = exponential(scale * (*(const vec *)(weights + c) - highest[r]));
                *(vec *)(weights + c) = weight;
                sum += weight;
            }
            const float total = sum_of(sum);
            shares[r] = 1.0f / total;
            sums[first + r] = scale * highest[r] + logf(total);
        }
        multiply_panels(type, along_keys(type, in, in->weights, rows, width), rows, in->values_along, words(type, seen),
                        words(type, of->keys), of->head_width, in->mixed, of->head_width, 0, AT_END,
                        diagonal_of(of, first));
        for (int64_t r = 0; r < rows; r++)
            for (int64_t h = 0; h < of->head_width; h += LANES)
                *(vec *)(in->mixed + r * of->head_width + h) *= shares[r];
        put_steps(of, &of->output, batch, head, first, rows, in->mixed);
    }
}

/* From products of a query with the keys, and of its gradient with the values, to weights and gradients by scores.
 * `mean` is the product of the query's output with its gradient. */
static void through_softmax(float scale, float sum, float mean, int64_t length, float *weights, float *gradients) {
    for (int64_t c = 0; c < length; c += LANES) {
        vec *const weight = (vec *)(weights + c), *const gradient = (vec *)(gradients + c);
        /* Rounding may leave a score above the logarithm of all of them. */
        const vec off = *weight * scale - sum;
        const ints above = off > 0.0f;
        *weight = exponential((vec)((ints)off & ~above));
        *gradient = *weight * (*gradient - mean) * scale;
    }
}

static float product_of_steps(int64_t type, const char *one, const char *other, int64_t head_width) {
    vec product = {0};
    for (int64_t h = 0; h < head_width; h += LANES)
        product += type == PAIRED ? weights_at(BFLOAT16, one, h) * weights_at(BFLOAT16, other, h)
                                  : weights_at(FLOAT32, one, h) * weights_at(FLOAT32, other, h);
    return sum_of(product);
}

static inline __attribute__((always_inline)) void attend_head_backward_in(const enum type type, const Attention *of,
                                                                          const Scratch *in, int64_t batch,
                                                                          int64_t head) {
    const int64_t head_width = of->head_width, panel_depth = words(type, of->keys);
    const Head queries = head_of(of, &of->query, batch, head, of->queries, in->made[0]);
    const Head output = head_of(of, &of->output, batch, head, of->queries, in->made[1]);
    const Head outer = head_of(of, &of->output_gradient, batch, head, of->queries, in->made[2]);
    const float *const sums = of->sums + (batch * of->heads + head) * of->queries;
    const Head keys = head_of(of, &of->key, batch, head, of->keys, in->made[3]);
    prepare_head(of, in, batch, keys);
    const float scale = scale_of(of);
    pack_along(type, keys.numbers, keys.step, of->keys, head_width, in->keys_along);
    const Head values = head_of(of, &of->value, batch, head, of->keys, in->made[3]);
    pack_across(values.numbers, values.step, of->keys, words(type, head_width), in->values_across);
    memset(in->key_gradients, 0, (size_t)(of->keys * head_width) * sizeof(float));
    memset(in->value_gradients, 0, (size_t)(of->keys * head_width) * sizeof(float));

    for (int64_t first = 0; first < of->queries; first += BLOCK) {
        const int64_t rows = least(BLOCK, of->queries - first), depth = words(type, rows);
        const int64_t seen = keys_of(of, first + rows), width = filled_up(seen);
        const char *const block = queries.numbers + first * queries.step;
        const char *const gradient = outer.numbers + first * outer.step;
        float means[BLOCK];
        int64_t lengths[BLOCK];
        multiply_scores(type, of, in, queries, first, rows, width);
        multiply_panels(type, (Operand){gradient, outer.step, 4}, rows, in->values_across, words(type, head_width),
                        words(type, head_width), width, in->gradients, width, 0, IN_RESULT, diagonal_of(of, first));
        for (int64_t r = 0; r < rows; r++) {
            lengths[r] = hide_unseen(of, in, first + r, width, in->weights + r * width);
            memset(in->gradients + r * width + lengths[r], 0, (size_t)(width - lengths[r]) * sizeof(float));
            means[r] = product_of_steps(type, output.numbers + (first + r) * output.step, gradient + r * outer.step,
                                        head_width);
        }
        for (int64_t r = 0; r < rows; r++)
            through_softmax(scale, sums[first + r], means[r], lengths[r], in->weights + r * width,
                            in->gradients + r * width);

        multiply_panels(type, along_keys(type, in, in->gradients, rows, width), rows, in->keys_along, words(type, seen),
                        panel_depth, head_width, in->mixed, head_width, 0, AT_END, diagonal_of(of, first));
        put_steps(of, &of->query_gradient, batch, head, first, rows, in->mixed);
        pack_along(type, block, queries.step, rows, head_width, in->queries_along);
        pack_along(type, gradient, outer.step, rows, head_width, in->outputs_along);
        multiply_panels(type, along_rows(type, in->gradients, rows, width), seen, in->queries_along, depth, depth,
                        head_width, in->key_gradients, head_width, 1, AT_START, diagonal_of(of, first));
        multiply_panels(type, along_rows(type, in->weights, rows, width), seen, in->outputs_along, depth, depth,
                        head_width, in->value_gradients, head_width, 1, AT_START, diagonal_of(of, first));
    }
    put_steps(of, &of->key_gradient, batch, head, 0, of->keys, in->key_gradients);
    put_steps(of, &of->value_gradient, batch, head, 0, of->keys, in->value_gradients);
}

static void attend_head(const Attention *of, const Scratch *in, int64_t batch, int64_t head) {
    if (multiplied(of->type) == PAIRED)
        attend_head_in(PAIRED, of, in, batch, head);
    else
        attend_head_in(FLOAT32, of, in, batch, head);
}

static void attend_head_backward(const Attention *of, const Scratch *in, int64_t batch, int64_t head) {
    if (multiplied(of->type) == PAIRED)
        attend_head_backward_in(PAIRED, of, in, batch, head);
    else
        attend_head_backward_in(FLOAT32, of, in, batch, head);
}

/* Gives each part of the scratch its place in `memory`, or none where that is null. Returns how many numbers they
 * take. */
static int64_t lay_out(const Attention *of, float *memory, Scratch *in) {
    const int64_t width = filled_up(of->keys), panels = width * of->head_width;
    const int64_t block = BLOCK * of->head_width, all_weights = BLOCK * width;
    const int64_t longest = of->queries > of->keys ? of->queries : of->keys;
    const int64_t made = is_taken_as_it_is(of) ? 0 : longest * of->head_width;
    const struct {
        float **place;
        int64_t size;
    } parts[] = {
        {&in->keys_across, panels},   {&in->keys_along, panels},      {&in->values_across, panels},
        {&in->values_along, panels},  {&in->key_gradients, panels},   {&in->value_gradients, panels},
        {&in->queries_along, block},  {&in->outputs_along, block},    {&in->mixed, block},
        {&in->unseen, width},         {&in->weights, all_weights},    {&in->gradients, all_weights},
        {&in->rounded, all_weights},  {&in->made[0], made},           {&in->made[1], made},
        {&in->made[2], made},         {&in->made[3], made},
    };
    int64_t taken = 0;
    for (size_t part = 0; part < sizeof parts / sizeof *parts; taken += parts[part++].size)
        *parts[part].place = memory ? memory + taken : NULL;
    return taken;
}

/* Runs `of_head` for every head, each thread with memory of its own. Returns 0, or 1 where there is no memory. */
static int for_each_head(const Attention *of,
                         void (*of_head)(const Attention *, const Scratch *, int64_t batch, int64_t head)) {
    int failed = 0;
#pragma omp parallel num_threads((int)of->threads)
    {
        Scratch in;
        float *const memory = malloc((size_t)lay_out(of, NULL, &in) * sizeof(float));
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
            lay_out(of, memory, &in);
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
