#include "kernels.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "clones.h"

namespace coxswain::kernels {
namespace {

using c10::BFloat16;
using c10::Half;

template <class To, class From>
INLINE To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// From and to fp32. Those of bf16 are spelled out so that they become vector instructions; rounding is
// to the nearest, ties to even. Those of fp16 are libtorch's, and slow: its matrix products are too.
INLINE float up(float x) { return x; }
INLINE float up(Half x) { return static_cast<float>(x); }
INLINE float up(BFloat16 x) { return bits_of<float>(static_cast<uint32_t>(x.x) << 16); }

INLINE void down(float x, float& to) { to = x; }
INLINE void down(float x, Half& to) { to = Half(x); }
INLINE void down(float x, BFloat16& to) {
  const uint32_t bits = bits_of<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  // Rounding could carry a NaN over into infinity.
  to.x = static_cast<uint16_t>(x != x ? 0x7fc0 : rounded);
}

// Sums are kept in this many lanes and then halved into one: the compiler makes vectors of them,
// and the order is the same on every machine.
constexpr int64_t kLanes = 32;

template <class T>
INLINE T fold(T* lanes) {
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

template <class T, class F>
INLINE T lane_sum(int64_t count, F&& term) {
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  for (int64_t lane = 0; i + lane < count; ++lane) lanes[lane] += term(i + lane);
  return fold(lanes);
}

// e^x to about one unit in the last place: x = n ln 2 + r, a polynomial of degree 6 in r (the
// coefficients of Cephes' expf), and n into the exponent. Below the smallest normal it is zero.
INLINE float exp_fast(float x) {
  constexpr float log2e = 1.44269504088896341f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  const float bounded = x > 88.f ? 88.f : (x < -87.f ? -87.f : x);
  const float n = std::floor(bounded * log2e + 0.5f);
  const float r = (bounded - n * ln2_high) - n * ln2_low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.f ? 0.f : p * power;
}

INLINE float sigmoid(float x) { return 1.f / (1.f + exp_fast(-x)); }

// The bodies, for every element type T.

template <class T>
INLINE void rms_norm_rows_of(
    const T* x, const float* w, float eps, int64_t rows, int64_t dim, T* y, float* rstd) {
  for (int64_t row = 0; row < rows; ++row, x += dim, y += dim) {
    const float squares = lane_sum<float>(dim, [x](int64_t i) { return up(x[i]) * up(x[i]); });
    const float r = 1.f / std::sqrt(squares / static_cast<float>(dim) + eps);
    rstd[row] = r;
    for (int64_t i = 0; i < dim; ++i) down(up(x[i]) * r * w[i], y[i]);
  }
}

template <class T>
INLINE void rms_norm_grad_rows_of(
    const T* dy, const T* x, const float* w, const float* rstd, int64_t rows, int64_t dim, T* dx) {
  for (int64_t row = 0; row < rows; ++row, dy += dim, x += dim, dx += dim) {
    const float r = rstd[row];
    const float dot = lane_sum<float>(dim, [=](int64_t i) { return up(dy[i]) * w[i] * up(x[i]); });
    const float along = dot * r * r / static_cast<float>(dim);
    for (int64_t i = 0; i < dim; ++i) down(r * (up(dy[i]) * w[i] - up(x[i]) * along), dx[i]);
  }
}

template <class T>
INLINE void rms_norm_weight_grad_of(
    const T* dy, const T* x, const float* rstd, int64_t rows, int64_t dim, int64_t first, int64_t last, float* dw) {
  for (int64_t row = 0; row < rows; ++row, dy += dim, x += dim) {
    const float r = rstd[row];
    for (int64_t i = first; i < last; ++i) dw[i] += up(dy[i]) * up(x[i]) * r;
  }
}

template <class T>
INLINE void rope_heads_of(
    const T* x, const float* cos, const float* sin, float sign, int64_t heads, int64_t half, T* y) {
  for (int64_t head = 0; head < heads; ++head, x += 2 * half, y += 2 * half) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = up(x[i]), b = up(x[i + half]), s = sign * sin[i];
      down(a * cos[i] - b * s, y[i]);
      down(b * cos[i] + a * s, y[i + half]);
    }
  }
}

template <class T>
INLINE void layer_norm_rows_of(
    const T* x, const float* w, const float* b, float eps, int64_t rows, int64_t dim, T* y, float* mean, float* rstd) {
  for (int64_t row = 0; row < rows; ++row, x += dim, y += dim) {
    const float m = lane_sum<float>(dim, [x](int64_t i) { return up(x[i]); }) / static_cast<float>(dim);
    const float squares = lane_sum<float>(dim, [=](int64_t i) { return (up(x[i]) - m) * (up(x[i]) - m); });
    const float r = 1.f / std::sqrt(squares / static_cast<float>(dim) + eps);
    mean[row] = m;
    rstd[row] = r;
    for (int64_t i = 0; i < dim; ++i) down((up(x[i]) - m) * r * w[i] + b[i], y[i]);
  }
}

template <class T>
INLINE void layer_norm_grad_rows_of(
    const T* dy, const T* x, const float* w, const float* mean, const float* rstd, int64_t rows, int64_t dim, T* dx) {
  for (int64_t row = 0; row < rows; ++row, dy += dim, x += dim, dx += dim) {
    const float r = rstd[row], m = mean[row], share = 1.f / static_cast<float>(dim);
    const float flat = lane_sum<float>(dim, [=](int64_t i) { return up(dy[i]) * w[i]; }) * share;
    const float along = lane_sum<float>(dim, [=](int64_t i) { return up(dy[i]) * w[i] * (up(x[i]) - m); }) * r * r * share;
    for (int64_t i = 0; i < dim; ++i) down(r * (up(dy[i]) * w[i] - flat - (up(x[i]) - m) * along), dx[i]);
  }
}

template <class T>
INLINE void layer_norm_weight_grad_of(
    const T* dy, const T* x, const float* mean, const float* rstd, int64_t rows, int64_t dim, int64_t first,
    int64_t last, float* dw) {
  for (int64_t row = 0; row < rows; ++row, dy += dim, x += dim) {
    const float r = rstd[row], m = mean[row];
    for (int64_t i = first; i < last; ++i) dw[i] += up(dy[i]) * (up(x[i]) - m) * r;
  }
}

template <class T>
INLINE void add_bias_of(const T* x, const float* b, int64_t rows, int64_t dim, T* y) {
  for (int64_t row = 0; row < rows; ++row, x += dim, y += dim)
    for (int64_t i = 0; i < dim; ++i) down(up(x[i]) + b[i], y[i]);
}

template <class T>
INLINE void bias_grad_of(const T* dy, int64_t rows, int64_t dim, int64_t first, int64_t last, float* db) {
  for (int64_t row = 0; row < rows; ++row, dy += dim)
    for (int64_t i = first; i < last; ++i) db[i] += up(dy[i]);
}

// Each gives its value and its derivative at x.
struct At {
  float value, slope;
};

struct Silu {
  static INLINE At at(float x) {
    const float s = sigmoid(x);
    return {x * s, s * (1.f + x * (1.f - s))};
  }
};

struct Relu {
  static INLINE At at(float x) { return {x > 0.f ? x : 0.f, x > 0.f ? 1.f : 0.f}; }
};

// The normal distribution's sum up to x, by a fit of the complementary error function whose relative
// error is at most 1.2e-7 everywhere (W. H. Press and others, Numerical Recipes, section 6.2).
INLINE float normal_sum(float x) {
  const float z = std::fabs(x) * 0.70710678118654752f, t = 1.f / (1.f + 0.5f * z);
  float p = 0.17087277f;
  p = p * t - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  const float half = 0.5f * t * exp_fast(p * t - 1.26551223f - z * z);
  return x < 0.f ? half : 1.f - half;
}

struct Gelu {
  static INLINE At at(float x) {
    const float sum = normal_sum(x);
    return {x * sum, sum + x * 0.39894228040143268f * exp_fast(-0.5f * x * x)};
  }
};

// x (1 + tanh(u)) / 2 is x sigmoid(2 u).
struct GeluTanh {
  static INLINE At at(float x) {
    constexpr float root = 1.5957691216057308f, cubic = 0.044715f;
    const float s = sigmoid(root * x * (1.f + cubic * x * x));
    return {x * s, s + x * s * (1.f - s) * root * (1.f + 3.f * cubic * x * x)};
  }
};

struct Tanh {
  static INLINE At at(float x) {
    const float y = 2.f * sigmoid(2.f * x) - 1.f;
    return {y, 1.f - y * y};
  }
};

template <class A, class T>
INLINE void activate_by(const T* a, const T* b, int64_t count, T* y) {
  if (b == nullptr) {
    for (int64_t i = 0; i < count; ++i) down(A::at(up(a[i])).value, y[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) down(A::at(up(a[i])).value * up(b[i]), y[i]);
  }
}

template <class A, class T>
INLINE void activate_grad_by(const T* dy, const T* a, const T* b, int64_t count, T* da, T* db) {
  if (b == nullptr) {
    for (int64_t i = 0; i < count; ++i) down(up(dy[i]) * A::at(up(a[i])).slope, da[i]);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const At at = A::at(up(a[i]));
    down(up(dy[i]) * up(b[i]) * at.slope, da[i]);
    down(up(dy[i]) * at.value, db[i]);
  }
}

template <class T>
INLINE void activate_of(Activation by, const T* a, const T* b, int64_t count, T* y) {
  switch (by) {
    case Activation::Relu: return activate_by<Relu>(a, b, count, y);
    case Activation::Gelu: return activate_by<Gelu>(a, b, count, y);
    case Activation::GeluTanh: return activate_by<GeluTanh>(a, b, count, y);
    case Activation::Silu: return activate_by<Silu>(a, b, count, y);
    case Activation::Tanh: return activate_by<Tanh>(a, b, count, y);
  }
}

template <class T>
INLINE void activate_grad_of(Activation by, const T* dy, const T* a, const T* b, int64_t count, T* da, T* db) {
  switch (by) {
    case Activation::Relu: return activate_grad_by<Relu>(dy, a, b, count, da, db);
    case Activation::Gelu: return activate_grad_by<Gelu>(dy, a, b, count, da, db);
    case Activation::GeluTanh: return activate_grad_by<GeluTanh>(dy, a, b, count, da, db);
    case Activation::Silu: return activate_grad_by<Silu>(dy, a, b, count, da, db);
    case Activation::Tanh: return activate_grad_by<Tanh>(dy, a, b, count, da, db);
  }
}

template <class T>
INLINE float max_of_all(const T* x, int64_t count) {
  // Comparisons pass a NaN by; it shows in the sum of exponentials, and so in the loss.
  float lanes[kLanes];
  for (float& lane : lanes) lane = -std::numeric_limits<float>::infinity();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane)
      lanes[lane] = up(x[i + lane]) > lanes[lane] ? up(x[i + lane]) : lanes[lane];
  for (int64_t lane = 0; i + lane < count; ++lane)
    lanes[lane] = up(x[i + lane]) > lanes[lane] ? up(x[i + lane]) : lanes[lane];
  for (int64_t lane = 1; lane < kLanes; ++lane) lanes[0] = lanes[lane] > lanes[0] ? lanes[lane] : lanes[0];
  return lanes[0];
}

template <class T>
INLINE float exp_sum_of(const T* x, float shift, int64_t count) {
  return lane_sum<float>(count, [=](int64_t i) { return exp_fast(up(x[i]) - shift); });
}

template <class T>
INLINE void exp_scale_of(T* x, float shift, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) down(exp_fast(up(x[i]) - shift) * factor, x[i]);
}

template <class T>
INLINE void add_of(const T* x, int64_t count, float* sum) {
  for (int64_t i = 0; i < count; ++i) sum[i] += up(x[i]);
}

} // namespace

// One function for each element type and instruction set.
#define COXSWAIN_KERNELS(T)                                                                                         \
  CLONES void rms_norm_rows(                                                                                        \
      const T* x, const float* w, float eps, int64_t rows, int64_t dim, T* y, float* rstd) {                        \
    rms_norm_rows_of(x, w, eps, rows, dim, y, rstd);                                                                \
  }                                                                                                                 \
  CLONES void rms_norm_grad_rows(                                                                                   \
      const T* dy, const T* x, const float* w, const float* rstd, int64_t rows, int64_t dim, T* dx) {               \
    rms_norm_grad_rows_of(dy, x, w, rstd, rows, dim, dx);                                                           \
  }                                                                                                                 \
  CLONES void rms_norm_weight_grad(                                                                                 \
      const T* dy, const T* x, const float* rstd, int64_t rows, int64_t dim, int64_t first, int64_t last,           \
      float* dw) {                                                                                                  \
    rms_norm_weight_grad_of(dy, x, rstd, rows, dim, first, last, dw);                                               \
  }                                                                                                                 \
  CLONES void rope_heads(                                                                                           \
      const T* x, const float* cos, const float* sin, float sign, int64_t heads, int64_t half, T* y) {              \
    rope_heads_of(x, cos, sin, sign, heads, half, y);                                                               \
  }                                                                                                                 \
  CLONES void layer_norm_rows(                                                                                      \
      const T* x, const float* w, const float* b, float eps, int64_t rows, int64_t dim, T* y, float* mean,          \
      float* rstd) {                                                                                                \
    layer_norm_rows_of(x, w, b, eps, rows, dim, y, mean, rstd);                                                     \
  }                                                                                                                 \
  CLONES void layer_norm_grad_rows(                                                                                 \
      const T* dy, const T* x, const float* w, const float* mean, const float* rstd, int64_t rows, int64_t dim,     \
      T* dx) {                                                                                                      \
    layer_norm_grad_rows_of(dy, x, w, mean, rstd, rows, dim, dx);                                                   \
  }                                                                                                                 \
  CLONES void layer_norm_weight_grad(                                                                               \
      const T* dy, const T* x, const float* mean, const float* rstd, int64_t rows, int64_t dim, int64_t first,      \
      int64_t last, float* dw) {                                                                                    \
    layer_norm_weight_grad_of(dy, x, mean, rstd, rows, dim, first, last, dw);                                       \
  }                                                                                                                 \
  CLONES void add_bias(const T* x, const float* b, int64_t rows, int64_t dim, T* y) {                               \
    add_bias_of(x, b, rows, dim, y);                                                                                \
  }                                                                                                                 \
  CLONES void bias_grad(const T* dy, int64_t rows, int64_t dim, int64_t first, int64_t last, float* db) {           \
    bias_grad_of(dy, rows, dim, first, last, db);                                                                   \
  }                                                                                                                 \
  CLONES void activate(Activation by, const T* a, const T* b, int64_t count, T* y) {                                \
    activate_of(by, a, b, count, y);                                                                                \
  }                                                                                                                 \
  CLONES void activate_grad(Activation by, const T* dy, const T* a, const T* b, int64_t count, T* da, T* db) {      \
    activate_grad_of(by, dy, a, b, count, da, db);                                                                  \
  }                                                                                                                 \
  CLONES float max_of(const T* x, int64_t count) { return max_of_all(x, count); }                                   \
  CLONES float exp_sum(const T* x, float shift, int64_t count) { return exp_sum_of(x, shift, count); }              \
  CLONES void exp_scale(T* x, float shift, float factor, int64_t count) { exp_scale_of(x, shift, factor, count); }  \
  CLONES void add(const T* x, int64_t count, float* sum) { add_of(x, count, sum); }

COXSWAIN_KERNELS(float)
COXSWAIN_KERNELS(BFloat16)
COXSWAIN_KERNELS(Half)

CLONES float exp_and_sum(float* x, float shift, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = exp_fast(x[i] - shift);
  return lane_sum<float>(count, [x](int64_t i) { return x[i]; });
}

CLONES void scale(float* x, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

CLONES double sum_squares(const float* x, int64_t count) {
  return lane_sum<double>(count, [x](int64_t i) { return static_cast<double>(x[i]) * static_cast<double>(x[i]); });
}

} // namespace coxswain::kernels
