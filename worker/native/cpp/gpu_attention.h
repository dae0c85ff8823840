#pragma once
// Attention over lists of tiles on a GPU.
#include "blocks.h"
#include "random.h"

namespace coxswain {

// How values are mixed; the list may be null, and with a rate of 0 nothing is dropped.
struct TiledAttention {
  const BlockList* list;
  bool causal;
  double scale;
  int64_t key;
  double rate;
  int64_t first_head, heads;
};

// q[b, t, h, k], k and v[b, s, g, k], bias[h, s + t - 1] or undefined, all on the GPU.
Tensor gpu_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, const TiledAttention& how);

} // namespace coxswain
