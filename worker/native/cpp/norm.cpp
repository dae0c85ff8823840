// RMSNorm, with its weight's gradients on the tape.
#include "function.h"
#include "kernels.h"

namespace coxswain {
namespace {

// A use of the weight by tokens first..first + tokens, whose gradient is a sum of its own.
struct NormUse {
  c10::intrusive_ptr<Slot> slot;
  int64_t first, tokens;
};

struct NormUses : torch::CustomClassHolder {
  std::vector<NormUse> list;

  // The sums of the list are over all rows only if its ranges follow each other without a gap.
  void expect_partition(int64_t tokens) const {
    int64_t end = 0;
    for (const auto& use : list) {
      TORCH_CHECK(use.first == end && use.tokens > 0, "rms_norm has a use from token ", use.first, " of ",
                  use.tokens, " tokens where one from token ", end, " follows");
      end += use.tokens;
    }
    TORCH_CHECK(end == tokens, "rms_norm has uses for ", end, " tokens of ", tokens);
  }
};

// dw[d] of one use, in (b, t) row order.
Tensor weight_grad(const NormUse& use, const Tensor& dy_btd, const Tensor& x_btd, const Tensor& rstd_n) {
  const int64_t dim = x_btd.size(-1), tokens = x_btd.size(-2), batch = x_btd.numel() / (tokens * dim);
  Tensor dw = at::zeros({dim}, rstd_n.options());
  float* dw_data = dw.data_ptr<float>();
  by_kind(x_btd, "rms_norm", [&](auto kind) {
    using T = decltype(kind);
    at::parallel_for(0, dim, 64, [&](int64_t first, int64_t last) {
      for (int64_t b = 0; b < batch; ++b) {
        const int64_t row = b * tokens + use.first;
        kernels::rms_norm_weight_grad(data<T>(dy_btd) + row * dim, data<T>(x_btd) + row * dim, floats(rstd_n) + row,
                                      use.tokens, dim, first, last, dw_data);
      }
    });
  });
  return dw;
}

// y = x / rms(x) * w over the last dim (arXiv 1910.07467).
struct RmsNorm : Function<RmsNorm> {
  static Tensor forward(
      AutogradContext* ctx, const Tensor& x_in, const Tensor& w, double eps, int64_t uses_at, int64_t tape) {
    expect_fp32_cpu(w, "rms_norm's weight");
    TORCH_CHECK(x_in.dim() > 1 && x_in.size(-1) > 0 && w.is_contiguous() && w.numel() == x_in.size(-1),
                "rms_norm has weights ", w.sizes(), " for x ", x_in.sizes());
    const auto uses = counted_at<NormUses>(uses_at);
    uses->expect_partition(x_in.size(-2));
    const Tensor x = x_in.contiguous();
    const int64_t dim = x.size(-1), rows = x.numel() / dim;
    Tensor y = at::empty_like(x), rstd = at::empty({rows}, w.options());
    float* rstd_data = rstd.data_ptr<float>();
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
    ctx->saved_data["tape"] = capsule_at<Tape>(tape);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor x = saved[0], w = saved[1], rstd = saved[2], dy = grads[0].contiguous();
    const int64_t dim = x.size(-1), rows = x.numel() / dim;
    Tensor dx = at::empty_like(x);
    by_kind(x, "rms_norm", [&](auto kind) {
      using T = decltype(kind);
      T* dx_data = dx.data_ptr<T>();
      at::parallel_for(0, rows, kRowGrain, [&](int64_t first, int64_t last) {
        kernels::rms_norm_grad_rows(data<T>(dy) + first * dim, data<T>(x) + first * dim, floats(w),
                                    floats(rstd) + first, last - first, dim, dx_data + first * dim);
      });
    });
    const auto uses = kept<NormUses>(ctx, "uses");
    kept<Tape>(ctx, "tape")->entries.push_back([uses, x, dy, rstd] {
      for (const auto& use : uses->list) accumulate(*use.slot, weight_grad(use, dy, x, rstd));
    });
    return {dx, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

} // namespace
} // namespace coxswain

using namespace coxswain;

// The uses' slots, first tokens and numbers of tokens are three lists of `count`.
extern "C" char* cx_rms_norm(
    const void* x, const void* w, double eps, void* const* slots, const int64_t* firsts, const int64_t* tokens,
    size_t count, void* tape, void** out) {
  return guarded([&] {
    const auto uses = c10::make_intrusive<NormUses>();
    for (size_t i = 0; i < count; ++i) uses->list.push_back({counted<Slot>(slots[i]), firsts[i], tokens[i]});
    *out = handle(RmsNorm::apply(tensor(x), tensor(w), eps, pointer(uses.get()), pointer(tape)));
  });
}
