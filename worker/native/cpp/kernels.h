#pragma once
// Row kernels on the CPU, for fp32, bf16 and fp16; arithmetic is fp32 in all of them. Each works on its
// rows alone and adds in an order fixed by the row's length, so that bits depend on neither the number
// of threads nor the neighbours.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

namespace coxswain::kernels {

enum class Activation : int { Relu = 0, Gelu = 1, GeluTanh = 2, Silu = 3, Tanh = 4 };

#define COXSWAIN_KERNELS(T)                                                                                        \
  /* y = x * rstd * w and rstd = 1 / sqrt(mean(x^2) + eps), over `rows` rows of `dim`. */                          \
  void rms_norm_rows(const T* x, const float* w, float eps, int64_t rows, int64_t dim, T* y, float* rstd);         \
  /* dx, given dy. */                                                                                              \
  void rms_norm_grad_rows(                                                                                         \
      const T* dy, const T* x, const float* w, const float* rstd, int64_t rows, int64_t dim, T* dx);               \
  /* dw[first..last] += sum over the rows, in row order, of dy * x * rstd. */                                      \
  void rms_norm_weight_grad(                                                                                       \
      const T* dy, const T* x, const float* rstd, int64_t rows, int64_t dim, int64_t first, int64_t last,          \
      float* dw);                                                                                                  \
  /* Rotates the pairs (x[i], x[i + half]) of each head of one token; `sign` is -1 for the way back. */            \
  void rope_heads(const T* x, const float* cos, const float* sin, float sign, int64_t heads, int64_t half, T* y);  \
  /* y = (x - mean) * rstd * w + b, and rstd = 1 / sqrt(variance + eps), over `rows` rows of `dim`. */              \
  void layer_norm_rows(                                                                                             \
      const T* x, const float* w, const float* b, float eps, int64_t rows, int64_t dim, T* y, float* mean,          \
      float* rstd);                                                                                                 \
  void layer_norm_grad_rows(                                                                                        \
      const T* dy, const T* x, const float* w, const float* mean, const float* rstd, int64_t rows, int64_t dim,     \
      T* dx);                                                                                                       \
  void layer_norm_weight_grad(                                                                                      \
      const T* dy, const T* x, const float* mean, const float* rstd, int64_t rows, int64_t dim, int64_t first,      \
      int64_t last, float* dw);                                                                                     \
  /* y = x + b, over `rows` rows of `dim`. */                                                                       \
  void add_bias(const T* x, const float* b, int64_t rows, int64_t dim, T* y);                                       \
  /* db[first..last] += sum over the rows, in row order, of dy. */                                                  \
  void bias_grad(const T* dy, int64_t rows, int64_t dim, int64_t first, int64_t last, float* db);                   \
  /* y = act(a) * b, or act(a) where b is null. */                                                                  \
  void activate(Activation by, const T* a, const T* b, int64_t count, T* y);                                        \
  /* da and db, given dy; db is left alone where b is null. */                                                      \
  void activate_grad(Activation by, const T* dy, const T* a, const T* b, int64_t count, T* da, T* db);              \
  float max_of(const T* x, int64_t count);                                                                         \
  /* The sum of exp(x - shift). */                                                                                 \
  float exp_sum(const T* x, float shift, int64_t count);                                                           \
  /* x = exp(x - shift) * factor. */                                                                               \
  void exp_scale(T* x, float shift, float factor, int64_t count);                                                  \
  /* sum += x. */                                                                                                  \
  void add(const T* x, int64_t count, float* sum);

COXSWAIN_KERNELS(float)
COXSWAIN_KERNELS(c10::BFloat16)
COXSWAIN_KERNELS(c10::Half)
#undef COXSWAIN_KERNELS

// x = exp(x - shift), and the sum of the results.
float exp_and_sum(float* x, float shift, int64_t count);
void scale(float* x, float factor, int64_t count);
// The sum of squares, in double.
double sum_squares(const float* x, int64_t count);

} // namespace coxswain::kernels
