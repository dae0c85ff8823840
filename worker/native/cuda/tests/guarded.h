#pragma once
// Memory that ends where no page follows: what reads or writes past an array's end is a segmentation fault. On a GPU,
// memory that both sides reach.
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include <cuda_runtime_api.h>

namespace check {

template <class T>
struct Guarded {
  using value_type = T;
  static constexpr size_t kPage = 4096;
  static size_t pages(size_t count) { return (count * sizeof(T) + kPage - 1) / kPage * kPage + kPage; }

  Guarded() = default;
  template <class U>
  Guarded(const Guarded<U>&) {}
#ifdef COXSWAIN_ON_GPU
  T* allocate(size_t count) {
    void* at = nullptr;
    if (cudaMallocManaged(&at, count * sizeof(T)) != cudaSuccess) throw std::bad_alloc();
    return static_cast<T*>(at);
  }
  void deallocate(T* at, size_t) { cudaFree(at); }
#else
  T* allocate(size_t count) {
    const size_t bytes = pages(count);
    auto* start = static_cast<uint8_t*>(
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (start == MAP_FAILED || mprotect(start + bytes - kPage, kPage, PROT_NONE) != 0) throw std::bad_alloc();
    return reinterpret_cast<T*>(start + bytes - kPage - count * sizeof(T));
  }
  void deallocate(T* at, size_t count) {
    const size_t bytes = pages(count);
    munmap(reinterpret_cast<uint8_t*>(at) + count * sizeof(T) + kPage - bytes, bytes);
  }
#endif
  bool operator==(const Guarded&) const { return true; }
  bool operator!=(const Guarded&) const { return false; }
};
template <class T>
using Array = std::vector<T, Guarded<T>>;

} // namespace check
