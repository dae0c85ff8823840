// RMSNorm, LayerNorm and biases over rows, and the gradients of their vectors.
//
// A team of threads takes a row. The row is read again for the second pass rather than kept: by then it is in L1.
#include "device.h"

namespace coxswain::cuda {
namespace {

template <class T, bool kVector>
__global__ void __launch_bounds__(kMostThreads) rms_norm_rows(
    const T* x, const float* w, float eps, int64_t rows, int64_t dim, unsigned team, T* y, float* rstd) {
  constexpr int N = kWidth<T>;
  for_rows(rows, dim, team, [&](int64_t row, int64_t columns) {
    const T* x_row = x + row * dim;
    float squares = 0.f;
    for_columns<N, kVector>(columns, team, [&](int64_t i, int64_t left) {
      float v[N];
      load<N>(x_row + i, left, kVector, v);
      for (int k = 0; k < N; ++k) squares += v[k] * v[k];
    });
    const float r = 1.f / sqrtf(sum_of(squares, team) / static_cast<float>(dim) + eps);
    if (columns > 0 && leads(team)) rstd[row] = r;
    for_columns<N, kVector>(columns, team, [&](int64_t i, int64_t left) {
      float v[N], weight[N];
      load<N>(x_row + i, left, kVector, v);
      load<N>(w + i, left, kVector, weight);
      for (int k = 0; k < N; ++k) v[k] = v[k] * r * weight[k];
      store<N>(v, left, kVector, y + row * dim + i);
    });
  });
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kMostThreads) rms_norm_grad_rows(
    const T* dy, const T* x, const float* w, const float* rstd, int64_t rows, int64_t dim, unsigned team, T* dx) {
  constexpr int N = kWidth<T>;
  for_rows(rows, dim, team, [&](int64_t row, int64_t columns) {
    const int64_t at = row * dim;
    float dot = 0.f;
    for_columns<N, kVector>(columns, team, [&](int64_t i, int64_t left) {
      float d[N], v[N], weight[N];
      load<N>(dy + at + i, left, kVector, d);
      load<N>(x + at + i, left, kVector, v);
      load<N>(w + i, left, kVector, weight);
      for (int k = 0; k < N; ++k) dot += d[k] * weight[k] * v[k];
    });
    dot = sum_of(dot, team);
    const float r = columns > 0 ? rstd[row] : 0.f;
    const float along = dot * r * r / static_cast<float>(dim);
    for_columns<N, kVector>(columns, team, [&](int64_t i, int64_t left) {
      float d[N], v[N], weight[N];
      load<N>(dy + at + i, left, kVector, d);
      load<N>(x + at + i, left, kVector, v);
      load<N>(w + i, left, kVector, weight);
      for (int k = 0; k < N; ++k) d[k] = r * (d[k] * weight[k] - v[k] * along);
      store<N>(d, left, kVector, dx + at + i);
    });
  });
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kMostThreads) layer_norm_rows(
    const T* x, const float* w, const float* b, float eps, int64_t rows, int64_t dim, unsigned team, T* y, float* mean,
    float* rstd) {
  constexpr int N = kWidth<T>;
  for_rows(rows, dim, team, [&](int64_t row, int64_t columns) {
    const T* x_row = x + row * dim;
    float sum = 0.f, squares = 0.f;
    for_columns<N, kVector>(columns, team, [&](int64_t i, int64_t left) {
      float v[N];
      load<N>(x_row + i, left, kVector, v);
      for (int k = 0; k < N; ++k) sum += v[k];
    });
    const float m = sum_of(sum, team) / static_cast<float>(dim);
    for_columns<N, kVector>(columns, team, [&](int64_t i, int64_t left) {
      float v[N];
      load<N>(x_row + i, left, kVector, v);
      // Past the row's end there are zeros, which deviate from the mean.
      for (int k = 0; k < N; ++k)
        if (k < left) squares += (v[k] - m) * (v[k] - m);
    });
    const float r = 1.f / sqrtf(sum_of(squares, team) / static_cast<float>(dim) + eps);
    if (columns > 0 && leads(team)) mean[row] = m, rstd[row] = r;
    for_columns<N, kVector>(columns, team, [&](int64_t i, int64_t left) {
      float v[N], weight[N], bias[N];
      load<N>(x_row + i, left, kVector, v);
      load<N>(w + i, left, kVector, weight);
      load<N>(b + i, left, kVector, bias);
      for (int k = 0; k < N; ++k) v[k] = (v[k] - m) * r * weight[k] + bias[k];
      store<N>(v, left, kVector, y + row * dim + i);
    });
  });
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kMostThreads) layer_norm_grad_rows(
    const T* dy, const T* x, const float* w, const float* mean, const float* rstd, int64_t rows, int64_t dim,
    float share, unsigned team, T* dx) {
  constexpr int N = kWidth<T>;
  for_rows(rows, dim, team, [&](int64_t row, int64_t columns) {
    const int64_t at = row * dim;
    const float r = columns > 0 ? rstd[row] : 0.f, m = columns > 0 ? mean[row] : 0.f;
    float flat = 0.f, along = 0.f;
    for_columns<N, kVector>(columns, team, [&](int64_t i, int64_t left) {
      float d[N], v[N], weight[N];
      load<N>(dy + at + i, left, kVector, d);
      load<N>(x + at + i, left, kVector, v);
      load<N>(w + i, left, kVector, weight);
      for (int k = 0; k < N; ++k) {
        flat += d[k] * weight[k];
        along += d[k] * weight[k] * (v[k] - m);
      }
    });
    flat = sum_of(flat, team) * share;
    along = sum_of(along, team) * r * r * share;
    for_columns<N, kVector>(columns, team, [&](int64_t i, int64_t left) {
      float d[N], v[N], weight[N];
      load<N>(dy + at + i, left, kVector, d);
      load<N>(x + at + i, left, kVector, v);
      load<N>(w + i, left, kVector, weight);
      for (int k = 0; k < N; ++k) d[k] = r * (d[k] * weight[k] - flat - (v[k] - m) * along);
      store<N>(d, left, kVector, dx + at + i);
    });
  });
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kMostThreads) add_bias_rows(
    const T* x, const float* b, int64_t rows, int64_t dim, unsigned team, T* y) {
  constexpr int N = kWidth<T>;
  for_rows(rows, dim, team, [&](int64_t row, int64_t columns) {
    for_columns<N, kVector>(columns, team, [&](int64_t i, int64_t left) {
      float v[N], bias[N];
      load<N>(x + row * dim + i, left, kVector, v);
      load<N>(b + i, left, kVector, bias);
      for (int k = 0; k < N; ++k) v[k] += bias[k];
      store<N>(v, left, kVector, y + row * dim + i);
    });
  });
}

// What a vector's gradient adds for each element.
enum class Term { Scaled, Normalized, Plain };

// runs[run, column] = the sum over the run's rows, one after another. Neighbouring threads take neighbouring columns.
template <class T, Term kTerm>
__global__ void __launch_bounds__(128) sum_runs(
    const T* dy, const T* x, const float* mean, const float* rstd, Rows use, int64_t dim, float* runs) {
  constexpr int kAhead = 8; // rows whose loads are under way at once
  const int64_t tiles = (dim + blockDim.x - 1) / blockDim.x, rows = use.batch * use.count;
  const int64_t blocks = (rows + kRun - 1) / kRun * tiles;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t run = block / tiles, column = block % tiles * blockDim.x + threadIdx.x;
    if (column >= dim) continue;
    const int64_t end = (run + 1) * kRun < rows ? (run + 1) * kRun : rows;
    const int64_t gap = use.tokens - use.count; // from a batch's last row of the use to the next one's first
    int64_t token = run * kRun % use.count, row = run * kRun / use.count * use.tokens + use.first + token;
    const auto next_term = [&] {
      const float d = up(dy[row * dim + column]);
      float term = d;
      if constexpr (kTerm == Term::Scaled) term = d * up(x[row * dim + column]) * rstd[row];
      if constexpr (kTerm == Term::Normalized) term = d * (up(x[row * dim + column]) - mean[row]) * rstd[row];
      const bool wraps = ++token == use.count;
      token = wraps ? 0 : token;
      row += 1 + (wraps ? gap : 0);
      return term;
    };
    float sum = 0.f;
    int64_t j = run * kRun;
    for (; j + kAhead <= end; j += kAhead) {
      float terms[kAhead];
      for (float& term : terms) term = next_term();
      for (const float term : terms) sum += term;
    }
    for (; j < end; ++j) sum += next_term();
    runs[run * dim + column] = sum;
  }
}

__global__ void __launch_bounds__(kWarp) add_runs(const float* runs, int64_t count, int64_t dim, float* sum) {
  const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (column >= dim) return;
  float all = 0.f;
  UNROLL(16)
  for (int64_t run = 0; run < count; ++run) all += runs[run * dim + column];
  sum[column] = all;
}

template <Term kTerm>
Error vector_grad(
    Kind kind, const void* dy, const void* x, const float* mean, const float* rstd, Rows use, int64_t dim, float* runs,
    float* sum) {
  if (dim == 0) return nullptr;
  const int64_t count = divide_up(use.batch * use.count, kRun);
  if (count > 0) {
    const unsigned threads = threads_of(dim, 128);
    const Error error = by_kind(kind, [&](auto zero) {
      using T = decltype(zero);
      return simt::launch(sum_runs<T, kTerm>, grid_of(divide_up(dim, threads) * count), dim3(threads), kStream,
                          static_cast<const T*>(dy), static_cast<const T*>(x), mean, rstd, use, dim, runs);
    });
    if (error != nullptr) return error;
  }
  return simt::launch(add_runs, grid_of(divide_up(dim, kWarp)), dim3(kWarp), kStream, runs, count, dim, sum);
}

// Calls body(zero, vector, layout) unless there is nothing to do.
template <class F, class... P>
Error by_rows(Kind kind, int64_t rows, int64_t dim, F&& body, const P*... pointers) {
  if (rows == 0 || dim == 0) return nullptr;
  return by_kind(kind, [&](auto zero) {
    constexpr int width = kWidth<decltype(zero)>;
    return by_flag(dim % width == 0 && aligned(pointers...),
                   [&](auto vector) { return body(zero, vector, Layout(rows, dim, width)); });
  });
}

} // namespace

Error rms_norm(
    Kind kind, const void* x, const float* w, float eps, int64_t rows, int64_t dim, void* y, float* rstd) {
  return by_rows(kind, rows, dim, [&](auto zero, auto vector, Layout to) {
    using T = decltype(zero);
    return simt::launch(rms_norm_rows<T, vector.value>, to.grid, dim3(to.threads), kStream, static_cast<const T*>(x), w,
                        eps, rows, dim, to.team, static_cast<T*>(y), rstd);
  }, x, w, y);
}

Error rms_norm_grad(
    Kind kind, const void* dy, const void* x, const float* w, const float* rstd, int64_t rows, int64_t dim, void* dx) {
  return by_rows(kind, rows, dim, [&](auto zero, auto vector, Layout to) {
    using T = decltype(zero);
    return simt::launch(rms_norm_grad_rows<T, vector.value>, to.grid, dim3(to.threads), kStream,
                        static_cast<const T*>(dy), static_cast<const T*>(x), w, rstd, rows, dim, to.team,
                        static_cast<T*>(dx));
  }, dy, x, w, dx);
}

Error rms_norm_weight_grad(
    Kind kind, const void* dy, const void* x, const float* rstd, Rows use, int64_t dim, float* runs, float* dw) {
  return vector_grad<Term::Scaled>(kind, dy, x, nullptr, rstd, use, dim, runs, dw);
}

Error layer_norm(
    Kind kind, const void* x, const float* w, const float* b, float eps, int64_t rows, int64_t dim, void* y,
    float* mean, float* rstd) {
  return by_rows(kind, rows, dim, [&](auto zero, auto vector, Layout to) {
    using T = decltype(zero);
    return simt::launch(layer_norm_rows<T, vector.value>, to.grid, dim3(to.threads), kStream, static_cast<const T*>(x),
                        w, b, eps, rows, dim, to.team, static_cast<T*>(y), mean, rstd);
  }, x, w, b, y);
}

Error layer_norm_grad(
    Kind kind, const void* dy, const void* x, const float* w, const float* mean, const float* rstd, int64_t rows,
    int64_t dim, void* dx) {
  return by_rows(kind, rows, dim, [&](auto zero, auto vector, Layout to) {
    using T = decltype(zero);
    return simt::launch(layer_norm_grad_rows<T, vector.value>, to.grid, dim3(to.threads), kStream,
                        static_cast<const T*>(dy), static_cast<const T*>(x), w, mean, rstd, rows, dim,
                        1.f / static_cast<float>(dim), to.team, static_cast<T*>(dx));
  }, dy, x, w, dx);
}

Error layer_norm_weight_grad(
    Kind kind, const void* dy, const void* x, const float* mean, const float* rstd, Rows use, int64_t dim, float* runs,
    float* dw) {
  return vector_grad<Term::Normalized>(kind, dy, x, mean, rstd, use, dim, runs, dw);
}

Error add_bias(Kind kind, const void* x, const float* b, int64_t rows, int64_t dim, void* y) {
  return by_rows(kind, rows, dim, [&](auto zero, auto vector, Layout to) {
    using T = decltype(zero);
    return simt::launch(add_bias_rows<T, vector.value>, to.grid, dim3(to.threads), kStream, static_cast<const T*>(x), b,
                        rows, dim, to.team, static_cast<T*>(y));
  }, x, b, y);
}

Error bias_grad(Kind kind, const void* dy, Rows use, int64_t dim, float* runs, float* db) {
  return vector_grad<Term::Plain>(kind, dy, nullptr, nullptr, nullptr, use, dim, runs, db);
}

} // namespace coxswain::cuda
