#pragma once
// Counter-based randomness: whether an element is dropped is a function of a key and of the
// element's index in the whole tensor, so a layout that cuts the tensor, or a second forward pass,
// draws the same mask, and no mask is ever kept.
#include <cstdint>

#include "clones.h"

namespace coxswain::random {

// What is the same for 2^32 consecutive indices: 64 bits of the key and the index's upper half.
struct Salt {
  uint32_t first, second;
};

// The finaliser of splitmix64, as the coordinator's side uses for keys.
INLINE Salt salt(uint64_t key, uint32_t upper) {
  uint64_t x = key + (uint64_t{upper} + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return {static_cast<uint32_t>(x), static_cast<uint32_t>(x >> 32)};
}

// A bijection of 32 bits with a small bias (the constants of "lowbias32"); 32-bit products only,
// which every vector unit has.
INLINE uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// The 32 random bits of index `upper << 32 | lower`. `random::draw32` in Rust is the same function.
INLINE uint32_t draw(Salt s, uint32_t lower) { return mix(mix(lower ^ s.first) ^ s.second); }

// A dropout of one place: an element is dropped when its bits are below the threshold, and
// multiplied by `scale` otherwise.
struct Dropout {
  uint64_t key;
  uint32_t threshold; // the rate times 2^32
  float scale;        // 1 / (1 - rate)
};

// Throws where the rate is not in 0..1.
Dropout dropout_of(int64_t key, double rate);

// y[i] = x[i] * scale where index `first + i` is kept, and 0 elsewhere; y may be x. The 16-bit
// kernels take and give bits of bfloat16 and of IEEE half.
void drop(const float* x, int64_t count, Dropout dropout, uint64_t first, float* y);
void drop_bf16(const uint16_t* x, int64_t count, Dropout dropout, uint64_t first, uint16_t* y);
void drop_fp16(const uint16_t* x, int64_t count, Dropout dropout, uint64_t first, uint16_t* y);

} // namespace coxswain::random
