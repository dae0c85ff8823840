// Attention over lists of tiles on a GPU: what attention.cpp is on the CPU.
#include "gpu_attention.h"

#include "../cuda/attention.h"

namespace coxswain {
namespace {

// A list's words on the GPU: copied there once, and kept beside the list.
cuda::AttentionList on_gpu(const BlockList& list, const Tensor& like) {
  if (!list.words.defined()) {
    auto made = cuda::attention_words(list);
    const Tensor here = at::from_blob(made.words.data(), {static_cast<int64_t>(made.words.size())}, at::kLong);
    list.layout = std::make_shared<cuda::AttentionList>(made.layout);
    list.words = here.to(like.device());
  }
  auto layout = *std::static_pointer_cast<cuda::AttentionList>(list.layout);
  layout.words = data<int64_t>(list.words);
  return layout;
}

// What a call of the kernels takes beside tensors.
struct Call {
  cuda::AttentionShape shape;
  cuda::AttentionList list{};
  cuda::AttentionDrop drop{};
  bool has_list, drops;

  Call(const Tensor& q, const Tensor& k, const TiledAttention& how) {
    shape = {q.size(0), q.size(1), k.size(1), q.size(2), k.size(2), q.size(3), static_cast<float>(how.scale),
             how.causal ? 1 : 0};
    has_list = how.list != nullptr, drops = how.rate > 0;
    if (has_list) list = on_gpu(*how.list, q);
    const auto of = random::dropout_of(how.key, how.rate);
    drop = {{of.key, of.threshold, of.scale}, how.first_head, how.heads};
  }
  const cuda::AttentionList* list_or_null() const { return has_list ? &list : nullptr; }
  const cuda::AttentionDrop* drop_or_null() const { return drops ? &drop : nullptr; }
};

const float* or_null(const Tensor& bias) { return bias.numel() > 0 ? floats(bias) : nullptr; }

struct GpuAttention : Function<GpuAttention> {
  static Tensor forward(
      AutogradContext* ctx, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const Tensor& bias_in,
      int64_t list, bool causal, double scale, int64_t key, double rate, int64_t first_head, int64_t heads) {
    const Tensor q = q_in.contiguous(), k = k_in.contiguous(), v = v_in.contiguous(), bias = bias_in.contiguous();
    const auto blocks = list == 0 ? nullptr : counted_at<BlockList>(list);
    const Call call(q, k, {blocks.get(), causal, scale, key, rate, first_head, heads});
    const Tensor out = at::empty_like(q);
    const Tensor log_sum = at::empty({q.size(0), q.size(2), q.size(1)}, q.options().dtype(at::kFloat));
    gpu::ran(gpu::attention().forward(gpu::kind_of(q, "attention"), &call.shape, q.const_data_ptr(),
                                      k.const_data_ptr(), v.const_data_ptr(), or_null(bias), call.list_or_null(),
                                      call.drop_or_null(), out.data_ptr(), log_sum.data_ptr<float>()),
             "attention");
    ctx->save_for_backward({q, k, v, out, log_sum, bias});
    if (blocks) ctx->saved_data["list"] = c10::IValue::make_capsule(blocks);
    ctx->saved_data["causal"] = causal;
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["key"] = key;
    ctx->saved_data["rate"] = rate;
    ctx->saved_data["first_head"] = first_head;
    ctx->saved_data["heads"] = heads;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor q = saved[0], k = saved[1], v = saved[2], out = saved[3], log_sum = saved[4], bias = saved[5];
    const Tensor grad = grads[0].contiguous();
    const auto& of = ctx->saved_data;
    const auto blocks = of.count("list") ? kept<BlockList>(ctx, "list") : nullptr;
    const Call call(q, k, {blocks.get(), of.at("causal").toBool(), of.at("scale").toDouble(), of.at("key").toInt(),
                           of.at("rate").toDouble(), of.at("first_head").toInt(), of.at("heads").toInt()});
    const bool wants_bias = ctx->needs_input_grad(3);
    Tensor dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
    Tensor dbias = wants_bias ? at::empty_like(bias) : Tensor();
    const auto bytes = static_cast<int64_t>(gpu::attention().scratch_bytes(&call.shape, wants_bias));
    const Tensor scratch = at::empty({bytes}, q.options().dtype(at::kByte));
    gpu::ran(gpu::attention().backward(gpu::kind_of(q, "attention"), &call.shape, q.const_data_ptr(),
                                       k.const_data_ptr(), v.const_data_ptr(), or_null(bias), call.list_or_null(),
                                       call.drop_or_null(), out.const_data_ptr(), floats(log_sum),
                                       grad.const_data_ptr(), dq.data_ptr(), dk.data_ptr(), dv.data_ptr(),
                                       wants_bias ? dbias.data_ptr<float>() : nullptr, scratch.data_ptr()),
             "attention's gradient");
    const Tensor none;
    return {dq, dk, dv, dbias, none, none, none, none, none, none, none};
  }
};

} // namespace

Tensor gpu_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, const TiledAttention& how) {
  TORCH_CHECK(q.size(3) <= cuda::kAttentionDim, "head dim ", q.size(3), " is more than ", cuda::kAttentionDim,
              ", the most that attention on a GPU supports");
  const Tensor given = bias.defined() ? bias : at::empty({0}, q.options().dtype(at::kFloat));
  return GpuAttention::apply(q, k, v, given, pointer(how.list), how.causal, how.scale, how.key, how.rate,
                             how.first_head, how.heads);
}

} // namespace coxswain
