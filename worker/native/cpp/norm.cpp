// RMSNorm, with its weight's gradients on the queue of weight gradients.
#include "function.h"
#include "kernels.h"
#include "uses.h"

namespace coxswain {
namespace {

// dw[d] of one use, in (b, t) row order.
Tensor weight_grad(const Use& use, const Tensor& dy_btd, const Tensor& x_btd, const Tensor& rstd_n) {
  const int64_t dim = x_btd.size(-1);
  if (x_btd.is_cuda())
    return gpu_sum(use, x_btd, [&](cuda::Rows rows, float* runs, float* sum) {
      gpu::ran(gpu::kernels().rms_norm_weight_grad(gpu::kind_of(x_btd, "rms_norm"), dy_btd.const_data_ptr(),
                                                   x_btd.const_data_ptr(), floats(rstd_n), rows, dim, runs, sum),
               "rms_norm's weight gradient");
    });
  Tensor dw = at::zeros({dim}, rstd_n.options());
  float* dw_data = dw.data_ptr<float>();
  by_kind(x_btd, "rms_norm", [&](auto kind) {
    using T = decltype(kind);
    at::parallel_for(0, dim, 64, [&](int64_t first, int64_t last) {
      rows_of(use, x_btd, [&](int64_t row, int64_t rows) {
        kernels::rms_norm_weight_grad(data<T>(dy_btd) + row * dim, data<T>(x_btd) + row * dim, floats(rstd_n) + row,
                                      rows, dim, first, last, dw_data);
      });
    });
  });
  return dw;
}

// y = x / rms(x) * w over the last dim (arXiv 1910.07467).
struct RmsNorm : Function<RmsNorm> {
  static Tensor forward(
      AutogradContext* ctx, const Tensor& x_in, const Tensor& w, double eps, int64_t uses_at, int64_t wgrad_queue) {
    expect_fp32(w, "rms_norm's weight");
    expect_beside(w, x_in, "rms_norm");
    TORCH_CHECK(x_in.dim() > 1 && x_in.size(-1) > 0 && w.is_contiguous() && w.numel() == x_in.size(-1),
                "rms_norm has weights ", w.sizes(), " for x ", x_in.sizes());
    const auto uses = counted_at<Uses>(uses_at);
    uses->expect_partition(x_in.size(-2));
    const Tensor x = x_in.contiguous();
    const int64_t dim = x.size(-1), rows = x.numel() / dim;
    Tensor y = at::empty_like(x), rstd = at::empty({rows}, w.options());
    float* rstd_data = rstd.data_ptr<float>();
    if (x.is_cuda())
      gpu::ran(gpu::kernels().rms_norm(gpu::kind_of(x, "rms_norm"), x.const_data_ptr(), floats(w),
                                       static_cast<float>(eps), rows, dim, y.data_ptr(), rstd_data),
               "rms_norm");
    else
      by_kind(x, "rms_norm", [&](auto kind) {
        using T = decltype(kind);
        T* y_data = y.data_ptr<T>();
        at::parallel_for(0, rows, kRowGrain, [&](int64_t first, int64_t last) {
          kernels::rms_norm_rows(data<T>(x) + first * dim, floats(w), static_cast<float>(eps), last - first, dim,
                                 y_data + first * dim, rstd_data + first);
        });
      });
    ctx->save_for_backward({x, w, rstd});
    ctx->saved_data["uses"] = c10::IValue::make_capsule(uses);
    ctx->saved_data["wgrad_queue"] = capsule_at<WgradQueue>(wgrad_queue);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor x = saved[0], w = saved[1], rstd = saved[2], dy = grads[0].contiguous();
    const int64_t dim = x.size(-1), rows = x.numel() / dim;
    Tensor dx = at::empty_like(x);
    if (x.is_cuda())
      gpu::ran(gpu::kernels().rms_norm_grad(gpu::kind_of(x, "rms_norm"), dy.const_data_ptr(), x.const_data_ptr(),
                                            floats(w), floats(rstd), rows, dim, dx.data_ptr()),
               "rms_norm's gradient");
    else
      by_kind(x, "rms_norm", [&](auto kind) {
        using T = decltype(kind);
        T* dx_data = dx.data_ptr<T>();
        at::parallel_for(0, rows, kRowGrain, [&](int64_t first, int64_t last) {
          kernels::rms_norm_grad_rows(data<T>(dy) + first * dim, data<T>(x) + first * dim, floats(w),
                                      floats(rstd) + first, last - first, dim, dx_data + first * dim);
        });
      });
    const auto uses = kept<Uses>(ctx, "uses");
    kept<WgradQueue>(ctx, "wgrad_queue")->entries.push_back([uses, x, dy, rstd] {
      for (const auto& use : uses->list) accumulate(*use.slot, weight_grad(use, dy, x, rstd));
    });
    return {dx, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

} // namespace
} // namespace coxswain

using namespace coxswain;

extern "C" char* cx_rms_norm(const void* x, const void* w, double eps, UseList uses, void* wgrad_queue, void** out) {
  return guarded([&] {
    const auto list = uses_of(uses);
    *out = handle(RmsNorm::apply(tensor(x), tensor(w), eps, pointer(list.get()), pointer(wgrad_queue)));
  });
}
