// Exact attention in tiles (arXiv 2205.14135, 2307.08691) over a list of tiles, with a bias by distance
// and dropout of probabilities. Memory is linear in the lengths: forward keeps the output and one log-sum
// a row, backward makes the probabilities again, tile by tile, and draws the same mask.
//
// One thread works on one head at a time, in fp32 whatever the inputs are, so bits depend on neither
// the number of threads nor the other heads. The arithmetic on tiles is in tiles.h.
//
// Shapes: b batch, t queries, s keys, h heads, g key/value heads, k head dim.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "blocks.h"
#include "function.h"
#include "gpu_attention.h"
#include "random.h"
#include "tiles.h"

namespace coxswain {
namespace {

using tiles::kLanes;

// Rows and columns of a tile: its scores and factors fit the second cache together.
constexpr int64_t kTile = BlockList::kTile;

// What of the probabilities is dropped: element (batch, head, i, j) has the index
// ((batch * heads + first_head + head) * t + i) * s + j, where `heads` counts those of all ranks.
struct Drop {
  int64_t key;
  double rate;
  int64_t first_head, heads;
};

// Of each strip of kLanes rows of a tile, the columns between the first and the last that any of its rows
// sees, in whole strips. What lies outside is neither multiplied nor looked at.
struct Spans {
  static constexpr int64_t kStrips = kTile / kLanes;
  int64_t strips = 0, first[kStrips] = {}, last[kStrips] = {};

  // Of row i the first min(valid, edge + i) columns are seen, or those whose bit is set.
  Spans(int64_t rows, int64_t valid, int64_t edge, const BlockList::Bits* bits)
      : strips((rows + kLanes - 1) / kLanes) {
    for (int64_t strip = 0; strip < strips; ++strip) {
      const int64_t end = std::min(rows, (strip + 1) * kLanes);
      int64_t from = 0, to = std::clamp<int64_t>(edge + end - 1, 0, valid);
      if (bits) {
        BlockList::Bits seen{};
        for (int64_t row = strip * kLanes; row < end; ++row)
          for (size_t half = 0; half < 2; ++half) seen[half] |= bits[row][half];
        const bool low = seen[0] != 0, high = seen[1] != 0;
        from = low ? __builtin_ctzll(seen[0]) : (high ? 64 + __builtin_ctzll(seen[1]) : 0);
        to = high ? 128 - __builtin_clzll(seen[1]) : (low ? 64 - __builtin_clzll(seen[0]) : 0);
        to = std::min(to, valid);
      }
      first[strip] = from / kLanes * kLanes;
      last[strip] = tiles::padded(to);
    }
  }

  // Calls `body(row, rows, col, cols)` for rows with the same columns, of which there are some.
  template <class F>
  void by_rows(F&& body) const {
    for (int64_t strip = 0; strip < strips;) {
      int64_t end = strip + 1;
      while (end < strips && first[end] == first[strip] && last[end] == last[strip]) ++end;
      if (first[strip] < last[strip])
        body(strip * kLanes, (end - strip) * kLanes, first[strip], last[strip] - first[strip]);
      strip = end;
    }
  }
  // Calls `body(col, cols, row, rows)` for columns with the same rows: all between the first and the last
  // that see some of them.
  template <class F>
  void by_cols(int64_t cols, F&& body) const {
    int64_t begun = 0, top = 0, bottom = 0;
    for (int64_t col = 0; col <= cols; col += kLanes) {
      int64_t low = 0, high = 0;
      for (int64_t strip = 0; strip < strips && col < cols; ++strip) {
        if (first[strip] > col || last[strip] <= col) continue;
        if (high == 0) low = strip;
        high = strip + 1;
      }
      if (col > 0 && (col == cols || low != top || high != bottom)) {
        if (top < bottom) body(begun, col - begun, top * kLanes, (bottom - top) * kLanes);
        begun = col;
      }
      top = low;
      bottom = high;
    }
  }
  // Zeros outside of the columns that are seen: columns are summed over rows that do not see them all.
  void clear(float* tile, int64_t cols) const {
    if (std::all_of(first, first + strips, [](int64_t at) { return at == 0; }) &&
        std::all_of(last, last + strips, [&](int64_t at) { return at == cols; }))
      return;
    for (int64_t strip = 0; strip < strips; ++strip)
      for (int64_t row = strip * kLanes; row < (strip + 1) * kLanes; ++row) {
        float* x = tile + row * kTile;
        const bool none = first[strip] >= last[strip];
        std::fill(x, x + (none ? cols : first[strip]), 0.f);
        if (!none) std::fill(x + last[strip], x + cols, 0.f);
      }
  }
};

// What each query sees, and what is added to its scores.
struct Shape {
  int64_t batch, queries, keys, heads, groups, dim, cols; // cols: dim, padded
  bool causal;
  float scale;
  c10::intrusive_ptr<BlockList> list; // null where the causal flag says all
  Tensor bias;                        // [h, s + t - 1], or undefined

  Shape(const Tensor& q, const Tensor& k, bool causal, double scale, c10::intrusive_ptr<BlockList> list, Tensor bias)
      : batch(q.size(0)), queries(q.size(1)), keys(k.size(1)), heads(q.size(2)), groups(k.size(2)), dim(q.size(3)),
        cols(tiles::padded(dim)), causal(causal), scale(static_cast<float>(scale)), list(std::move(list)),
        bias(std::move(bias)) {}

  // Query i sees the keys j <= i + shift().
  int64_t shift() const { return causal ? keys - queries : keys; }
  int64_t group_of(int64_t head) const { return head / (heads / groups); }
  // How many keys some of the queries before `end` see.
  int64_t seen(int64_t end) const { return std::clamp<int64_t>(end + shift(), 0, keys); }
  tiles::Scores scores(float* data, int64_t query, int64_t rows, int64_t key, int64_t valid) const {
    return {data, kTile, rows, tiles::padded(valid), valid, query + shift() - key + 1, bias.defined() ? 1.f : scale};
  }
  // Of head `head` (batch and head in one number), calls `body(key, bits)` for the tiles that the queries
  // from `query` on see.
  template <class F>
  void keys_of(int64_t head, int64_t query, int64_t rows, F&& body) const {
    if (list) return list->keys_of(head / heads, head % heads, query, body);
    for (int64_t key = 0; key < seen(query + rows); key += kTile) body(key, nullptr);
  }
  // The same the other way about: the tiles of queries that see the keys from `key` on.
  template <class F>
  void queries_of(int64_t head, int64_t key, F&& body) const {
    if (list) return list->queries_of(head / heads, head % heads, key, body);
    // Tiles before the first query that sees this key are wholly masked.
    for (int64_t query = std::max<int64_t>(0, key - shift()) / kTile * kTile; query < queries; query += kTile)
      body(query, nullptr);
  }
  // A part of a tile of scores: its rows and columns from these on.
  static tiles::Scores part(tiles::Scores tile, int64_t row, int64_t rows, int64_t col, int64_t cols) {
    const int64_t here = std::min(rows, tile.rows - row), valid = std::clamp<int64_t>(tile.valid - col, 0, cols);
    return {tile.data + row * tile.step + col, tile.step, here, cols, valid, tile.edge + row - col, tile.scale};
  }
  const float* bias_of(int64_t head, int64_t query, int64_t key) const {
    return bias.const_data_ptr<float>() + head % heads * bias.size(1) + key - query + queries - 1;
  }
  // Hides what the bits hide, and with a bias makes scores whole, which others then scale no more. The bits
  // are those of the tile's rows, from column `col` on.
  void prepare(
      tiles::Scores tile, int64_t head, int64_t query, int64_t key, const BlockList::Bits* bits, int64_t col) const {
    if (!bits && !bias.defined()) return;
    for (int64_t row = 0; row < tile.rows; ++row) {
      float* x = tile.data + row * tile.step;
      if (bias.defined()) {
        const float* add = bias_of(head, query + row, key);
        for (int64_t i = 0; i < tile.valid; ++i) x[i] = x[i] * scale + add[i];
      }
      if (bits) hide(x, tile.valid, shifted(bits[row], col));
    }
  }

  static BlockList::Bits shifted(const BlockList::Bits& bits, int64_t by) {
    if (by == 0) return bits;
    if (by >= 64) return {bits[1] >> (by - 64), 0};
    return {bits[0] >> by | bits[1] << (64 - by), bits[1] >> by};
  }

  // Run by run of hidden keys: most rows have one or two.
  static void hide(float* x, int64_t count, const BlockList::Bits& bits) {
    for (int64_t half = 0; half * 64 < count; ++half) {
      const int64_t end = std::min<int64_t>(64, count - half * 64);
      for (int64_t i = 0; i < end;) {
        const uint64_t rest = bits[half] >> i;
        if (rest & 1) {
          i += ~rest == 0 ? 64 : __builtin_ctzll(~rest);
          continue;
        }
        const int64_t next = rest == 0 ? end : std::min<int64_t>(end, i + __builtin_ctzll(rest));
        std::fill(x + half * 64 + i, x + half * 64 + next, -std::numeric_limits<float>::infinity());
        i = next;
      }
    }
  }
};

// The rows of one head in a tensor [b, t, h, k].
template <class T>
struct Head {
  T* data;
  int64_t step;
  Head(const Tensor& x, int64_t batch, int64_t head)
      : data(static_cast<T*>(x.data_ptr()) + batch * x.stride(0) + head * x.stride(2)), step(x.stride(1)) {}
  T* row(int64_t i) const { return data + i * step; }
};

// Copies `rows` rows from `first` on; the padding, to `cols` and to a whole number of kLanes rows, is zero.
template <class T>
void pack(Head<T> from, int64_t first, int64_t rows, int64_t dim, int64_t cols, float* to) {
  for (int64_t row = 0; row < rows; ++row, to += cols) {
    const T* x = from.row(first + row);
    for (int64_t i = 0; i < dim; ++i) to[i] = static_cast<float>(x[i]);
    std::fill(to + dim, to + cols, 0.f);
  }
  std::fill(to, to + (tiles::padded(rows) - rows) * cols, 0.f);
}

template <class T>
void unpack(const float* from, Head<T> to, int64_t first, int64_t rows, int64_t dim, int64_t cols) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < dim; ++i) to.row(first + row)[i] = static_cast<T>(from[row * cols + i]);
}

// Buffers of the threads that share `units` units of work, made before they start: a thread of the
// pool has no allocator of its own.
struct Scratch {
  Scratch(int64_t units, int64_t floats)
      : each(tiles::padded(floats)),
        all(at::empty({std::min<int64_t>(at::get_num_threads(), std::max<int64_t>(units, 1)) * each}, at::kFloat)) {}
  float* mine() { return all.data_ptr<float>() + at::get_thread_num() * each; }
  int64_t each;
  Tensor all;
};

float* take(float*& from, int64_t floats) { return (from += floats) - floats; }

// Applies the mask to a tile of probabilities; `to` may be the tile itself. Padding is zero and stays so.
void drop_tile(
    const Shape& shape, const Drop& drop, int64_t head, tiles::Scores p, int64_t query, int64_t key, float* to) {
  const auto dropout = random::dropout_of(drop.key, drop.rate);
  const int64_t batch = head / shape.heads, place = batch * drop.heads + drop.first_head + head % shape.heads;
  for (int64_t row = 0; row < p.rows; ++row) {
    const uint64_t line = static_cast<uint64_t>(place) * static_cast<uint64_t>(shape.queries) +
                          static_cast<uint64_t>(query + row);
    random::drop(p.data + row * p.step, p.cols, dropout,
                 line * static_cast<uint64_t>(shape.keys) + static_cast<uint64_t>(key), to + row * p.step);
  }
}

struct Forward {
  const Shape& shape;
  const Drop& drop;
  const Tensor &q, &k, &v, &out, &log_sum; // log_sum[b, h, t]

  // Packed tiles of keys and values that stay for the next queries: neighbours see mostly the same ones.
  static constexpr int64_t kHeld = 8;
  using Held = std::array<int64_t, kHeld>; // which tile is in each place, or -1

  int64_t floats() const { return kTile * (2 * shape.cols + kTile + 2) + kHeld * 2 * kTile * shape.cols; }

  // The queries from `query` on of one head (batch and head in one number).
  template <class T>
  void tile(int64_t head, int64_t query, float* scratch, Held& held) const {
    const auto& ops = tiles::kernels();
    const int64_t batch = head / shape.heads, group = shape.group_of(head % shape.heads), cols = shape.cols;
    const int64_t rows = std::min(kTile, shape.queries - query), product_rows = tiles::padded(rows);
    float *packed = take(scratch, kHeld * 2 * kTile * cols);
    float *queries = take(scratch, kTile * cols), *sums = take(scratch, kTile * cols);
    float *scores = take(scratch, kTile * kTile), *max = take(scratch, kTile), *sum = take(scratch, kTile);
    pack(Head<T>(q, batch, head % shape.heads), query, rows, shape.dim, cols, queries);
    std::fill(sums, sums + product_rows * cols, 0.f);
    std::fill(max, max + rows, -std::numeric_limits<float>::infinity());
    std::fill(sum, sum + rows, 0.f);

    shape.keys_of(head, query, rows, [&](int64_t key, const BlockList::Bits* bits) {
      const int64_t valid = std::min(kTile, shape.keys - key);
      const auto tile = shape.scores(scores, query, rows, key, valid);
      const int64_t number = key / kTile, place = number % kHeld;
      float *keys = packed + place * 2 * kTile * cols, *values = keys + kTile * cols;
      const int64_t which = (batch * shape.groups + group) * ((shape.keys + kTile - 1) / kTile) + number;
      if (held[place] != which) {
        pack(Head<T>(k, batch, group), key, valid, shape.dim, cols, values);
        ops.transpose(values, tiles::padded(valid), cols, keys, kTile);
        pack(Head<T>(v, batch, group), key, valid, shape.dim, cols, values);
        held[place] = which;
      }
      const Spans spans(rows, valid, tile.edge, bits);
      spans.by_rows([&](int64_t row, int64_t count, int64_t col, int64_t wide) {
        const auto part = Shape::part(tile, row, count, col, wide);
        ops.product({queries + row * cols, cols, 1}, keys + col, kTile, count, wide, shape.dim, false, part.data,
                    kTile);
        shape.prepare(part, head, query + row, key + col, bits ? bits + row : nullptr, col);
        ops.advance(part, {max + row, sum + row, sums + row * cols, cols});
        if (drop.rate > 0) drop_tile(shape, drop, head, part, query + row, key + col, part.data);
        ops.product({part.data, kTile, 1}, values + col * cols, cols, count, cols, part.valid, true,
                    sums + row * cols, cols);
      });
    });

    float* log_sums = log_sum.data_ptr<float>() + head * shape.queries + query;
    for (int64_t row = 0; row < rows; ++row) {
      // A row that sees no key gives zero, and an infinite log-sum makes its probabilities zero.
      const bool blind = max[row] == -std::numeric_limits<float>::infinity() && sum[row] == 0;
      const float inverse = blind ? 0.f : 1 / sum[row];
      log_sums[row] = blind ? std::numeric_limits<float>::infinity() : max[row] + std::log(sum[row]);
      for (int64_t i = 0; i < shape.dim; ++i) sums[row * cols + i] *= inverse;
    }
    unpack(sums, Head<T>(out, batch, head % shape.heads), query, rows, shape.dim, cols);
  }

  template <class T>
  void run() const {
    const int64_t tiles_each = (shape.queries + kTile - 1) / kTile, units = shape.batch * shape.heads * tiles_each;
    Scratch scratch(units, floats());
    at::parallel_for(0, units, 1, [&](int64_t first, int64_t last) {
      Held held;
      held.fill(-1);
      for (int64_t unit = first; unit < last; ++unit)
        tile<T>(unit / tiles_each, unit % tiles_each * kTile, scratch.mine(), held);
    });
  }
};

struct Backward {
  const Shape& shape;
  const Drop& drop;
  const Tensor &q, &k, &v, &out, &log_sum, &grad; // of the output
  const Tensor &dq, &dk, &dv;                     // dk and dv have a part for each head of q
  const Tensor& dbias;                            // [b, h, s + t - 1], a part for each row of the batch, or undefined

  int64_t floats() const {
    const int64_t queries = tiles::padded(shape.queries, kTile);
    return queries * (3 * shape.cols + 1) + kTile * (6 * shape.cols + 3 * kTile);
  }

  // Row sums of grad * out: what the normalization subtracts from each gradient of a probability.
  template <class T>
  void means(int64_t batch, int64_t head, const float* grads, float* to) const {
    const Head<T> from(out, batch, head);
    for (int64_t row = 0; row < shape.queries; ++row) {
      float lanes[kLanes] = {};
      const T* x = from.row(row);
      const float* grad_row = grads + row * shape.cols;
      int64_t done = 0;
      for (; done + kLanes <= shape.dim; done += kLanes)
        for (int64_t lane = 0; lane < kLanes; ++lane)
          lanes[lane] += grad_row[done + lane] * static_cast<float>(x[done + lane]);
      for (int64_t i = done; i < shape.dim; ++i) lanes[i - done] += grad_row[i] * static_cast<float>(x[i]);
      to[row] = 0;
      for (float lane : lanes) to[row] += lane;
    }
  }

  // With a bias the gradients at hand are those of whole scores: the bias's are their sums along the
  // diagonals, the products' are scaled.
  void finish_score_grads(tiles::Scores tile, int64_t head, int64_t query, int64_t key) const {
    for (int64_t row = 0; row < tile.rows; ++row) {
      float* x = tile.data + row * tile.step;
      if (dbias.defined()) {
        float* sum = dbias.data_ptr<float>() + head * dbias.size(2) + key - query - row + shape.queries - 1;
        for (int64_t i = 0; i < tile.valid; ++i) sum[i] += x[i];
      }
      for (int64_t i = 0; i < tile.cols; ++i) x[i] *= shape.scale;
    }
  }

  template <class T, class Part>
  void head(int64_t head, float* scratch) const {
    const auto& ops = tiles::kernels();
    const int64_t batch = head / shape.heads, h = head % shape.heads, cols = shape.cols;
    const int64_t group = shape.group_of(h), all = tiles::padded(shape.queries, kTile), side = kTile * cols;
    float *queries = take(scratch, all * cols), *grads = take(scratch, all * cols);
    float *query_grads = take(scratch, all * cols), *mean = take(scratch, all);
    float *keys = take(scratch, side), *key_cols = take(scratch, side), *value_cols = take(scratch, side);
    float *key_grads = take(scratch, side), *value_grads = take(scratch, side), *values = take(scratch, side);
    float *p = take(scratch, kTile * kTile), *dropped = take(scratch, kTile * kTile);
    float* p_grads = take(scratch, kTile * kTile);
    pack(Head<T>(q, batch, h), 0, shape.queries, shape.dim, cols, queries);
    pack(Head<T>(grad, batch, h), 0, shape.queries, shape.dim, cols, grads);
    means<T>(batch, h, grads, mean);
    std::fill(query_grads, query_grads + all * cols, 0.f);
    if (drop.rate == 0) dropped = p;

    for (int64_t key = 0; key < shape.keys; key += kTile) {
      const int64_t valid = std::min(kTile, shape.keys - key), key_rows = tiles::padded(valid);
      pack(Head<T>(k, batch, group), key, valid, shape.dim, cols, keys);
      pack(Head<T>(v, batch, group), key, valid, shape.dim, cols, values);
      ops.transpose(keys, key_rows, cols, key_cols, kTile);
      ops.transpose(values, key_rows, cols, value_cols, kTile);
      std::fill(key_grads, key_grads + side, 0.f);
      std::fill(value_grads, value_grads + side, 0.f);
      shape.queries_of(head, key, [&](int64_t query, const BlockList::Bits* bits) {
        const int64_t rows = std::min(kTile, shape.queries - query);
        const auto tile = shape.scores(p, query, rows, key, valid);
        const float *tile_queries = queries + query * cols, *tile_grads = grads + query * cols;
        const Spans spans(rows, valid, tile.edge, bits);
        spans.clear(p, key_rows);
        if (drop.rate > 0) spans.clear(dropped, key_rows);
        spans.by_rows([&](int64_t row, int64_t count, int64_t col, int64_t wide) {
          const auto part = Shape::part(tile, row, count, col, wide);
          const int64_t at = row * kTile + col;
          ops.product({tile_queries + row * cols, cols, 1}, key_cols + col, kTile, count, wide, shape.dim, false,
                      part.data, kTile);
          shape.prepare(part, head, query + row, key + col, bits ? bits + row : nullptr, col);
          ops.probabilities(part, log_sum.const_data_ptr<float>() + head * shape.queries + query + row);
          if (drop.rate > 0) drop_tile(shape, drop, head, part, query + row, key + col, dropped + at);
          ops.product({tile_grads + row * cols, cols, 1}, value_cols + col, kTile, count, wide, shape.dim, false,
                      p_grads + at, kTile);
        });
        spans.by_cols(key_rows, [&](int64_t col, int64_t count, int64_t row, int64_t deep) {
          ops.product({dropped + row * kTile + col, 1, kTile}, tile_grads + row * cols, cols, count, cols,
                      std::min(deep, rows - row), true, value_grads + col * cols, cols);
        });
        spans.by_rows([&](int64_t row, int64_t count, int64_t col, int64_t wide) {
          const auto part = Shape::part(tile, row, count, col, wide);
          const int64_t at = row * kTile + col;
          ops.score_grads(part, dropped + at, p_grads + at, mean + query + row);
          if (shape.bias.defined()) finish_score_grads(part, head, query + row, key + col);
          ops.product({part.data, kTile, 1}, keys + col * cols, cols, count, cols, part.valid, true,
                      query_grads + (query + row) * cols, cols);
        });
        spans.by_cols(key_rows, [&](int64_t col, int64_t count, int64_t row, int64_t deep) {
          ops.product({p + row * kTile + col, 1, kTile}, tile_queries + row * cols, cols, count, cols,
                      std::min(deep, rows - row), true, key_grads + col * cols, cols);
        });
      });
      unpack(key_grads, Head<Part>(dk, batch, h), key, valid, shape.dim, cols);
      unpack(value_grads, Head<Part>(dv, batch, h), key, valid, shape.dim, cols);
    }
    unpack(query_grads, Head<T>(dq, batch, h), 0, shape.queries, shape.dim, cols);
  }

  template <class T, class Part>
  void run() const {
    const int64_t units = shape.batch * shape.heads;
    Scratch scratch(units, floats());
    at::parallel_for(0, units, 1, [&](int64_t first, int64_t last) {
      for (int64_t unit = first; unit < last; ++unit) head<T, Part>(unit, scratch.mine());
    });
  }
};

// Adds the parts [b, s, h, k] of the heads of a group, in the order of heads.
template <class T>
Tensor sum_of_groups(const Tensor& parts, const Shape& shape, const Tensor& like) {
  Tensor sums = at::empty(like.sizes(), like.options());
  const int64_t per_group = shape.heads / shape.groups, dim = shape.dim;
  at::parallel_for(0, shape.batch * shape.keys * shape.groups, kTile, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const float* part = parts.const_data_ptr<float>() + row * per_group * dim;
      T* to = static_cast<T*>(sums.data_ptr()) + row * dim;
      for (int64_t i = 0; i < dim; ++i) {
        float sum = part[i];
        for (int64_t head = 1; head < per_group; ++head) sum += part[head * dim + i];
        to[i] = static_cast<T>(sum);
      }
    }
  });
  return sums;
}

// Calls `body` with a value of the element type of a tensor.
template <class F>
void with_type(const Tensor& x, F&& body) {
  if (x.scalar_type() == at::kFloat) body(float{});
  else if (x.scalar_type() == at::kBFloat16) body(at::BFloat16{});
  else body(at::Half{});
}

Tensor rows_contiguous(const Tensor& x) { return x.size(3) == 1 || x.stride(3) == 1 ? x : x.contiguous(); }

struct Attention : Function<Attention> {
  static Tensor forward(
      AutogradContext* ctx, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const Tensor& bias_in,
      int64_t list, bool causal, double scale, int64_t key, double rate, int64_t first_head, int64_t heads) {
    const Tensor q = rows_contiguous(q_in), k = rows_contiguous(k_in), v = rows_contiguous(v_in);
    // Autograd takes defined tensors only: an empty one says that there is none.
    const Tensor bias = bias_in.numel() > 0 ? bias_in.contiguous() : Tensor();
    const auto blocks = list == 0 ? nullptr : counted_at<BlockList>(list);
    const Shape shape(q, k, causal, scale, blocks, bias);
    const Drop drop{key, rate, first_head, heads};
    const Tensor out = at::empty(q.sizes(), q.options());
    const Tensor log_sum = at::empty({shape.batch, shape.heads, shape.queries}, q.options().dtype(at::kFloat));
    with_type(q, [&](auto type) { Forward{shape, drop, q, k, v, out, log_sum}.run<decltype(type)>(); });
    ctx->save_for_backward({q, k, v, out, log_sum, bias});
    if (blocks) ctx->saved_data["list"] = c10::IValue::make_capsule(blocks);
    ctx->saved_data["causal"] = causal;
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["key"] = key;
    ctx->saved_data["rate"] = rate;
    ctx->saved_data["first_head"] = first_head;
    ctx->saved_data["heads"] = heads;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor q = saved[0], k = saved[1], v = saved[2], out = saved[3], log_sum = saved[4], bias = saved[5];
    const Tensor grad = rows_contiguous(grads[0]);
    const auto& data = ctx->saved_data;
    const auto blocks = data.count("list") ? kept<BlockList>(ctx, "list") : nullptr;
    const Shape shape(q, k, data.at("causal").toBool(), data.at("scale").toDouble(), blocks, bias);
    const Drop drop{data.at("key").toInt(), data.at("rate").toDouble(), data.at("first_head").toInt(),
                    data.at("heads").toInt()};
    Tensor dq = at::empty(q.sizes(), q.options()), dk, dv, dbias;
    if (ctx->needs_input_grad(3)) dbias = at::zeros({shape.batch, shape.heads, bias.size(1)}, at::kFloat);
    with_type(q, [&](auto type) {
      using T = decltype(type);
      if (shape.heads == shape.groups) {
        dk = at::empty(k.sizes(), k.options());
        dv = at::empty(v.sizes(), v.options());
        Backward{shape, drop, q, k, v, out, log_sum, grad, dq, dk, dv, dbias}.run<T, T>();
        return;
      }
      const auto options = q.options().dtype(at::kFloat);
      const Tensor dk_parts = at::empty({shape.batch, shape.keys, shape.heads, shape.dim}, options);
      const Tensor dv_parts = at::empty(dk_parts.sizes(), options);
      Backward{shape, drop, q, k, v, out, log_sum, grad, dq, dk_parts, dv_parts, dbias}.run<T, float>();
      dk = sum_of_groups<T>(dk_parts, shape, k);
      dv = sum_of_groups<T>(dv_parts, shape, v);
    });
    Tensor bias_grad;
    if (dbias.defined()) {
      bias_grad = dbias[0];
      for (int64_t row = 1; row < shape.batch; ++row) bias_grad.add_(dbias[row]);
    }
    const Tensor none;
    return {dq, dk, dv, bias_grad, none, none, none, none, none, none, none};
  }
};

Tensor attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, const void* list, bool causal, double scale,
    const Drop& drop) {
  const auto type = q.scalar_type();
  for (const Tensor& x : {q, k, v}) {
    TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
                "attention takes fp32, bf16 or fp16, not ", x.scalar_type());
    expect_beside(x, q, "attention");
    TORCH_CHECK(x.scalar_type() == type, "attention has queries in ", type, " and keys or values in ",
                x.scalar_type());
  }
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && k.sizes() == v.sizes() && q.size(0) == k.size(0) &&
                  q.size(3) == k.size(3) && q.size(3) > 0 && k.size(2) > 0 && q.size(2) % k.size(2) == 0,
              "attention takes q [b, t, h, k] and k, v [b, s, g, k] with h a multiple of g, not ", q.sizes(), ", ",
              k.sizes(), ", ", v.sizes());
  if (bias.defined()) {
    expect_fp32(bias, "attention's bias");
    expect_beside(bias, q, "attention");
    TORCH_CHECK(bias.sizes() == at::IntArrayRef({q.size(2), q.size(1) + k.size(1) - 1}),
                "attention has a bias ", bias.sizes(), " for q ", q.sizes(), " and k ", k.sizes());
  }
  if (list != nullptr) counted<BlockList>(list)->expect(q.size(0), q.size(2), q.size(1), k.size(1));
  random::dropout_of(drop.key, drop.rate); // A bad rate is told before any work.
  TORCH_CHECK(drop.rate == 0 || (drop.first_head >= 0 && drop.heads - q.size(2) >= drop.first_head),
              "attention has heads ", drop.first_head, "..", drop.first_head + q.size(2), " of ", drop.heads);
  if (q.is_cuda())
    return gpu_attention(q, k, v, bias, {static_cast<const BlockList*>(list), causal, scale, drop.key, drop.rate,
                                         drop.first_head, drop.heads});
  return Attention::apply(q, k, v, bias.defined() ? bias : at::empty({0}, at::kFloat), pointer(list), causal, scale, drop.key, drop.rate, drop.first_head, drop.heads);
}

} // namespace
} // namespace coxswain

using namespace coxswain;

extern "C" {

// The bias and the list may be null. A rate of 0 drops nothing, and the key and the heads do not matter then.
char* cx_tiled_attention(
    const void* q, const void* k, const void* v, const void* bias, const void* list, bool causal, double scale,
    uint64_t key, double rate, int64_t first_head, int64_t heads, void** out) {
  return guarded([&] {
    const Drop drop{static_cast<int64_t>(key), rate, first_head, heads};
    const Tensor none;
    *out = handle(attention(tensor(q), tensor(k), tensor(v), bias == nullptr ? none : tensor(bias), list, causal, scale,
                            drop));
  });
}

} // extern "C"
