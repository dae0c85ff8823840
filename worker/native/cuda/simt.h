#pragma once
// One source for kernels: nvcc compiles it for a GPU, and a plain C++ compiler for the CPU, where the threads of a
// block are fibers that meet at barriers, and those of a warp at shuffles. The CPU's build tests what kernels compute,
// not their speed.
//
// `launch(kernel, grid, block, stream, arguments...)` starts a kernel in both and returns null or the error's text.
// Pointers must be arguments of the kernel, not members of one. Blocks have one dimension.
#include <cuda_runtime_api.h>

#ifdef __CUDACC__
#include <cuda_runtime.h>

#define SHARED __shared__
#define PRAGMA(text) _Pragma(#text)
#define UNROLL(times) PRAGMA(unroll times)

namespace simt {
template <class... P, class... A>
const char* launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, A... arguments) {
  kernel<<<grid, block, 0, stream>>>(static_cast<P>(arguments)...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
} // namespace simt

#else
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <type_traits>

// CUDA's headers define these for nvcc.
#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Blocks run one after another, so one copy serves them all. It starts with what the block before left in it.
#define SHARED static
#define UNROLL(times)

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
// Where the host can read an emulated GPU's memory; absent where no GPU is emulated.
extern "C" void* emulated_shadow(const void*) __attribute__((weak));
extern "C" int emulated_owns(const void*) __attribute__((weak));

namespace simt {

constexpr unsigned kMostThreads = 1024;

enum class Wait { Barrier, Shuffle };

struct Fiber {
  jmp_buf at;
  ucontext_t start;
  std::unique_ptr<char[]> stack;
  bool started = false, done = false;
  Wait wait = Wait::Barrier;
  unsigned shuffles = 0;
};
inline std::deque<Fiber> fibers;
inline jmp_buf scheduler;
inline unsigned current;
inline const std::function<void()>* body;
// What each thread brings to a shuffle. Two sets in turn, so that one barrier a shuffle is enough.
inline uint64_t slots[2][kMostThreads];
inline std::mutex mutex;

// Contexts are entered once and then switched by setjmp, which makes no system call.
inline __attribute__((noinline)) void yield(Wait wait) {
  Fiber& self = fibers[current];
  self.wait = wait;
  if (_setjmp(self.at) == 0) _longjmp(scheduler, 1);
}

inline void enter() {
  for (;;) {
    (*body)();
    fibers[current].done = true;
    yield(Wait::Barrier);
  }
}

inline __attribute__((noinline)) void resume(Fiber& fiber) {
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.at, 1);
  constexpr size_t bytes = 64 << 10;
  fiber.started = true;
  fiber.stack.reset(new char[bytes]);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = bytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, enter, 0);
  setcontext(&fiber.start);
}

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "simt: %s\n", what);
  std::abort();
}

// The other order of threads and blocks: results that differ show a missing barrier, or blocks that depend on others.
inline bool reversed() {
  const char* value = std::getenv("COXSWAIN_SIMT_REVERSED");
  return value != nullptr && *value == '1';
}

// Runs a warp's threads in turns through its shuffles, until all wait at a barrier or have ended. Returns how many
// ended.
inline unsigned run_warp(unsigned first, unsigned end, bool backwards) {
  for (;;) {
    unsigned ended = 0, shuffling = 0;
    for (unsigned i = first; i < end; ++i) {
      current = backwards ? end - 1 - (i - first) : i;
      threadIdx = {current, 0, 0};
      resume(fibers[current]);
      ended += fibers[current].done;
      shuffling += !fibers[current].done && fibers[current].wait == Wait::Shuffle;
    }
    // On a GPU these would hang, or be undefined.
    if (ended != 0 && ended != end - first) fail("only some threads of a warp reach a barrier or a shuffle");
    if (shuffling != 0 && shuffling != end - first) fail("threads of a warp wait at a barrier and at a shuffle");
    if (shuffling == 0) return ended;
  }
}

// Runs the threads of a block: each warp goes as far ahead of the others as barriers let it.
inline void run_block(unsigned threads, bool backwards) {
  constexpr unsigned kWarp = 32;
  while (fibers.size() < threads) fibers.emplace_back();
  for (unsigned i = 0; i < threads; ++i) fibers[i].done = false, fibers[i].shuffles = 0;
  const unsigned warps = (threads + kWarp - 1) / kWarp;
  for (unsigned ended = 0; ended < threads;) {
    ended = 0;
    for (unsigned i = 0; i < warps; ++i) {
      const unsigned first = (backwards ? warps - 1 - i : i) * kWarp;
      ended += run_warp(first, std::min(first + kWarp, threads), backwards);
    }
    if (ended != 0 && ended != threads) fail("only some warps of a block reach a barrier");
  }
}

// Where the host reads what a kernel is given. A GPU would not reach the host's own memory.
template <class T>
T reachable(T value) {
  if constexpr (std::is_pointer_v<T>) {
    if (emulated_owns && value != nullptr && emulated_owns(value) == 0) {
      std::fprintf(stderr, "a kernel was given a pointer to memory of the host\n");
      std::abort();
    }
    if (emulated_shadow) return static_cast<T>(emulated_shadow(value));
  }
  return value;
}

template <class... P, class... A>
const char* launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t, A... arguments) {
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || block.x == 0 ||
      block.x > kMostThreads || block.y != 1 || block.z != 1)
    return "invalid configuration argument";
  const std::lock_guard<std::mutex> lock(mutex);
  gridDim = grid, blockDim = block;
  const bool backwards = reversed();
  const std::function<void()> run = [&] { kernel(reachable(static_cast<P>(arguments))...); };
  body = &run;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t at = backwards ? blocks - 1 - i : i;
    blockIdx = {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                static_cast<unsigned>(at / grid.x / grid.y)};
    run_block(block.x, backwards);
  }
  return nullptr;
}

} // namespace simt

inline void __syncthreads() { simt::yield(simt::Wait::Barrier); }

// The whole warp must shuffle together; the mask is not looked at.
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t* slots = simt::slots[simt::fibers[simt::current].shuffles++ % 2];
  std::memcpy(&slots[threadIdx.x], &value, sizeof(T));
  simt::yield(simt::Wait::Shuffle);
  T other;
  std::memcpy(&other, &slots[threadIdx.x ^ static_cast<unsigned>(mask)], sizeof(T));
  return other;
}
#endif
