// LayerNorm, and biases; the gradients of their vectors go on the queue of weight gradients.
#include "function.h"
#include "kernels.h"
#include "uses.h"

namespace coxswain {
namespace {

void expect_vector(const Tensor& w, const Tensor& x, const char* what) {
  expect_fp32(w, what);
  expect_beside(w, x, what);
  TORCH_CHECK(x.dim() > 1 && x.size(-1) > 0 && w.is_contiguous() && w.numel() == x.size(-1), what, " of ", w.sizes(),
              " for x ", x.sizes());
}

// The gradient of one use of a vector: `add(row, rows, first, last, to)` adds the columns first..last
// of some rows.
template <class F>
void file(const Use& use, const Tensor& x, F&& add) {
  const int64_t dim = x.size(-1);
  Tensor sum = at::zeros({dim}, at::kFloat);
  float* to = sum.data_ptr<float>();
  at::parallel_for(0, dim, 64, [&](int64_t first, int64_t last) {
    rows_of(use, x, [&](int64_t row, int64_t rows) { add(row, rows, first, last, to); });
  });
  accumulate(*use.slot, sum);
}

void bias_grad(const Uses& uses, const Tensor& dy) {
  const int64_t dim = dy.size(-1);
  if (dy.is_cuda()) {
    for (const auto& use : uses.list)
      accumulate(*use.slot, gpu_sum(use, dy, [&](cuda::Rows rows, float* runs, float* sum) {
        gpu::ran(gpu::kernels().bias_grad(gpu::kind_of(dy, "a bias"), dy.const_data_ptr(), rows, dim, runs, sum),
                 "a bias's gradient");
      }));
    return;
  }
  by_kind(dy, "a bias", [&](auto kind) {
    using T = decltype(kind);
    for (const auto& use : uses.list)
      file(use, dy, [&](int64_t row, int64_t rows, int64_t first, int64_t last, float* to) {
        kernels::bias_grad(data<T>(dy) + row * dim, rows, dim, first, last, to);
      });
  });
}

void file_weight(const Uses& uses, const Tensor& x, const Tensor& dy, const Tensor& mean, const Tensor& rstd) {
  const int64_t dim = x.size(-1);
  if (x.is_cuda()) {
    for (const auto& use : uses.list)
      accumulate(*use.slot, gpu_sum(use, x, [&](cuda::Rows rows, float* runs, float* sum) {
        gpu::ran(gpu::kernels().layer_norm_weight_grad(gpu::kind_of(x, "layer_norm"), dy.const_data_ptr(),
                                                       x.const_data_ptr(), floats(mean), floats(rstd), rows, dim, runs,
                                                       sum),
                 "layer_norm's weight gradient");
      }));
    return;
  }
  by_kind(x, "layer_norm", [&](auto kind) {
    using T = decltype(kind);
    for (const auto& use : uses.list)
      file(use, x, [&](int64_t row, int64_t rows, int64_t first, int64_t last, float* to) {
        kernels::layer_norm_weight_grad(data<T>(dy) + row * dim, data<T>(x) + row * dim, floats(mean) + row,
                                        floats(rstd) + row, rows, dim, first, last, to);
      });
  });
}

// y = (x - mean) / deviation * w + b over the last dim (arXiv 1607.06450).
struct LayerNorm : Function<LayerNorm> {
  static Tensor forward(
      AutogradContext* ctx, const Tensor& x_in, const Tensor& w, const Tensor& b, double eps, int64_t w_uses,
      int64_t b_uses, int64_t wgrad_queue) {
    expect_vector(w, x_in, "layer_norm's weight");
    expect_vector(b, x_in, "layer_norm's bias");
    counted_at<Uses>(w_uses)->expect_partition(x_in.size(-2));
    counted_at<Uses>(b_uses)->expect_partition(x_in.size(-2));
    const Tensor x = x_in.contiguous();
    const int64_t dim = x.size(-1), rows = x.numel() / dim;
    Tensor y = at::empty_like(x), mean = at::empty({rows}, w.options()), rstd = at::empty({rows}, w.options());
    float *mean_data = mean.data_ptr<float>(), *rstd_data = rstd.data_ptr<float>();
    if (x.is_cuda())
      gpu::ran(gpu::kernels().layer_norm(gpu::kind_of(x, "layer_norm"), x.const_data_ptr(), floats(w), floats(b),
                                         static_cast<float>(eps), rows, dim, y.data_ptr(), mean_data, rstd_data),
               "layer_norm");
    else
      by_kind(x, "layer_norm", [&](auto kind) {
        using T = decltype(kind);
        T* y_data = y.data_ptr<T>();
        at::parallel_for(0, rows, kRowGrain, [&](int64_t first, int64_t last) {
          kernels::layer_norm_rows(data<T>(x) + first * dim, floats(w), floats(b), static_cast<float>(eps),
                                   last - first, dim, y_data + first * dim, mean_data + first, rstd_data + first);
        });
      });
    ctx->save_for_backward({x, w, mean, rstd});
    ctx->saved_data["w_uses"] = capsule_at<Uses>(w_uses);
    ctx->saved_data["b_uses"] = capsule_at<Uses>(b_uses);
    ctx->saved_data["wgrad_queue"] = capsule_at<WgradQueue>(wgrad_queue);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor x = saved[0], w = saved[1], mean = saved[2], rstd = saved[3], dy = grads[0].contiguous();
    const int64_t dim = x.size(-1), rows = x.numel() / dim;
    Tensor dx = at::empty_like(x);
    if (x.is_cuda())
      gpu::ran(gpu::kernels().layer_norm_grad(gpu::kind_of(x, "layer_norm"), dy.const_data_ptr(), x.const_data_ptr(),
                                              floats(w), floats(mean), floats(rstd), rows, dim, dx.data_ptr()),
               "layer_norm's gradient");
    else
      by_kind(x, "layer_norm", [&](auto kind) {
        using T = decltype(kind);
        T* dx_data = dx.data_ptr<T>();
        at::parallel_for(0, rows, kRowGrain, [&](int64_t first, int64_t last) {
          kernels::layer_norm_grad_rows(data<T>(dy) + first * dim, data<T>(x) + first * dim, floats(w),
                                        floats(mean) + first, floats(rstd) + first, last - first, dim,
                                        dx_data + first * dim);
        });
      });
    const auto w_uses = kept<Uses>(ctx, "w_uses"), b_uses = kept<Uses>(ctx, "b_uses");
    kept<WgradQueue>(ctx, "wgrad_queue")->entries.push_back([w_uses, b_uses, x, dy, mean, rstd] {
      file_weight(*w_uses, x, dy, mean, rstd);
      bias_grad(*b_uses, dy);
    });
    return {dx, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// y = x + b over the last dim.
struct AddBias : Function<AddBias> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_in, const Tensor& b, int64_t uses, int64_t wgrad_queue) {
    expect_vector(b, x_in, "a bias");
    counted_at<Uses>(uses)->expect_partition(x_in.size(-2));
    const Tensor x = x_in.contiguous();
    const int64_t dim = x.size(-1), rows = x.numel() / dim;
    Tensor y = at::empty_like(x);
    if (x.is_cuda())
      gpu::ran(gpu::kernels().add_bias(gpu::kind_of(x, "a bias"), x.const_data_ptr(), floats(b), rows, dim,
                                       y.data_ptr()),
               "a bias");
    else
      by_kind(x, "a bias", [&](auto kind) {
        using T = decltype(kind);
        T* y_data = y.data_ptr<T>();
        at::parallel_for(0, rows, kRowGrain, [&](int64_t first, int64_t last) {
          kernels::add_bias(data<T>(x) + first * dim, floats(b), last - first, dim, y_data + first * dim);
        });
      });
    ctx->saved_data["uses"] = capsule_at<Uses>(uses);
    ctx->saved_data["wgrad_queue"] = capsule_at<WgradQueue>(wgrad_queue);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto uses = kept<Uses>(ctx, "uses");
    const Tensor dy = grads[0].contiguous();
    kept<WgradQueue>(ctx, "wgrad_queue")->entries.push_back([uses, dy] { bias_grad(*uses, dy); });
    return {dy, Tensor(), Tensor(), Tensor()};
  }
};

} // namespace
} // namespace coxswain

using namespace coxswain;

extern "C" {

char* cx_layer_norm(
    const void* x, const void* w, const void* b, double eps, UseList w_uses, UseList b_uses, void* wgrad_queue, void** out) {
  return guarded([&] {
    const auto of_w = uses_of(w_uses), of_b = uses_of(b_uses);
    *out = handle(LayerNorm::apply(tensor(x), tensor(w), tensor(b), eps, pointer(of_w.get()), pointer(of_b.get()),
                                   pointer(wgrad_queue)));
  });
}

char* cx_add_bias(const void* x, const void* b, UseList uses, void* wgrad_queue, void** out) {
  return guarded([&] {
    const auto list = uses_of(uses);
    *out = handle(AddBias::apply(tensor(x), tensor(b), pointer(list.get()), pointer(wgrad_queue)));
  });
}

} // extern "C"
