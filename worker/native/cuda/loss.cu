// Cross-entropy over a shard of the vocabulary. A block takes a row of logits.
#include "device.h"

namespace coxswain::cuda {
namespace {

// A row's target among the columns of a shard, negative where another shard has it.
__device__ __forceinline__ int64_t column_of(int64_t target, int64_t start, int64_t columns) {
  return target >= start && target < start + columns ? target - start : -1;
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kMostThreads) maxima_of_rows(
    const T* logits, int64_t rows, int64_t columns, float* largest) {
  constexpr int N = kWidth<T>;
  const auto larger = [](float a, float b) { return b > a ? b : a; }; // passes by a NaN in b
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    float most = -INFINITY;
    for_columns<N, kVector, 4>(columns, blockDim.x, [&](int64_t i, int64_t left) {
      float v[N];
      load<N>(logits + row * columns + i, left, kVector, v);
      for (int k = 0; k < N; ++k)
        if (k < left) most = larger(most, v[k]);
    });
    most = combined(most, blockDim.x, larger);
    if (threadIdx.x == 0) largest[row] = most;
  }
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kMostThreads) sums_of_rows(
    const T* logits, int64_t rows, int64_t columns, int64_t start, const int64_t* targets, const float* largest,
    float* parts) {
  constexpr int N = kWidth<T>;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const float shift = largest[row];
    float sum = 0.f;
    for_columns<N, kVector, 4>(columns, blockDim.x, [&](int64_t i, int64_t left) {
      float v[N];
      load<N>(logits + row * columns + i, left, kVector, v);
      for (int k = 0; k < N; ++k)
        if (k < left) sum += exp_fast(v[k] - shift);
    });
    sum = sum_of(sum, blockDim.x);
    if (threadIdx.x != 0) continue;
    const int64_t target = column_of(targets[row], start, columns);
    parts[row] = sum;
    parts[rows + row] = target >= 0 ? up(logits[row * columns + target]) - shift : 0.f;
  }
}

__global__ void __launch_bounds__(kMostThreads) losses_of_rows(
    const float* parts, const int64_t* targets, const float* weights, int64_t rows, double* losses) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; row < rows; row += stride) {
    const double weight = weights == nullptr ? 1.0 : static_cast<double>(weights[row]);
    const double loss = log(static_cast<double>(parts[row])) - static_cast<double>(parts[rows + row]);
    losses[row] = targets[row] < 0 ? 0.0 : weight * loss;
  }
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kMostThreads) grads_of_rows(
    T* logits, int64_t rows, int64_t columns, int64_t start, const int64_t* targets, const float* weights,
    const float* largest, const float* sums, const double* factor) {
  constexpr int N = kWidth<T>;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    T* x = logits + row * columns;
    if (targets[row] < 0) {
      // A product with zero would keep a NaN.
      for_columns<N, kVector>(columns, blockDim.x, [&](int64_t i, int64_t left) {
        const float zeros[N] = {};
        store<N>(zeros, left, kVector, x + i);
      });
      continue;
    }
    const float weight = static_cast<float>(*factor) * (weights == nullptr ? 1.f : weights[row]);
    const float shift = largest[row], share = weight / sums[row];
    const int64_t target = column_of(targets[row], start, columns);
    for_columns<N, kVector>(columns, blockDim.x, [&](int64_t i, int64_t left) {
      float v[N];
      load<N>(x + i, left, kVector, v);
      for (int k = 0; k < N; ++k) {
        v[k] = exp_fast(v[k] - shift) * share;
        if (i + k == target) v[k] -= weight; // before the rounding to 16 bits
      }
      store<N>(v, left, kVector, x + i);
    });
  }
}

// Calls body(zero, vector, threads).
template <class F>
Error by_logits(Kind kind, const void* logits, int64_t columns, F&& body) {
  return by_kind(kind, [&](auto zero) {
    constexpr int width = kWidth<decltype(zero)>;
    return by_flag(columns % width == 0 && aligned(logits),
                   [&](auto vector) { return body(zero, vector, dim3(threads_of(divide_up(columns, width)))); });
  });
}

} // namespace

Error row_maxima(Kind kind, const void* logits, int64_t rows, int64_t columns, float* largest) {
  if (rows == 0) return nullptr;
  return by_logits(kind, logits, columns, [&](auto zero, auto vector, dim3 threads) {
    using T = decltype(zero);
    return simt::launch(maxima_of_rows<T, vector.value>, grid_of(rows), threads, kStream,
                        static_cast<const T*>(logits), rows, columns, largest);
  });
}

Error row_sums(
    Kind kind, const void* logits, int64_t rows, int64_t columns, int64_t start, const int64_t* targets,
    const float* largest, float* parts) {
  if (rows == 0) return nullptr;
  return by_logits(kind, logits, columns, [&](auto zero, auto vector, dim3 threads) {
    using T = decltype(zero);
    return simt::launch(sums_of_rows<T, vector.value>, grid_of(rows), threads, kStream, static_cast<const T*>(logits),
                        rows, columns, start, targets, largest, parts);
  });
}

Error row_losses(const float* parts, const int64_t* targets, const float* weights, int64_t rows, double* losses) {
  if (rows == 0) return nullptr;
  return simt::launch(losses_of_rows, grid_of(divide_up(rows, kMostThreads)), dim3(kMostThreads), kStream, parts,
                      targets, weights, rows, losses);
}

Error logits_grad(
    Kind kind, void* logits, int64_t rows, int64_t columns, int64_t start, const int64_t* targets, const float* weights,
    const float* largest, const float* sums, const double* factor) {
  if (rows == 0 || columns == 0) return nullptr;
  return by_logits(kind, logits, columns, [&](auto zero, auto vector, dim3 threads) {
    using T = decltype(zero);
    return simt::launch(grads_of_rows<T, vector.value>, grid_of(rows), threads, kStream, static_cast<T*>(logits), rows,
                        columns, start, targets, weights, largest, sums, factor);
  });
}

} // namespace coxswain::cuda
