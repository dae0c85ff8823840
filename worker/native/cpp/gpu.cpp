// Opens the GPU's libraries, and sets what decides about bits.
#include "gpu.h"

#include "../cuda/attention.h"
#include "shim.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <dlfcn.h>

#include <cstdlib>

namespace coxswain {
namespace gpu {
namespace {

const cuda::Kernels* opened = nullptr;
const cuda::AttentionKernels* opened_attention = nullptr;
std::string text;

void* library(const char* path) {
  // Lazily: libtorch's CUDA library names functions of libraries that nothing here calls.
  void* found = dlopen(path, RTLD_LAZY | RTLD_GLOBAL);
  TORCH_CHECK(found != nullptr, dlerror());
  return found;
}

// A table of functions that a library exports.
template <class Table>
const Table* table(void* library, const char* name, int64_t version, const char* path) {
  auto entry = reinterpret_cast<const Table* (*)()>(dlsym(library, name));
  TORCH_CHECK(entry != nullptr, path, " has no ", name);
  const Table* found = entry();
  TORCH_CHECK(found->version == version, path, " has kernel version ", found->version,
              ", but this worker needs ", version, "; run `cargo xtask kernels` in the worker's source tree");
  return found;
}

// What changes the bits of libtorch's operators, in one place.
void settle() {
  auto& context = at::globalContext();
  // Backward passes of attention add by atomics unless they are told otherwise.
  context.setDeterministicAlgorithms(true, /*warn_only=*/false);
  // Deterministic mode also fills each new tensor with NaN to expose unwritten memory: a pass that is not needed.
  context.setDeterministicFillUninitializedMemory(false);
  // Products of low precision add their parts in fp32, also where a product is split over its inner dim.
  context.setAllowBF16ReductionCuBLAS(false);
  context.setAllowFP16ReductionCuBLAS(false);
  context.setAllowFP16AccumulationCuBLAS(false);
  // Products of fp32 are fp32.
  context.setAllowTF32CuBLAS(false);
  context.setAllowTF32CuDNN(false);
}

} // namespace

const cuda::Kernels& kernels() {
  TORCH_CHECK(opened != nullptr, "a tensor is on a GPU that this process has not opened");
  return *opened;
}

const cuda::AttentionKernels& attention() {
  TORCH_CHECK(opened_attention != nullptr, "a tensor is on a GPU that this process has not opened");
  return *opened_attention;
}

cuda::Kind kind_of(const at::Tensor& x, const char* what) {
  switch (x.scalar_type()) {
    case at::kFloat: return cuda::Kind::Fp32;
    case at::kBFloat16: return cuda::Kind::Bf16;
    case at::kHalf: return cuda::Kind::Fp16;
    default: TORCH_CHECK(false, what, " takes fp32, bf16 or fp16, not ", x.scalar_type());
  }
}

const std::string& name() { return text; }

} // namespace gpu
} // namespace coxswain

using namespace coxswain;

extern "C" {

// Opens libtorch's CUDA library, a library that emulates a GPU where there is one (else null), and that of our kernels,
// in this order and before the first tensor.
char* cx_gpu_open(const char* torch, const char* emulation, const char* kernels) {
  return guarded([&] {
    gpu::library(torch);
    if (emulation != nullptr) {
      auto emulate = reinterpret_cast<int (*)()>(dlsym(gpu::library(emulation), "emulate"));
      TORCH_CHECK(emulate != nullptr && emulate() > 0, emulation, " emulates nothing");
    }
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    TORCH_CHECK(at::hasCUDA(), "CUDA found no usable GPU (CUDA_VISIBLE_DEVICES=", visible ? visible : "",
                "): check that `nvidia-smi` lists it and shows driver 580 or newer");
    void* own = gpu::library(kernels);
    const auto* table = gpu::table<cuda::Kernels>(own, "coxswain_cuda_kernels", cuda::kVersion, kernels);
    const auto* attention =
        gpu::table<cuda::AttentionKernels>(own, "coxswain_cuda_attention", cuda::kAttentionVersion, kernels);
    char device[256] = {};
    gpu::ran(table->describe(0, device, sizeof device), "looking at the device");
    gpu::settle();
    gpu::opened = table;
    gpu::opened_attention = attention;
    gpu::text = device;
  });
}

// The bytes that tensors take on the GPU: now, and the most since the last reset.
char* cx_gpu_memory(int64_t* current, int64_t* peak) {
  return guarded([&] {
    const auto stats = c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(0);
    const auto& all = stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
    *current = all.current;
    *peak = all.peak;
  });
}
char* cx_gpu_memory_reset_peak() {
  return guarded([&] { c10::getDeviceAllocator(at::kCUDA)->resetPeakStats(0); });
}

} // extern "C"
