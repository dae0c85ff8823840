// The non-linearities of feed-forward layers, by themselves or as the gate of another product.
#include "function.h"
#include "kernels.h"

namespace coxswain {
namespace {

using kernels::Activation;

// act(a) * b (arXiv 2002.05202), or act(a) where it is not gated, and b is a again; keeps a and b only.
struct Activate : Function<Activate> {
  static Tensor forward(AutogradContext* ctx, const Tensor& a_in, const Tensor& b_in, int64_t by, bool gated) {
    TORCH_CHECK(!gated || (a_in.sizes() == b_in.sizes() && a_in.scalar_type() == b_in.scalar_type()),
                "a gate has ", a_in.sizes(), " of ", a_in.scalar_type(), " and ", b_in.sizes());
    const Tensor a = a_in.contiguous(), b = gated ? b_in.contiguous() : a;
    Tensor y = at::empty_like(a);
    expect_beside(a, b, "a gate");
    if (a.is_cuda())
      gpu::ran(gpu::kernels().activate(static_cast<int>(by), gpu::kind_of(a, "an activation"), a.const_data_ptr(),
                                       gated ? b.const_data_ptr() : nullptr, a.numel(), y.data_ptr()),
               "an activation");
    else
      by_kind(a, "an activation", [&](auto kind) {
        using T = decltype(kind);
        T* y_data = y.data_ptr<T>();
        const T *a_data = data<T>(a), *b_data = gated ? data<T>(b) : nullptr;
        at::parallel_for(0, a.numel(), kElementGrain, [&](int64_t first, int64_t last) {
          kernels::activate(static_cast<Activation>(by), a_data + first, gated ? b_data + first : nullptr,
                            last - first, y_data + first);
        });
      });
    ctx->save_for_backward({a, b});
    ctx->saved_data["by"] = by;
    ctx->saved_data["gated"] = gated;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor a = saved[0], b = saved[1], dy = grads[0].contiguous();
    const bool gated = ctx->saved_data.at("gated").toBool();
    const auto by = static_cast<Activation>(ctx->saved_data.at("by").toInt());
    Tensor da = at::empty_like(a), db = gated ? at::empty_like(b) : Tensor();
    if (a.is_cuda())
      gpu::ran(gpu::kernels().activate_grad(static_cast<int>(by), gpu::kind_of(a, "an activation"),
                                            dy.const_data_ptr(), a.const_data_ptr(),
                                            gated ? b.const_data_ptr() : nullptr, a.numel(), da.data_ptr(),
                                            gated ? db.data_ptr() : nullptr),
               "an activation's gradient");
    else
      by_kind(a, "an activation", [&](auto kind) {
        using T = decltype(kind);
        T *da_data = da.data_ptr<T>(), *db_data = gated ? db.data_ptr<T>() : nullptr;
        const T *dy_data = data<T>(dy), *a_data = data<T>(a), *b_data = gated ? data<T>(b) : nullptr;
        at::parallel_for(0, a.numel(), kElementGrain, [&](int64_t first, int64_t last) {
          kernels::activate_grad(by, dy_data + first, a_data + first, gated ? b_data + first : nullptr, last - first,
                                 da_data + first, gated ? db_data + first : nullptr);
        });
      });
    return {da, db, Tensor(), Tensor()};
  }
};

} // namespace
} // namespace coxswain

using namespace coxswain;

// `by` is an Activation; b may be null.
extern "C" char* cx_activate(const void* a, const void* b, int by, void** out) {
  return guarded([&] {
    const bool gated = b != nullptr;
    *out = handle(Activate::apply(tensor(a), tensor(gated ? b : a), static_cast<int64_t>(by), gated));
  });
}
