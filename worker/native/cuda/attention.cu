// Attention's table of functions: what it refuses, the plan of a call, backward's scratch, and the order of launches.
//
// This is exact attention in tiles (arXiv 2205.14135, 2307.08691) in fp32. Memory is linear in the lengths: forward
// keeps one log-sum-exp a row, backward makes the probabilities again from it and draws the same mask.
//
// A block of 256 threads works on one tile of 64 queries (forward, dq) or 64 keys (dk, dv) of one head and walks, in
// order, over the tiles it meets. A product of two tiles is summed in ascending order of its depth, by one thread for
// each element, so bits depend on the shape and the list of tiles only.
//
// Shapes: b batch, t queries, s keys, h heads, g key/value heads, k head dim.
#include <initializer_list>

#include "attention_launch.h"

namespace coxswain::cuda::attention {
namespace {

// The partial sums of the bias gradient take this much scratch, or what one tile of queries needs.
constexpr int64_t kBiasScratch = int64_t{256} << 20;

Error refusal(const AttentionShape& shape, const AttentionList* list) {
  if (shape.dim < 1 || shape.dim > kAttentionDim) return "attention on a GPU has head dimensions of 1 to 256";
  if (shape.kv_heads < 1 || shape.heads % shape.kv_heads != 0)
    return "attention has a number of heads that is a multiple of its key/value heads";
  if (list && list->words &&
      (list->heads != shape.heads || (list->batch_rows != 1 && list->batch_rows != shape.batch) ||
       list->query_tiles != (shape.queries + kTile - 1) / kTile || list->key_tiles != (shape.keys + kTile - 1) / kTile))
    return "attention has a list of tiles for another shape";
  const int64_t tiles = (shape.queries > shape.keys ? shape.queries : shape.keys) / kTile + 1;
  const int64_t most = 0x7fffffff - kTile; // what kernels count in 32 bits
  if (shape.queries > most || shape.keys > most || shape.heads * shape.dim > most / kTile)
    return "attention has rows, or heads of a row, beyond what a GPU's kernel counts";
  if (shape.batch * shape.heads * tiles > most) return "attention has more tiles than a GPU takes in one launch";
  return nullptr;
}

Plan plan_of(
    const AttentionShape& shape, const AttentionList* list, const AttentionDrop* drop, size_t element,
    std::initializer_list<const void*> rows) {
  Plan plan{};
  plan.shape = shape;
  plan.query_tiles = (shape.queries + kTile - 1) / kTile;
  plan.key_tiles = (shape.keys + kTile - 1) / kTile;
  plan.vectors = shape.dim % 4 == 0;
  for (const void* at : rows) plan.vectors = plan.vectors && reinterpret_cast<uintptr_t>(at) % (4 * element) == 0;
  plan.listed = list && list->words;
  if (plan.listed) plan.list = *list;
  plan.list.words = nullptr; // Kernels get pointers as arguments of their own.
  plan.drops = drop != nullptr;
  if (drop) plan.drop = *drop;
  else plan.drop.drop.scale = 1.f;
  return plan;
}

// What backward keeps in its scratch, in floats.
struct Scratch {
  int64_t delta, bias_sums, bias_parts;
  int64_t tiles; // of queries whose bias gradients are kept at one time

  Scratch(const AttentionShape& shape, bool bias_grad) {
    const int64_t units = shape.batch * shape.heads, all = (shape.queries + kTile - 1) / kTile;
    const int64_t each = units * (shape.keys + kTile - 1);
    delta = units * shape.queries;
    tiles = all;
    bias_sums = bias_parts = 0;
    if (!bias_grad || all == 0 || units == 0) return;
    const int64_t fit = kBiasScratch / static_cast<int64_t>(sizeof(float)) / each;
    tiles = fit < 1 ? 1 : fit < all ? fit : all;
    bias_sums = units * (shape.keys + shape.queries - 1);
    bias_parts = tiles * each;
  }
};

// Calls `body` with the plan and the tensors, unless something is refused. `rows` are all that have rows of heads.
template <class F>
Error with_plan(
    Kind kind, const AttentionShape& shape, const void* q, const void* k, const void* v, const float* bias,
    const AttentionList* list, const AttentionDrop* drop, std::initializer_list<const void*> rows, F&& body) {
  if (const Error error = refusal(shape, list)) return error;
  const Plan plan = plan_of(shape, list, drop, kind == Kind::Fp32 ? sizeof(float) : sizeof(Bf16), rows);
  return body(plan, Inputs{q, k, v, bias, plan.listed ? list->words : nullptr});
}

Error forward(
    Kind kind, const AttentionShape* shape, const void* q, const void* k, const void* v, const float* bias,
    const AttentionList* list, const AttentionDrop* drop, void* out, float* log_sum) {
  return with_plan(kind, *shape, q, k, v, bias, list, drop, {q, k, v, out}, [&](const Plan& plan, const Inputs& in) {
    return start_forward(kind, plan, in, out, log_sum);
  });
}

size_t scratch_bytes(const AttentionShape* shape, bool bias_grad) {
  const Scratch sizes(*shape, bias_grad);
  return static_cast<size_t>(sizes.delta + sizes.bias_sums + sizes.bias_parts) * sizeof(float);
}

// dq, and the bias gradient of as many tiles of queries at one time as the scratch has room for.
Error start_query_and_bias_grads(
    Kind kind, const Plan& plan, const Inputs& in, const Grads& from, const Scratch& sizes, float* bias_sums,
    float* bias_parts, void* dq, float* dbias) {
  for (int64_t first = 0; first < plan.query_tiles; first += sizes.tiles) {
    const int64_t left = plan.query_tiles - first, count = left < sizes.tiles ? left : sizes.tiles;
    float* parts = dbias ? bias_parts : nullptr;
    if (const Error error = start_query_grads(kind, plan, in, from, dq, parts, first, count)) return error;
    if (!dbias) continue;
    if (const Error error = start_bias_tiles(plan, parts, first, count, bias_sums)) return error;
  }
  return dbias ? start_bias_batch(plan, bias_sums, dbias) : nullptr;
}

Error backward(
    Kind kind, const AttentionShape* shape, const void* q, const void* k, const void* v, const float* bias,
    const AttentionList* list, const AttentionDrop* drop, const void* out, const float* log_sum, const void* dout,
    void* dq, void* dk, void* dv, float* dbias, void* scratch) {
  const auto rows = {q, k, v, dout, static_cast<const void*>(dq), static_cast<const void*>(dk),
                     static_cast<const void*>(dv)};
  return with_plan(kind, *shape, q, k, v, bias, list, drop, rows, [&](const Plan& plan, const Inputs& in) -> Error {
    const Scratch sizes(*shape, dbias != nullptr);
    float* delta = static_cast<float*>(scratch);
    float *bias_sums = delta + sizes.delta, *bias_parts = bias_sums + sizes.bias_sums;
    const Grads from{log_sum, delta, dout};
    if (const Error error = start_delta(kind, plan, out, dout, delta)) return error;
    if (const Error error = start_key_grads(kind, plan, in, from, dk, dv)) return error;
    return start_query_and_bias_grads(kind, plan, in, from, sizes, bias_sums, bias_parts, dq, dbias);
  });
}

constexpr AttentionKernels kTable{kAttentionVersion, forward, scratch_bytes, backward};

} // namespace
} // namespace coxswain::cuda::attention

extern "C" __attribute__((visibility("default"))) const coxswain::cuda::AttentionKernels* coxswain_cuda_attention() {
  return &coxswain::cuda::attention::kTable;
}
