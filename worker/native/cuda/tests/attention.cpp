// Holds the table of ../attention.h to attention in double precision: outputs and all gradients, over the masks, kinds
// and shapes that differ in how tiles are cut. Then the same bits when it runs again (on the CPU, with threads and
// blocks in the other order), and for a group of heads or a row of the batch by itself. It needs the library's exported
// function only. From .., against the library in LIB of the CPU's build, or with a GPU's kernels compiled in:
//   g++ -std=c++17 -O2 -I CUDA/include tests/attention.cpp LIB/libcoxswain_cuda_emulated.so -o attention
//   nvcc -std=c++17 -arch=sm_90 -fmad=false -O3 -DCOXSWAIN_ON_GPU attention*.cu tests/attention.cpp -o attention
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "../../cpp/random.h"
#include "../attention.h"
#include "guarded.h"

using namespace coxswain::cuda;
using check::Array;

namespace {

// As BlockList of ../../cpp/blocks.h, which needs libtorch.
struct List {
  static constexpr int64_t kTile = 128;
  using Bits = std::array<uint64_t, 2>;
  struct Entry {
    int64_t at, bits;
  };
  struct Pattern {
    std::vector<std::vector<Entry>> keys;
  };
  int64_t queries = 0, keys = 0, heads = 0;
  std::vector<Pattern> patterns;
  std::vector<int64_t> pattern_of;
  std::vector<Bits> bits;
};

using Sees = std::function<bool(int64_t pattern, int64_t query, int64_t key)>;

List list_of(int64_t queries, int64_t keys, int64_t heads, std::vector<int64_t> pattern_of, const Sees& sees) {
  List list;
  list.queries = queries, list.keys = keys, list.heads = heads;
  int64_t patterns = 0;
  for (int64_t pattern : pattern_of) patterns = std::max(patterns, pattern + 1);
  list.pattern_of = std::move(pattern_of);
  for (int64_t pattern = 0; pattern < patterns; ++pattern) {
    List::Pattern made;
    for (int64_t query = 0; query < queries; query += List::kTile) {
      made.keys.emplace_back();
      for (int64_t key = 0; key < keys; key += List::kTile) {
        std::vector<List::Bits> rows;
        bool any = false, all = true;
        for (int64_t i = query; i < std::min(queries, query + List::kTile); ++i) {
          List::Bits row{};
          for (int64_t j = key; j < std::min(keys, key + List::kTile); ++j) {
            const bool seen = sees(pattern, i, j);
            any |= seen, all &= seen;
            if (seen) row[(j - key) / 64] |= uint64_t{1} << (j - key) % 64;
          }
          rows.push_back(row);
        }
        if (!any) continue;
        made.keys.back().push_back({key, all ? -1 : static_cast<int64_t>(list.bits.size())});
        if (!all) list.bits.insert(list.bits.end(), rows.begin(), rows.end());
      }
    }
    list.patterns.push_back(std::move(made));
  }
  return list;
}

uint32_t bits_at(uint64_t key, uint64_t at) {
  const auto salt = coxswain::random::salt(key, static_cast<uint32_t>(at >> 32));
  return coxswain::random::draw(salt, static_cast<uint32_t>(at));
}

// Elements of one kind, and what they are in double precision.
struct Values {
  Kind kind;
  int64_t count;
  Array<uint8_t> bytes;

  Values(Kind kind, int64_t count) : kind(kind), count(count), bytes(count * size(), 0xff) {} // NaN
  Values(Kind kind, int64_t count, uint64_t key) : Values(kind, count) {
    for (int64_t i = 0; i < count; ++i) set(i, static_cast<float>(bits_at(key, i)) * 0x1p-31f - 1.f);
  }
  int64_t size() const { return kind == Kind::Fp32 ? 4 : 2; }
  void set(int64_t i, float x) {
    if (kind == Kind::Fp32) std::memcpy(bytes.data() + i * 4, &x, 4);
    const __nv_bfloat16 b = __float2bfloat16_rn(x);
    const __half h = __float2half_rn(x);
    if (kind == Kind::Bf16) std::memcpy(bytes.data() + i * 2, &b, 2);
    if (kind == Kind::Fp16) std::memcpy(bytes.data() + i * 2, &h, 2);
  }
  double at(int64_t i) const {
    float x;
    __nv_bfloat16 b;
    __half h;
    if (kind == Kind::Fp32) return std::memcpy(&x, bytes.data() + i * 4, 4), x;
    if (kind == Kind::Bf16) return std::memcpy(&b, bytes.data() + i * 2, 2), __bfloat162float(b);
    return std::memcpy(&h, bytes.data() + i * 2, 2), __half2float(h);
  }
};

struct Case {
  std::string name;
  Kind kind = Kind::Fp32;
  int64_t b = 1, t = 1, s = 1, h = 1, g = 1, k = 1;
  bool causal = false, bias = false;
  double rate = 0;
  std::vector<int64_t> pattern_of = {}; // empty: no list
  Sees sees = nullptr;
};

struct Inputs {
  Values q, k, v, dout;
  Array<float> bias;
};

struct Results {
  Values out, dq, dk, dv;
  Array<float> log_sum, dbias;
};

constexpr int64_t kFirstHead = 3, kHeadsOfAll = 11;
constexpr uint64_t kDropKey = 0x1234567890abcdef;
int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

Inputs inputs_of(const Case& c) {
  Inputs in{Values(c.kind, c.b * c.t * c.h * c.k, 1), Values(c.kind, c.b * c.s * c.g * c.k, 2),
            Values(c.kind, c.b * c.s * c.g * c.k, 3), Values(c.kind, c.b * c.t * c.h * c.k, 4), {}};
  if (c.bias) in.bias.resize(c.h * (c.s + c.t - 1));
  for (size_t i = 0; i < in.bias.size(); ++i) in.bias[i] = static_cast<float>(bits_at(5, i)) * 0x1p-31f - 1.f;
  return in;
}

float scale_of(const Case& c) { return static_cast<float>(3 / std::sqrt(static_cast<double>(c.k))); }

AttentionDrop drop_of(const Case& c) {
  return {{kDropKey, static_cast<uint32_t>(c.rate * 0x1p32), static_cast<float>(1 / (1 - c.rate))},
          kFirstHead, kHeadsOfAll};
}

Results run(const Case& c, const Inputs& in, AttentionDrop drop) {
  const AttentionShape shape{c.b, c.t, c.s, c.h, c.g, c.k, scale_of(c), c.causal};
  AttentionWords words;
  if (!c.pattern_of.empty()) words = attention_words(list_of(c.t, c.s, c.h, c.pattern_of, c.sees));
  const Array<int64_t> uploaded(words.words.begin(), words.words.end());
  const AttentionList list = words.on(uploaded.data());
  const AttentionList* listed = c.pattern_of.empty() ? nullptr : &list;
  const AttentionDrop* drops = c.rate > 0 ? &drop : nullptr;
  const float* bias = c.bias ? in.bias.data() : nullptr;
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  Results r{Values(c.kind, in.q.count), Values(c.kind, in.q.count), Values(c.kind, in.k.count),
            Values(c.kind, in.k.count), Array<float>(c.b * c.h * c.t, nan), Array<float>(in.bias.size(), nan)};
  const auto* kernels = coxswain_cuda_attention();
  const auto check = [&](Error error) {
#ifdef COXSWAIN_ON_GPU
    const cudaError_t ended = cudaDeviceSynchronize();
    if (error == nullptr && ended != cudaSuccess) error = cudaGetErrorString(ended);
#endif
    expect(error == nullptr, c.name + ": " + (error ? error : ""));
  };
  check(kernels->forward(c.kind, &shape, in.q.bytes.data(), in.k.bytes.data(), in.v.bytes.data(), bias, listed, drops,
                         r.out.bytes.data(), r.log_sum.data()));
  const size_t floats = kernels->scratch_bytes(&shape, c.bias) / sizeof(float);
  Array<float> scratch(floats, nan);
  check(kernels->backward(c.kind, &shape, in.q.bytes.data(), in.k.bytes.data(), in.v.bytes.data(), bias, listed, drops,
                          r.out.bytes.data(), r.log_sum.data(), in.dout.bytes.data(), r.dq.bytes.data(),
                          r.dk.bytes.data(), r.dv.bytes.data(), c.bias ? r.dbias.data() : nullptr, scratch.data()));
  return r;
}

double worst(const std::vector<double>& want, const std::function<double(int64_t)>& got) {
  double largest = 0.5, error = 0; // gradients may be zero, but for the rounding of what they are sums of
  for (size_t i = 0; i < want.size(); ++i) {
    largest = std::max(largest, std::fabs(want[i]));
    const double off = std::fabs(got(static_cast<int64_t>(i)) - want[i]);
    error = std::isnan(off) ? std::numeric_limits<double>::infinity() : std::max(error, off);
  }
  return error / largest;
}

void compare(const Case& c, const Inputs& in, const Results& r) {
  std::vector<double> out(in.q.count), dq(in.q.count), dk(in.k.count), dv(in.k.count), dbias(in.bias.size());
  std::vector<double> log_sum(c.b * c.h * c.t);
  const double scale = scale_of(c);
  int64_t blind = 0;
  for (int64_t b = 0; b < c.b; ++b)
    for (int64_t h = 0; h < c.h; ++h)
      for (int64_t i = 0; i < c.t; ++i) {
        const auto row = [&](int64_t j) { return ((b * c.s + j) * c.g + h / (c.h / c.g)) * c.k; };
        const int64_t q = ((b * c.t + i) * c.h + h) * c.k;
        std::vector<double> p(c.s), kept(c.s, 1), grads(c.s);
        std::vector<int64_t> seen;
        double sum = 0;
        for (int64_t j = 0; j < c.s; ++j) {
          if (c.causal && j > i + c.s - c.t) continue;
          const int64_t rows = static_cast<int64_t>(c.pattern_of.size()) / c.h;
          if (rows > 0 && !c.sees(c.pattern_of[(rows == 1 ? 0 : b) * c.h + h], i, j)) continue;
          seen.push_back(j);
          double score = 0;
          for (int64_t d = 0; d < c.k; ++d) score += in.q.at(q + d) * in.k.at(row(j) + d);
          score = score * scale + (c.bias ? in.bias[h * (c.s + c.t - 1) + j - i + c.t - 1] : 0.f);
          p[j] = std::exp(score);
          sum += p[j];
          const uint64_t index = static_cast<uint64_t>(((b * kHeadsOfAll + kFirstHead + h) * c.t + i) * c.s + j);
          if (c.rate > 0) kept[j] = bits_at(kDropKey, index) < drop_of(c).drop.threshold ? 0 : 1 / (1 - c.rate);
        }
        blind += seen.empty();
        log_sum[(b * c.h + h) * c.t + i] = seen.empty() ? 0 : std::log(sum);
        if (seen.empty()) expect(std::isinf(r.log_sum[(b * c.h + h) * c.t + i]), c.name + ": a blind row's log-sum");
        double mean = 0;
        for (const int64_t j : seen) {
          p[j] /= sum;
          for (int64_t d = 0; d < c.k; ++d) {
            out[q + d] += p[j] * kept[j] * in.v.at(row(j) + d);
            grads[j] += in.dout.at(q + d) * in.v.at(row(j) + d);
            dv[row(j) + d] += p[j] * kept[j] * in.dout.at(q + d);
          }
          mean += p[j] * kept[j] * grads[j];
        }
        for (const int64_t j : seen) {
          const double ds = p[j] * (kept[j] * grads[j] - mean);
          if (c.bias) dbias[h * (c.s + c.t - 1) + j - i + c.t - 1] += ds;
          for (int64_t d = 0; d < c.k; ++d) {
            dq[q + d] += ds * scale * in.k.at(row(j) + d);
            dk[row(j) + d] += ds * scale * in.q.at(q + d);
          }
        }
      }
  const double limit = c.kind == Kind::Fp32 ? 2e-6 : c.kind == Kind::Bf16 ? 8e-3 : 1e-3;
  const auto of = [](const Values& x) { return [&x](int64_t i) { return x.at(i); }; };
  const double errors[] = {worst(out, of(r.out)), worst(dq, of(r.dq)), worst(dk, of(r.dk)), worst(dv, of(r.dv)),
                           worst(dbias, [&](int64_t i) { return r.dbias[i]; }),
                           worst(log_sum, [&](int64_t i) { return std::isinf(r.log_sum[i]) ? 0 : r.log_sum[i]; })};
  std::printf("%-34s out %.1e dq %.1e dk %.1e dv %.1e dbias %.1e log-sum %.1e, %lld blind rows\n", c.name.c_str(),
              errors[0], errors[1], errors[2], errors[3], errors[4], errors[5], static_cast<long long>(blind));
  for (const double error : errors) expect(error <= limit, c.name + ": an error above " + std::to_string(limit));
  expect(errors[5] <= 2e-6, c.name + ": the log-sum");
}

bool same(const Results& a, const Results& b) {
  const auto floats = [](const Array<float>& x, const Array<float>& y) {
    return x.size() == y.size() && (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0);
  };
  return a.out.bytes == b.out.bytes && a.dq.bytes == b.dq.bytes && a.dk.bytes == b.dk.bytes &&
         a.dv.bytes == b.dv.bytes && floats(a.log_sum, b.log_sum) && floats(a.dbias, b.dbias);
}

// Heads head .. head + heads of row `batch` (or of all rows, where it is negative) of x [b, n, all, k].
Values part(const Values& x, int64_t b, int64_t n, int64_t all, int64_t k, int64_t batch, int64_t head, int64_t heads) {
  Values made(x.kind, x.count / b / all * heads * (batch < 0 ? b : 1));
  uint8_t* to = made.bytes.data();
  for (int64_t row = 0; row < b * n; ++row) {
    if (batch >= 0 && row / n != batch) continue;
    std::memcpy(to, x.bytes.data() + (row * all + head) * k * x.size(), heads * k * x.size());
    to += heads * k * x.size();
  }
  return made;
}

// Each group of heads, and then each row of the batch, by itself.
void compare_parts(const Case& c, const Inputs& in, const Results& all) {
  const int64_t each = c.h / c.g, distances = c.s + c.t - 1;
  for (int64_t at = 0; at < c.g + c.b; ++at) {
    const bool by_head = at < c.g;
    const int64_t batch = by_head ? -1 : at - c.g, group = by_head ? at : 0, groups = by_head ? 1 : c.g;
    const int64_t head = group * each, heads = groups * each;
    const auto of_queries = [&](const Values& x) { return part(x, c.b, c.t, c.h, c.k, batch, head, heads); };
    const auto of_keys = [&](const Values& x) { return part(x, c.b, c.s, c.g, c.k, batch, group, groups); };
    Case one = c;
    one.b = by_head ? c.b : 1, one.h = heads, one.g = groups;
    one.pattern_of.clear();
    const int64_t rows = static_cast<int64_t>(c.pattern_of.size()) / c.h;
    for (int64_t row = 0; row < (by_head ? rows : std::min<int64_t>(rows, 1)); ++row)
      for (int64_t i = 0; i < heads; ++i)
        one.pattern_of.push_back(c.pattern_of[(by_head || rows == 1 ? row : batch) * c.h + head + i]);
    Inputs inputs{of_queries(in.q), of_keys(in.k), of_keys(in.v), of_queries(in.dout), {}};
    if (c.bias)
      inputs.bias = Array<float>(in.bias.begin() + head * distances, in.bias.begin() + (head + heads) * distances);
    AttentionDrop drop = drop_of(c);
    drop.first_head += by_head ? head : batch * kHeadsOfAll;
    Results got = run(one, inputs, drop);
    Results want{of_queries(all.out), of_queries(all.dq), of_keys(all.dk), of_keys(all.dv), {}, {}};
    for (int64_t b = 0; b < c.b; ++b)
      if (by_head || b == batch)
        want.log_sum.insert(want.log_sum.end(), all.log_sum.begin() + (b * c.h + head) * c.t,
                            all.log_sum.begin() + (b * c.h + head + heads) * c.t);
    if (by_head && c.bias)
      want.dbias.assign(all.dbias.begin() + head * distances, all.dbias.begin() + (head + heads) * distances);
    else got.dbias.clear(); // that of the whole batch is a sum
    expect(same(got, want), c.name + (by_head ? ": heads" : ": a row") + " by itself has other bits");
  }
}

std::vector<Case> cases() {
  const auto window = [](int64_t pattern, int64_t i, int64_t j) { // a window, global keys, and rows that see nothing
    if (i % 37 == 5 || (i >= 64 && i < 128 && pattern == 1)) return false;
    return (j <= i && i - j < 50 + 40 * pattern) || (j < 3 && pattern != 1) || (pattern == 2 && j >= 128);
  };
  const auto scattered = [](int64_t pattern, int64_t i, int64_t j) {
    return bits_at(77 + pattern, i * 1000 + j) % 3 == 0;
  };
  std::vector<Case> made = {
      {"all, one tile", Kind::Fp32, 1, 64, 64, 2, 2, 64},
      {"causal, t == s", Kind::Fp32, 2, 150, 150, 2, 2, 64, true},
      {"causal, t < s, odd, bias, drop", Kind::Fp32, 2, 33, 77, 4, 2, 24, true, true, 0.2},
      {"causal, t > s: blind rows", Kind::Fp32, 1, 90, 20, 2, 1, 7, true, true},
      {"all, k 128, grouped", Kind::Fp32, 1, 70, 130, 4, 2, 128, false, false, 0.5},
      {"causal, k 80, one kv head", Kind::Fp32, 2, 65, 129, 3, 1, 80, true, true, 0.1},
      {"causal, k 256", Kind::Fp32, 1, 70, 70, 2, 1, 256, true, true},
      {"causal, k 161", Kind::Fp32, 1, 40, 66, 1, 1, 161, true},
      {"k 1, one query", Kind::Fp32, 2, 1, 200, 2, 2, 1, true, true},
      {"one key", Kind::Fp32, 2, 70, 1, 2, 2, 5, false, true},
      {"list, window", Kind::Fp32, 2, 200, 200, 3, 3, 32, false, false, 0, {0, 1, 2}, window},
      {"list, window, bias, drop", Kind::Fp32, 2, 140, 261, 4, 2, 40, false, true, 0.3,
       {0, 1, 2, 0, 1, 1, 0, 2}, window},
      {"list, scattered, causal flag", Kind::Fp32, 1, 130, 130, 2, 1, 64, true, true, 0, {0, 1}, scattered},
  };
  for (const Kind kind : {Kind::Bf16, Kind::Fp16}) {
    const std::string name = kind == Kind::Bf16 ? "bf16" : "fp16";
    made.push_back({name + " causal", kind, 1, 130, 130, 2, 2, 64, true});
    made.push_back({name + " causal, odd, bias, drop", kind, 2, 33, 77, 4, 2, 25, true, true, 0.2});
    made.push_back({name + " causal, k 128, grouped", kind, 1, 65, 100, 4, 2, 128, true, true});
    made.push_back({name + " list", kind, 2, 140, 200, 3, 3, 80, false, true, 0.1, {0, 1, 2}, window});
    made.push_back({name + " k 256", kind, 1, 65, 65, 1, 1, 256, false, false});
  }
  return made;
}

} // namespace

int main() {
  for (const Case& c : cases()) {
    const Inputs in = inputs_of(c);
    unsetenv("COXSWAIN_SIMT_REVERSED");
    const Results results = run(c, in, drop_of(c));
    compare(c, in, results);
    setenv("COXSWAIN_SIMT_REVERSED", "1", 1);
    expect(same(run(c, in, drop_of(c)), results), c.name + ": a second run, in the other order, has other bits");
    compare_parts(c, in, results);
  }
  // An empty batch starts nothing, and what a GPU cannot do is told.
  const auto* kernels = coxswain_cuda_attention();
  AttentionShape shape{0, 8, 8, 2, 2, 8, 1.f, 1};
  expect(kernels->forward(Kind::Fp32, &shape, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr) ==
             nullptr, "an empty batch");
  shape.dim = 257;
  expect(kernels->forward(Kind::Fp32, &shape, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr) !=
             nullptr, "a head dim of 257 is refused");
  std::printf(failures == 0 ? "all hold\n" : "%d failures\n", failures);
  return failures != 0;
}
