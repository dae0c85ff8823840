// Attention, which has kernels of its own on each device: the flash and the memory-efficient kernels, as the CPU's
// attention where that has the mask and as plain products in double precision where not.
#include <ATen/TensorOperators.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "operators.h"

namespace emulation {
namespace {

// ---- On the CPU. Tensors of these functions are q[b, t, h, k], k and v [b, s, g, k] with g dividing h.

// Query i sees the keys from i + shift - left to i + shift + right; a negative bound is none.
struct Mask {
  int64_t shift = 0, left = -1, right = -1;

  // What the CPU's own kernel can do: all keys, or those up to the query's own.
  bool plain() const { return left < 0 && (right < 0 || (right == 0 && shift == 0)); }
  Tensor hidden(int64_t t, int64_t s) const {
    const Tensor distance = at::arange(s).unsqueeze(0) - (at::arange(t).unsqueeze(1) + shift); // [t, s]
    Tensor hidden = at::zeros({t, s}, at::kBool);
    if (left >= 0) hidden |= distance < -left;
    if (right >= 0) hidden |= distance > right;
    return hidden;
  }
};

// Heads first, each of k's or v's repeated for its group of queries: [b, h, s, k].
Tensor heads_first(const Tensor& x, int64_t heads) {
  return x.transpose(1, 2).repeat_interleave(heads / x.size(2), 1);
}

// Scores [b, h, t, s] in double, for the masks that the CPU's kernel has not.
Tensor scores(const Tensor& q, const Tensor& k, const Mask& mask, double scale) {
  return at::matmul(q.to(at::kDouble), k.to(at::kDouble).transpose(2, 3))
      .mul_(scale)
      .masked_fill_(mask.hidden(q.size(2), k.size(2)), -std::numeric_limits<double>::infinity());
}

// The output [b, t, h, k], and the logarithms of the sums [b, h, t] in fp32: infinite where no key is seen.
std::pair<Tensor, Tensor> attend(const Tensor& q, const Tensor& k, const Tensor& v, const Mask& mask, double scale) {
  const int64_t heads = q.size(2);
  const Tensor qh = q.transpose(1, 2), kh = heads_first(k, heads), vh = heads_first(v, heads);
  if (mask.plain()) {
    auto [out, log_sums] = at::_scaled_dot_product_flash_attention_for_cpu(qh, kh, vh, 0.0, mask.right == 0, {}, scale);
    return {out.transpose(1, 2).contiguous(), log_sums.contiguous()};
  }
  const Tensor all = scores(qh, kh, mask, scale);
  Tensor log_sums = all.logsumexp(-1);
  log_sums.masked_fill_(log_sums.isinf(), std::numeric_limits<double>::infinity());
  const Tensor out = at::matmul((all - log_sums.unsqueeze(-1)).exp_(), vh.to(at::kDouble));
  return {out.transpose(1, 2).to(q.scalar_type()).contiguous(), log_sums.to(at::kFloat)};
}

// The gradients of q, k and v, in their shapes.
std::tuple<Tensor, Tensor, Tensor> attend_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& log_sums,
    const Mask& mask, double scale) {
  const int64_t heads = q.size(2), groups = k.size(2);
  const Tensor qh = q.transpose(1, 2), kh = heads_first(k, heads), vh = heads_first(v, heads);
  const Tensor douth = dout.transpose(1, 2), outh = out.transpose(1, 2);
  Tensor dq, dk, dv;
  if (mask.plain()) {
    std::tie(dq, dk, dv) = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        douth, qh, kh, vh, outh, log_sums, 0.0, mask.right == 0, {}, scale);
  } else {
    const Tensor g = douth.to(at::kDouble);
    const Tensor p = (scores(qh, kh, mask, scale) - log_sums.to(at::kDouble).unsqueeze(-1)).exp_();
    const Tensor dp = at::matmul(g, vh.to(at::kDouble).transpose(2, 3));
    const Tensor ds = p * (dp - (g * outh.to(at::kDouble)).sum(-1, true)) * scale;
    dq = at::matmul(ds, kh.to(at::kDouble)).to(q.scalar_type());
    dk = at::matmul(ds.transpose(2, 3), qh.to(at::kDouble)).to(q.scalar_type());
    dv = at::matmul(p.transpose(2, 3), g).to(q.scalar_type());
  }
  auto tokens_first = [groups](const Tensor& dx, bool grouped) {
    if (!grouped) return dx.transpose(1, 2).contiguous();
    const Tensor sum = dx.unflatten(1, {groups, dx.size(1) / groups}).sum(2);
    return sum.transpose(1, 2).contiguous();
  };
  return {tokens_first(dq, false), tokens_first(dk, groups < heads), tokens_first(dv, groups < heads)};
}

// ---- The flash kernels, with what they refuse.

void expect_flash(const Tensor& q, const Tensor& k, const Tensor& v, double dropout) {
  expect_cuda({q, k, v});
  const auto type = q.scalar_type();
  TORCH_CHECK(type == at::kHalf || type == at::kBFloat16, "FlashAttention only support fp16 and bf16 data type");
  TORCH_CHECK(k.scalar_type() == type && v.scalar_type() == type, "query, key and value must have the same dtype");
  TORCH_CHECK(q.stride(-1) == 1 && k.stride(-1) == 1 && v.stride(-1) == 1,
              "Input tensor must have contiguous last dimension");
  TORCH_CHECK(q.size(-1) % 8 == 0 && q.size(-1) <= 256,
              "FlashAttention takes a head dimension that is a multiple of 8, up to 256, not ", q.size(-1));
  TORCH_CHECK(k.size(-1) == q.size(-1) && v.sizes() == k.sizes() && q.size(-2) % k.size(-2) == 0,
              "FlashAttention has q ", q.sizes(), " for k ", k.sizes(), " and v ", v.sizes());
  TORCH_CHECK(dropout == 0, "dropout inside attention is not emulated");
}

double scale_of(const Tensor& q, std::optional<double> scale) {
  return scale.value_or(1 / std::sqrt(static_cast<double>(q.size(-1))));
}

// Flash counts from the end: the last query stands at the last key.
Mask flash_mask(
    const Tensor& q, const Tensor& k, bool causal, const std::optional<c10::SymInt>& left,
    const std::optional<c10::SymInt>& right) {
  Mask mask;
  mask.shift = k.size(1) - q.size(1);
  if (left) mask.left = left->expect_int();
  if (right) mask.right = right->expect_int();
  if (causal) mask.right = 0;
  // A window of all is none, as the kernel has it.
  if (mask.left >= k.size(1)) mask.left = -1;
  if (mask.right >= k.size(1)) mask.right = -1;
  return mask;
}

// The sequences of a batch, one after another, as [1, t, h, k]. `ends` is int32, of the device.
struct Sequences {
  Tensor ends;
  int64_t count() const { return ends.numel() - 1; }
  int64_t first(int64_t i) const { return ends.const_data_ptr<int32_t>()[i]; }
  int64_t length(int64_t i) const { return first(i + 1) - first(i); }
  Tensor of(const Tensor& x, int64_t i) const { return x.narrow(0, first(i), length(i)).unsqueeze(0); }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> flash_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& cum_seq_q,
    const std::optional<Tensor>& cum_seq_k, c10::SymInt, c10::SymInt, double dropout, bool causal, bool debug,
    std::optional<double> given_scale, std::optional<c10::SymInt> left, std::optional<c10::SymInt> right,
    const std::optional<Tensor>& seqused_k, const std::optional<Tensor>& alibi_slopes) {
  expect_flash(q, k, v, dropout);
  TORCH_CHECK(!debug && !(seqused_k && seqused_k->defined()) && !(alibi_slopes && alibi_slopes->defined()),
              "neither a debug mask, nor seqused_k, nor alibi_slopes are emulated");
  const double scale = scale_of(q, given_scale);
  Call call;
  const Tensor qc = call.to_cpu(q), kc = call.to_cpu(k), vc = call.to_cpu(v);
  Tensor out, log_sums;
  if (cum_seq_q && cum_seq_q->defined()) {
    TORCH_CHECK(q.dim() == 3 && cum_seq_k && cum_seq_k->defined(), "sequences of queries need sequences of keys");
    expect_cuda({*cum_seq_q, *cum_seq_k});
    const Sequences queries{call.to_cpu(*cum_seq_q)}, keys{call.to_cpu(*cum_seq_k)};
    out = at::zeros_like(qc, at::MemoryFormat::Contiguous);
    log_sums = at::zeros({q.size(1), q.size(0)}, at::kFloat); // [h, tokens]
    for (int64_t i = 0; i < queries.count(); ++i) {
      if (queries.length(i) == 0) continue;
      const Tensor qi = queries.of(qc, i), ki = keys.of(kc, i);
      auto [o, l] = attend(qi, ki, keys.of(vc, i), flash_mask(qi, ki, causal, left, right), scale);
      queries.of(out, i).copy_(o);
      log_sums.narrow(1, queries.first(i), queries.length(i)).copy_(l[0]);
    }
  } else {
    TORCH_CHECK(q.dim() == 4 && k.dim() == 4, "flash takes q [b, t, h, k]");
    std::tie(out, log_sums) = attend(qc, kc, vc, flash_mask(qc, kc, causal, left, right), scale);
  }
  const auto random = q.options().dtype(at::kUInt64);
  return {call.to_cuda(out), call.to_cuda(log_sums), at::empty({2}, random), at::empty({}, random),
          at::empty({0}, q.options())};
}

std::tuple<Tensor, Tensor, Tensor> flash_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& log_sums,
    const Tensor& cum_seq_q, const Tensor& cum_seq_k, c10::SymInt, c10::SymInt, double dropout, bool causal,
    const Tensor&, const Tensor&, std::optional<double> given_scale, std::optional<c10::SymInt> left,
    std::optional<c10::SymInt> right) {
  expect_flash(q, k, v, dropout);
  expect_cuda({dout, out, log_sums, cum_seq_q, cum_seq_k});
  const double scale = scale_of(q, given_scale);
  Call call;
  const Tensor gc = call.to_cpu(dout), qc = call.to_cpu(q), kc = call.to_cpu(k), vc = call.to_cpu(v);
  const Tensor oc = call.to_cpu(out), lc = call.to_cpu(log_sums);
  Tensor dq, dk, dv;
  if (cum_seq_q.defined()) {
    const Sequences queries{call.to_cpu(cum_seq_q)}, keys{call.to_cpu(cum_seq_k)};
    dq = at::zeros_like(qc, at::MemoryFormat::Contiguous);
    dk = at::zeros_like(kc, at::MemoryFormat::Contiguous), dv = at::zeros_like(dk);
    for (int64_t i = 0; i < queries.count(); ++i) {
      if (queries.length(i) == 0) continue;
      const Tensor qi = queries.of(qc, i), ki = keys.of(kc, i);
      const Tensor li = lc.narrow(1, queries.first(i), queries.length(i)).unsqueeze(0).contiguous();
      auto [a, b, c] = attend_backward(queries.of(gc, i), qi, ki, keys.of(vc, i), queries.of(oc, i), li,
                                       flash_mask(qi, ki, causal, left, right), scale);
      queries.of(dq, i).copy_(a), keys.of(dk, i).copy_(b), keys.of(dv, i).copy_(c);
    }
  } else {
    std::tie(dq, dk, dv) = attend_backward(gc, qc, kc, vc, oc, lc, flash_mask(qc, kc, causal, left, right), scale);
  }
  return {call.to_cuda(dq), call.to_cuda(dk), call.to_cuda(dv)};
}

// The same with heads before tokens.
std::tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt, Tensor, Tensor, Tensor> sdpa_flash(
    const Tensor& q, const Tensor& k, const Tensor& v, double dropout, bool causal, bool debug,
    std::optional<double> scale) {
  auto [out, log_sums, random, unused, mask] = flash_forward(
      q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), {}, {}, q.size(2), k.size(2), dropout, causal, debug,
      scale, {}, {}, {}, {});
  return {out.transpose(1, 2), log_sums, Tensor(), Tensor(), q.sym_size(2), k.sym_size(2), random, unused, mask};
}

std::tuple<Tensor, Tensor, Tensor> sdpa_flash_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& log_sums,
    const Tensor&, const Tensor&, c10::SymInt max_q, c10::SymInt max_k, double dropout, bool causal,
    const Tensor& random, const Tensor& unused, std::optional<double> scale) {
  auto [dq, dk, dv] = flash_backward(
      dout.transpose(1, 2), q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), out.transpose(1, 2), log_sums, {},
      {}, max_q, max_k, dropout, causal, random, unused, scale, {}, {});
  return {dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)};
}

// ---- The memory-efficient kernel, which libtorch takes for fp32. Its causal mask counts from the beginning, and the
// rows of its log-sums are padded to 32.

Mask efficient_mask(bool causal) {
  Mask mask;
  if (causal) mask.right = 0;
  return mask;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sdpa_efficient(
    const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& bias, bool compute_log_sumexp,
    double dropout, bool causal, std::optional<double> scale) {
  expect_cuda({q, k, v});
  TORCH_CHECK(!(bias && bias->defined()) && dropout == 0, "neither a bias nor dropout is emulated");
  TORCH_CHECK(q.size(1) == k.size(1), "the memory-efficient kernel takes as many key heads as query heads");
  TORCH_CHECK(q.scalar_type() != at::kFloat || q.size(3) % 4 == 0, "query is not correctly aligned (strideH)");
  Call call;
  auto [out, sums] = attend(call.to_cpu(q).transpose(1, 2), call.to_cpu(k).transpose(1, 2),
                            call.to_cpu(v).transpose(1, 2), efficient_mask(causal), scale_of(q, scale));
  const int64_t t = q.size(2), padded = compute_log_sumexp ? (t + 31) / 32 * 32 : 0;
  const Tensor log_sums = at::full({q.size(0), q.size(1), padded}, std::numeric_limits<float>::infinity(), at::kFloat);
  if (compute_log_sumexp) log_sums.narrow(2, 0, t).copy_(sums);
  const auto random = at::TensorOptions(at::kLong).device(at::kCUDA);
  return {call.to_cuda(out.transpose(1, 2)), call.to_cuda(log_sums), at::empty({}, random), at::empty({}, random)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sdpa_efficient_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, const Tensor& out,
    const Tensor& log_sums, const Tensor&, const Tensor&, double dropout, std::array<bool, 4>, bool causal,
    std::optional<double> scale) {
  if (!dout.defined()) return {};
  expect_cuda({dout, q, k, v, out, log_sums});
  TORCH_CHECK(!bias.defined() && dropout == 0, "neither a bias nor dropout is emulated");
  TORCH_CHECK(log_sums.size(2) >= q.size(2), "the backward pass needs the log-sums: compute_log_sumexp was false");
  Call call;
  auto first = [&](const Tensor& x) { return call.to_cpu(x).transpose(1, 2); };
  auto [dq, dk, dv] = attend_backward(
      first(dout), first(q), first(k), first(v), first(out), call.to_cpu(log_sums).narrow(2, 0, q.size(2)).contiguous(),
      efficient_mask(causal), scale_of(q, scale));
  return {call.to_cuda(dq.transpose(1, 2)), call.to_cuda(dk.transpose(1, 2)), call.to_cuda(dv.transpose(1, 2)),
          Tensor()};
}

} // namespace

void write_attention(Kernels& kernels) {
  kernels.write("_flash_attention_forward", TORCH_FN(flash_forward));
  kernels.write("_flash_attention_backward", TORCH_FN(flash_backward));
  kernels.write("_scaled_dot_product_flash_attention", TORCH_FN(sdpa_flash));
  kernels.write("_scaled_dot_product_flash_attention_backward", TORCH_FN(sdpa_flash_backward));
  kernels.write("_scaled_dot_product_efficient_attention", TORCH_FN(sdpa_efficient));
  kernels.write("_scaled_dot_product_efficient_attention_backward", TORCH_FN(sdpa_efficient_backward));
}

} // namespace emulation
