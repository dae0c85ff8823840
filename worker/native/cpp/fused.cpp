// Attention by libtorch's fused kernel.
#include "shim.h"

#include <ATen/ATen.h>

namespace coxswain {
namespace {

using at::Tensor;

// The flash kernel, exact and O(t) in memory (arXiv 2205.14135). q[b, t, h, k], k and v [b, s, g, k]
// with g dividing h; the result is [b, t, h, k]. Causal: row i sees keys up to i + s - t.
Tensor attention(const Tensor& q_bthk, const Tensor& k_bsgk, const Tensor& v_bsgk, bool causal) {
  // The kernel divides by the number of tokens.
  TORCH_CHECK(q_bthk.dim() == 4 && k_bsgk.dim() == 4 && q_bthk.numel() > 0 && k_bsgk.numel() > 0,
              "attention takes q [b, t, h, k] and k [b, s, g, k] that are not empty, not ", q_bthk.sizes(), " and ",
              k_bsgk.sizes());
  const int64_t groups = q_bthk.size(2) / k_bsgk.size(2);
  auto heads_first = [groups](const Tensor& x) {
    const Tensor x_bhtk = x.transpose(1, 2);
    if (groups == 1) return x_bhtk;
    auto shape = x_bhtk.sizes().vec();
    return x_bhtk.unsqueeze(2).expand({shape[0], shape[1], groups, shape[2], shape[3]})
        .reshape({shape[0], shape[1] * groups, shape[2], shape[3]});
  };
  const Tensor q = q_bthk.transpose(1, 2), k = heads_first(k_bsgk), v = heads_first(v_bsgk);
  const Tensor out = q.device().is_cpu()
      ? std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal))
      : at::scaled_dot_product_attention(q, k, v, {}, 0.0, causal);
  return out.transpose(1, 2).contiguous();
}

} // namespace
} // namespace coxswain

using namespace coxswain;

extern "C" char* cx_attention(const void* q, const void* k, const void* v, bool causal, void** out) {
  return guarded([&] { *out = handle(attention(tensor(q), tensor(k), tensor(v), causal)); });
}
