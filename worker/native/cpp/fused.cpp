// Attention by libtorch's fused kernel.
#include "shim.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>

namespace coxswain {
namespace {

using at::Tensor;

// Heads filled up with zeros, which change no score and make no value, or cut to what they were.
Tensor with_width(const Tensor& x, int64_t width) {
  return x.size(3) == width ? x : at::constant_pad_nd(x, {0, width - x.size(3)});
}

// On a GPU in low precision, where k and v keep their own number of heads. The kernel is asked for by its name: left to
// choose, libtorch takes cuDNN's, whose backward pass gives other bits each time.
Tensor flash(const Tensor& q_bthk, const Tensor& k_bsgk, const Tensor& v_bsgk, bool causal) {
  const int64_t dim = q_bthk.size(3), filled = (dim + 7) / 8 * 8;
  auto heads_first = [&](const Tensor& x) { return with_width(x, filled).transpose(1, 2); };
  const Tensor out = std::get<0>(at::_scaled_dot_product_flash_attention(
      heads_first(q_bthk), heads_first(k_bsgk), heads_first(v_bsgk), 0.0, causal, false,
      1 / std::sqrt(static_cast<double>(dim))));
  return with_width(out, dim).transpose(1, 2).contiguous();
}

// The flash kernel, exact and O(t) in memory (arXiv 2205.14135). q[b, t, h, k], k and v [b, s, g, k]
// with g dividing h; the result is [b, t, h, k]. Causal: row i sees keys up to i + s - t.
Tensor attention(const Tensor& q_bthk, const Tensor& k_bsgk, const Tensor& v_bsgk, bool causal) {
  // The kernel divides by the number of tokens.
  TORCH_CHECK(q_bthk.dim() == 4 && k_bsgk.dim() == 4 && q_bthk.numel() > 0 && k_bsgk.numel() > 0,
              "attention takes q [b, t, h, k] and k [b, s, g, k] that are not empty, not ", q_bthk.sizes(), " and ",
              k_bsgk.sizes());
  if (q_bthk.is_cuda() && q_bthk.scalar_type() != at::kFloat) return flash(q_bthk, k_bsgk, v_bsgk, causal);
  // The kernel of fp32 on a GPU reads 16 bytes at a time.
  const int64_t dim = q_bthk.size(3), filled = q_bthk.is_cuda() ? (dim + 3) / 4 * 4 : dim;
  const int64_t groups = q_bthk.size(2) / k_bsgk.size(2);
  auto heads_first = [&](const Tensor& x) {
    const Tensor x_bhtk = with_width(x, filled).transpose(1, 2);
    if (groups == 1) return x_bhtk;
    auto shape = x_bhtk.sizes().vec();
    return x_bhtk.unsqueeze(2).expand({shape[0], shape[1], groups, shape[2], shape[3]})
        .reshape({shape[0], shape[1] * groups, shape[2], shape[3]});
  };
  const Tensor q = with_width(q_bthk, filled).transpose(1, 2), k = heads_first(k_bsgk), v = heads_first(v_bsgk);
  const Tensor out = q.device().is_cpu()
      ? std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal))
      // Flash takes no fp32 on a GPU. The log-sums are for the backward pass.
      : std::get<0>(at::_scaled_dot_product_efficient_attention(
            q, k, v, {}, c10::GradMode::is_enabled(), 0.0, causal, 1 / std::sqrt(static_cast<double>(dim))));
  return with_width(out, dim).transpose(1, 2).contiguous();
}

} // namespace
} // namespace coxswain

using namespace coxswain;

extern "C" char* cx_attention(const void* q, const void* k, const void* v, bool causal, void** out) {
  return guarded([&] { *out = handle(attention(tensor(q), tensor(k), tensor(v), causal)); });
}
