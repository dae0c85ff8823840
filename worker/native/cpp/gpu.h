#pragma once
// The GPU: its libraries, which are opened late, and the kernels of ours that run there.
//
// The program is linked to libtorch for CPUs. A worker that computes on a GPU opens libtorch's CUDA library and then the
// library of our kernels, before its first tensor; one that does not never looks for either.
#include "../cuda/kernels.h"

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace coxswain::cuda {
struct AttentionKernels;
}

namespace coxswain::gpu {

// The kernels. Throws where no GPU was opened.
const cuda::Kernels& kernels();

// Those of attention. Throws likewise.
const cuda::AttentionKernels& attention();

// The kind of a tensor's elements. Throws, naming the operation `what`, unless they are fp32, bf16 or fp16.
cuda::Kind kind_of(const at::Tensor& x, const char* what);

// Throws what a kernel's launch says.
inline void ran(cuda::Error error, const char* what) {
  TORCH_CHECK(error == nullptr, what, " on the GPU: ", error);
}

// The GPU's name, compute capability and multiprocessors; empty where no GPU was opened.
const std::string& name();

} // namespace coxswain::gpu
