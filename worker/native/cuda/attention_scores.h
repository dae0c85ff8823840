#pragma once
// What attention knows of its scores: the tiles that a tile meets, which elements of a tile are seen, the bias, and the
// draws of dropout.
#include "attention_tiles.h"
#include "draws.h"

namespace coxswain::cuda::attention {

// The tiles that one tile of queries or of keys meets: entries first .. last of the list, or these numbers themselves.
struct Walk {
  int first, last;
  const int64_t* entries; // null where there is no list

  __device__ __forceinline__ int tile(int at) const {
    return entries ? static_cast<int>(entries[2 * int64_t{at}]) : at;
  }
  __device__ __forceinline__ int bits(int at) const {
    return entries ? static_cast<int>(entries[2 * int64_t{at} + 1]) : -1;
  }
};

__device__ __forceinline__ int64_t pattern_of(const Plan& plan, const int64_t* words, int64_t batch, int64_t head) {
  return words[(plan.list.batch_rows == 1 ? 0 : batch) * plan.list.heads + head];
}

__device__ __forceinline__ Walk keys_of(
    const Plan& plan, const int64_t* words, int64_t batch, int64_t head, int64_t tile) {
  if (plan.listed) {
    const int64_t* first = words + plan.list.query_first + pattern_of(plan, words, batch, head) * plan.query_tiles;
    return {0, static_cast<int>(first[tile + 1] - first[tile]), words + plan.list.by_query + 2 * first[tile]};
  }
  int64_t end = (tile + 1) * kTile;
  end = (end < plan.shape.queries ? end : plan.shape.queries) + plan.shift();
  end = end < 0 ? 0 : end < plan.shape.keys ? end : plan.shape.keys;
  return {0, static_cast<int>((end + kTile - 1) / kTile), nullptr};
}

__device__ __forceinline__ Walk queries_of(
    const Plan& plan, const int64_t* words, int64_t batch, int64_t head, int64_t tile) {
  if (plan.listed) {
    const int64_t* first = words + plan.list.key_first + pattern_of(plan, words, batch, head) * plan.key_tiles;
    return {0, static_cast<int>(first[tile + 1] - first[tile]), words + plan.list.by_key + 2 * first[tile]};
  }
  const int64_t first = tile * kTile - plan.shift(); // the first query that sees a key of the tile
  return {first < 0 ? 0 : static_cast<int>(first / kTile), static_cast<int>(plan.query_tiles), nullptr};
}

// Which elements of a tile of scores are seen.
struct Seen {
  int rows, valid, edge;    // of row i, the first min(valid, edge + i) columns
  const int64_t* bits;      // null, or of each row a word, two words apart

  __device__ __forceinline__ Seen(const Plan& plan, const int64_t* words, int bits, int64_t query, int64_t key)
      : bits(bits < 0 ? nullptr : words + plan.list.bits + bits) {
    const int64_t down = plan.shape.queries - query, right = plan.shape.keys - key;
    rows = down < kTile ? static_cast<int>(down) : kTile;
    valid = right < kTile ? static_cast<int>(right) : kTile;
    const int64_t at = query + plan.shift() - key + 1;
    edge = at < -kTile ? -kTile : at > kTile ? kTile : static_cast<int>(at);
  }
  // A bit for each column of a row.
  __device__ __forceinline__ uint64_t row(int i) const {
    int count = edge + i;
    count = count < valid ? count : valid;
    if (i >= rows || count <= 0) return 0;
    const uint64_t first = ~uint64_t{0} >> (kTile - count);
    return bits ? first & static_cast<uint64_t>(bits[2 * i]) : first;
  }
};

// The random bits of a row of scores, from one key on.
struct Draws {
  uint64_t key, first;
  uint32_t threshold;
  random::Salt salt;

  __device__ __forceinline__ Draws(const Plan& plan, int64_t batch, int64_t head, int64_t query, int64_t key_at)
      : key(plan.drop.drop.key), threshold(plan.drop.drop.threshold) {
    const uint64_t place = static_cast<uint64_t>(batch * plan.drop.heads + plan.drop.first_head + head);
    const uint64_t line = place * static_cast<uint64_t>(plan.shape.queries) + static_cast<uint64_t>(query);
    first = line * static_cast<uint64_t>(plan.shape.keys) + static_cast<uint64_t>(key_at);
    salt = random::salt(key, static_cast<uint32_t>(first >> 32));
  }
  __device__ __forceinline__ bool keep(int i) const {
    const uint64_t index = first + static_cast<uint64_t>(i);
    const uint32_t upper = static_cast<uint32_t>(index >> 32);
    const random::Salt here = upper == static_cast<uint32_t>(first >> 32) ? salt : random::salt(key, upper);
    return random::draw(here, static_cast<uint32_t>(index)) >= threshold;
  }
};

// A score made whole: as the row maxima, the log-sum-exp and the probabilities take it.
__device__ __forceinline__ float whole(float score, float scale, const float* bias, int at) {
  const float scaled = score * scale;
  return bias ? scaled + bias[at] : scaled;
}

// Where the bias of a row of a tile begins, or null.
__device__ __forceinline__ const float* bias_of(
    const Plan& plan, const float* bias, int64_t head, int64_t query, int64_t key) {
  if (!bias) return nullptr;
  const int64_t queries = plan.shape.queries;
  return bias + head * (plan.shape.keys + queries - 1) + key - query + queries - 1;
}

} // namespace coxswain::cuda::attention
