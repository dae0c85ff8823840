// Rotary positions (arXiv 2104.09864), halves rotated as in the Hugging Face layout.
#include "function.h"
#include "kernels.h"

namespace coxswain {
namespace {

// x[b, t, h, k]; cos and sin [t, k/2] for the positions at hand.
struct Rope : Function<Rope> {
  static Tensor rotate(const Tensor& x_in, const Tensor& cos, const Tensor& sin, float sign) {
    TORCH_CHECK(x_in.dim() == 4 && x_in.size(3) % 2 == 0, "rope takes [b, t, h, even k], not ", x_in.sizes());
    for (const Tensor& table : {cos, sin}) {
      expect_fp32(table, "rope's table");
      expect_beside(table, x_in, "rope");
      TORCH_CHECK(table.is_contiguous() && table.sizes() == at::IntArrayRef({x_in.size(1), x_in.size(3) / 2}),
                  "rope tables are ", table.sizes(), " for x ", x_in.sizes());
    }
    const Tensor x = x_in.contiguous();
    const int64_t tokens = x.size(1), heads = x.size(2), half = x.size(3) / 2;
    Tensor y = at::empty_like(x);
    if (x.is_cuda()) {
      gpu::ran(gpu::kernels().rope(gpu::kind_of(x, "rope"), x.const_data_ptr(), floats(cos), floats(sin), sign,
                                   x.size(0), tokens, heads, half, y.data_ptr()),
               "rope");
      return y;
    }
    by_kind(x, "rope", [&](auto kind) {
      using T = decltype(kind);
      T* y_data = y.data_ptr<T>();
      at::parallel_for(0, x.size(0) * tokens, kRowGrain, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
          const int64_t at = row * heads * half * 2, position = row % tokens * half;
          kernels::rope_heads(data<T>(x) + at, floats(cos) + position, floats(sin) + position, sign, heads, half,
                              y_data + at);
        }
      });
    });
    return y;
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return rotate(x, cos, sin, 1.f);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {rotate(grads[0], saved[0], saved[1], -1.f), Tensor(), Tensor()};
  }
};

} // namespace
} // namespace coxswain

using namespace coxswain;

extern "C" char* cx_rope(const void* x, const void* cos, const void* sin, void** out) {
  return guarded([&] { *out = handle(Rope::apply(tensor(x), tensor(cos), tensor(sin))); });
}
