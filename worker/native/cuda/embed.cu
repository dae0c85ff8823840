// Rows of tables by their numbers, and the tables' gradients.
#include "device.h"

namespace coxswain::cuda {
namespace {

template <class From, class To>
__global__ void __launch_bounds__(kMostThreads) embed_rows(
    const int64_t* ids, const From* table, int64_t start, int64_t vocab, int64_t rows, int64_t dim, unsigned team,
    bool vector, To* y) {
  constexpr int N = 8;
  for_rows(rows, dim, team, [&](int64_t row, int64_t columns) {
    const int64_t id = columns > 0 ? ids[row] - start : -1;
    const bool here = id >= 0 && id < vocab;
    for_columns<N, false>(columns, team, [&](int64_t i, int64_t left) {
      float v[N] = {};
      if (here) load<N>(table + id * dim + i, left, vector, v);
      store<N>(v, left, vector, y + row * dim + i);
    });
  });
}

// Where the values that equal sorted[from] end.
__device__ __forceinline__ int64_t end_of_run(const int64_t* sorted, int64_t from, int64_t count) {
  const int64_t value = sorted[from];
  int64_t inside = from, outside = from + 1;
  // Most runs are short: the distance doubles before it is halved.
  while (outside < count && sorted[outside] == value) {
    const int64_t step = outside - from;
    inside = outside;
    outside += 2 * step;
  }
  outside = outside < count ? outside : count;
  while (outside - inside > 1) {
    const int64_t middle = inside + (outside - inside) / 2;
    (sorted[middle] == value ? inside : outside) = middle;
  }
  return outside;
}

// A block takes a tile of columns and the rows of one id, where it stands at the first of them.
template <class T>
__global__ void __launch_bounds__(128) add_rows(
    const int64_t* sorted, const int64_t* order, const T* dy, int64_t start, int64_t vocab, int64_t rows, int64_t dim,
    bool vector, float* dw) {
  constexpr int N = 4, kAhead = 4; // rows whose loads are under way at once
  const int64_t tile = int64_t{blockDim.x} * N, tiles = (dim + tile - 1) / tile;
  for (int64_t block = blockIdx.x; block < rows * tiles; block += gridDim.x) {
    const int64_t from = block / tiles, i = block % tiles * tile + int64_t{threadIdx.x} * N, left = dim - i;
    const int64_t value = sorted[from], id = value - start;
    if (id < 0 || id >= vocab || left <= 0 || (from > 0 && sorted[from - 1] == value)) continue;
    const int64_t end = end_of_run(sorted, from, rows);
    float sum[N];
    load<N>(dw + id * dim + i, left, vector, sum);
    for (int64_t j = from; j < end; j += kAhead) {
      float d[kAhead][N] = {};
      for (int k = 0; k < kAhead; ++k)
        if (j + k < end) load<N>(dy + order[j + k] * dim + i, left, vector, d[k]);
      for (int k = 0; k < kAhead; ++k)
        for (int c = 0; c < N; ++c)
          if (j + k < end) sum[c] += d[k][c];
    }
    store<N>(sum, left, vector, dw + id * dim + i);
  }
}

// A thread takes a row of the table in one head and looks at every i: the tables are small.
__global__ void __launch_bounds__(kWarp) add_to_table(
    const int64_t* rows, const float* dy, int64_t heads, int64_t count, int64_t size, float* sum) {
  const int64_t tiles = (size + blockDim.x - 1) / blockDim.x;
  for (int64_t block = blockIdx.x; block < heads * tiles; block += gridDim.x) {
    const int64_t head = block / tiles, row = block % tiles * blockDim.x + threadIdx.x;
    float all = 0.f;
    UNROLL(8)
    for (int64_t i = 0; i < count; ++i) {
      const float more = all + dy[head * count + i];
      all = rows[i] == row ? more : all;
    }
    if (row < size) sum[row * heads + head] = all;
  }
}

} // namespace

Error embed(
    Kind from, Kind to, const int64_t* ids, const void* table, int64_t start, int64_t vocab, int64_t rows, int64_t dim,
    void* y) {
  if (rows == 0 || dim == 0) return nullptr;
  return by_kind(from, [&](auto from_zero) {
    return by_kind(to, [&](auto to_zero) {
      using From = decltype(from_zero);
      using To = decltype(to_zero);
      const Layout layout(rows, dim, 8);
      return simt::launch(embed_rows<From, To>, layout.grid, dim3(layout.threads), kStream, ids,
                          static_cast<const From*>(table), start, vocab, rows, dim, layout.team,
                          dim % 8 == 0 && aligned(table, y), static_cast<To*>(y));
    });
  });
}

Error embed_grad(
    Kind kind, const int64_t* sorted, const int64_t* order, const void* dy, int64_t start, int64_t vocab, int64_t rows,
    int64_t dim, float* dw) {
  if (rows == 0 || dim == 0) return nullptr;
  const unsigned threads = threads_of(divide_up(dim, 4), 128);
  return by_kind(kind, [&](auto zero) {
    using T = decltype(zero);
    return simt::launch(add_rows<T>, grid_of(rows * divide_up(dim, threads * 4)), dim3(threads), kStream, sorted, order,
                        static_cast<const T*>(dy), start, vocab, rows, dim, dim % 4 == 0 && aligned(dy, dw), dw);
  });
}

Error table_grad(
    const int64_t* rows, const float* dy, int64_t heads, int64_t count, int64_t size, float* sum) {
  if (heads == 0 || size == 0) return nullptr;
  return simt::launch(add_to_table, grid_of(heads * divide_up(size, kWarp)), dim3(kWarp), kStream, rows, dy, heads,
                      count, size, sum);
}

} // namespace coxswain::cuda
