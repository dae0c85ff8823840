// Squared norms, and one step of the optimizer.
#include "function.h"
#include "kernels.h"

namespace coxswain {
namespace {

// Squared norms are sums over blocks of this many elements; Rust adds them in a fixed tree.
constexpr int64_t kNormBlock = 65536;

int64_t blocks_of(const Tensor& x) { return (x.numel() + kNormBlock - 1) / kNormBlock; }

// The blocks of one tensor after those of another. From a GPU they come over together: each look at it waits for all
// that it was told to do.
void sum_squares_blocks(const std::vector<Tensor>& list, double* sums, int64_t blocks) {
  int64_t all = 0;
  for (const Tensor& x : list) {
    expect_fp32(x, "sum_squares");
    expect_beside(x, list[0], "sum_squares");
    all += blocks_of(x);
  }
  TORCH_CHECK(all == blocks, "sum_squares has room for ", blocks, " blocks of ", all);
  const bool on_gpu = !list.empty() && list[0].is_cuda();
  const Tensor there = on_gpu ? at::empty({blocks}, list[0].options().dtype(at::kDouble)) : Tensor();
  int64_t at = 0;
  for (const Tensor& x_in : list) {
    const Tensor x = x_in.contiguous();
    const int64_t count = x.numel(), own = blocks_of(x);
    if (on_gpu) {
      gpu::ran(gpu::kernels().sum_squares(floats(x), count, kNormBlock, there.data_ptr<double>() + at), "sum_squares");
    } else {
      at::parallel_for(0, own, 1, [&](int64_t first, int64_t last) {
        for (int64_t block = first; block < last; ++block) {
          const int64_t start = block * kNormBlock;
          sums[at + block] = kernels::sum_squares(floats(x) + start, std::min(kNormBlock, count - start));
        }
      });
    }
    at += own;
  }
  if (on_gpu) std::copy_n(there.cpu().const_data_ptr<double>(), blocks, sums);
}

} // namespace
} // namespace coxswain

using namespace coxswain;

extern "C" {

// Of `count` tensors; `sums` has room for `blocks` sums.
char* cx_sum_squares_blocks(void* const* xs, size_t count, double* sums, size_t blocks) {
  return guarded([&] { sum_squares_blocks(tensors(xs, count), sums, static_cast<int64_t>(blocks)); });
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
