#pragma once
// What the kernels share: elements in and out of fp32, vector loads and stores, sums over the threads of a row, and how
// a launch is laid out. The formulas are those of ../cpp/kernels.cpp, operation by operation.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "simt.h"

namespace coxswain::cuda {

using Bf16 = __nv_bfloat16;
using Fp16 = __half;

constexpr cudaStream_t kStream = nullptr; // the default stream
constexpr unsigned kWarp = 32, kMostThreads = 256;

__device__ __forceinline__ float up(float x) { return x; }
__device__ __forceinline__ float up(Bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float up(Fp16 x) { return __half2float(x); }

// To the nearest, ties to even; a NaN stays one.
__device__ __forceinline__ void down(float x, float& to) { to = x; }
__device__ __forceinline__ void down(float x, Bf16& to) { to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void down(float x, Fp16& to) { to = __float2half_rn(x); }

// The elements of 16 bytes, which a thread takes at a time.
template <class T>
constexpr int kWidth = 16 / static_cast<int>(sizeof(T));

// Bytes as the widest loads and stores take them.
template <size_t kBytes>
struct alignas(kBytes < 16 ? kBytes : 16) Words {
  static_assert(kBytes == 8 || kBytes % 16 == 0);
  using Word = std::conditional_t<kBytes == 8, uint2, uint4>;
  Word at[kBytes / sizeof(Word)];
};

// `to` becomes from[0..N], with zeros from `left` on. A vector load is taken if `vector` says that `from` is aligned.
template <int N, class T>
__device__ __forceinline__ void load(const T* from, int64_t left, bool vector, float (&to)[N]) {
  if (vector && left >= N) {
    using Loaded = Words<N * sizeof(T)>;
    Loaded words;
    T raw[N];
#ifdef __CUDACC__
    for (size_t i = 0; i < sizeof words.at / sizeof words.at[0]; ++i)
      words.at[i] = reinterpret_cast<const typename Loaded::Word*>(from)[i];
#else
    std::memcpy(&words, from, sizeof words);
#endif
    std::memcpy(static_cast<void*>(raw), &words, sizeof raw);
    for (int i = 0; i < N; ++i) to[i] = up(raw[i]);
  } else {
    for (int i = 0; i < N; ++i) to[i] = i < left ? up(from[i]) : 0.f;
  }
}

// The 4 bytes that the element, or the two elements, from `from` on become.
__device__ __forceinline__ uint32_t packed(const float* from, float) {
  uint32_t bits;
  memcpy(&bits, from, sizeof bits);
  return bits;
}
__device__ __forceinline__ uint32_t packed(const float* from, Bf16) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(from[0], from[1]);
  uint32_t bits;
  memcpy(&bits, &two, sizeof bits);
  return bits;
}
__device__ __forceinline__ uint32_t packed(const float* from, Fp16) {
  const __half2 two = __floats2half2_rn(from[0], from[1]);
  uint32_t bits;
  memcpy(&bits, &two, sizeof bits);
  return bits;
}

// to[0..N] becomes `from`, up to `left`.
template <int N, class T>
__device__ __forceinline__ void store(const float (&from)[N], int64_t left, bool vector, T* to) {
  if (vector && left >= N) {
    constexpr int kBytes = N * static_cast<int>(sizeof(T)), kEach = 4 / static_cast<int>(sizeof(T));
    uint32_t words[kBytes / 4];
    for (int i = 0; i < kBytes / 4; ++i) words[i] = packed(from + i * kEach, T{});
#ifdef __CUDACC__
    // Intrinsics, since the compiler makes several stores of an assignment.
    if constexpr (kBytes == 8)
      __stwb(reinterpret_cast<uint2*>(to), make_uint2(words[0], words[1]));
    else
      for (int i = 0; i < kBytes / 16; ++i)
        __stwb(reinterpret_cast<uint4*>(to) + i,
               make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]));
#else
    std::memcpy(static_cast<void*>(to), words, sizeof words);
#endif
  } else {
    for (int i = 0; i < N; ++i)
      if (i < left) down(from[i], to[i]);
  }
}

// e^x as exp_fast of ../cpp/kernels.cpp has it, in the same bits. Conversions run at an eighth of the rate of
// additions, so floor is made of these: adding and subtracting 1.5 * 2^23 rounds to an integer, whose low bits the sum
// holds.
__device__ __forceinline__ float exp_fast(float x) {
  constexpr float log2e = 1.44269504088896341f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  constexpr float shift = 12582912.f;
  const float bounded = x > 88.f ? 88.f : (x < -87.f ? -87.f : x);
  const float v = bounded * log2e + 0.5f;
  const float nearest = (v + shift) - shift;
  const float n = nearest > v ? nearest - 1.f : nearest;
  const float r = (bounded - n * ln2_high) - n * ln2_low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  const float held = n + shift;
  uint32_t bits;
  memcpy(&bits, &held, sizeof bits);
  bits = (bits + 127u) << 23; // the shift's own bits are above the lowest nine, and leave
  float power;
  memcpy(&power, &bits, sizeof power);
  return x < -87.f ? 0.f : p * power;
}

// A value of every thread, combined over the `team` threads of a row (a power of two of at least a warp): within a
// warp by halves, then the warps in order. All threads of the block come here; thread 0 of each team has the result,
// and where `combine` is commutative, so do all.
template <class T, class Combine>
__device__ __forceinline__ T combined(T x, unsigned team, Combine&& combine) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x = combine(x, __shfl_xor_sync(~0u, x, mask));
  if (team == kWarp) return x;
  SHARED T warps[kMostThreads / kWarp];
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  const unsigned first = threadIdx.x / team * team / kWarp;
  T all = warps[first];
  for (unsigned i = 1; i < team / kWarp; ++i) all = combine(all, warps[first + i]);
  __syncthreads(); // before the next call writes
  return all;
}
template <class T>
__device__ __forceinline__ T sum_of(T x, unsigned team) {
  return combined(x, team, [](T a, T b) { return a + b; });
}

// Calls body(row, columns) for the rows of this thread's team. All threads of a block make the same number of calls;
// where rows have run out, `columns` is 0.
template <class F>
__device__ __forceinline__ void for_rows(int64_t rows, int64_t columns, unsigned team, F&& body) {
  const int64_t at_once = blockDim.x / team;
  for (int64_t first = blockIdx.x * at_once; first < rows; first += gridDim.x * at_once) {
    const int64_t row = first + threadIdx.x / team;
    body(row, row < rows ? columns : 0);
  }
}
// Calls body(i, left) for this thread's elements i..i + N of its team's row, of which `left` are in the row. Where rows
// are multiples of N, `left` is the constant N, which leaves vector loads without a branch and free to go ahead: long
// rows take kAhead at once.
template <int N, bool kWhole, int kAhead = 1, class F>
__device__ __forceinline__ void for_columns(int64_t columns, unsigned team, F&& body) {
  UNROLL(kAhead)
  for (int64_t i = int64_t{threadIdx.x % team} * N; i < columns; i += int64_t{team} * N)
    body(i, kWhole ? int64_t{N} : columns - i);
}
__device__ __forceinline__ bool leads(unsigned team) { return threadIdx.x % team == 0; }

// On the host: how rows are given to blocks.
inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Kernels go on to further blocks' work where the grid is cut.
inline dim3 grid_of(int64_t blocks) { return dim3(static_cast<unsigned>(blocks < 0x7fffffff ? blocks : 0x7fffffff)); }

// A power of two, of at most `most`, with a thread for each of `count` if there are enough.
inline unsigned threads_of(int64_t count, unsigned most = kMostThreads) {
  unsigned threads = kWarp;
  while (threads < most && threads < count) threads *= 2;
  return threads;
}

// Small teams share a block: an SM holds few blocks.
struct Layout {
  unsigned team, threads;
  dim3 grid;

  Layout(int64_t rows, int64_t columns, int width)
      : team(threads_of(divide_up(columns, width))), threads(team < 128 ? 128 : team),
        grid(grid_of(divide_up(rows, threads / team))) {}
};

template <class... P>
bool aligned(const P*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// Calls body with a value of the element type, or with a constant for the flag.
template <class F>
Error by_kind(Kind kind, F&& body) {
  switch (kind) {
    case Kind::Fp32: return body(float{});
    case Kind::Bf16: return body(Bf16{});
    case Kind::Fp16: return body(Fp16{});
  }
  return "unknown kind of element";
}
template <class F>
Error by_flag(bool flag, F&& body) {
  return flag ? body(std::true_type{}) : body(std::false_type{});
}

} // namespace coxswain::cuda
