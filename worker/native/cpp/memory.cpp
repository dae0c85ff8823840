// Counts the bytes that tensors take on the CPU, so that claims about memory are tested on what was
// asked for and not on what the operating system happened to keep resident.
#include "gpu.h"
#include "shim.h"

#include <sched.h>
#include <ATen/Version.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <gnu/libc-version.h>
#include <malloc.h>
#include <torch/version.h>

#include <atomic>
#include <cstdlib>

namespace coxswain {
namespace {

std::atomic<int64_t> current{0}, peak{0};

void release(void* block) {
  if (block == nullptr) return;
  current.fetch_sub(static_cast<int64_t>(malloc_usable_size(block)), std::memory_order_relaxed);
  c10::free_cpu(block);
}

struct CountingAllocator final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    void* block = c10::alloc_cpu(bytes);
    if (block != nullptr) {
      const auto size = static_cast<int64_t>(malloc_usable_size(block));
      const int64_t now = current.fetch_add(size, std::memory_order_relaxed) + size;
      int64_t seen = peak.load(std::memory_order_relaxed);
      while (now > seen && !peak.compare_exchange_weak(seen, now, std::memory_order_relaxed)) {
      }
    }
    return {block, block, &release, at::DeviceType::CPU};
  }
  at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

} // namespace

char* error_text(const char* what) noexcept {
  char* text = strdup(what);
  // Null means success; a process that cannot allocate a sentence has no way to go on.
  if (text == nullptr) std::abort();
  return text;
}

} // namespace coxswain

using namespace coxswain;

extern "C" {

// What results depend on beside the program: to be freed with cx_free.
char* cx_runtime() {
  // Tables of positions are made on the host, so on a GPU the processor counts too.
  const std::string device = gpu::name().empty() ? "" : gpu::name() + ", ";
  return error_text((std::string("libtorch ") + TORCH_VERSION + ", " + device + at::get_cpu_capability() + ", glibc " +
                     gnu_get_libc_version())
                        .c_str());
}

// Has this thread, and those that it starts, wake up without taking a core from others of their kind. 0 where it may not.
int cx_share_cores() {
  sched_param none{};
  return sched_setscheduler(0, SCHED_BATCH, &none) == 0;
}

void* cx_alloc(size_t bytes) { return std::malloc(bytes); }
void cx_free(void* block) { std::free(block); }

// To be called before the first tensor.
void cx_memory_install() {
  static CountingAllocator allocator;
  // Above libtorch's default, which has priority 0.
  c10::SetCPUAllocator(&allocator, 1);
  // Large blocks come from the heap and stay there: handing them back costs a page fault for each
  // page of each step's buffers.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, INT32_MAX);
  mallopt(M_TOP_PAD, 64 << 20);
}
int64_t cx_memory_current() { return current.load(); }
int64_t cx_memory_peak() { return peak.load(); }
void cx_memory_reset_peak() { peak.store(current.load()); }

} // extern "C"
