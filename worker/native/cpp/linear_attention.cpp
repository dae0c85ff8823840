// Linear attention (arXiv 2006.16236) with scalar decays per head: time and memory are linear in the
// length. Causal heads go chunk by chunk with a running state; backward goes the other way, with the states
// at the starts of chunks made again in scratch.
//
// One thread works on one head at a time, in fp32 whatever the inputs are, so bits depend on neither the
// number of threads nor the other heads.
//
// Shapes: b batch, t queries, s keys, h heads, g key/value heads, k head dim.
#include "gpu_linear_attention.h"
#include "linear_attention.h"

#include <ATen/core/grad_mode.h>

namespace coxswain {
namespace {

using linear::Decays;
using linear::kChunk;
using linear::Rows;
using linear::Scratch;
using linear::Shape;
using linear::take;
using tiles::padded;

// Calls `body` for all heads of the batch (batch and head in one number), each with scratch of its own.
template <class F>
void for_heads(const Shape& shape, int64_t floats, F&& body) {
  const int64_t units = shape.batch * shape.heads;
  Scratch scratch(units, floats);
  at::parallel_for(0, units, 1, [&](int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit) body(unit / shape.heads, unit % shape.heads, scratch.mine());
  });
}

struct Log { // of decays, of one head
  const float* data = nullptr;
  int64_t step = 0;
  Log(const Tensor& decay_bth, int64_t batch, int64_t head) {
    if (decay_bth.numel() == 0) return;
    data = floats(decay_bth) + batch * decay_bth.stride(0) + head * decay_bth.stride(2);
    step = decay_bth.stride(1);
  }
  void load(Decays& decays, int64_t first, int64_t rows) const {
    decays.load(data == nullptr ? nullptr : data + first * step, step, rows);
  }
};

// The state over all keys of a head, for queries that see all of them.
template <class T>
void sum_keys(const Tensor& k, const Tensor& v, int64_t batch, int64_t group, const Shape& shape, float* state,
              float* scratch) {
  float *keys = take(scratch, kChunk * shape.cols), *values = take(scratch, kChunk * shape.wide);
  std::fill(state, state + shape.state(), 0.f);
  for (int64_t first = 0; first < shape.keys; first += kChunk) {
    const int64_t rows = std::min(kChunk, shape.keys - first);
    linear::load_features(Rows<const T>(k, batch, group), first, rows, shape, keys);
    linear::load_values(Rows<const T>(v, batch, group), first, rows, shape, values);
    linear::advance(state, 1, keys, values, rows, shape, scratch);
  }
}

struct Forward {
  const Shape& shape;
  const Tensor &q, &k, &v, &log_decay;
  const Tensor &out, &sum;   // sum[b, h, t] of weights
  const Tensor &s, &z;       // the state at first and, where causal, at last: [b, h, k, k] and [b, h, k]

  int64_t floats() const {
    return kChunk * (3 * shape.cols + 2 * shape.wide + 2 * kChunk) + 2 * shape.state();
  }

  void load_state(int64_t batch, int64_t head, float* state) const {
    const int64_t at = (batch * shape.heads + head) * shape.dim;
    for (int64_t i = 0; i < shape.dim; ++i) {
      std::copy_n(row_of(s, at + i), shape.dim, state + i * shape.wide);
      state[i * shape.wide + shape.dim] = z.data_ptr<float>()[at + i];
    }
    for (int64_t i = 0; i < shape.cols; ++i)
      std::fill(state + i * shape.wide + (i < shape.dim ? shape.dim + 1 : 0), state + (i + 1) * shape.wide, 0.f);
  }
  void store_state(int64_t batch, int64_t head, const float* state) const {
    const int64_t at = (batch * shape.heads + head) * shape.dim;
    for (int64_t i = 0; i < shape.dim; ++i) {
      std::copy_n(state + i * shape.wide, shape.dim, row_of(s, at + i));
      z.data_ptr<float>()[at + i] = state[i * shape.wide + shape.dim];
    }
  }
  float* row_of(const Tensor& x, int64_t row) const { return x.data_ptr<float>() + row * shape.dim; }

  // Divides the weighted sums of values by the sums of weights.
  template <class T>
  void finish(int64_t batch, int64_t head, int64_t first, int64_t rows, float* sums) const {
    float* to = sum.data_ptr<float>() + (batch * shape.heads + head) * shape.queries + first;
    for (int64_t row = 0; row < rows; ++row) {
      float* x = sums + row * shape.wide;
      const float weights = to[row] = x[shape.dim];
      const float inverse = 1 / (weights < linear::kSmallestSum ? linear::kSmallestSum : weights);
      for (int64_t i = 0; i < shape.dim; ++i) x[i] *= inverse;
    }
    linear::store_values(sums, Rows<T>(out, batch, head), first, rows, shape);
  }

  template <class T>
  void causal(int64_t batch, int64_t head, float* scratch) const {
    const auto& ops = tiles::kernels();
    const int64_t group = shape.group_of(head), cols = shape.cols, wide = shape.wide, dim = shape.dim;
    float *queries = take(scratch, kChunk * cols), *keys = take(scratch, kChunk * cols);
    float *values = take(scratch, kChunk * wide), *sums = take(scratch, kChunk * wide);
    float *key_cols = take(scratch, cols * kChunk), *weights = take(scratch, kChunk * kChunk);
    Decays decays(take(scratch, kChunk * kChunk));
    float *state = take(scratch, shape.state()), *part = take(scratch, shape.state());
    const Log log(log_decay, batch, head);
    load_state(batch, head, state);
    for (int64_t first = 0; first < shape.queries; first += kChunk) {
      const int64_t rows = std::min(kChunk, shape.queries - first), tile = padded(rows);
      linear::load_features(Rows<const T>(q, batch, head), first, rows, shape, queries);
      linear::load_features(Rows<const T>(k, batch, group), first, rows, shape, keys);
      linear::load_values(Rows<const T>(v, batch, group), first, rows, shape, values);
      log.load(decays, first, rows);
      // Keys of the chunk, then what was there before it.
      ops.transpose(keys, tile, cols, key_cols, kChunk);
      ops.product({queries, cols, 1}, key_cols, kChunk, tile, tile, dim, false, weights, kChunk);
      decays.mask(weights, rows);
      ops.product({weights, kChunk, 1}, values, wide, tile, wide, rows, false, sums, wide);
      linear::scale_rows(queries, rows, cols, decays.since);
      ops.product({queries, cols, 1}, state, wide, tile, wide, dim, true, sums, wide);
      finish<T>(batch, head, first, rows, sums);
      linear::scale_rows(keys, rows, cols, decays.until);
      linear::advance(state, decays.whole, keys, values, rows, shape, part);
    }
    store_state(batch, head, state);
  }

  template <class T>
  void bidirectional(int64_t batch, int64_t head, float* scratch) const {
    const int64_t wide = shape.wide;
    float *state = take(scratch, shape.state()), *queries = take(scratch, kChunk * shape.cols);
    float* sums = take(scratch, kChunk * wide);
    sum_keys<T>(k, v, batch, shape.group_of(head), shape, state, scratch);
    for (int64_t first = 0; first < shape.queries; first += kChunk) {
      const int64_t rows = std::min(kChunk, shape.queries - first);
      linear::load_features(Rows<const T>(q, batch, head), first, rows, shape, queries);
      tiles::kernels().product({queries, shape.cols, 1}, state, wide, padded(rows), wide, shape.dim, false, sums, wide);
      finish<T>(batch, head, first, rows, sums);
    }
  }

  template <class T>
  void run() const {
    for_heads(shape, floats(), [&](int64_t batch, int64_t head, float* scratch) {
      shape.causal ? causal<T>(batch, head, scratch) : bidirectional<T>(batch, head, scratch);
    });
  }
};

// T is the type of inputs, Part that of the gradients of keys and values.
template <class T, class Part>
struct Backward {
  const Shape& shape;
  const Tensor &q, &k, &v, &log_decay, &out, &sum, &grad; // grad is the output's
  const Tensor &dq, &dk, &dv;                             // dk and dv have a part for each head of q
  const Tensor& dlog_decay;                               // [b, t, h], or undefined

  int64_t floats() const {
    // The states at the starts of chunks, of which there is one even for no token, are last.
    return kChunk * (5 * shape.cols + 4 * shape.wide + 3 * kChunk) +
           (3 + std::max<int64_t>(1, Shape::chunks(shape.keys))) * shape.state();
  }

  // The gradients of the weighted sums of values and, in the column after them, of the sums of weights.
  void load_grads(int64_t batch, int64_t head, int64_t first, int64_t rows, float* to) const {
    const Rows<const T> ys(out, batch, head), grads(grad, batch, head);
    const float* sums = sums_of(batch, head) + first;
    for (int64_t row = 0; row < rows; ++row) {
      const T *y = ys.row(first + row), *dy = grads.row(first + row);
      float* x = to + row * shape.wide;
      const bool small = sums[row] < linear::kSmallestSum;
      const float inverse = 1 / (small ? linear::kSmallestSum : sums[row]);
      float lanes[tiles::kLanes] = {}, mean = 0;
      for (int64_t i = 0; i < shape.dim; ++i) {
        x[i] = static_cast<float>(dy[i]) * inverse;
        lanes[i % tiles::kLanes] += x[i] * static_cast<float>(y[i]);
      }
      for (float lane : lanes) mean += lane;
      x[shape.dim] = small ? 0 : -mean;
    }
    linear::pad(to, rows, shape.dim + 1, shape.wide);
  }
  const float* sums_of(int64_t batch, int64_t head) const {
    return coxswain::floats(sum) + (batch * shape.heads + head) * shape.queries;
  }

  // The states at the starts of all chunks, one after another.
  void make_states(int64_t batch, int64_t head, const Log& log, Decays& decays, float* keys, float* values,
                   float* part, float* states) const {
    const int64_t group = shape.group_of(head);
    std::fill(states, states + shape.state(), 0.f);
    for (int64_t first = 0; first + kChunk < shape.keys; first += kChunk, states += shape.state()) {
      linear::load_features(Rows<const T>(k, batch, group), first, kChunk, shape, keys);
      linear::load_values(Rows<const T>(v, batch, group), first, kChunk, shape, values);
      log.load(decays, first, kChunk);
      linear::scale_rows(keys, kChunk, shape.cols, decays.until);
      std::copy_n(states, shape.state(), states + shape.state());
      linear::advance(states + shape.state(), decays.whole, keys, values, kChunk, shape, part);
    }
  }

  // The gradients of one chunk's log decays. That of token m is the sum of weight * gradient over all pairs
  // of a query from m on and a key before m; `since` has those of each query with keys before the chunk,
  // `until` those of each key with queries after it, `through` those that pass the chunk by. In double the
  // sums along the edge of the tile lose nothing.
  void store_decay_grads(int64_t batch, int64_t head, int64_t first, int64_t rows, const float* weights,
                         const float* grads, const double* since, const double* until, double through) const {
    double by_query[kChunk] = {}, by_key[kChunk] = {}, before = through, after = 0, edge = 0;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < i; ++j) {
        const double pair = static_cast<double>(weights[i * kChunk + j]) * grads[i * kChunk + j];
        by_query[i] += pair;
        by_key[j] += pair;
      }
    double sums[kChunk];
    for (int64_t i = rows; i-- > 0;) sums[i] = after += since[i];
    float* to = dlog_decay.data_ptr<float>() + (batch * shape.queries + first) * shape.heads + head;
    for (int64_t i = 0; i < rows; ++i) {
      to[i * shape.heads] = static_cast<float>(edge + before + sums[i]);
      edge += by_key[i] - by_query[i];
      before += until[i];
    }
  }

  void causal(int64_t batch, int64_t head, float* scratch) const {
    const auto& ops = tiles::kernels();
    const int64_t group = shape.group_of(head), cols = shape.cols, wide = shape.wide, dim = shape.dim;
    float *queries = take(scratch, kChunk * cols), *keys = take(scratch, kChunk * cols);
    float *query_grads = take(scratch, kChunk * cols), *key_grads = take(scratch, kChunk * cols);
    float *values = take(scratch, kChunk * wide), *value_grads = take(scratch, kChunk * wide);
    float *grads = take(scratch, kChunk * wide), *turned = take(scratch, kChunk * wide);
    float *weights = take(scratch, kChunk * kChunk), *weight_grads = take(scratch, kChunk * kChunk);
    Decays decays(take(scratch, kChunk * kChunk));
    float *key_cols = take(scratch, cols * kChunk), *part = take(scratch, shape.state());
    float *state_grad = take(scratch, shape.state()), *state_cols = take(scratch, shape.state());
    const Log log(log_decay, batch, head);
    make_states(batch, head, log, decays, keys, values, part, scratch);
    std::fill(state_grad, state_grad + shape.state(), 0.f);
    const bool decay_grads = dlog_decay.defined();
    double since[kChunk], until[kChunk];
    for (int64_t chunk = Shape::chunks(shape.keys); chunk-- > 0;) {
      const int64_t first = chunk * kChunk, rows = std::min(kChunk, shape.keys - first), tile = padded(rows);
      const float* state = scratch + chunk * shape.state();
      linear::load_features(Rows<const T>(q, batch, head), first, rows, shape, queries);
      linear::load_features(Rows<const T>(k, batch, group), first, rows, shape, keys);
      linear::load_values(Rows<const T>(v, batch, group), first, rows, shape, values);
      load_grads(batch, head, first, rows, grads);
      log.load(decays, first, rows);

      // What queries and keys owe to the rest of the sequence, by way of the states.
      ops.transpose(state, cols, wide, state_cols, cols);
      ops.product({grads, wide, 1}, state_cols, cols, tile, cols, dim + 1, false, query_grads, cols);
      linear::scale_rows(query_grads, rows, cols, decays.since);
      ops.transpose(state_grad, cols, wide, state_cols, cols);
      ops.product({values, wide, 1}, state_cols, cols, tile, cols, dim + 1, false, key_grads, cols);
      linear::scale_rows(key_grads, rows, cols, decays.until);
      for (int64_t i = 0; decay_grads && i < rows; ++i) {
        since[i] = linear::dot(queries + i * cols, query_grads + i * cols, cols);
        until[i] = linear::dot(keys + i * cols, key_grads + i * cols, cols);
      }

      // And to one another.
      ops.transpose(keys, tile, cols, key_cols, kChunk);
      ops.product({queries, cols, 1}, key_cols, kChunk, tile, tile, dim, false, weights, kChunk);
      decays.mask(weights, rows);
      ops.transpose(values, tile, wide, turned, kChunk);
      ops.product({grads, wide, 1}, turned, kChunk, tile, tile, dim + 1, false, weight_grads, kChunk);
      if (decay_grads) {
        const double through = decays.whole * linear::dot(state, state_grad, shape.state());
        store_decay_grads(batch, head, first, rows, weights, weight_grads, since, until, through);
      }
      decays.mask(weight_grads, rows);
      ops.product({weight_grads, kChunk, 1}, keys, cols, tile, cols, rows, true, query_grads, cols);
      ops.product({weight_grads, 1, kChunk}, queries, cols, tile, cols, rows, true, key_grads, cols);
      linear::store_feature_grads(query_grads, queries, Rows<T>(dq, batch, head), first, rows, shape);
      linear::store_feature_grads(key_grads, keys, Rows<Part>(dk, batch, head), first, rows, shape);

      ops.product({weights, 1, kChunk}, grads, wide, tile, wide, rows, false, value_grads, wide);
      linear::scale_rows(keys, rows, cols, decays.until);
      ops.product({keys, cols, 1}, state_grad, wide, tile, wide, dim, true, value_grads, wide);
      linear::store_values(value_grads, Rows<Part>(dv, batch, head), first, rows, shape);
      linear::scale_rows(queries, rows, cols, decays.since);
      linear::advance(state_grad, decays.whole, queries, grads, rows, shape, part);
    }
  }

  void bidirectional(int64_t batch, int64_t head, float* scratch) const {
    const auto& ops = tiles::kernels();
    const int64_t group = shape.group_of(head), cols = shape.cols, wide = shape.wide, dim = shape.dim;
    float *rows_in = take(scratch, kChunk * cols), *feature_grads = take(scratch, kChunk * cols);
    float *values = take(scratch, kChunk * wide), *value_grads = take(scratch, kChunk * wide);
    float *state = take(scratch, shape.state()), *state_grad = take(scratch, shape.state());
    float* state_cols = take(scratch, shape.state());
    sum_keys<T>(k, v, batch, group, shape, state, scratch);
    ops.transpose(state, cols, wide, state_cols, cols);
    std::fill(state_grad, state_grad + shape.state(), 0.f);
    for (int64_t first = 0; first < shape.queries; first += kChunk) {
      const int64_t rows = std::min(kChunk, shape.queries - first);
      linear::load_features(Rows<const T>(q, batch, head), first, rows, shape, rows_in);
      load_grads(batch, head, first, rows, values);
      ops.product({values, wide, 1}, state_cols, cols, padded(rows), cols, dim + 1, false, feature_grads, cols);
      linear::store_feature_grads(feature_grads, rows_in, Rows<T>(dq, batch, head), first, rows, shape);
      linear::advance(state_grad, 1, rows_in, values, rows, shape, scratch);
    }
    ops.transpose(state_grad, cols, wide, state_cols, cols);
    for (int64_t first = 0; first < shape.keys; first += kChunk) {
      const int64_t rows = std::min(kChunk, shape.keys - first);
      linear::load_features(Rows<const T>(k, batch, group), first, rows, shape, rows_in);
      linear::load_values(Rows<const T>(v, batch, group), first, rows, shape, values);
      ops.product({values, wide, 1}, state_cols, cols, padded(rows), cols, dim + 1, false, feature_grads, cols);
      linear::store_feature_grads(feature_grads, rows_in, Rows<Part>(dk, batch, head), first, rows, shape);
      ops.product({rows_in, cols, 1}, state_grad, wide, padded(rows), wide, dim, false, value_grads, wide);
      linear::store_values(value_grads, Rows<Part>(dv, batch, head), first, rows, shape);
    }
  }

  void run() const {
    for_heads(shape, floats(), [&](int64_t batch, int64_t head, float* scratch) {
      shape.causal ? causal(batch, head, scratch) : bidirectional(batch, head, scratch);
    });
  }
};

// Adds the parts [b, s, h, k] of the heads of a group, in the order of heads.
Tensor sum_of_groups(const Tensor& parts, const Shape& shape, const Tensor& like) {
  const int64_t each = shape.heads / shape.groups;
  const Tensor by_group = parts.view({shape.batch, shape.keys, shape.groups, each, shape.dim});
  Tensor sum = by_group.select(3, 0).clone();
  for (int64_t head = 1; head < each; ++head) sum.add_(by_group.select(3, head));
  return sum.to(like.scalar_type());
}

Tensor rows_contiguous(const Tensor& x) { return x.size(3) == 1 || x.stride(3) == 1 ? x : x.contiguous(); }

struct LinearAttention : Function<LinearAttention> {
  // An empty log_decay says that there is none. The state, [b, h, k, k] and [b, h, k], is written over.
  static variable_list forward(
      AutogradContext* ctx, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const Tensor& log_decay,
      const Tensor& s, const Tensor& z, bool causal) {
    const Tensor q = rows_contiguous(q_in), k = rows_contiguous(k_in), v = rows_contiguous(v_in);
    const Shape shape(q, k, causal);
    const Tensor out = at::empty(q.sizes(), q.options());
    const Tensor sum = at::empty({shape.batch, shape.heads, shape.queries}, at::kFloat);
    by_kind(q, "linear attention", [&](auto kind) {
      Forward{shape, q, k, v, log_decay, out, sum, s, z}.run<decltype(kind)>();
    });
    ctx->save_for_backward({q, k, v, log_decay, out, sum});
    ctx->saved_data["causal"] = causal;
    return {out};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor q = saved[0], k = saved[1], v = saved[2], log_decay = saved[3], out = saved[4], sum = saved[5];
    const Tensor grad = rows_contiguous(grads[0]);
    const Shape shape(q, k, ctx->saved_data.at("causal").toBool());
    const Tensor dq = at::empty(q.sizes(), q.options());
    Tensor dk, dv, dlog_decay;
    if (log_decay.numel() > 0 && ctx->needs_input_grad(3)) dlog_decay = at::empty(log_decay.sizes(), at::kFloat);
    by_kind(q, "linear attention", [&](auto kind) {
      using T = decltype(kind);
      if (shape.heads == shape.groups) {
        dk = at::empty(k.sizes(), k.options());
        dv = at::empty(v.sizes(), v.options());
        Backward<T, T>{shape, q, k, v, log_decay, out, sum, grad, dq, dk, dv, dlog_decay}.run();
        return;
      }
      const Tensor dk_parts = at::empty({shape.batch, shape.keys, shape.heads, shape.dim}, at::kFloat);
      const Tensor dv_parts = at::empty(dk_parts.sizes(), at::kFloat);
      Backward<T, float>{shape, q, k, v, log_decay, out, sum, grad, dq, dk_parts, dv_parts, dlog_decay}.run();
      dk = sum_of_groups(dk_parts, shape, k);
      dv = sum_of_groups(dv_parts, shape, v);
    });
    const Tensor none;
    return {dq, dk, dv, dlog_decay, none, none, none};
  }
};

void expect_shapes(const Tensor& q, const Tensor& k, const Tensor& v, bool causal) {
  const auto type = q.scalar_type();
  for (const Tensor& x : {q, k, v}) {
    TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
                "linear attention takes fp32, bf16 or fp16, not ", x.scalar_type());
    expect_beside(x, q, "linear attention");
    TORCH_CHECK(x.scalar_type() == type, "linear attention has queries in ", type, " and keys or values in ",
                x.scalar_type());
  }
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && k.sizes() == v.sizes() && q.size(0) == k.size(0) &&
                  q.size(3) == k.size(3) && q.size(3) > 0 && k.size(2) > 0 && q.size(2) % k.size(2) == 0,
              "linear attention takes q [b, t, h, k] and k, v [b, s, g, k] with h a multiple of g, not ", q.sizes(),
              ", ", k.sizes(), ", ", v.sizes());
  TORCH_CHECK(!causal || q.size(1) == k.size(1), "causal linear attention has ", q.size(1), " queries and ",
              k.size(1), " keys; give the keys before the queries as a state");
}

void expect_decay(const Tensor& log_decay, const Tensor& q, bool causal) {
  expect_fp32(log_decay, "linear attention's log decay");
  TORCH_CHECK(causal, "linear attention has decays and is bidirectional; a decay is over the tokens since a key, "
              "of which later keys have none: make it causal or leave the decays out");
  TORCH_CHECK(log_decay.sizes() == q.sizes().slice(0, 3), "linear attention has log decays ", log_decay.sizes(),
              " for q ", q.sizes());
  // To look at numbers on a GPU would wait for it.
  TORCH_CHECK(log_decay.is_cuda() || !log_decay.detach().gt(0).any().item<bool>(), "linear attention has a log decay above 0, with which "
              "the past would grow without bound; give the log of a factor in 0..=1");
}

void expect_state(const Tensor& s, const Tensor& z, const Tensor& q, bool causal) {
  expect_fp32(s, "linear attention's state");
  expect_fp32(z, "linear attention's state");
  TORCH_CHECK(causal, "linear attention has a state and is bidirectional; a state is of the tokens so far, where "
              "every query sees all keys: make it causal or leave the state out");
  const int64_t b = q.size(0), h = q.size(2), k = q.size(3);
  TORCH_CHECK(s.sizes() == at::IntArrayRef({b, h, k, k}) && z.sizes() == at::IntArrayRef({b, h, k}),
              "linear attention has a state ", s.sizes(), ", ", z.sizes(), " for q ", q.sizes());
}

// Returns the output, and the state's s and z where causal.
variable_list linear_attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_decay, const Tensor& s, const Tensor& z,
    bool causal) {
  expect_shapes(q, k, v, causal);
  if (log_decay.defined()) expect_decay(log_decay, q, causal);
  const Tensor empty = at::empty({0}, at::kFloat);
  Tensor s_now = empty, z_now = empty;
  if (s.defined()) {
    expect_state(s, z, q, causal);
    bool wanted = log_decay.defined() && log_decay.requires_grad();
    for (const Tensor& x : {q, k, v, s, z}) wanted |= x.requires_grad();
    TORCH_CHECK(!wanted || !at::GradMode::is_enabled(), "linear attention from a state has no gradients: those of the "
                "tokens before it are not kept; train over whole sequences, or generate without gradients");
    s_now = s.clone(at::MemoryFormat::Contiguous);
    z_now = z.clone(at::MemoryFormat::Contiguous);
  } else if (causal) {
    const auto options = q.options().dtype(at::kFloat).requires_grad(false);
    s_now = at::zeros({q.size(0), q.size(2), q.size(3), q.size(3)}, options);
    z_now = at::zeros({q.size(0), q.size(2), q.size(3)}, options);
  }
  if (q.is_cuda())
    return causal ? gpu_causal_linear_attention(q, k, v, log_decay, s_now, z_now)
                  : variable_list{gpu_linear_attention(q, k, v)};
  const auto out = LinearAttention::apply(q, k, v, log_decay.defined() ? log_decay : empty, s_now, z_now, causal);
  if (!causal) return out;
  return {out[0], s_now, z_now};
}

} // namespace
} // namespace coxswain

using namespace coxswain;

extern "C" {

// `log_decay`, and `s` with `z`, may be null. Where causal, `s_out` and `z_out` are the state after the last
// token; else they are left alone.
char* cx_linear_attention(
    const void* q, const void* k, const void* v, const void* log_decay, const void* s, const void* z, bool causal,
    void** out, void** s_out, void** z_out) {
  return guarded([&] {
    const auto given = [](const void* x) { return x == nullptr ? Tensor() : tensor(x); };
    const auto made =
        linear_attention(tensor(q), tensor(k), tensor(v), given(log_decay), given(s), given(z), causal);
    *out = handle(made[0]);
    if (causal) {
      *s_out = handle(made[1]);
      *z_out = handle(made[2]);
    }
  });
}

} // extern "C"
