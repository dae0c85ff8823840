#pragma once
// What the shim's own autograd functions share. Weights are constants to autograd: a backward pass
// returns the input's gradient and puts what the weight's gradient needs on the queue of weight gradients.
//
// Shapes: b batch, t tokens, d model dim, n = b*t rows, h heads, k head dim, o output features, v
// vocabulary, s logical tensor shards.
#include "gpu.h"
#include "kernels.h"
#include "shim.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

// Without it at::parallel_for is a loop on one thread, and says nothing.
#ifndef INTRA_OP_PARALLEL
#error "the shim is compiled with -fopenmp"
#endif

namespace coxswain {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Rows of a loop that one thread should take at least: below this, starting a thread costs more.
constexpr int64_t kRowGrain = 16;
constexpr int64_t kElementGrain = 32768;

template <class T>
const T* data(const Tensor& x) { return x.const_data_ptr<T>(); }
inline const float* floats(const Tensor& x) { return x.const_data_ptr<float>(); }

// Calls `body` with a value of x's element type, whose kernels are chosen by overload.
template <class F>
void by_kind(const Tensor& x, const char* what, F&& body) {
  TORCH_CHECK(x.device().is_cpu(), what, " takes tensors on the CPU, not on ", x.device());
  switch (x.scalar_type()) {
    case at::kFloat: return body(float{});
    case at::kBFloat16: return body(at::BFloat16{});
    case at::kHalf: return body(at::Half{});
    default: TORCH_CHECK(false, what, " takes fp32, bf16 or fp16, not ", x.scalar_type());
  }
}

inline void expect_fp32(const Tensor& x, const char* what) {
  TORCH_CHECK(x.scalar_type() == at::kFloat, what, " takes fp32 tensors, not ", x.scalar_type());
}
// Kernels read memory by its address, so a tensor that lies elsewhere has to be found out before.
inline void expect_beside(const Tensor& x, const Tensor& other, const char* what) {
  TORCH_CHECK(x.device() == other.device(), what, " takes tensors on one device, not on ", x.device(), " and ",
              other.device());
}

// Handles cross `Function::apply` as numbers, and are kept by the graph as counted references.
inline int64_t pointer(const void* handle) { return reinterpret_cast<int64_t>(handle); }
template <class T>
c10::intrusive_ptr<T> counted_at(int64_t pointer) { return counted<T>(reinterpret_cast<void*>(pointer)); }
template <class T>
c10::IValue capsule_at(int64_t pointer) { return c10::IValue::make_capsule(counted_at<T>(pointer)); }
template <class T>
c10::intrusive_ptr<T> kept(const AutogradContext* ctx, const char* key) {
  return c10::static_intrusive_pointer_cast<T>(ctx->saved_data.at(key).toCapsule());
}

// The slot's buffer, which is fp32 whatever the gradient was computed in.
inline Tensor& buffer(Slot& slot) {
  TORCH_CHECK(slot.grad.defined() && slot.grad.scalar_type() == at::kFloat, "a slot needs an fp32 buffer");
  return slot.grad;
}

// Adds a part in any precision, without a copy of it in fp32.
inline void accumulate(Slot& slot, const Tensor& part_in) {
  const Tensor& sum = buffer(slot);
  TORCH_CHECK(sum.sizes() == part_in.sizes(), "a slot of ", sum.sizes(), " got a gradient ", part_in.sizes());
  if (slot.fresh || sum.is_cuda() || !sum.is_contiguous()) {
    if (slot.fresh) sum.copy_(part_in); else sum.add_(part_in);
  } else {
    const Tensor part = part_in.contiguous();
    float* to = sum.data_ptr<float>();
    by_kind(part, "a slot", [&](auto kind) {
      using T = decltype(kind);
      at::parallel_for(0, part.numel(), kElementGrain, [&](int64_t first, int64_t last) {
        kernels::add(data<T>(part) + first, last - first, to + first);
      });
    });
  }
  slot.fresh = false;
}

} // namespace coxswain
