#pragma once
// Holds the table's functions to references on the host. Built with simt.h's kernels this runs on the CPU; with
// -DCOXSWAIN_ON_GPU and nvcc's kernels it runs on a GPU. Both print a hash of each check's bits, which must be equal.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#ifdef COXSWAIN_ON_GPU
#include <cuda_runtime_api.h>
#endif

#include "../kernels.h"

namespace check {

using namespace coxswain::cuda;
using Doubles = std::vector<double>;
using Floats = std::vector<float>;
using Ints = std::vector<int64_t>;
using Bytes = std::vector<uint8_t>;

inline const Kernels& kernels() { return *coxswain_cuda_kernels(); }
constexpr Kind kKinds[] = {Kind::Fp32, Kind::Bf16, Kind::Fp16};
inline const char* name_of(Kind kind) { return kind == Kind::Fp32 ? "fp32" : kind == Kind::Bf16 ? "bf16" : "fp16"; }
constexpr int64_t kDims[] = {1, 3, 8, 33, 64, 96, 2048, 2056};
constexpr int64_t kRows[] = {0, 1, 7, 200};

inline int failures = 0, checks = 0;
inline void fail(const std::string& label, const std::string& what) {
  if (++failures <= 40) std::printf("FAILED %s: %s\n", label.c_str(), what.c_str());
}
inline void expect(const std::string& label, bool holds, const std::string& what) {
  ++checks;
  if (!holds) fail(label, what);
}
inline void expect_done(const std::string& label, Error error) { expect(label, error == nullptr, error ? error : ""); }

// Conversions of the test's own, so that it does not share those under test.
inline uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline float from_bf16(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// An array's bytes and the size of its elements.
struct Values {
  size_t element;
  Bytes bytes;
  size_t count() const { return bytes.size() / element; }
};
template <class T>
Values values(const std::vector<T>& from) {
  Values to{sizeof(T), Bytes(from.size() * sizeof(T))};
  if (!from.empty()) std::memcpy(to.bytes.data(), from.data(), to.bytes.size());
  return to;
}
inline Values values(Kind kind, const Floats& from) {
  if (kind == Kind::Fp32) return values(from);
  std::vector<uint16_t> halves(from.size());
  for (size_t i = 0; i < from.size(); ++i) {
    const auto half = static_cast<_Float16>(from[i]);
    if (kind == Kind::Bf16) halves[i] = to_bf16(from[i]);
    else std::memcpy(&halves[i], &half, 2);
  }
  return values(halves);
}
// Room for a result, filled with a pattern that is a NaN in every kind.
template <class T>
Values room(size_t count) { return {sizeof(T), Bytes(count * sizeof(T), 0xff)}; }
inline Values room(Kind kind, size_t count) {
  return kind == Kind::Fp32 ? room<float>(count) : room<uint16_t>(count);
}
template <class T>
std::vector<T> read(const Values& from) {
  std::vector<T> to(from.count());
  if (!to.empty()) std::memcpy(to.data(), from.bytes.data(), from.bytes.size());
  return to;
}
inline Floats floats(Kind kind, const Values& from) {
  if (kind == Kind::Fp32) return read<float>(from);
  Floats to;
  for (const uint16_t bits : read<uint16_t>(from)) {
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    to.push_back(kind == Kind::Bf16 ? from_bf16(bits) : static_cast<float>(half));
  }
  return to;
}

// A copy of values where kernels work, moved by `shift` elements from its alignment, between bytes that must stay.
class Buffer {
 public:
  Buffer(const Values& from, size_t shift) : element_(from.element), bytes_(from.bytes.size()) {
    Bytes all(kGuard + shift * element_ + bytes_ + kGuard, kMark);
    offset_ = kGuard + shift * element_;
    if (bytes_ > 0) std::memcpy(all.data() + offset_, from.bytes.data(), bytes_);
#ifdef COXSWAIN_ON_GPU
    if (cudaMalloc(&memory_, all.size()) != cudaSuccess) std::abort();
    cudaMemcpy(memory_, all.data(), all.size(), cudaMemcpyDefault);
#else
    memory_ = std::aligned_alloc(kGuard, (all.size() + kGuard - 1) / kGuard * kGuard);
    std::memcpy(memory_, all.data(), all.size());
#endif
    size_ = all.size();
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() {
#ifdef COXSWAIN_ON_GPU
    cudaFree(memory_);
#else
    std::free(memory_);
#endif
  }
  template <class T>
  operator T*() const { return reinterpret_cast<T*>(static_cast<char*>(memory_) + offset_); }

  Values read(const std::string& label) const {
    Bytes all(size_);
#ifdef COXSWAIN_ON_GPU
    const cudaError_t error = cudaMemcpy(all.data(), memory_, size_, cudaMemcpyDefault);
    if (error != cudaSuccess) fail(label, cudaGetErrorString(error)), std::exit(1);
#else
    std::memcpy(all.data(), memory_, size_);
#endif
    for (size_t i = 0; i < size_; ++i)
      if ((i < offset_ || i >= offset_ + bytes_) && all[i] != kMark) {
        fail(label, "bytes outside of the result changed");
        break;
      }
    return {element_, Bytes(all.begin() + offset_, all.begin() + offset_ + bytes_)};
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr uint8_t kMark = 0xa5;
  size_t element_, bytes_, offset_, size_;
  void* memory_;
};

using Results = std::vector<Values>;

// Runs a function with both orders of threads and with aligned and unaligned pointers: the bits must be the same.
inline Results agreed(const std::string& label, const std::function<Results(size_t shift)>& run, bool hash = true) {
  Results first;
  for (const bool reversed : {false, true})
    for (const size_t shift : {0, 1}) {
      setenv("COXSWAIN_SIMT_REVERSED", reversed ? "1" : "0", 1);
      Results now = run(shift);
      if (!reversed && shift == 0) {
        first = std::move(now);
        continue;
      }
      for (size_t i = 0; i < first.size(); ++i)
        expect(label, now[i].bytes == first[i].bytes,
               "result " + std::to_string(i) + " differs " + (reversed ? "in the other order" : "where unaligned"));
    }
  uint64_t sum = 0xcbf29ce484222325u;
  for (const Values& each : first)
    for (const uint8_t byte : each.bytes) sum = (sum ^ byte) * 0x100000001b3u;
  if (hash) std::printf("%s %016llx\n", label.c_str(), static_cast<unsigned long long>(sum));
  return first;
}

// Within the rounding of `kind` of each value, and within a few units of fp32 of the largest, or of `scale` where that
// is more: of what a small result is the difference of.
inline void expect_close(
    const std::string& label, Kind kind, const Floats& got, const Doubles& want, double scale = 0) {
  double largest = scale;
  for (const double each : want) largest = std::max(largest, std::fabs(each));
  const double unit = kind == Kind::Fp32 ? 0 : std::ldexp(1.0, kind == Kind::Bf16 ? -8 : -11);
  const double least = kind == Kind::Fp16 ? std::ldexp(1.0, -25) : 0;
  expect(label, got.size() == want.size(), "sizes");
  for (size_t i = 0; i < want.size(); ++i) {
    const double bound = unit * std::fabs(want[i]) + 3e-6 * largest + least;
    if (std::fabs(got[i] - want[i]) <= bound) continue;
    return expect(label, false,
                  "element " + std::to_string(i) + " is " + std::to_string(got[i]) + " and not " +
                      std::to_string(want[i]));
  }
  expect(label, true, "");
}

// Numbers in -size..size, the same in every run.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t x = state_;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  int64_t below(int64_t end) { return static_cast<int64_t>(next() % static_cast<uint64_t>(end)); }
  Floats floats(size_t count, float size, float middle = 0) {
    Floats to(count);
    for (float& each : to) each = middle + size * (static_cast<float>(next() >> 40) * 0x1p-23f - 1.f);
    return to;
  }

 private:
  uint64_t state_;
};

// Numbers as an array of `kind` holds them.
struct Array {
  Array(Kind kind, const Floats& from) : values(check::values(kind, from)), at(floats(kind, values)) {}
  Values values;
  Floats at;
};

void norms();
void elementwise();
void loss();
void embed();

} // namespace check
