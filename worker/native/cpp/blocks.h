#pragma once
// Which tiles of keys each tile of queries sees, as coxswain_types::mask makes it, and the same turned
// over for the backward pass.
#include "function.h"

#include <array>

namespace coxswain {

struct BlockList : torch::CustomClassHolder {
  static constexpr int64_t kTile = 128;
  // Of a tile that is seen in part: for each query, a bit for each key.
  using Bits = std::array<uint64_t, 2>;
  struct Entry {
    int64_t at;    // the first query or key of the tile
    int64_t bits;  // index of its first row in `bits`; -1 where all is seen
  };
  struct Pattern {
    std::vector<std::vector<Entry>> keys, queries; // by tile of queries, and by tile of keys
  };

  int64_t queries = 0, keys = 0, heads = 0;
  std::vector<Pattern> patterns;
  std::vector<int64_t> pattern_of; // rows of the batch (or one for all) x heads
  std::vector<Bits> bits;
  // The same on a GPU, once it was needed there, and how to read it.
  mutable Tensor words;
  mutable std::shared_ptr<void> layout;

  const Pattern& pattern(int64_t batch, int64_t head) const {
    const int64_t rows = static_cast<int64_t>(pattern_of.size()) / heads;
    return patterns[pattern_of[(rows == 1 ? 0 : batch) * heads + head]];
  }
  template <class F>
  void keys_of(int64_t batch, int64_t head, int64_t query, F&& body) const {
    for (const Entry& entry : pattern(batch, head).keys[query / kTile]) body(entry.at, bits_of(entry));
  }
  template <class F>
  void queries_of(int64_t batch, int64_t head, int64_t key, F&& body) const {
    for (const Entry& entry : pattern(batch, head).queries[key / kTile]) body(entry.at, bits_of(entry));
  }
  const Bits* bits_of(const Entry& entry) const { return entry.bits < 0 ? nullptr : bits.data() + entry.bits; }

  void expect(int64_t batch, int64_t heads_here, int64_t queries_here, int64_t keys_here) const {
    const int64_t rows = static_cast<int64_t>(pattern_of.size()) / heads;
    TORCH_CHECK(heads == heads_here && queries == queries_here && keys == keys_here && (rows == 1 || rows == batch),
                "a list of tiles for ", rows, " rows, ", heads, " heads, ", queries, " queries and ", keys,
                " keys meets ", batch, ", ", heads_here, ", ", queries_here, " and ", keys_here);
  }
};

} // namespace coxswain
