#pragma once
// Products and row operations on tiles in fp32, for attention. Every sum has an order fixed by its
// length: an element of a product is added in ascending order of the depth, a row in 16 lanes that
// are then folded. Bits depend on neither threads nor neighbours.
#include <cstdint>

namespace coxswain::tiles {

// Both sides of a tile are padded to a multiple of this.
constexpr int64_t kLanes = 16;

inline int64_t padded(int64_t count, int64_t unit = kLanes) { return (count + unit - 1) / unit * unit; }

// The left factor of a product: element (row, depth) is at data[row * row_step + depth * depth_step].
struct Left {
  const float* data;
  int64_t row_step, depth_step;
};

// A tile of scores. Of row i, the first min(valid, edge + i) columns are visible.
struct Scores {
  float* data;
  int64_t step;        // from row to row
  int64_t rows, cols;  // cols is a multiple of kLanes
  int64_t valid, edge;
  float scale;         // of a product of a query and a key
};

// What the rows of an output have come to, after some tiles of keys.
struct Running {
  float* max;  // of the scores
  float* sum;  // of exp(score - max)
  float* out;  // [rows, cols], weighted with exp(score - max)
  int64_t cols; // a multiple of kLanes
};

struct Kernels {
  // c[rows, cols] = left[rows, depth] * right[depth, cols], added to c where `add`. `right` and `c`
  // have `right_step` and `c_step` from row to row; rows and cols are padded.
  void (*product)(Left left, const float* right, int64_t right_step, int64_t rows, int64_t cols, int64_t depth,
                  bool add, float* c, int64_t c_step);
  // to[cols, rows] = from[rows, cols] turned over; both sides are multiples of kLanes.
  void (*transpose)(const float* from, int64_t rows, int64_t cols, float* to, int64_t to_step);
  // Turns scores into exp(score - max) with the new maximum, and the running rows likewise.
  void (*advance)(Scores scores, Running running);
  // Turns scores into probabilities exp(score - log_sum[row]).
  void (*probabilities)(Scores scores, const float* log_sum);
  // p = (dropped * grad - p * mean[row]) * scale: the gradients of the products of queries and keys.
  void (*score_grads)(Scores p, const float* dropped, const float* grad, const float* mean);
};

// The kernels for this processor.
const Kernels& kernels();

} // namespace coxswain::tiles
