/* GELU (Hendrycks & Gimpel 2016) and its derivative on a CPU, in float32. */
#include <stdint.h>
#include <string.h>

#include "vectors.h"

/* Numbers that a thread does at a time. */
enum { BLOCK = 4096 };

static inline __attribute__((always_inline)) vec of_vector(vec x, vec gradient, const int backward) {
    if (backward) return gradient * gelu_slope(x);
    return gelu(x);
}

static inline __attribute__((always_inline)) void for_all(const float *x, const float *gradient, float *to,
                                                          int64_t length, int64_t threads, const int backward) {
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (int64_t first = 0; first < length; first += BLOCK) {
        const int64_t last = least(length, first + BLOCK), whole = last - (last - first) % LANES;
        for (int64_t i = first; i < whole; i += LANES) {
            const vec given = backward ? *(const vec *)(gradient + i) : *(const vec *)(x + i);
            *(vec *)(to + i) = of_vector(*(const vec *)(x + i), given, backward);
        }
        for (int64_t i = whole; i < last; i++)
            to[i] = of_vector((vec){0} + x[i], (vec){0} + (backward ? gradient[i] : 0.0f), backward)[0];
    }
}

void gelu_of(const float *x, float *to, int64_t length, int64_t threads) {
    for_all(x, NULL, to, length, threads, 0);
}

/* to = gradient * gelu'(x); both may be the same memory. */
void gelu_gradient(const float *x, const float *gradient, float *to, int64_t length, int64_t threads) {
    for_all(x, gradient, to, length, threads, 1);
}
