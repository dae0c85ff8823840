// Activations, rotary positions and dropout: each element from its own inputs.
#include "device.h"
#include "draws.h"

namespace coxswain::cuda {
namespace {

constexpr unsigned kThreads = 256;

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + exp_fast(-x)); }

// An activation's value and derivative, as in ../cpp/kernels.cpp.
struct At {
  float value, slope;
};

struct Relu {
  static __device__ __forceinline__ At at(float x) { return {x > 0.f ? x : 0.f, x > 0.f ? 1.f : 0.f}; }
};

// The cumulative normal distribution by a fit of the complementary error function whose relative error is at most
// 1.2e-7 everywhere (W. H. Press and others, Numerical Recipes, section 6.2).
__device__ __forceinline__ float normal_sum(float x) {
  const float z = fabsf(x) * 0.70710678118654752f, t = 1.f / (1.f + 0.5f * z);
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
  static __device__ __forceinline__ At at(float x) {
    const float sum = normal_sum(x);
    return {x * sum, sum + x * 0.39894228040143268f * exp_fast(-0.5f * x * x)};
  }
};

// x (1 + tanh(u)) / 2 is x sigmoid(2 u).
struct GeluTanh {
  static __device__ __forceinline__ At at(float x) {
    constexpr float root = 1.5957691216057308f, cubic = 0.044715f;
    const float s = sigmoid(root * x * (1.f + cubic * x * x));
    return {x * s, s + x * s * (1.f - s) * root * (1.f + 3.f * cubic * x * x)};
  }
};

struct Silu {
  static __device__ __forceinline__ At at(float x) {
    const float s = sigmoid(x);
    return {x * s, s * (1.f + x * (1.f - s))};
  }
};

struct Tanh {
  static __device__ __forceinline__ At at(float x) {
    const float y = 2.f * sigmoid(2.f * x) - 1.f;
    return {y, 1.f - y * y};
  }
};

// In the order of kernels::Activation.
template <class F>
Error by_activation(int by, F&& body) {
  switch (by) {
    case 0: return body(Relu{});
    case 1: return body(Gelu{});
    case 2: return body(GeluTanh{});
    case 3: return body(Silu{});
    case 4: return body(Tanh{});
    default: return "unknown activation";
  }
}

// Calls body(i, left) for elements i..i + N of `count`.
template <int N, class F>
__device__ __forceinline__ void for_elements(int64_t count, F&& body) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x * N;
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N; i < count; i += stride) body(i, count - i);
}

template <class A, class T>
__global__ void __launch_bounds__(kThreads) activate_all(const T* a, const T* b, int64_t count, bool vector, T* y) {
  constexpr int N = kWidth<T>;
  for_elements<N>(count, [&](int64_t i, int64_t left) {
    float v[N];
    load<N>(a + i, left, vector, v);
    if (b == nullptr) {
      for (int k = 0; k < N; ++k) v[k] = A::at(v[k]).value;
    } else {
      float gate[N];
      load<N>(b + i, left, vector, gate);
      for (int k = 0; k < N; ++k) v[k] = A::at(v[k]).value * gate[k];
    }
    store<N>(v, left, vector, y + i);
  });
}

template <class A, class T>
__global__ void __launch_bounds__(kThreads) activate_grad_all(
    const T* dy, const T* a, const T* b, int64_t count, bool vector, T* da, T* db) {
  constexpr int N = kWidth<T>;
  for_elements<N>(count, [&](int64_t i, int64_t left) {
    float d[N], v[N];
    load<N>(dy + i, left, vector, d);
    load<N>(a + i, left, vector, v);
    if (b == nullptr) {
      for (int k = 0; k < N; ++k) d[k] *= A::at(v[k]).slope;
    } else {
      float gate[N];
      load<N>(b + i, left, vector, gate);
      for (int k = 0; k < N; ++k) {
        const At at = A::at(v[k]);
        v[k] = d[k] * at.value;
        d[k] = d[k] * gate[k] * at.slope;
      }
      store<N>(v, left, vector, db + i);
    }
    store<N>(d, left, vector, da + i);
  });
}

// A block takes the tokens one by one, so that a token's position costs one division.
template <class T>
__global__ void __launch_bounds__(kThreads) rotate(
    const T* x, const float* cos, const float* sin, float sign, int64_t rows, int64_t tokens, unsigned heads,
    unsigned half, bool vector, T* y) {
  constexpr int N = kWidth<T>;
  const unsigned chunks = (half + N - 1) / N;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t position = row % tokens * half, at = row * heads * half * 2;
    for (unsigned j = threadIdx.x; j < heads * chunks; j += blockDim.x) {
      const unsigned head = j / chunks, i = j % chunks * N;
      const int64_t left = half - i, first = at + int64_t{head} * half * 2 + i, second = first + half;
      float a[N], b[N], c[N], s[N];
      load<N>(x + first, left, vector, a);
      load<N>(x + second, left, vector, b);
      load<N>(cos + position + i, left, vector, c);
      load<N>(sin + position + i, left, vector, s);
      for (int k = 0; k < N; ++k) {
        const float turn = sign * s[k], of_a = a[k];
        a[k] = of_a * c[k] - b[k] * turn;
        b[k] = b[k] * c[k] + of_a * turn;
      }
      store<N>(a, left, vector, y + first);
      store<N>(b, left, vector, y + second);
    }
  }
}

// Tiles of one run each, so that an element's run costs one division a block.
template <class T>
__global__ void __launch_bounds__(kThreads) drop_runs(
    const T* x, Drop drop, int64_t batch, int64_t run, uint64_t stride, uint64_t first, bool vector, T* y) {
  constexpr int N = kWidth<T>;
  const int64_t tile = int64_t{blockDim.x} * N, tiles = (run + tile - 1) / tile;
  for (int64_t block = blockIdx.x; block < batch * tiles; block += gridDim.x) {
    const int64_t b = block / tiles, j = block % tiles * tile + int64_t{threadIdx.x} * N, left = run - j;
    if (left <= 0) continue;
    float v[N];
    load<N>(x + b * run + j, left, vector, v);
    const uint64_t index = static_cast<uint64_t>(b) * stride + first + static_cast<uint64_t>(j);
    random::Salt salt = random::salt(drop.key, static_cast<uint32_t>(index >> 32));
    for (int k = 0; k < N; ++k) {
      const auto lower = static_cast<uint32_t>(index + k);
      if (k > 0 && lower == 0) salt = random::salt(drop.key, static_cast<uint32_t>((index + k) >> 32));
      v[k] = random::draw(salt, lower) < drop.threshold ? 0.f : v[k] * drop.scale;
    }
    store<N>(v, left, vector, y + b * run + j);
  }
}

} // namespace

Error activate(int by, Kind kind, const void* a, const void* b, int64_t count, void* y) {
  if (count == 0) return nullptr;
  return by_kind(kind, [&](auto zero) {
    using T = decltype(zero);
    return by_activation(by, [&](auto activation) {
      return simt::launch(activate_all<decltype(activation), T>, grid_of(divide_up(count, kThreads * kWidth<T>)),
                          dim3(kThreads), kStream, static_cast<const T*>(a), static_cast<const T*>(b), count,
                          aligned(a, b, y), static_cast<T*>(y));
    });
  });
}

Error activate_grad(
    int by, Kind kind, const void* dy, const void* a, const void* b, int64_t count, void* da, void* db) {
  if (count == 0) return nullptr;
  return by_kind(kind, [&](auto zero) {
    using T = decltype(zero);
    return by_activation(by, [&](auto activation) {
      return simt::launch(activate_grad_all<decltype(activation), T>, grid_of(divide_up(count, kThreads * kWidth<T>)),
                          dim3(kThreads), kStream, static_cast<const T*>(dy), static_cast<const T*>(a),
                          static_cast<const T*>(b), count, aligned(dy, a, b, da, db), static_cast<T*>(da),
                          static_cast<T*>(db));
    });
  });
}

Error rope(
    Kind kind, const void* x, const float* cos, const float* sin, float sign, int64_t batch, int64_t tokens,
    int64_t heads, int64_t half, void* y) {
  if (batch == 0 || tokens == 0 || heads == 0 || half == 0) return nullptr;
  if (heads > 0x7fffffff / half) return "a token's heads have more than 2^31 pairs";
  return by_kind(kind, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = kWidth<T>;
    return simt::launch(rotate<T>, grid_of(batch * tokens), dim3(threads_of(heads * divide_up(half, N), kThreads)),
                        kStream, static_cast<const T*>(x), cos, sin, sign, batch * tokens, tokens, heads, half,
                        half % N == 0 && aligned(x, cos, sin, y), static_cast<T*>(y));
  });
}

Error drop(
    Kind kind, const void* x, Drop drop, int64_t batch, int64_t run, uint64_t stride, uint64_t first, void* y) {
  if (batch == 0 || run == 0) return nullptr;
  return by_kind(kind, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = kWidth<T>;
    const unsigned threads = threads_of(divide_up(run, N), kThreads);
    return simt::launch(drop_runs<T>, grid_of(batch * divide_up(run, int64_t{threads} * N)), dim3(threads), kStream,
                        static_cast<const T*>(x), drop, batch, run, stride, first, run % N == 0 && aligned(x, y),
                        static_cast<T*>(y));
  });
}

} // namespace coxswain::cuda
