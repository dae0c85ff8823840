// Into and out of the tensor-parallel products. A rank holds `count` consecutive logical shards; the
// part of each is computed apart, as if it were a rank, and partial sums are added in one binary tree
// over all shards: the rank's own subtree first, then the group's. So the number of ranks changes no
// bit as long as each holds a whole subtree.
//
// With `sequence_parallel`, x [b, t/ranks, d] holds the rank's tokens only outside the products (sequence
// parallelism, arXiv 2205.05198). The slice of a sum has the bits of the whole sum.
#include "function.h"

#include <ATen/core/LegacyTypeDispatch.h>

namespace coxswain {
namespace {

constexpr int64_t kTokenDim = 1;

// The same values as a tensor of its own to autograd.
Tensor same_values(const Tensor& x) {
  at::AutoDispatchBelowADInplaceOrView guard;
  return x.view(x.sizes());
}

// Megatron's f (arXiv 1909.08053), for each shard: the identity forward (with sequence parallelism: a gather of
// all tokens), a sum over the shards backward. While the sum travels, the weight gradients deferred so far
// are computed.
struct CopyToShards : Function<CopyToShards> {
  static variable_list forward(
      AutogradContext* ctx, const Tensor& x_in, int64_t group, int64_t wgrad_queue, int64_t count, bool sequence_parallel) {
    ctx->saved_data["group"] = capsule_at<Group>(group);
    ctx->saved_data["wgrad_queue"] = capsule_at<WgradQueue>(wgrad_queue);
    ctx->saved_data["sequence_parallel"] = sequence_parallel;
    Tensor x = x_in.contiguous();
    if (sequence_parallel) x = all_gather(counted_at<Group>(group), x, kTokenDim);
    variable_list copies;
    for (int64_t i = 0; i < count; ++i) copies.push_back(same_values(x));
    return copies;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto group = kept<Group>(ctx, "group");
    const auto wgrad_queue = kept<WgradQueue>(ctx, "wgrad_queue");
    const Tensor own = combine(grads, Op::Sum).contiguous();
    auto overlapped = [&wgrad_queue](auto reduction) {
      if (!wgrad_queue->held) wgrad_queue->flush();
      return reduction.finish();
    };
    Tensor dx = ctx->saved_data.at("sequence_parallel").toBool() ? overlapped(ReduceScatter(group, own, kTokenDim))
                                                      : overlapped(AllReduce(group, own, Op::Sum));
    return {dx, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// Megatron's g: a sum over the shards forward (with sequence parallelism: the rank's tokens of it), the identity
// backward (with sequence parallelism: a gather).
struct ReduceFromShards : Function<ReduceFromShards> {
  static Tensor forward(AutogradContext* ctx, at::TensorList parts, int64_t group, bool sequence_parallel) {
    ctx->saved_data["group"] = capsule_at<Group>(group);
    ctx->saved_data["sequence_parallel"] = sequence_parallel;
    ctx->saved_data["count"] = static_cast<int64_t>(parts.size());
    const Tensor own = combine(parts.vec(), Op::Sum).contiguous();
    if (sequence_parallel) return ReduceScatter(counted_at<Group>(group), own, kTokenDim).finish();
    return AllReduce(counted_at<Group>(group), own, Op::Sum).finish();
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Tensor dy = grads[0];
    if (ctx->saved_data.at("sequence_parallel").toBool()) dy = all_gather(kept<Group>(ctx, "group"), dy, kTokenDim);
    variable_list parts(static_cast<size_t>(ctx->saved_data.at("count").toInt()), dy);
    parts.resize(parts.size() + 2);
    return parts;
  }
};

} // namespace
} // namespace coxswain

using namespace coxswain;

extern "C" {

// `outs` has room for `count` tensors.
char* cx_copy_to_shards(const void* x, void* group, void* wgrad_queue, size_t count, bool sequence_parallel, void** outs) {
  return guarded([&] {
    TORCH_CHECK(count > 0, "a rank holds one logical shard at least");
    auto copies = CopyToShards::apply(tensor(x), pointer(group), pointer(wgrad_queue), static_cast<int64_t>(count), sequence_parallel);
    for (size_t i = 0; i < count; ++i) outs[i] = handle(std::move(copies[i]));
  });
}

char* cx_reduce_from_shards(void* const* parts, size_t count, void* group, bool sequence_parallel, void** out) {
  return guarded([&] {
    const auto list = tensors(parts, count);
    *out = handle(ReduceFromShards::apply(at::TensorList(list), pointer(group), sequence_parallel));
  });
}

} // extern "C"
