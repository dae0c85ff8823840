#pragma once
// Exact attention on a GPU, as a table of functions like kernels.h: out = softmax(q k^T scale + bias) v over the keys
// that each query sees, with dropout of the normalised probabilities. What the CPU computes stands in
// ../cpp/attention.cpp.
//
// q and out are [b, t, h, k], k and v [b, s, g, k], contiguous and of one kind; g divides h and k is 1 to 256.
// Arithmetic is fp32. The order of every sum is fixed by t, s, k, h / g and the list of tiles: heads or rows of the
// batch computed apart have the same bits as together. (Only the bias gradient sums over the batch, row after row.)
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace coxswain::cuda {

struct AttentionShape {
  int64_t batch, queries, keys, heads, kv_heads, dim;
  float scale;
  int32_t causal; // 1: query i sees the keys j <= i + keys - queries; 0: all keys. A list hides more.
};

// Element (b, h, i, j) has the index ((b * heads + first_head + h) * t + i) * s + j; `heads` counts those of all ranks.
struct AttentionDrop {
  Drop drop;
  int64_t first_head, heads;
};

// A BlockList in tiles of kAttentionTile x kAttentionTile, as one array of words on the device. The other members say
// where its parts begin:
//   pattern_of[batch_rows, heads]; query_first[patterns * query_tiles + 1] and key_first[patterns * key_tiles + 1],
//   indices of entries; by_query and by_key, entries of two words: the tile of keys (or of queries) and where its bits
//   begin, -1 where it is seen whole. Bits have one word for each query, two words apart.
struct AttentionList {
  const int64_t* words; // null: no list
  int64_t batch_rows, heads, query_tiles, key_tiles;
  int64_t query_first, key_first, by_query, by_key, bits;
};

struct AttentionKernels {
  int64_t version; // kAttentionVersion of the header that the library was built with

  // `bias` is fp32 [h, s + t - 1], element j - i + t - 1 added to score (i, j), or null. `drop` may be null. Writes
  // out and the log-sum-exp fp32 [b, h, t] of the scores, infinity where a query sees no key.
  Error (*forward)(
      Kind, const AttentionShape*, const void* q, const void* k, const void* v, const float* bias,
      const AttentionList*, const AttentionDrop* drop, void* out, float* log_sum);
  // How many bytes `scratch` of `backward` has.
  size_t (*scratch_bytes)(const AttentionShape*, bool bias_grad);
  // Writes dq, dk, dv and, where it is not null, the fp32 dbias [h, s + t - 1].
  Error (*backward)(
      Kind, const AttentionShape*, const void* q, const void* k, const void* v, const float* bias,
      const AttentionList*, const AttentionDrop* drop, const void* out, const float* log_sum, const void* dout,
      void* dq, void* dk, void* dv, float* dbias, void* scratch);
};

constexpr int64_t kAttentionVersion = 1;
constexpr int64_t kAttentionTile = 64;
constexpr int64_t kAttentionDim = 256;

// The words of an AttentionList on the host. Upload them once, then `on` gives the list that reads them there.
struct AttentionWords {
  std::vector<int64_t> words;
  AttentionList layout{};

  AttentionList on(const void* device) const {
    AttentionList list = layout;
    list.words = static_cast<const int64_t*>(device);
    return list;
  }
};

// Cuts the tiles of a BlockList (../cpp/blocks.h) into quarters. A quarter that no query sees is left out, and one that
// all of its queries see loses its bits.
template <class List>
AttentionWords attention_words(const List& list) {
  constexpr int64_t tile = kAttentionTile, halves = List::kTile / tile;
  static_assert(halves == 2 && List::kTile == 128, "bits are one word for each half of a row");
  struct Entry {
    int64_t tile, bits;
  };
  const auto tiles_of = [](int64_t count) { return (count + tile - 1) / tile; };
  const int64_t query_tiles = tiles_of(list.queries), key_tiles = tiles_of(list.keys);
  std::vector<int64_t> query_first{0}, key_first{0};
  std::vector<Entry> by_query, by_key;

  for (const auto& pattern : list.patterns) {
    std::vector<std::vector<Entry>> columns(key_tiles);
    for (int64_t row = 0; row < query_tiles; ++row) {
      const int64_t rows = list.queries - row * tile < tile ? list.queries - row * tile : tile;
      for (const auto& entry : pattern.keys[row / halves])
        for (int64_t half = 0; half < halves; ++half) {
          const int64_t col = entry.at / tile + half;
          if (col >= key_tiles) continue;
          int64_t bits = -1;
          if (entry.bits >= 0) {
            const int64_t valid = list.keys - col * tile, first = entry.bits + row % halves * tile;
            const uint64_t whole = valid < tile ? (uint64_t{1} << valid) - 1 : ~uint64_t{0};
            uint64_t any = 0, all = whole;
            for (int64_t i = 0; i < rows; ++i) {
              any |= list.bits[first + i][half] & whole;
              all &= list.bits[first + i][half];
            }
            if (any == 0) continue;
            if (all != whole) bits = first * halves + half;
          }
          by_query.push_back({col, bits});
          columns[col].push_back({row, bits});
        }
      query_first.push_back(static_cast<int64_t>(by_query.size()));
    }
    for (const auto& column : columns) {
      by_key.insert(by_key.end(), column.begin(), column.end());
      key_first.push_back(static_cast<int64_t>(by_key.size()));
    }
  }

  AttentionWords made;
  auto& words = made.words;
  const auto begin = [&] { return static_cast<int64_t>(words.size()); };
  const auto add = [&](const std::vector<Entry>& entries) {
    for (const Entry& entry : entries) words.insert(words.end(), {entry.tile, entry.bits});
  };
  AttentionList& at = made.layout;
  at.heads = list.heads;
  at.batch_rows = static_cast<int64_t>(list.pattern_of.size()) / list.heads;
  at.query_tiles = query_tiles, at.key_tiles = key_tiles;
  words.assign(list.pattern_of.begin(), list.pattern_of.end());
  at.query_first = begin(), words.insert(words.end(), query_first.begin(), query_first.end());
  at.key_first = begin(), words.insert(words.end(), key_first.begin(), key_first.end());
  at.by_query = begin(), add(by_query);
  at.by_key = begin(), add(by_key);
  at.bits = begin();
  for (const auto& row : list.bits)
    for (const uint64_t half : row) words.push_back(static_cast<int64_t>(half));
  return made;
}

} // namespace coxswain::cuda

// What the library exports.
extern "C" const coxswain::cuda::AttentionKernels* coxswain_cuda_attention();
