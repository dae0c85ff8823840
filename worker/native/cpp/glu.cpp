// The gated linear unit of the feed-forward layer.
#include "function.h"
#include "kernels.h"

namespace coxswain {
namespace {

// silu(a) * b (arXiv 2002.05202); keeps a and b only and computes the sigmoid twice.
struct SwiGlu : Function<SwiGlu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& a_in, const Tensor& b_in) {
    TORCH_CHECK(a_in.sizes() == b_in.sizes() && a_in.scalar_type() == b_in.scalar_type(), "swiglu has ",
                a_in.sizes(), " of ", a_in.scalar_type(), " and ", b_in.sizes(), " of ", b_in.scalar_type());
    const Tensor a = a_in.contiguous(), b = b_in.contiguous();
    Tensor y = at::empty_like(a);
    by_kind(a, "swiglu", [&](auto kind) {
      using T = decltype(kind);
      T* y_data = y.data_ptr<T>();
      at::parallel_for(0, a.numel(), kElementGrain, [&](int64_t first, int64_t last) {
        kernels::swiglu(data<T>(a) + first, data<T>(b) + first, last - first, y_data + first);
      });
    });
    ctx->save_for_backward({a, b});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor a = saved[0], b = saved[1], dy = grads[0].contiguous();
    Tensor da = at::empty_like(a), db = at::empty_like(b);
    by_kind(a, "swiglu", [&](auto kind) {
      using T = decltype(kind);
      T* da_data = da.data_ptr<T>();
      T* db_data = db.data_ptr<T>();
      at::parallel_for(0, a.numel(), kElementGrain, [&](int64_t first, int64_t last) {
        kernels::swiglu_grad(data<T>(dy) + first, data<T>(a) + first, data<T>(b) + first, last - first,
                             da_data + first, db_data + first);
      });
    });
    return {da, db};
  }
};

} // namespace
} // namespace coxswain

using namespace coxswain;

extern "C" char* cx_swiglu(const void* a, const void* b, void** out) {
  return guarded([&] { *out = handle(SwiGlu::apply(tensor(a), tensor(b))); });
}
