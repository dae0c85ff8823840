#pragma once
// What linear attention does with the tokens of one head, chunk by chunk (arXiv 2006.16236): feature maps,
// decays within a chunk, and scratch. All is fp32, in an order fixed by the lengths; log decays are added
// in double, as their differences matter and not their sums.
//
// Values have one column more than the head dim, which is 1: the sums of weights come out of the same
// products as the weighted sums of values, and the state [k, k + 1] holds both.
#include <algorithm>
#include <cmath>

#include "function.h"
#include "kernels.h"
#include "tiles.h"

namespace coxswain::linear {

// Tokens of a chunk: products within one cost as much as those with a state of 64 to 128 columns.
constexpr int64_t kChunk = 64;
// Sums of weights are taken to be at least this: features are positive but underflow, and 0 / 0 is not a mean.
constexpr float kSmallestSum = 1e-6f;
// Log decays are taken to be at least this, by which all is forgotten: -infinity less -infinity is not a number.
constexpr double kForgotten = -200;

// The rows of one head in a tensor [b, t, h, k].
template <class T>
struct Rows {
  T* data;
  int64_t step;
  Rows(const Tensor& x, int64_t batch, int64_t head)
      : data(static_cast<T*>(x.data_ptr()) + batch * x.stride(0) + head * x.stride(2)), step(x.stride(1)) {}
  T* row(int64_t i) const { return data + i * step; }
};

struct Shape {
  int64_t batch, queries, keys, heads, groups, dim;
  int64_t cols, wide; // dim and dim + 1, padded
  bool causal;

  Shape(const Tensor& q, const Tensor& k, bool causal)
      : batch(q.size(0)), queries(q.size(1)), keys(k.size(1)), heads(q.size(2)), groups(k.size(2)), dim(q.size(3)),
        cols(tiles::padded(dim)), wide(tiles::padded(dim + 1)), causal(causal) {}

  int64_t group_of(int64_t head) const { return head / (heads / groups); }
  int64_t state() const { return cols * wide; }
  static int64_t chunks(int64_t tokens) { return (tokens + kChunk - 1) / kChunk; }
};

// Buffers of the threads that share `units` units of work, made before they start: a thread of the
// pool has no allocator of its own.
struct Scratch {
  Scratch(int64_t units, int64_t floats)
      : each(tiles::padded(floats)),
        all(at::empty({std::min<int64_t>(at::get_num_threads(), std::max<int64_t>(units, 1)) * each}, at::kFloat)) {}
  float* mine() { return all.data_ptr<float>() + at::get_thread_num() * each; }
  int64_t each;
  Tensor all;
};

inline float* take(float*& from, int64_t floats) { return (from += floats) - floats; }

// Sets the padding of `rows` rows of `cols`, of which `used` are used, and the rows to a whole tile to zero.
inline void pad(float* x, int64_t rows, int64_t used, int64_t cols) {
  for (int64_t row = 0; row < rows; ++row) std::fill(x + row * cols + used, x + (row + 1) * cols, 0.f);
  std::fill(x + rows * cols, x + tiles::padded(rows) * cols, 0.f);
}

// elu(x) + 1 of the rows from `first` on: e^x below zero, without the cancellation of elu(x) + 1.
template <class T>
void load_features(Rows<T> from, int64_t first, int64_t rows, const Shape& shape, float* to) {
  for (int64_t row = 0; row < rows; ++row) {
    const T* x = from.row(first + row);
    float* y = to + row * shape.cols;
    for (int64_t i = 0; i < shape.dim; ++i) {
      const float value = static_cast<float>(x[i]);
      y[i] = value > 0 ? 0 : value;
    }
    kernels::exp_scale(y, 0.f, 1.f, shape.dim);
    for (int64_t i = 0; i < shape.dim; ++i) {
      const float value = static_cast<float>(x[i]);
      y[i] += value > 0 ? value : 0;
    }
  }
  pad(to, rows, shape.dim, shape.cols);
}

// The gradients of inputs, given those of their features: the slope is 1 above zero and the feature below.
template <class T>
void store_feature_grads(
    const float* grads, const float* features, Rows<T> to, int64_t first, int64_t rows, const Shape& shape) {
  for (int64_t row = 0; row < rows; ++row, grads += shape.cols, features += shape.cols)
    for (int64_t i = 0; i < shape.dim; ++i)
      to.row(first + row)[i] = static_cast<T>(grads[i] * (features[i] > 1 ? 1 : features[i]));
}

template <class T>
void load_values(Rows<T> from, int64_t first, int64_t rows, const Shape& shape, float* to) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < shape.dim; ++i) to[row * shape.wide + i] = static_cast<float>(from.row(first + row)[i]);
    to[row * shape.wide + shape.dim] = 1;
  }
  pad(to, rows, shape.dim + 1, shape.wide);
}

template <class T>
void store_values(const float* from, Rows<T> to, int64_t first, int64_t rows, const Shape& shape) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < shape.dim; ++i) to.row(first + row)[i] = static_cast<T>(from[row * shape.wide + i]);
}

// Multiplies rows of `cols` by a factor each.
inline void scale_rows(float* x, int64_t rows, int64_t cols, const float* factors) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < cols; ++i) x[row * cols + i] *= factors[row];
}

inline double dot(const float* a, const float* b, int64_t count) {
  double lanes[8] = {}; // padded counts are multiples of 8
  for (int64_t i = 0; i < count; i += 8)
    for (int64_t lane = 0; lane < 8; ++lane) lanes[lane] += static_cast<double>(a[i + lane]) * b[i + lane];
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// What decays make of the tokens of one chunk. Without any all factors are 1.
struct Decays {
  float since[kChunk]; // of what was there before the chunk, by each token
  float until[kChunk]; // of each token, by the end of the chunk
  float whole;         // of what was there before the chunk, by its end
  float* tile;         // [kChunk, kChunk]: of key j for query i, and zero for later keys
  int64_t loaded = 0;  // rows of the tile without decays, which are the same for every chunk

  explicit Decays(float* tile) : tile(tile) {}

  // The `rows` log decays from `log_decay` on, or null.
  void load(const float* log_decay, int64_t step, int64_t rows) {
    if (log_decay == nullptr) return load_ones(rows);
    double sums[kChunk], sum = 0;
    for (int64_t i = 0; i < rows; ++i) {
      const double here = log_decay[i * step];
      sums[i] = sum += here < kForgotten ? kForgotten : here;
    }
    whole = power(sum);
    for (int64_t i = 0; i < rows; ++i) {
      since[i] = power(sums[i]);
      until[i] = power(sum - sums[i]);
      float* x = tile + i * kChunk;
      for (int64_t j = 0; j <= i; ++j) x[j] = static_cast<float>(sums[i] - sums[j]);
      std::fill(x + i + 1, x + tiles::padded(rows), 0.f);
    }
    const float zeros[kChunk] = {};
    tiles::kernels().probabilities({tile, kChunk, rows, tiles::padded(rows), rows, 1, 1.f}, zeros);
  }

  void mask(float* products, int64_t rows) const {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = row * kChunk; i < row * kChunk + tiles::padded(rows); ++i) products[i] *= tile[i];
  }

 private:
  // Zero below the normal numbers, with which products would be slow.
  static float power(double x) { return x < -87 ? 0.f : static_cast<float>(std::exp(x)); }

  void load_ones(int64_t rows) {
    whole = 1;
    for (; loaded < rows; ++loaded) {
      since[loaded] = until[loaded] = 1;
      std::fill(tile + loaded * kChunk, tile + loaded * kChunk + loaded + 1, 1.f);
      std::fill(tile + loaded * kChunk + loaded + 1, tile + (loaded + 1) * kChunk, 0.f);
    }
  }
};

// state = state * by + left^T right, for `tokens` rows left [cols] and right [wide]. The chunk's sum is made
// apart, in `part`: adding token by token to the sum of all before would lose digits.
inline void advance(
    float* state, float by, const float* left, const float* right, int64_t tokens, const Shape& shape, float* part) {
  tiles::kernels().product({left, 1, shape.cols}, right, shape.wide, shape.cols, shape.wide, tokens, false, part,
                           shape.wide);
  for (int64_t i = 0; i < shape.state(); ++i) state[i] = state[i] * by + part[i];
}

} // namespace coxswain::linear
