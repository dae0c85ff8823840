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
INLINE void swiglu_of(const T* a, const T* b, int64_t count, T* y) {
  for (int64_t i = 0; i < count; ++i) down(up(a[i]) * sigmoid(up(a[i])) * up(b[i]), y[i]);
}

template <class T>
INLINE void swiglu_grad_of(const T* dy, const T* a, const T* b, int64_t count, T* da, T* db) {
  for (int64_t i = 0; i < count; ++i) {
    const float d = up(dy[i]), x = up(a[i]), s = sigmoid(x);
    down(d * up(b[i]) * s * (1.f + x * (1.f - s)), da[i]);
    down(d * x * s, db[i]);
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
  CLONES void swiglu(const T* a, const T* b, int64_t count, T* y) { swiglu_of(a, b, count, y); }                    \
  CLONES void swiglu_grad(const T* dy, const T* a, const T* b, int64_t count, T* da, T* db) {                       \
    swiglu_grad_of(dy, a, b, count, da, db);                                                                        \
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
