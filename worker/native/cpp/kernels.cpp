#include "kernels.h"

#include <cmath>
#include <cstring>
#include <limits>

// One body, compiled for each instruction set and chosen by the processor when the program loads.
#if defined(__x86_64__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

// Helpers must become part of each clone: a call would go to a version for the oldest processor.
#define INLINE inline __attribute__((always_inline))

namespace coxswain::kernels {
namespace {

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

} // namespace

CLONES void rms_norm_rows(
    const float* x, const float* w, float eps, int64_t rows, int64_t dim, float* y, float* rstd) {
  for (int64_t row = 0; row < rows; ++row, x += dim, y += dim) {
    const float squares = lane_sum<float>(dim, [x](int64_t i) { return x[i] * x[i]; });
    const float r = 1.f / std::sqrt(squares / static_cast<float>(dim) + eps);
    rstd[row] = r;
    for (int64_t i = 0; i < dim; ++i) y[i] = x[i] * r * w[i];
  }
}

CLONES void rms_norm_grad_rows(
    const float* dy, const float* x, const float* w, const float* rstd, int64_t rows, int64_t dim, float* dx) {
  for (int64_t row = 0; row < rows; ++row, dy += dim, x += dim, dx += dim) {
    const float r = rstd[row];
    const float dot = lane_sum<float>(dim, [=](int64_t i) { return dy[i] * w[i] * x[i]; });
    const float along = dot * r * r / static_cast<float>(dim);
    for (int64_t i = 0; i < dim; ++i) dx[i] = r * (dy[i] * w[i] - x[i] * along);
  }
}

CLONES void rms_norm_weight_grad(
    const float* dy, const float* x, const float* rstd, int64_t rows, int64_t dim, int64_t first, int64_t last,
    float* dw) {
  for (int64_t i = first; i < last; ++i) dw[i] = 0.f;
  for (int64_t row = 0; row < rows; ++row, dy += dim, x += dim) {
    const float r = rstd[row];
    for (int64_t i = first; i < last; ++i) dw[i] += dy[i] * x[i] * r;
  }
}

CLONES void rope_heads(
    const float* x, const float* cos, const float* sin, float sign, int64_t heads, int64_t half, float* y) {
  for (int64_t head = 0; head < heads; ++head, x += 2 * half, y += 2 * half) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half], s = sign * sin[i];
      y[i] = a * cos[i] - b * s;
      y[i + half] = b * cos[i] + a * s;
    }
  }
}

CLONES void swiglu(const float* a, const float* b, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = a[i] * sigmoid(a[i]) * b[i];
}

CLONES void swiglu_grad(const float* dy, const float* a, const float* b, int64_t count, float* da, float* db) {
  for (int64_t i = 0; i < count; ++i) {
    const float s = sigmoid(a[i]);
    da[i] = dy[i] * b[i] * s * (1.f + a[i] * (1.f - s));
    db[i] = dy[i] * a[i] * s;
  }
}

CLONES float max_of(const float* x, int64_t count) {
  // Comparisons pass a NaN by; it shows in the sum of exponentials, and so in the loss.
  float lanes[kLanes];
  for (float& lane : lanes) lane = -std::numeric_limits<float>::infinity();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
  for (int64_t lane = 0; i + lane < count; ++lane) lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
  for (int64_t lane = 1; lane < kLanes; ++lane) lanes[0] = lanes[lane] > lanes[0] ? lanes[lane] : lanes[0];
  return lanes[0];
}

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
