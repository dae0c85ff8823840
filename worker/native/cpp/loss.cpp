// Cross-entropy over a vocabulary that is split into logical shards, over this rank and its group.
#include "function.h"
#include "kernels.h"

#include <cmath>

namespace coxswain {
namespace {

// One shard's columns start.. of the logits [n, v].
struct Shard {
  const Tensor& logits_nv;
  int64_t start;

  int64_t rows() const { return logits_nv.size(0); }
  int64_t columns() const { return logits_nv.size(1); }
  // The target's column here; negative where another shard has it.
  int64_t column(int64_t target) const {
    const bool here = target >= start && target < start + columns();
    return here ? target - start : -1;
  }
};

void expect_shards(at::TensorList logits, const std::vector<int64_t>& starts, const Tensor& targets_n) {
  TORCH_CHECK(!logits.empty() && logits.size() == starts.size(), "cross_entropy has ", starts.size(),
              " first columns for ", logits.size(), " shards");
  for (const Tensor& shard : logits) {
    TORCH_CHECK(shard.is_contiguous() && shard.dim() == 2 && targets_n.is_contiguous(),
                "cross_entropy takes contiguous [n, v] logits");
    TORCH_CHECK(targets_n.scalar_type() == at::kLong && targets_n.numel() == shard.size(0),
                "cross_entropy has targets ", targets_n.sizes(), " for logits ", shard.sizes());
    TORCH_CHECK(shard.scalar_type() == logits[0].scalar_type(), "cross_entropy has shards of several types");
    expect_beside(shard, targets_n, "cross_entropy");
  }
}

Tensor row_maxima(const Shard& shard, const at::TensorOptions& options) {
  const int64_t columns = shard.columns();
  Tensor largest_n = at::empty({shard.rows()}, options);
  float* out = largest_n.data_ptr<float>();
  if (largest_n.is_cuda()) {
    gpu::ran(gpu::kernels().row_maxima(gpu::kind_of(shard.logits_nv, "cross_entropy"), shard.logits_nv.const_data_ptr(),
                                       shard.rows(), columns, out),
             "cross_entropy");
    return largest_n;
  }
  by_kind(shard.logits_nv, "cross_entropy", [&](auto kind) {
    using T = decltype(kind);
    at::parallel_for(0, shard.rows(), kRowGrain, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row)
        out[row] = kernels::max_of(data<T>(shard.logits_nv) + row * columns, columns);
    });
  });
  return largest_n;
}

// The exponentials' sum. On the CPU fp32 logits turn into their exponentials; the others keep, and would lose
// digits, so backward computes theirs again.
inline float exponentials(float* x, float shift, int64_t count) { return kernels::exp_and_sum(x, shift, count); }
template <class T>
float exponentials(const T* x, float shift, int64_t count) { return kernels::exp_sum(x, shift, count); }

// Row 0: sums of exponentials. Row 1: the target's logit less the maximum, on the shard that has it.
Tensor row_sums(const Shard& shard, const Tensor& targets_n, const Tensor& largest_n) {
  const int64_t rows = shard.rows(), columns = shard.columns();
  Tensor parts_2n = at::zeros({2, rows}, largest_n.options());
  float* out = parts_2n.data_ptr<float>();
  if (parts_2n.is_cuda()) {
    gpu::ran(gpu::kernels().row_sums(gpu::kind_of(shard.logits_nv, "cross_entropy"), shard.logits_nv.const_data_ptr(),
                                     rows, columns, shard.start, data<int64_t>(targets_n), floats(largest_n), out),
             "cross_entropy");
    return parts_2n;
  }
  by_kind(shard.logits_nv, "cross_entropy", [&](auto kind) {
    using T = decltype(kind);
    T* logits = shard.logits_nv.template mutable_data_ptr<T>();
    at::parallel_for(0, rows, kRowGrain, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        T* x = logits + row * columns;
        const int64_t target = shard.column(targets_n.const_data_ptr<int64_t>()[row]);
        const float shift = floats(largest_n)[row];
        if (target >= 0) out[rows + row] = static_cast<float>(x[target]) - shift;
        out[row] = exponentials(x, shift, columns);
      }
    });
  });
  return parts_2n;
}

// Exponentials (fp32) or logits (the others) of one row become the gradient of the logits.
void row_gradient(float* x, float, float sum, float weight, int64_t target, int64_t count) {
  kernels::scale(x, weight / sum, count);
  if (target >= 0) x[target] -= weight;
}
template <class T>
void row_gradient(T* x, float shift, float sum, float weight, int64_t target, int64_t count) {
  const float own = target >= 0 ? static_cast<float>(x[target]) : 0.f;
  kernels::exp_scale(x, shift, weight / sum, count);
  // One rounding: of the difference, not of the probability first.
  if (target >= 0) x[target] = static_cast<T>(std::exp(own - shift) * (weight / sum) - weight);
}

// What each row counts: 1, where there is no list.
float weight_of(const Tensor& weights_n, int64_t row) { return weights_n.numel() > 0 ? floats(weights_n)[row] : 1.f; }

// In place: the logits' memory becomes their gradient.
void gradient(
    const Shard& shard, const Tensor& targets_n, const Tensor& weights_n, const Tensor& largest_n,
    const Tensor& sums_n, const Tensor& factor_double) {
  const int64_t columns = shard.columns();
  if (shard.logits_nv.is_cuda()) {
    // The factor stays where it is: to read it would wait for the GPU.
    gpu::ran(gpu::kernels().logits_grad(gpu::kind_of(shard.logits_nv, "cross_entropy"),
                                        shard.logits_nv.mutable_data_ptr(), shard.rows(), columns, shard.start,
                                        data<int64_t>(targets_n), weights_n.numel() > 0 ? floats(weights_n) : nullptr,
                                        floats(largest_n), floats(sums_n), data<double>(factor_double)),
             "cross_entropy's gradient");
    return;
  }
  const float factor = static_cast<float>(factor_double.item<double>());
  by_kind(shard.logits_nv, "cross_entropy", [&](auto kind) {
    using T = decltype(kind);
    T* logits = shard.logits_nv.template mutable_data_ptr<T>();
    at::parallel_for(0, shard.rows(), kRowGrain, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        T* x = logits + row * columns;
        const int64_t target = targets_n.const_data_ptr<int64_t>()[row];
        // A product with zero would keep a NaN; rows that count nothing are cleared.
        if (target < 0) {
          std::memset(static_cast<void*>(x), 0, static_cast<size_t>(columns) * sizeof(T));
          continue;
        }
        const float weight = factor * weight_of(weights_n, row);
        row_gradient(x, floats(largest_n)[row], floats(sums_n)[row], weight, shard.column(target), columns);
      }
    });
  });
}

// The loss, from the sums of all shards: a double scalar where they are.
Tensor sum_of_rows(const Tensor& parts_2n, const Tensor& targets_n, const Tensor& weights_n) {
  const int64_t rows = targets_n.numel();
  const float* parts = floats(parts_2n);
  if (parts_2n.is_cuda()) {
    const Tensor losses_n = at::empty({rows}, parts_2n.options().dtype(at::kDouble));
    gpu::ran(gpu::kernels().row_losses(parts, data<int64_t>(targets_n),
                                       weights_n.numel() > 0 ? floats(weights_n) : nullptr, rows,
                                       losses_n.data_ptr<double>()),
             "cross_entropy");
    return losses_n.sum();
  }
  double loss = 0;
  for (int64_t row = 0; row < rows; ++row)
    if (targets_n.const_data_ptr<int64_t>()[row] >= 0)
      loss += static_cast<double>(weight_of(weights_n, row)) *
              (std::log(static_cast<double>(parts[row])) - static_cast<double>(parts[rows + row]));
  return at::scalar_tensor(loss, at::kDouble);
}

// The sum over rows of -log softmax(logits)[target], each by its weight; a target of -1 counts nothing. The
// logits are consumed. Statistics are fp32, and sums of exponentials are added in the tree over all shards.
struct CrossEntropy : Function<CrossEntropy> {
  static Tensor forward(
      AutogradContext* ctx, at::TensorList logits, const Tensor& targets_n, const Tensor& weights_n,
      const std::vector<int64_t>* starts, int64_t group_at) {
    expect_shards(logits, *starts, targets_n);
    const auto group = counted_at<Group>(group_at);
    const auto options = logits[0].options().dtype(at::kFloat);
    std::vector<Tensor> maxima, sums;
    for (size_t i = 0; i < logits.size(); ++i) maxima.push_back(row_maxima({logits[i], (*starts)[i]}, options));
    const Tensor largest_n = AllReduce(group, combine(maxima, Op::Max), Op::Max).finish();
    for (size_t i = 0; i < logits.size(); ++i)
      sums.push_back(row_sums({logits[i], (*starts)[i]}, targets_n, largest_n));
    const Tensor parts_2n = AllReduce(group, combine(sums, Op::Sum), Op::Sum).finish();

    const Tensor loss = sum_of_rows(parts_2n, targets_n, weights_n);
    ctx->saved_data["starts"] = *starts;
    variable_list saved{targets_n, weights_n, largest_n, parts_2n[0]};
    for (const Tensor& shard : logits) saved.push_back(shard.detach());
    ctx->save_for_backward(saved);
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto starts = ctx->saved_data.at("starts").toIntVector();
    variable_list result(saved.begin() + 4, saved.end());
    for (size_t i = 0; i < starts.size(); ++i)
      gradient({result[i], starts[i]}, saved[0], saved[1], saved[2], saved[3], grads[0]);
    result.resize(result.size() + 4);
    return result;
  }
};

} // namespace
} // namespace coxswain

using namespace coxswain;

// `logits` and `starts` are lists of `count` shards; the weights may be null.
extern "C" char* cx_cross_entropy(
    void* const* logits, const int64_t* starts, size_t count, const void* targets, const void* weights, void* group,
    void** out) {
  return guarded([&] {
    const auto list = tensors(logits, count);
    const std::vector<int64_t> first_columns(starts, starts + count);
    const Tensor weights_n = weights == nullptr ? at::empty({0}, at::kFloat) : tensor(weights).contiguous();
    expect_fp32(weights_n, "cross_entropy's weights");
    if (weights != nullptr) expect_beside(weights_n, tensor(targets), "cross_entropy");
    TORCH_CHECK(weights == nullptr || weights_n.numel() == tensor(targets).numel(), "cross_entropy has weights ",
                weights_n.sizes(), " for targets ", tensor(targets).sizes());
    *out = handle(
        CrossEntropy::apply(at::TensorList(list), tensor(targets), weights_n, &first_columns, pointer(group)));
  });
}
