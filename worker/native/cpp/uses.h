#pragma once
// Vectors that are applied to every row: norms and biases. The gradient of each use is a sum of its
// own, in row order (b, t).
#include "function.h"

namespace coxswain {

// A use of the weight by tokens first..first + tokens, whose gradient is a sum of its own.
struct Use {
  c10::intrusive_ptr<Slot> slot;
  int64_t first, tokens;
};

struct Uses : torch::CustomClassHolder {
  std::vector<Use> list;

  // The sums of the list are over all rows only if its ranges follow each other without a gap. Some are empty
  // where there are fewer tokens than uses.
  void expect_partition(int64_t tokens) const {
    int64_t end = 0;
    for (const auto& use : list) {
      TORCH_CHECK(use.first == end && use.tokens >= 0, "a vector has a use from token ", use.first, " of ",
                  use.tokens, " tokens where one from token ", end, " follows");
      end += use.tokens;
    }
    TORCH_CHECK(end == tokens, "a vector has uses for ", end, " tokens of ", tokens);
  }
};

// Calls `body(row, rows)` for the consecutive rows of a use in x [.., t, d], batch by batch.
template <class F>
void rows_of(const Use& use, const Tensor& x, F&& body) {
  if (x.numel() == 0) return;
  const int64_t tokens = x.size(-2), batch = x.numel() / (tokens * x.size(-1));
  for (int64_t b = 0; b < batch; ++b) body(b * tokens + use.first, use.tokens);
}

// The same rows as a kernel on the GPU takes them.
inline cuda::Rows gpu_rows(const Use& use, const Tensor& x) {
  const int64_t tokens = x.size(-2), dim = x.size(-1);
  const int64_t batch = x.numel() == 0 ? 0 : x.numel() / (tokens * dim);
  return {batch, tokens, use.first, use.tokens};
}

// The sum over a use's rows on the GPU: `add(rows, runs, sum)` launches its kernels, with room for the sums of runs.
template <class F>
Tensor gpu_sum(const Use& use, const Tensor& x, F&& add) {
  const cuda::Rows rows = gpu_rows(use, x);
  const int64_t dim = x.size(-1), runs = (rows.batch * rows.count + cuda::kRun - 1) / cuda::kRun;
  const auto options = x.options().dtype(at::kFloat);
  Tensor sum = at::empty({dim}, options), parts = at::empty({runs, dim}, options);
  add(rows, parts.data_ptr<float>(), sum.data_ptr<float>());
  return sum;
}

// The slots, first tokens and numbers of tokens are three lists of `count`.
struct UseList {
  void* const* slots;
  const int64_t *firsts, *tokens;
  size_t count;
};

inline c10::intrusive_ptr<Uses> uses_of(const UseList& from) {
  auto uses = c10::make_intrusive<Uses>();
  for (size_t i = 0; i < from.count; ++i)
    uses->list.push_back({counted<Slot>(from.slots[i]), from.firsts[i], from.tokens[i]});
  return uses;
}

} // namespace coxswain
