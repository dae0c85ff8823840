// Dropout by a counter-based hash. Which key belongs to which place is left to the engine.
//
// Shapes: b batch, t tokens at hand, d model dim.
#include "random.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/util/Half.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "gpu.h"
#include "shim.h"

namespace coxswain {
namespace random {
namespace {

// Calls `body(salt, lower, from, to)` for the parts of `first .. first + count` that share a salt;
// element i has lower half `lower + i - from`.
template <class F>
INLINE void for_salts(uint64_t key, uint64_t first, int64_t count, F&& body) {
  for (int64_t from = 0; from < count;) {
    const uint64_t index = first + static_cast<uint64_t>(from);
    const uint32_t lower = static_cast<uint32_t>(index);
    const int64_t to = std::min(count, from + (int64_t{1} << 32) - int64_t{lower});
    body(salt(key, static_cast<uint32_t>(index >> 32)), lower, from, to);
    from = to;
  }
}

template <class T, class Widen, class Narrow>
INLINE void drop_any(
    const T* x, int64_t count, Dropout dropout, uint64_t first, T* y, Widen&& widen, Narrow&& narrow) {
  for_salts(dropout.key, first, count, [&](Salt s, uint32_t lower, int64_t from, int64_t to) {
    const uint32_t threshold = dropout.threshold;
    const float scale = dropout.scale;
    for (int64_t i = from; i < to; ++i) {
      const float kept = widen(x[i]) * scale;
      y[i] = narrow(draw(s, lower + static_cast<uint32_t>(i - from)) < threshold ? 0.f : kept);
    }
  });
}

INLINE float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

INLINE float widen_bf16(uint16_t x) { return from_bits(uint32_t{x} << 16); }

// To nearest, ties to even. A NaN keeps its upper half with a bit set that makes it a quiet one.
INLINE uint16_t narrow_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

} // namespace

Dropout dropout_of(int64_t key, double rate) {
  TORCH_CHECK(rate >= 0 && rate < 1, "a dropout rate is at least 0 and below 1, not ", rate);
  // A rate within 2^-33 of 1 would round to 2^32.
  const double threshold = std::min(std::round(rate * 4294967296.0), 4294967295.0);
  return {static_cast<uint64_t>(key), static_cast<uint32_t>(threshold), static_cast<float>(1 / (1 - rate))};
}

CLONES void drop(const float* x, int64_t count, Dropout dropout, uint64_t first, float* y) {
  drop_any(x, count, dropout, first, y, [](float v) { return v; }, [](float v) { return v; });
}

CLONES void drop_bf16(const uint16_t* x, int64_t count, Dropout dropout, uint64_t first, uint16_t* y) {
  drop_any(x, count, dropout, first, y, [](uint16_t v) { return widen_bf16(v); },
           [](float v) { return narrow_bf16(v); });
}

// Not vectorized: no processor of this program's is fast in fp16.
void drop_fp16(const uint16_t* x, int64_t count, Dropout dropout, uint64_t first, uint16_t* y) {
  drop_any(x, count, dropout, first, y, [](uint16_t v) { return c10::detail::fp16_ieee_to_fp32_value(v); },
           [](float v) { return c10::detail::fp16_ieee_from_fp32_value(v); });
}

namespace {

CLONES void keep(Dropout dropout, uint64_t first, int64_t count, bool* out) {
  for_salts(dropout.key, first, count, [&](Salt s, uint32_t lower, int64_t from, int64_t to) {
    const uint32_t threshold = dropout.threshold;
    for (int64_t i = from; i < to; ++i)
      out[i] = draw(s, lower + static_cast<uint32_t>(i - from)) >= threshold;
  });
}

} // namespace
} // namespace random

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Elements that one thread should take at least: below this, starting a thread costs more.
constexpr int64_t kElementGrain = 32768;

// x[b, t, d] is tokens first .. first + t of `tokens`: an element's index is its index in the whole
// [b, tokens, d].
Tensor drop_tokens(const Tensor& x_in, random::Dropout dropout, int64_t first, int64_t tokens) {
  const Tensor x = x_in.contiguous();
  Tensor y = at::empty_like(x);
  const int64_t dim = x.size(2), run = x.size(1) * dim;
  const auto type = x.scalar_type();
  if (x.is_cuda()) {
    gpu::ran(gpu::kernels().drop(gpu::kind_of(x, "dropout"), x.const_data_ptr(),
                                 {dropout.key, dropout.threshold, dropout.scale}, x.size(0), run,
                                 static_cast<uint64_t>(tokens * dim), static_cast<uint64_t>(first * dim), y.data_ptr()),
             "dropout");
    return y;
  }
  at::parallel_for(0, x.numel(), kElementGrain, [&](int64_t from, int64_t to) {
    while (from < to) {
      const int64_t batch = from / run, within = from % run, count = std::min(to - from, run - within);
      const auto index = static_cast<uint64_t>((batch * tokens + first) * dim + within);
      const auto at = static_cast<size_t>(from) * x.element_size();
      const void* source = static_cast<const char*>(x.const_data_ptr()) + at;
      void* target = static_cast<char*>(y.data_ptr()) + at;
      const auto* source16 = static_cast<const uint16_t*>(source);
      auto* target16 = static_cast<uint16_t*>(target);
      if (type == at::kFloat)
        random::drop(static_cast<const float*>(source), count, dropout, index, static_cast<float*>(target));
      else if (type == at::kBFloat16)
        random::drop_bf16(source16, count, dropout, index, target16);
      else
        random::drop_fp16(source16, count, dropout, index, target16);
      from += count;
    }
  });
  return y;
}

struct DropTokens : Function<DropTokens> {
  static Tensor forward(
      AutogradContext* ctx, const Tensor& x, int64_t key, double rate, int64_t first, int64_t tokens) {
    ctx->saved_data["key"] = key;
    ctx->saved_data["rate"] = rate;
    ctx->saved_data["first"] = first;
    ctx->saved_data["tokens"] = tokens;
    return drop_tokens(x, random::dropout_of(key, rate), first, tokens);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto& saved = ctx->saved_data;
    const auto dropout = random::dropout_of(saved.at("key").toInt(), saved.at("rate").toDouble());
    return {drop_tokens(grads[0], dropout, saved.at("first").toInt(), saved.at("tokens").toInt()), Tensor(), Tensor(),
            Tensor(), Tensor()};
  }
};

Tensor dropout(const Tensor& x, int64_t key, double rate, int64_t first, int64_t tokens) {
  const auto type = x.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
              "dropout takes fp32, bf16 or fp16, not ", type);
  TORCH_CHECK(x.dim() == 3, "dropout takes [b, t, d], not ", x.sizes());
  TORCH_CHECK(first >= 0 && tokens - x.size(1) >= first, "dropout has tokens ", first, "..", first + x.size(1), " of ",
              tokens);
  random::dropout_of(key, rate); // A bad rate is told also where nothing is dropped.
  return rate == 0 ? x : DropTokens::apply(x, key, rate, first, tokens);
}

} // namespace
} // namespace coxswain

using namespace coxswain;

extern "C" {

char* cx_dropout(const void* x, uint64_t key, double rate, int64_t first, int64_t tokens, void** out) {
  return guarded([&] { *out = handle(dropout(tensor(x), static_cast<int64_t>(key), rate, first, tokens)); });
}

// Whether each of the indices first .. first + count is kept.
char* cx_keep_mask(uint64_t key, double rate, uint64_t first, int64_t count, void** out) {
  return guarded([&] {
    TORCH_CHECK(count >= 0, "a mask of ", count, " elements");
    Tensor mask = at::empty({count}, at::kBool);
    random::keep(random::dropout_of(static_cast<int64_t>(key), rate), first, count, mask.data_ptr<bool>());
    *out = handle(mask);
  });
}

} // extern "C"
