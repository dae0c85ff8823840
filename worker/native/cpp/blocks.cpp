// Lists of tiles from the flat form in which they cross from Rust.
#include "blocks.h"

using namespace coxswain;

// A pattern's tiles: `first` has an end for each tile of queries, after a 0; `cols` and `bits` an entry for
// each tile that is seen, bits -1 where all of it is.
struct FlatPattern {
  const uint32_t *first, *cols;
  const int64_t* bits;
  size_t query_tiles;
};

extern "C" {

// `bits` has two words for each of its rows.
char* cx_block_list_new(
    int64_t queries, int64_t keys, int64_t heads, const FlatPattern* patterns, size_t pattern_count,
    const uint32_t* pattern_of, size_t of_count, const uint64_t* bits, size_t bit_rows, void** out) {
  return guarded([&] {
    constexpr int64_t tile = BlockList::kTile;
    auto list = c10::make_intrusive<BlockList>();
    list->queries = queries;
    list->keys = keys;
    list->heads = heads;
    list->pattern_of.assign(pattern_of, pattern_of + of_count);
    for (size_t i = 0; i < bit_rows; ++i) list->bits.push_back({bits[2 * i], bits[2 * i + 1]});
    for (size_t at = 0; at < pattern_count; ++at) {
      const FlatPattern& from = patterns[at];
      BlockList::Pattern pattern;
      pattern.keys.resize(from.query_tiles);
      pattern.queries.resize((keys + tile - 1) / tile);
      for (size_t row = 0; row < from.query_tiles; ++row)
        for (uint32_t i = from.first[row]; i < from.first[row + 1]; ++i) {
          const int64_t col = from.cols[i];
          pattern.keys[row].push_back({col * tile, from.bits[i]});
          pattern.queries.at(col).push_back({static_cast<int64_t>(row) * tile, from.bits[i]});
        }
      list->patterns.push_back(std::move(pattern));
    }
    *out = list.release();
  });
}

void cx_block_list_free(void* list) { release<BlockList>(list); }

} // extern "C"
