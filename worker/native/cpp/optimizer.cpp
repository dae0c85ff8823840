// Squared norms, and one step of the optimizer.
#include "function.h"
#include "kernels.h"

namespace coxswain {
namespace {

// Squared norms are sums over blocks of this many elements; Rust adds them in a fixed tree.
constexpr int64_t kNormBlock = 65536;

void sum_squares_blocks(const Tensor& x_in, double* sums, int64_t blocks) {
  expect_fp32_cpu(x_in, "sum_squares");
  const Tensor x = x_in.contiguous();
  const int64_t count = x.numel();
  TORCH_CHECK(blocks == (count + kNormBlock - 1) / kNormBlock, "sum_squares has ", blocks, " blocks for ", count,
              " elements");
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t start = block * kNormBlock;
      sums[block] = kernels::sum_squares(floats(x) + start, std::min(kNormBlock, count - start));
    }
  });
}

} // namespace
} // namespace coxswain

using namespace coxswain;

extern "C" {

// `sums` has room for `blocks` sums.
char* cx_sum_squares_blocks(const void* x, double* sums, size_t blocks) {
  return guarded([&] { sum_squares_blocks(tensor(x), sums, static_cast<int64_t>(blocks)); });
}

// One step of AdamW (arXiv 1711.05101) by libtorch's fused kernel; gradients are divided by
// `divisor` first. `step` counts from 1.
char* cx_adamw(
    void* const* params, void* const* grads, void* const* exp_avgs, void* const* exp_avg_sqs, size_t count,
    double step, double lr, double beta1, double beta2, double weight_decay, double eps, double divisor) {
  return guarded([&] {
    if (count == 0) return;
    at::NoGradGuard guard;
    const auto ps = tensors(params, count);
    const auto options = ps[0].options();
    const std::vector<Tensor> steps(count, at::full({}, step, options));
    at::_fused_adamw_(ps, tensors(grads, count), tensors(exp_avgs, count), tensors(exp_avg_sqs, count), {}, steps, lr,
                      beta1, beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false,
                      at::full({}, divisor, options));
  });
}

} // extern "C"
