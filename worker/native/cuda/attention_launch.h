#pragma once
// What the files of attention share on the host: the plan of a launch, the functions that start kernels, and how a
// kernel is chosen for a kind and a head dim. attention.cu starts them in order.
#include <type_traits>

#include "attention.h"
#include "device.h"
#include "simt.h"

namespace coxswain::cuda::attention {

constexpr int kTile = static_cast<int>(kAttentionTile);
constexpr int kThreads = 256; // 16 x 16, each with 4 x 4 scores

// What a kernel knows of its launch besides pointers.
struct Plan {
  AttentionShape shape;
  int64_t query_tiles, key_tiles;
  bool vectors; // rows can be read and written four elements at a time
  AttentionList list;
  bool listed, drops;
  AttentionDrop drop;

  // Query i sees the keys j <= i + shift().
  __host__ __device__ int64_t shift() const { return shape.causal ? shape.keys - shape.queries : shape.keys; }
};

// The tensors that forward and backward read, of the kind that goes with them, and the words of the list or null.
struct Inputs {
  const void *q, *k, *v;
  const float* bias;
  const int64_t* words;
};

// Writes out and the log-sum-exp of the scores.
Error start_forward(Kind, const Plan&, const Inputs&, void* out, float* log_sum);

// What backward makes and reads besides the inputs.
struct Grads {
  const float *log_sum, *delta;
  const void* dout;
};
// delta[b, h, t] = the sums of dout * out over rows.
Error start_delta(Kind, const Plan&, const void* out, const void* dout, float* delta);
Error start_key_grads(Kind, const Plan&, const Inputs&, const Grads&, void* dk, void* dv);
// dq of `count` tiles of queries from `first` on and, where it is not null, their `bias_parts`.
Error start_query_grads(
    Kind, const Plan&, const Inputs&, const Grads&, void* dq, float* bias_parts, int64_t first, int64_t count);
// sums[b, h, s + t - 1] from the parts of such tiles, and dbias[h, s + t - 1] from the sums.
Error start_bias_tiles(const Plan&, const float* parts, int64_t first, int64_t count, float* sums);
Error start_bias_batch(const Plan&, const float* sums, float* dbias);

// Starts a kernel of so many blocks, if there are any.
template <class... P, class... A>
Error start(void (*kernel)(P...), int64_t blocks, A... arguments) {
  if (blocks == 0) return nullptr;
  return simt::launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), kStream, arguments...);
}

// Calls `body` with a value of the element type and, as a constant, the head dim that sums are padded to.
template <class F>
Error by_kind_and_dim(Kind kind, int64_t dim, F&& body) {
  return by_kind(kind, [&](auto type) {
    if (dim <= 64) return body(type, std::integral_constant<int, 64>{});
    if (dim <= 128) return body(type, std::integral_constant<int, 128>{});
    return body(type, std::integral_constant<int, 256>{});
  });
}

} // namespace coxswain::cuda::attention
