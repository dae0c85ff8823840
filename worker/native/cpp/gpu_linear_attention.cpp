// Linear attention on a GPU, of libtorch's own operators over all chunks at once; what a chunk adds to the state goes
// from chunk to chunk. What is computed stands in linear_attention.h.
//
// Shapes: b batch, t tokens, h heads, g key/value heads, k head dim, n chunks, c tokens of a chunk.
#include "gpu_linear_attention.h"

#include "linear_attention.h"

namespace coxswain {
namespace {

using linear::kChunk;

// [b, t, g, k] in fp32 with heads first and as many as queries have: [b, h, t, k].
Tensor heads_first(const Tensor& x_btgk, int64_t heads) {
  const Tensor x = x_btgk.to(at::kFloat).transpose(1, 2);
  const int64_t each = heads / x.size(1);
  if (each == 1) return x;
  return x.unsqueeze(2).expand({x.size(0), x.size(1), each, x.size(2), x.size(3)})
      .reshape({x.size(0), heads, x.size(2), x.size(3)});
}

// elu(x) + 1, whose exponential is never of a positive number.
Tensor features(const Tensor& x) { return at::where(x.gt(0), x + 1, x.clamp_max(0).exp()); }

// With a column of ones, in which the sums of weights come out.
Tensor with_ones(const Tensor& v) {
  auto shape = v.sizes().vec();
  shape.back() = 1;
  return at::cat({v, at::ones(shape, v.options())}, -1);
}

// Weighted sums of values over the sums of weights beside them, as [b, t, h, k].
Tensor means(const Tensor& sums_bhtk, const Tensor& like) {
  const int64_t dim = sums_bhtk.size(-1) - 1;
  const Tensor weights = sums_bhtk.narrow(-1, dim, 1).clamp_min(linear::kSmallestSum);
  return (sums_bhtk.narrow(-1, 0, dim) / weights).transpose(1, 2).to(like.scalar_type()).contiguous();
}

// Cut into chunks along the tokens, the last one filled up with zeros: [b, h, n, c, ..].
Tensor chunks(const Tensor& x, int64_t count) {
  const int64_t missing = count * kChunk - x.size(2);
  const Tensor whole = missing == 0 ? x : at::constant_pad_nd(x, {0, 0, 0, missing});
  return whole.unflatten(2, {count, kChunk});
}

// What decays make of the tokens of each chunk (linear::Decays). Sums are of doubles, since differences of them count.
struct ChunkDecays {
  Tensor tile, since, until, whole; // [b, h, n, c, c], [b, h, n, c, 1] twice, [b, h, n, 1, 1]

  explicit ChunkDecays(const Tensor& log_decay_bhnc) {
    const Tensor log = log_decay_bhnc.to(at::kDouble).clamp_min(linear::kForgotten);
    const Tensor lower = at::ones({kChunk, kChunk}, log.options()).tril();
    const Tensor sums = at::matmul(log, lower.t());
    const Tensor last = sums.narrow(-1, kChunk - 1, 1);
    const Tensor between = sums.unsqueeze(-1) - sums.unsqueeze(-2);
    tile = between.masked_fill(lower.eq(0), linear::kForgotten).exp().to(at::kFloat) * lower.to(at::kFloat);
    since = sums.exp().to(at::kFloat).unsqueeze(-1);
    until = (last - sums).exp().to(at::kFloat).unsqueeze(-1);
    whole = last.exp().to(at::kFloat).unsqueeze(-1);
  }
};

} // namespace

Tensor gpu_linear_attention(const Tensor& q_bthk, const Tensor& k_bsgk, const Tensor& v_bsgk) {
  const int64_t heads = q_bthk.size(2);
  const Tensor q = features(heads_first(q_bthk, heads)), k = features(heads_first(k_bsgk, heads));
  const Tensor state = at::matmul(k.transpose(-1, -2), with_ones(heads_first(v_bsgk, heads)));
  return means(at::matmul(q, state), q_bthk);
}

std::vector<Tensor> gpu_causal_linear_attention(
    const Tensor& q_bthk, const Tensor& k_btgk, const Tensor& v_btgk, const Tensor& log_decay_bth, const Tensor& s_bhkk,
    const Tensor& z_bhk) {
  const int64_t heads = q_bthk.size(2), tokens = q_bthk.size(1), count = linear::Shape::chunks(tokens);
  const Tensor q = chunks(features(heads_first(q_bthk, heads)), count);
  const Tensor k = chunks(features(heads_first(k_btgk, heads)), count);
  const Tensor v = chunks(with_ones(heads_first(v_btgk, heads)), count);
  const Tensor log = log_decay_bth.defined() ? log_decay_bth.transpose(1, 2)
                                             : at::zeros({q.size(0), heads, tokens}, q.options());
  const ChunkDecays decays(chunks(log.unsqueeze(-1), count).squeeze(-1));
  const Tensor within = at::matmul(at::matmul(q, k.transpose(-1, -2)) * decays.tile, v);
  const Tensor parts = at::matmul((k * decays.until).transpose(-1, -2), v);
  Tensor state = at::cat({s_bhkk, z_bhk.unsqueeze(-1)}, -1);
  std::vector<Tensor> before;
  for (int64_t n = 0; n < count; ++n) {
    before.push_back(state);
    state = state * decays.whole.select(2, n) + parts.select(2, n);
  }
  const Tensor sums = within + at::matmul(q * decays.since, at::stack(before, 2));
  const int64_t dim = q.size(-1);
  const Tensor last = state.detach();
  return {means(sums.flatten(2, 3).narrow(2, 0, tokens), q_bthk), last.narrow(-1, 0, dim).contiguous(),
          last.select(-1, dim).contiguous()};
}

} // namespace coxswain
