#pragma once
// Row kernels in fp32 on the CPU. Each works on its rows alone and adds in an order fixed by the
// row's length, so that bits depend on neither the number of threads nor the neighbours.
#include <cstdint>

namespace coxswain::kernels {

// y = x * rstd * w and rstd = 1 / sqrt(mean(x^2) + eps), over `rows` rows of `dim`.
void rms_norm_rows(const float* x, const float* w, float eps, int64_t rows, int64_t dim, float* y, float* rstd);
// dx, given dy.
void rms_norm_grad_rows(
    const float* dy, const float* x, const float* w, const float* rstd, int64_t rows, int64_t dim, float* dx);
// dw[first..last] = sum over all rows, in row order, of dy * x * rstd.
void rms_norm_weight_grad(
    const float* dy, const float* x, const float* rstd, int64_t rows, int64_t dim, int64_t first, int64_t last,
    float* dw);

// Rotates the pairs (x[i], x[i + half]) of each head of one token; `sign` is -1 for the way back.
void rope_heads(const float* x, const float* cos, const float* sin, float sign, int64_t heads, int64_t half, float* y);

// y = silu(a) * b.
void swiglu(const float* a, const float* b, int64_t count, float* y);
// da and db, given dy.
void swiglu_grad(const float* dy, const float* a, const float* b, int64_t count, float* da, float* db);

float max_of(const float* x, int64_t count);
// x = exp(x - shift), and the sum of the results.
float exp_and_sum(float* x, float shift, int64_t count);
void scale(float* x, float factor, int64_t count);
// The sum of squares, in double.
double sum_squares(const float* x, int64_t count);

} // namespace coxswain::kernels
