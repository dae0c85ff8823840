// The forward pass of attention: one block for each head and tile of queries. It keeps of each row the maximum and the
// sum so far, and scales what it has summed when the maximum rises.
#include <cmath>

#include "attention_scores.h"

namespace coxswain::cuda::attention {
namespace {

// The softmax of a row, tile after tile. Four threads have a row: each every fourth column, from `part` on.
struct RowSoftmax {
  float max = -INFINITY, sum = 0.f;

  // Turns the row's scores in shared memory into what each key weighs, not yet divided by the sum. Returns the factor
  // for what was summed before.
  __device__ __forceinline__ float add_tile(
      const Plan& plan, uint64_t mask, const float* bias, int part, int batch, int head, int query, int key,
      float* scores) {
    float x[kTile / 4], here = -INFINITY;
    UNROLL_ALL for (int i = 0; i < kTile / 4; ++i) {
      const int col = part + 4 * i;
      x[i] = mask >> col & 1 ? whole(scores[col], plan.shape.scale, bias, col) : -INFINITY;
      here = x[i] > here ? x[i] : here; // A NaN is passed by; it shows in the sum.
    }
    for (int by = 1; by < 4; by *= 2) {
      const float other = __shfl_xor_sync(~0u, here, by);
      here = other > here ? other : here;
    }
    const float now = here > max ? here : max;
    // Where nothing is seen yet any finite shift makes zeros of all.
    const float shift = now == -INFINITY ? 0.f : now, shrink = expf(max - shift);
    max = now;
    float added = 0.f;
    UNROLL_ALL for (int i = 0; i < kTile / 4; ++i) {
      x[i] = mask >> (part + 4 * i) & 1 ? expf(x[i] - shift) : 0.f;
      added += x[i];
    }
    for (int by = 1; by < 4; by *= 2) added += __shfl_xor_sync(~0u, added, by);
    sum = sum * shrink + added;
    if (plan.drops && mask != 0) {
      const Draws draws(plan, batch, head, query, key);
      uint32_t kept = 0;
      UNROLL(4) for (int i = 0; i < kTile / 4; ++i) kept |= uint32_t{draws.keep(part + 4 * i)} << i;
      UNROLL_ALL for (int i = 0; i < kTile / 4; ++i) x[i] = kept >> i & 1 ? x[i] * plan.drop.drop.scale : 0.f;
    }
    UNROLL_ALL for (int i = 0; i < kTile / 4; ++i) scores[part + 4 * i] = x[i];
    return shrink;
  }

  // Whether the row saw no key. It gives zero, and an infinite log-sum makes its probabilities zero.
  __device__ __forceinline__ bool blind() const { return max == -INFINITY && sum == 0.f; }
  __device__ __forceinline__ float factor() const { return blind() ? 0.f : 1.f / sum; }
  __device__ __forceinline__ float log_sum() const { return blind() ? INFINITY : max + logf(sum); }
};

// One block a head and tile of queries; those that see most keys, where queries see what is before them, begin first.
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, kDim <= 128 ? 2 : 1) forward_kernel(
    const T* q, const T* k, const T* v, const float* bias, const int64_t* words, Plan plan, T* out, float* log_sum) {
  SHARED float4 staged_room[kStaged / 4], score_room[kTile * kScoreRow / 4];
  SHARED float factors[kTile];
  float *staged = reinterpret_cast<float*>(staged_room), *scores = reinterpret_cast<float*>(score_room);
  const AttentionShape& shape = plan.shape;
  const int heads = static_cast<int>(shape.heads), units = static_cast<int>(shape.batch) * heads;
  const int unit = static_cast<int>(blockIdx.x) % units, batch = unit / heads, head = unit % heads;
  const int group = head / (heads / static_cast<int>(shape.kv_heads));
  const int tile = static_cast<int>(plan.query_tiles) - 1 - static_cast<int>(blockIdx.x) / units, query = tile * kTile;
  const int dim = static_cast<int>(shape.dim), y = threadIdx.x / 16;
  const auto queries = rows_of(q, batch, shape.queries, shape.heads, head, dim, query);

  const int row = threadIdx.x / 4, part = threadIdx.x % 4; // for the softmax
  RowSoftmax softmax;
  Sums<kDim> sums;
  sums.clear();

  const Walk walk = keys_of(plan, words, batch, head, tile);
  for (int at = walk.first; at < walk.last; ++at) {
    const int key = walk.tile(at) * kTile;
    const Seen seen(plan, words, walk.bits(at), query, key);
    const auto keys = rows_of(k, batch, shape.keys, shape.kv_heads, group, dim, key);
    const auto values = rows_of(v, batch, shape.keys, shape.kv_heads, group, dim, key);
    float s[4][4];
    multiply_rows(queries, keys, dim, plan.vectors, staged, s);
    put_scores(s, scores);
    __syncthreads();

    const float shrink =
        softmax.add_tile(plan, seen.row(row), bias_of(plan, bias, head, query + row, key), part, batch, head,
                         query + row, key, scores + row * kScoreRow);
    if (part == 0) factors[row] = shrink;
    __syncthreads();

    UNROLL_ALL for (int i = 0; i < 4; ++i) sums.scale(i, factors[4 * y + i]);
    sums.template add_product<false>(scores, values, seen.valid, dim, plan.vectors, staged);
  }

  __syncthreads();
  if (part == 0) {
    factors[row] = softmax.factor();
    if (query + row < shape.queries) log_sum[unit * shape.queries + query + row] = softmax.log_sum();
  }
  __syncthreads();
  UNROLL_ALL for (int i = 0; i < 4; ++i) sums.scale(i, factors[4 * y + i]);
  sums.write(rows_of(out, batch, shape.queries, shape.heads, head, dim, query), dim, plan.vectors);
}

} // namespace

Error start_forward(Kind kind, const Plan& plan, const Inputs& in, void* out, float* log_sum) {
  const int64_t blocks = plan.shape.batch * plan.shape.heads * plan.query_tiles;
  return by_kind_and_dim(kind, plan.shape.dim, [&](auto type, auto dim) {
    const auto kernel = forward_kernel<decltype(type), decltype(dim)::value>;
    return start(kernel, blocks, in.q, in.k, in.v, in.bias, in.words, plan, out, log_sum);
  });
}

} // namespace coxswain::cuda::attention
