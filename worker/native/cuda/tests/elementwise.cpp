// Activations and rotary positions against double precision, dropout bit by bit.
#include "../../cpp/random.h"
#include "check.h"

namespace check {
namespace {

struct At {
  double value, slope;
};

At reference(int by, double x) {
  const double root = std::sqrt(2 / M_PI), cubic = 0.044715;
  switch (by) {
    case 0: return {x > 0 ? x : 0, x > 0 ? 1.0 : 0.0};
    case 1: {
      const double sum = std::erfc(-x / std::sqrt(2.0)) / 2;
      return {x * sum, sum + x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI)};
    }
    case 2: {
      const double t = std::tanh(root * (x + cubic * x * x * x));
      return {x * (1 + t) / 2, (1 + t) / 2 + x * (1 - t * t) / 2 * root * (1 + 3 * cubic * x * x)};
    }
    case 3: {
      const double s = 1 / (1 + std::exp(-x));
      return {x * s, s * (1 + x * (1 - s))};
    }
    default: {
      const double t = std::tanh(x);
      return {t, 1 - t * t};
    }
  }
}

void activations(int by, Kind kind, int64_t count) {
  const std::string tail = " " + std::to_string(by) + " " + name_of(kind) + " " + std::to_string(count);
  const std::string label = "activate" + tail, grad_label = "activate_grad" + tail;
  Random random(count + by);
  Floats inputs = random.floats(count, 12.f);
  const float special[] = {0.f, -0.f, 1e-20f, 90.f, -90.f, 200.f, -200.f};
  for (size_t i = 0; i < std::size(special) && i < inputs.size() / 2; ++i) inputs[i * 2] = special[i];
  const Array a(kind, inputs), b(kind, random.floats(count, 2.f)), dy(kind, random.floats(count, 1.f));
  const Results out = agreed(label, [&](size_t shift) {
    Buffer at_a(a.values, shift), at_b(b.values, shift);
    Buffer plain(room(kind, count), shift), gated(room(kind, count), shift);
    expect_done(label, kernels().activate(by, kind, at_a, nullptr, count, plain));
    expect_done(label, kernels().activate(by, kind, at_a, at_b, count, gated));
    return Results{plain.read(label), gated.read(label)};
  });
  const Results grads = agreed(grad_label, [&](size_t shift) {
    Buffer at_dy(dy.values, shift), at_a(a.values, shift), at_b(b.values, shift);
    Buffer plain(room(kind, count), shift), da(room(kind, count), shift), db(room(kind, count), shift);
    expect_done(label, kernels().activate_grad(by, kind, at_dy, at_a, nullptr, count, plain, nullptr));
    expect_done(label, kernels().activate_grad(by, kind, at_dy, at_a, at_b, count, da, db));
    return Results{plain.read(label), da.read(label), db.read(label)};
  });
  Doubles want[5];
  for (int64_t i = 0; i < count; ++i) {
    const At at = reference(by, a.at[i]);
    const double each[] = {at.value, at.value * b.at[i], dy.at[i] * at.slope, double{dy.at[i]} * b.at[i] * at.slope,
                           dy.at[i] * at.value};
    for (int k = 0; k < 5; ++k) want[k].push_back(each[k]);
  }
  for (int k = 0; k < 2; ++k) expect_close(label, kind, floats(kind, out[k]), want[k], 1);
  for (int k = 0; k < 3; ++k) expect_close(grad_label, kind, floats(kind, grads[k]), want[k + 2], 1);
}

void positions(Kind kind, int64_t batch, int64_t tokens, int64_t heads, int64_t half, float sign) {
  const std::string label = std::string("rope ") + name_of(kind) + " " + std::to_string(batch) + "x" +
                            std::to_string(tokens) + "x" + std::to_string(heads) + "x" + std::to_string(half) +
                            (sign < 0 ? " back" : "");
  const size_t count = batch * tokens * heads * 2 * half;
  Random random(count + 1);
  const Array x(kind, random.floats(count, 2.f));
  const Floats cos = random.floats(tokens * half, 1.f), sin = random.floats(tokens * half, 1.f);
  const Results out = agreed(label, [&](size_t shift) {
    Buffer at_x(x.values, shift), c(values(cos), shift), s(values(sin), shift), y(room(kind, count), shift);
    expect_done(label, kernels().rope(kind, at_x, c, s, sign, batch, tokens, heads, half, y));
    return Results{y.read(label)};
  });
  Doubles want(count);
  for (int64_t row = 0; row < batch * tokens; ++row)
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t i = 0; i < half; ++i) {
        const int64_t first = (row * heads + head) * 2 * half + i, at = row % tokens * half + i;
        const double a = x.at[first], b = x.at[first + half], c = cos[at], s = sign * sin[at];
        want[first] = a * c - b * s, want[first + half] = b * c + a * s;
      }
  expect_close(label, kind, floats(kind, out[0]), want);
}

void dropout(Kind kind, int64_t batch, int64_t run, uint64_t stride, uint64_t first, uint32_t threshold) {
  const std::string label = std::string("drop ") + name_of(kind) + " " + std::to_string(batch) + "x" +
                            std::to_string(run) + " from " + std::to_string(first);
  Random random(run + 5);
  const Array x(kind, random.floats(batch * run, 2.f));
  const Drop drop{0x123456789abcdef0u, threshold, 1.25f};
  const Results out = agreed(label, [&](size_t shift) {
    Buffer at_x(x.values, shift), y(room(kind, batch * run), shift);
    expect_done(label, kernels().drop(kind, at_x, drop, batch, run, stride, first, y));
    return Results{y.read(label)};
  });
  Floats want;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t j = 0; j < run; ++j) {
      const uint64_t index = b * stride + first + j;
      const auto salt = coxswain::random::salt(drop.key, static_cast<uint32_t>(index >> 32));
      const bool dropped = coxswain::random::draw(salt, static_cast<uint32_t>(index)) < drop.threshold;
      want.push_back(dropped ? 0.f : x.at[b * run + j] * drop.scale);
    }
  expect(label, out[0].bytes == values(kind, want).bytes, "differs");
}

} // namespace

void elementwise() {
  for (const Kind kind : kKinds) {
    for (int by = 0; by < 5; ++by)
      for (const int64_t count : {0, 1, 7, 33, 2048, 20011}) activations(by, kind, count);
    for (const int64_t half : {1, 3, 4, 8, 33, 64})
      for (const int64_t heads : {1, 3})
        for (const float sign : {1.f, -1.f})
          for (const int64_t tokens : {0, 1, 7}) positions(kind, 2, tokens, heads, half, sign);
    positions(kind, 1, 3, 40, 64, 1.f);
    for (const int64_t run : {0, 1, 3, 8, 33, 64, 2056, 8192})
      for (const uint64_t first : {uint64_t{0}, uint64_t{24}, (uint64_t{1} << 32) - 13, uint64_t{7} << 40})
        dropout(kind, 3, run, static_cast<uint64_t>(run) + 40, first, 0x33333333u);
    dropout(kind, 0, 8, 8, 0, 1u << 30);
    dropout(kind, 3, 64, uint64_t{1} << 33, 5, 0xffffffffu);
  }
}

} // namespace check
