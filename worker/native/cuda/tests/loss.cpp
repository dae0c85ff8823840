// Cross-entropy over a shard against double precision.
#include "check.h"

namespace check {
namespace {

constexpr int64_t kStart = 1000;

struct Case {
  Case(Kind kind_is, int64_t rows_are, int64_t columns_are, bool ignored)
      : kind(kind_is), rows(rows_are), columns(columns_are), random(rows * 31 + columns),
        logits(kind, logits_of(rows, columns)), weights(random.floats(rows, 0.5f, 1.f)) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t near = kStart - 10 + random.below(columns + 20); // some are other shards'
      targets.push_back(ignored || row % 5 == 3 ? -1 : row % 2 ? near : kStart + random.below(columns));
    }
  }
  // Some logits are minus infinity: masked ones. The first never are.
  Floats logits_of(int64_t for_rows, int64_t of) {
    Floats to = random.floats(for_rows * of, 8.f);
    for (size_t i = 0; i < to.size(); ++i)
      if (i % of != 0 && random.below(50) == 0) to[i] = -INFINITY;
    return to;
  }
  int64_t column(int64_t row) const {
    const int64_t at = targets[row] - kStart;
    return at >= 0 && at < columns ? at : -1;
  }
  Kind kind;
  int64_t rows, columns;
  Random random;
  Array logits;
  Ints targets;
  Floats weights;
};

void shard(const Case& c, const std::string& tail) {
  const std::string label = "loss " + tail;
  const bool weighted = c.rows % 2 == 1;
  Results out = agreed("row_maxima " + tail, [&](size_t shift) {
    Buffer x(c.logits.values, shift), largest(room<float>(c.rows), shift);
    expect_done(label, kernels().row_maxima(c.kind, x, c.rows, c.columns, largest));
    return Results{largest.read(label)};
  });
  Floats want_largest(c.rows, -INFINITY);
  for (size_t i = 0; i < c.logits.at.size(); ++i)
    want_largest[i / c.columns] = std::max(want_largest[i / c.columns], c.logits.at[i]);
  expect(label, read<float>(out[0]) == want_largest, "maxima differ");

  // Another shard can have a row's maximum.
  Floats largest = want_largest;
  for (size_t row = 0; row < largest.size(); row += 2) largest[row] += 0.5f;
  out = agreed("row_sums " + tail, [&](size_t shift) {
    Buffer x(c.logits.values, shift), targets(values(c.targets), shift), most(values(largest), shift);
    Buffer parts(room<float>(2 * c.rows), shift);
    expect_done(label, kernels().row_sums(c.kind, x, c.rows, c.columns, kStart, targets, most, parts));
    expect(label, x.read(label).bytes == c.logits.values.bytes, "row_sums changed the logits");
    return Results{parts.read(label)};
  });
  const Floats parts = read<float>(out[0]);
  Doubles sums, own, want_parts, losses, want;
  for (int64_t row = 0; row < c.rows; ++row) {
    double sum = 0;
    for (int64_t i = 0; i < c.columns; ++i) sum += std::exp(double{c.logits.at[row * c.columns + i]} - largest[row]);
    sums.push_back(sum);
    const int64_t at = c.column(row);
    own.push_back(at >= 0 ? double{c.logits.at[row * c.columns + at]} - largest[row] : 0);
  }
  expect_close(label, Kind::Fp32, Floats(parts.begin(), parts.begin() + c.rows), sums);
  for (int64_t row = 0; row < c.rows; ++row)
    expect(label, parts[c.rows + row] == own[row] || std::fabs(parts[c.rows + row] - own[row]) < 1e-5, "target's part");

  // The logarithm's last bit is the library's, so there is no hash.
  out = agreed("row_losses " + tail, [&](size_t shift) {
    Buffer at(values(parts), shift), targets(values(c.targets), shift), weights(values(c.weights), shift);
    Buffer to(room<double>(c.rows), shift);
    const float* counts = weighted ? static_cast<const float*>(weights) : nullptr;
    expect_done(label, kernels().row_losses(at, targets, counts, c.rows, to));
    return Results{to.read(label)};
  }, false);
  losses = read<double>(out[0]);
  for (int64_t row = 0; row < c.rows; ++row) {
    const double loss = (weighted ? c.weights[row] : 1.0) * (std::log(double{parts[row]}) - parts[c.rows + row]);
    const double wanted = c.targets[row] < 0 ? 0 : loss;
    expect(label, losses[row] == wanted || std::fabs(losses[row] - wanted) < 1e-12 * std::fabs(wanted), "loss");
  }

  const double factor = 0.37;
  const Floats divisors(parts.begin(), parts.begin() + c.rows);
  out = agreed("logits_grad " + tail, [&](size_t shift) {
    Buffer x(c.logits.values, shift), targets(values(c.targets), shift), weights(values(c.weights), shift);
    Buffer most(values(largest), shift), divide(values(divisors), shift), times(values(Doubles{factor}), shift);
    const float* counts = weighted ? static_cast<const float*>(weights) : nullptr;
    expect_done(
        label, kernels().logits_grad(c.kind, x, c.rows, c.columns, kStart, targets, counts, most, divide, times));
    return Results{x.read(label)};
  });
  for (int64_t row = 0; row < c.rows; ++row)
    for (int64_t i = 0; i < c.columns; ++i) {
      const double weight = factor * (weighted ? c.weights[row] : 1.0);
      const double share = std::exp(double{c.logits.at[row * c.columns + i]} - largest[row]) / divisors[row];
      want.push_back(c.targets[row] < 0 ? 0 : weight * (share - (c.column(row) == i)));
    }
  expect_close(label, c.kind, floats(c.kind, out[0]), want, factor);
}

// An ignored row's NaNs become zeros; in a row that counts they are passed by in the maximum and show in the sum.
void not_numbers(Kind kind, int64_t columns) {
  const std::string label = std::string("NaN logits ") + name_of(kind) + " " + std::to_string(columns);
  Floats logits(2 * columns, 1.f);
  logits[0] = logits[columns - 1] = logits[columns] = NAN;
  const Results out = agreed(label, [&](size_t shift) {
    Buffer x(values(kind, logits), shift), targets(values(Ints{-1, kStart}), shift), largest(room<float>(2), shift);
    Buffer parts(room<float>(4), shift), times(values(Doubles{1.0}), shift);
    expect_done(label, kernels().row_maxima(kind, x, 2, columns, largest));
    expect_done(label, kernels().row_sums(kind, x, 2, columns, kStart, targets, largest, parts));
    expect_done(label, kernels().logits_grad(kind, x, 2, columns, kStart, targets, nullptr, largest, parts, times));
    return Results{x.read(label), largest.read(label), parts.read(label)};
  }, false);
  const Floats grads = floats(kind, out[0]);
  for (int64_t i = 0; i < columns; ++i) expect(label, grads[i] == 0.f && !std::signbit(grads[i]), "an ignored row's");
  expect(label, std::isnan(grads[columns]), "a gradient");
  const float most = columns > 2 ? 1.f : -INFINITY;
  expect(label, read<float>(out[1])[0] == most, "a maximum");
  expect(label, std::isnan(read<float>(out[2])[1]), "a sum");
}

} // namespace

void loss() {
  for (const Kind kind : kKinds) {
    for (const int64_t columns : kDims) {
      for (const int64_t rows : kRows)
        shard(Case(kind, rows, columns, false),
              std::string(name_of(kind)) + " " + std::to_string(rows) + "x" + std::to_string(columns));
      shard(Case(kind, 7, columns, true), std::string(name_of(kind)) + " ignored 7x" + std::to_string(columns));
    }
    shard(Case(kind, 2, 50257, false), std::string(name_of(kind)) + " 2x50257");
    shard(Case(kind, 2, 300000, false), std::string(name_of(kind)) + " 2x300000");
    for (const int64_t columns : {1, 3, 8, 2056}) not_numbers(kind, columns);
  }
}

} // namespace check
