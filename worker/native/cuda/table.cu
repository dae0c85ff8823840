// The library's table of functions, and what it says about the device.
#include <cstdio>
#include <type_traits>

#include "kernels.h"
#include "simt.h"

namespace coxswain::cuda {

// The functions of the other files, with the types that the table gives them.
template <class Pointer>
using Function = std::remove_pointer_t<Pointer>;
#define DECLARE(name) Function<decltype(Kernels::name)> name
DECLARE(rms_norm);
DECLARE(rms_norm_grad);
DECLARE(rms_norm_weight_grad);
DECLARE(layer_norm);
DECLARE(layer_norm_grad);
DECLARE(layer_norm_weight_grad);
DECLARE(add_bias);
DECLARE(bias_grad);
DECLARE(activate);
DECLARE(activate_grad);
DECLARE(rope);
DECLARE(row_maxima);
DECLARE(row_sums);
DECLARE(row_losses);
DECLARE(logits_grad);
DECLARE(embed);
DECLARE(embed_grad);
DECLARE(table_grad);
DECLARE(sum_squares);
DECLARE(drop);
#undef DECLARE

namespace {

Error text_of(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

Error describe(int device, char* text, size_t size) {
  cudaDeviceProp properties;
  if (const Error error = text_of(cudaGetDeviceProperties(&properties, device))) return error;
  // Code for 8.0 runs on all of 8.x.
  if (properties.major != 8 && (properties.major != 9 || properties.minor != 0))
    return "these kernels are for GPUs of compute capability 8.x and 9.0, and this one has another";
  std::snprintf(text, size, "%s, sm_%d%d, %d multiprocessors", properties.name, properties.major, properties.minor,
                properties.multiProcessorCount);
  return nullptr;
}

Error error() { return text_of(cudaGetLastError()); }

constexpr Kernels kKernels{
    kVersion,       describe,         error,      rms_norm,   rms_norm_grad,   rms_norm_weight_grad,
    layer_norm,     layer_norm_grad,  layer_norm_weight_grad, add_bias,        bias_grad,
    activate,       activate_grad,    rope,       row_maxima, row_sums,        row_losses,
    logits_grad,    embed,            embed_grad, table_grad, sum_squares,     drop,
};

} // namespace
} // namespace coxswain::cuda

extern "C" __attribute__((visibility("default"))) const coxswain::cuda::Kernels* coxswain_cuda_kernels() {
  return &coxswain::cuda::kKernels;
}
