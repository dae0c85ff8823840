// The backward pass of attention. Nothing is added by atomics: dk, dv and dq are made by two kernels, each of which
// makes the probabilities of its tiles again from the log-sum-exp and draws the same mask. The gradient of the bias is
// summed from parts, one of each tile of queries.
#include <cmath>

#include "attention_scores.h"

namespace coxswain::cuda::attention {
namespace {

// Turns a thread's scores into probabilities, zero where they are not seen and negative where they are dropped.
__device__ __forceinline__ void probabilities(
    const Plan& plan, const Seen& seen, const float* bias, const float* log_sum, int64_t batch, int64_t head,
    int64_t query, int64_t key, float (&s)[4][4]) {
  const int x = threadIdx.x % 16, first = threadIdx.x / 16 * 4;
  const float* sums = log_sum + (batch * plan.shape.heads + head) * plan.shape.queries + query;
  const float* add = bias_of(plan, bias, head, query + first, key); // one element less for each row further down
  UNROLL_ALL for (int i = 0; i < 4; ++i) {
    const uint64_t mask = seen.row(first + i);
    const float sum = first + i < seen.rows ? sums[first + i] : INFINITY;
    UNROLL_ALL for (int j = 0; j < 4; ++j) {
      const int col = x + 16 * j;
      s[i][j] = mask >> col & 1 ? expf(whole(s[i][j], plan.shape.scale, add, col - i) - sum) : 0.f;
    }
  }
  if (!plan.drops) return;
  uint32_t kept = 0;
  UNROLL(1) for (int i = 0; i < 4; ++i) {
    const Draws draws(plan, batch, head, query + first + i, key);
    UNROLL(1) for (int j = 0; j < 4; ++j) kept |= uint32_t{draws.keep(x + 16 * j)} << (4 * i + j);
  }
  UNROLL_ALL for (int i = 0; i < 4; ++i) UNROLL_ALL for (int j = 0; j < 4; ++j)
    s[i][j] = kept >> (4 * i + j) & 1 ? s[i][j] : -s[i][j];
}

// What a probability counts for in the output, of those that `probabilities` made.
__device__ __forceinline__ float dropped(const Plan& plan, float p) { return p < 0.f ? 0.f : p * plan.drop.drop.scale; }

// The gradients of the whole scores from those of the dropped probabilities, in place.
__device__ __forceinline__ void score_grads(
    const Plan& plan, const float* delta, int rows, const float (&p)[4][4], float (&grads)[4][4]) {
  const int first = threadIdx.x / 16 * 4;
  UNROLL_ALL for (int i = 0; i < 4; ++i) {
    const float mean = first + i < rows ? delta[first + i] : 0.f;
    // What is not seen has no gradient, whatever the values there are.
    UNROLL_ALL for (int j = 0; j < 4; ++j)
      grads[i][j] = p[i][j] == 0.f ? 0.f : dropped(plan, p[i][j]) * grads[i][j] - fabsf(p[i][j]) * mean;
  }
}

// A tile's probabilities, as `probabilities` makes them, and the gradients of its scores. The probabilities wait in
// shared memory while the gradients are multiplied out: a thread has no registers for both.
template <class T>
__device__ __forceinline__ void remake(
    const Plan& plan, const int64_t* words, int bits, const HeadRows<const T>& queries,
    const HeadRows<const T>& keys, const HeadRows<const T>& values, const HeadRows<const T>& grads, const float* bias,
    const float* log_sum, const float* delta, int batch, int head, int query, int key, float* staged, float* scores,
    float (&p)[4][4], float (&score_grad)[4][4]) {
  const int dim = static_cast<int>(plan.shape.dim);
  multiply_rows(queries, keys, dim, plan.vectors, staged, p);
  probabilities(plan, Seen(plan, words, bits, query, key), bias, log_sum, batch, head, query, key, p);
  put_scores(p, scores);
  multiply_rows(grads, values, dim, plan.vectors, staged, score_grad);
  UNROLL_ALL for (int i = 0; i < 4; ++i) UNROLL_ALL for (int j = 0; j < 4; ++j) p[i][j] = score_at(scores, i, j);
  score_grads(plan, delta + (int64_t{batch} * plan.shape.heads + head) * plan.shape.queries + query, queries.count, p,
              score_grad);
}

// delta[b, h, t] = the sums of dout * out over rows, one warp each: what the normalisation takes from each gradient.
template <class T>
__global__ void delta_kernel(const T* out, const T* dout, Plan plan, float* delta) {
  const AttentionShape& shape = plan.shape;
  const int64_t row = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32; // of [b, t, h]
  const bool there = row < shape.batch * shape.queries * shape.heads;
  float sum = 0.f;
  for (int64_t i = threadIdx.x % 32; there && i < shape.dim; i += 32)
    sum = fmaf(up(dout[row * shape.dim + i]), up(out[row * shape.dim + i]), sum);
  for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
  if (!there || threadIdx.x % 32 != 0) return;
  const int64_t head = row % shape.heads, query = row / shape.heads % shape.queries;
  delta[(row / shape.heads / shape.queries * shape.heads + head) * shape.queries + query] = sum;
}

// One block a key/value head and tile of keys: sums over the heads of the group, in order, and their queries.
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, kDim <= 128 ? 2 : 1) key_grads_kernel(
    const T* q, const T* k, const T* v, const float* bias, const int64_t* words, Plan plan, const float* log_sum,
    const float* delta, const T* dout, T* dk, T* dv) {
  SHARED float4 staged_room[kStaged / 4], score_room[kTile * kScoreRow / 4];
  float *staged = reinterpret_cast<float*>(staged_room), *scores = reinterpret_cast<float*>(score_room);
  const AttentionShape& shape = plan.shape;
  const int groups = static_cast<int>(shape.kv_heads), units = static_cast<int>(shape.batch) * groups;
  const int unit = static_cast<int>(blockIdx.x) % units, batch = unit / groups, group = unit % groups;
  const int tile = static_cast<int>(blockIdx.x) / units, key = tile * kTile;
  const int per_group = static_cast<int>(shape.heads) / groups;
  const int dim = static_cast<int>(shape.dim);
  const auto keys = rows_of(k, batch, shape.keys, shape.kv_heads, group, dim, key);
  const auto values = rows_of(v, batch, shape.keys, shape.kv_heads, group, dim, key);
  Sums<kDim> key_sums, value_sums;
  key_sums.clear();
  value_sums.clear();

  for (int head = group * per_group; head < (group + 1) * per_group; ++head) {
    const Walk walk = queries_of(plan, words, batch, head, tile);
    for (int at = walk.first; at < walk.last; ++at) {
      const int query = walk.tile(at) * kTile;
      const auto queries = rows_of(q, batch, shape.queries, shape.heads, head, dim, query);
      const auto grads = rows_of(dout, batch, shape.queries, shape.heads, head, dim, query);
      float p[4][4], score_grad[4][4];
      remake(plan, words, walk.bits(at), queries, keys, values, grads, bias, log_sum, delta, batch, head, query, key,
             staged, scores, p, score_grad);
      UNROLL_ALL for (int i = 0; i < 4; ++i) UNROLL_ALL for (int j = 0; j < 4; ++j)
        score_at(scores, i, j) = dropped(plan, p[i][j]);
      value_sums.template add_product<true>(scores, grads, grads.count, dim, plan.vectors, staged);
      __syncthreads();
      put_scores(score_grad, scores);
      key_sums.template add_product<true>(scores, queries, queries.count, dim, plan.vectors, staged);
    }
  }
  UNROLL_ALL for (int i = 0; i < 4; ++i) key_sums.scale(i, shape.scale);
  key_sums.write(rows_of(dk, batch, shape.keys, shape.kv_heads, group, dim, key), dim, plan.vectors);
  value_sums.write(rows_of(dv, batch, shape.keys, shape.kv_heads, group, dim, key), dim, plan.vectors);
}

// One block a head and tile of queries, `count` tiles from `first` on. Where `bias_parts` is not null, it gets of each
// tile the sums of the scores' gradients by distance: element j - (i - query) + 63 of keys + 63.
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, kDim <= 128 ? 2 : 1) query_grads_kernel(
    const T* q, const T* k, const T* v, const float* bias, const int64_t* words, Plan plan, const float* log_sum,
    const float* delta, const T* dout, T* dq, float* bias_parts, int first, int count) {
  SHARED float4 staged_room[kStaged / 4], score_room[kTile * kScoreRow / 4];
  float *staged = reinterpret_cast<float*>(staged_room), *scores = reinterpret_cast<float*>(score_room);
  const AttentionShape& shape = plan.shape;
  const int heads = static_cast<int>(shape.heads), units = static_cast<int>(shape.batch) * heads;
  const int unit = static_cast<int>(blockIdx.x) % units, batch = unit / heads, head = unit % heads;
  const int group = head / (heads / static_cast<int>(shape.kv_heads));
  const int number = count - 1 - static_cast<int>(blockIdx.x) / units, tile = first + number, query = tile * kTile;
  const int dim = static_cast<int>(shape.dim);
  const auto queries = rows_of(q, batch, shape.queries, shape.heads, head, dim, query);
  const auto grads = rows_of(dout, batch, shape.queries, shape.heads, head, dim, query);
  const int64_t distances = shape.keys + kTile - 1;
  float* mine = bias_parts ? bias_parts + (int64_t{unit} * count + number) * distances : nullptr;
  for (int64_t i = threadIdx.x; mine && i < distances; i += kThreads) mine[i] = 0.f;
  Sums<kDim> sums;
  sums.clear();

  const Walk walk = keys_of(plan, words, batch, head, tile);
  for (int at = walk.first; at < walk.last; ++at) {
    const int key = walk.tile(at) * kTile;
    const auto keys = rows_of(k, batch, shape.keys, shape.kv_heads, group, dim, key);
    const auto values = rows_of(v, batch, shape.keys, shape.kv_heads, group, dim, key);
    float p[4][4], score_grad[4][4];
    remake(plan, words, walk.bits(at), queries, keys, values, grads, bias, log_sum, delta, batch, head, query, key,
           staged, scores, p, score_grad);
    put_scores(score_grad, scores);
    if (mine) {
      __syncthreads();
      const int last = kTile - 1, by = static_cast<int>(threadIdx.x) - last; // of this thread, j - (i - query)
      float sum = 0.f;
      for (int i = by < 0 ? -by : 0; by <= last && i <= last && i + by <= last; ++i)
        sum += scores[i * kScoreRow + i + by];
      // Columns past the last key have zeros and no place.
      if (by <= last && key + by + last < distances) mine[key + by + last] += sum;
    }
    sums.template add_product<false>(scores, keys, keys.count, dim, plan.vectors, staged);
  }
  UNROLL_ALL for (int i = 0; i < 4; ++i) sums.scale(i, shape.scale);
  sums.write(rows_of(dq, batch, shape.queries, shape.heads, head, dim, query), dim, plan.vectors);
}

// sums[b, h, s + t - 1] += the parts of `count` tiles of queries from `first` on, in order; the first tiles set them.
__global__ void bias_tiles_kernel(const float* parts, Plan plan, int64_t first, int64_t count, float* sums) {
  const AttentionShape& shape = plan.shape;
  const int64_t all = shape.keys + shape.queries - 1, distances = shape.keys + kTile - 1;
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x, unit = at / all;
  if (unit >= shape.batch * shape.heads) return;
  float sum = first == 0 ? 0.f : sums[at];
  for (int64_t tile = 0; tile < count; ++tile) {
    const int64_t i = at % all + (kTile - 1) + (first + tile) * kTile - (shape.queries - 1);
    if (i >= 0 && i < distances) sum += parts[(unit * count + tile) * distances + i];
  }
  sums[at] = sum;
}

// dbias[h, s + t - 1] = the sums over the batch, in order.
__global__ void bias_batch_kernel(const float* sums, Plan plan, float* dbias) {
  const int64_t all = plan.shape.heads * (plan.shape.keys + plan.shape.queries - 1);
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= all) return;
  float sum = sums[at];
  for (int64_t batch = 1; batch < plan.shape.batch; ++batch) sum += sums[batch * all + at];
  dbias[at] = sum;
}

} // namespace

Error start_delta(Kind kind, const Plan& plan, const void* out, const void* dout, float* delta) {
  const int64_t rows = plan.shape.batch * plan.shape.queries * plan.shape.heads;
  return by_kind(kind, [&](auto type) {
    return start(delta_kernel<decltype(type)>, divide_up(rows, kThreads / kWarp), out, dout, plan, delta);
  });
}

Error start_key_grads(Kind kind, const Plan& plan, const Inputs& in, const Grads& from, void* dk, void* dv) {
  const int64_t blocks = plan.shape.batch * plan.shape.kv_heads * plan.key_tiles;
  return by_kind_and_dim(kind, plan.shape.dim, [&](auto type, auto dim) {
    const auto kernel = key_grads_kernel<decltype(type), decltype(dim)::value>;
    return start(kernel, blocks, in.q, in.k, in.v, in.bias, in.words, plan, from.log_sum, from.delta, from.dout, dk,
                 dv);
  });
}

Error start_query_grads(
    Kind kind, const Plan& plan, const Inputs& in, const Grads& from, void* dq, float* bias_parts, int64_t first,
    int64_t count) {
  const int64_t blocks = plan.shape.batch * plan.shape.heads * count;
  return by_kind_and_dim(kind, plan.shape.dim, [&](auto type, auto dim) {
    const auto kernel = query_grads_kernel<decltype(type), decltype(dim)::value>;
    return start(kernel, blocks, in.q, in.k, in.v, in.bias, in.words, plan, from.log_sum, from.delta, from.dout, dq,
                 bias_parts, first, count);
  });
}

Error start_bias_tiles(const Plan& plan, const float* parts, int64_t first, int64_t count, float* sums) {
  const int64_t elements = plan.shape.batch * plan.shape.heads * (plan.shape.keys + plan.shape.queries - 1);
  return start(bias_tiles_kernel, divide_up(elements, kThreads), parts, plan, first, count, sums);
}

Error start_bias_batch(const Plan& plan, const float* sums, float* dbias) {
  const int64_t elements = plan.shape.heads * (plan.shape.keys + plan.shape.queries - 1);
  return start(bias_batch_kernel, divide_up(elements, kThreads), sums, plan, dbias);
}

} // namespace coxswain::cuda::attention
