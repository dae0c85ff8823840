// The linear map, with its weight gradient on the queue of weight gradients.
#include "function.h"

namespace coxswain {
namespace {

// dw[o, d] = dy[n, o]^T x[n, d], into the slot's fp32 buffer.
void weight_grad(Slot& slot, const Tensor& dy_no, const Tensor& x_nd) {
  at::Tensor& dw = buffer(slot);
  if (x_nd.scalar_type() != at::kFloat) {
    if (!x_nd.is_cuda()) return accumulate(slot, at::mm(dy_no.t(), x_nd));
    // On a GPU a product of low precision adds to fp32 by itself.
    if (slot.fresh) at::mm_out(dw, dy_no.t(), x_nd, at::kFloat);
    else at::addmm_out(dw, dw, dy_no.t(), x_nd, at::kFloat);
    slot.fresh = false;
    return;
  }
  // Accumulation happens inside the product; the order of its sums does not depend on `fresh`.
  if (slot.fresh) at::mm_out(dw, dy_no.t(), x_nd); else dw.addmm_(dy_no.t(), x_nd);
  slot.fresh = false;
}

// y[n, o] = x[n, d] w[o, d]^T
struct Linear : Function<Linear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w, int64_t slot, int64_t wgrad_queue) {
    TORCH_CHECK(x.dim() > 0 && w.dim() == 2 && x.size(-1) == w.size(1) && x.scalar_type() == w.scalar_type(),
                "linear has x ", x.sizes(), " of ", x.scalar_type(), " for weights ", w.sizes(), " of ",
                w.scalar_type());
    const Tensor x_nd = x.reshape({-1, x.size(-1)});
    ctx->save_for_backward({x_nd, w});
    ctx->saved_data["slot"] = capsule_at<Slot>(slot);
    ctx->saved_data["wgrad_queue"] = capsule_at<WgradQueue>(wgrad_queue);
    auto shape = x.sizes().vec();
    shape.back() = w.size(0);
    return at::mm(x_nd, w.t()).view(shape);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor x_nd = saved[0], w = saved[1];
    const Tensor dy_no = grads[0].reshape({-1, w.size(0)});
    const auto slot = kept<Slot>(ctx, "slot");
    kept<WgradQueue>(ctx, "wgrad_queue")->entries.push_back([slot, x_nd, dy_no] { weight_grad(*slot, dy_no, x_nd); });
    auto shape = grads[0].sizes().vec();
    shape.back() = w.size(1);
    return {at::mm(dy_no, w).view(shape), Tensor(), Tensor(), Tensor()};
  }
};

} // namespace
} // namespace coxswain

using namespace coxswain;

extern "C" char* cx_linear(const void* x, const void* w, void* slot, void* wgrad_queue, void** out) {
  return guarded([&] { *out = handle(Linear::apply(tensor(x), tensor(w), pointer(slot), pointer(wgrad_queue))); });
}
