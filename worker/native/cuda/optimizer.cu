// Squared norms of gradients.
#include "device.h"

namespace coxswain::cuda {
namespace {

// The order is not the CPU's, of 32 sums that one warp would have to add element after element: with that, a block of
// 65536 takes longer than its memory, and most tensors have fewer blocks than a GPU has multiprocessors.
template <bool kVector>
__global__ void __launch_bounds__(kMostThreads) squares_of_blocks(
    const float* x, int64_t count, int64_t size, double* sums) {
  constexpr int N = 4;
  const int64_t blocks = (count + size - 1) / size;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const float* from = x + block * size;
    const int64_t here = count - block * size < size ? count - block * size : size;
    double sum = 0.0;
    const auto add = [&](int64_t i, int64_t left) {
      float v[N];
      load<N>(from + i, left, kVector, v);
      for (int k = 0; k < N; ++k) sum += static_cast<double>(v[k]) * static_cast<double>(v[k]);
    };
    if (here % N == 0)
      for_columns<N, true, 4>(here, blockDim.x, add);
    else
      for_columns<N, false, 4>(here, blockDim.x, add);
    sum = sum_of(sum, blockDim.x);
    if (threadIdx.x == 0) sums[block] = sum;
  }
}

} // namespace

Error sum_squares(const float* x, int64_t count, int64_t block, double* sums) {
  if (count == 0) return nullptr;
  if (block <= 0) return "a block of no elements";
  return by_flag(block % 4 == 0 && aligned(x), [&](auto vector) {
    return simt::launch(squares_of_blocks<vector.value>, grid_of(divide_up(count, block)), dim3(kMostThreads), kStream,
                        x, count, block, sums);
  });
}

} // namespace coxswain::cuda
