// Norms and biases against double precision, and the gradients of their vectors against the same sums in fp32.
#include "check.h"

namespace check {
namespace {

std::string label_of(const char* what, Kind kind, int64_t rows, int64_t dim) {
  return std::string(what) + " " + name_of(kind) + " " + std::to_string(rows) + "x" + std::to_string(dim);
}

constexpr float kEps = 1e-5f;

struct Case {
  Case(Kind kind_is, int64_t rows_are, int64_t dim_is)
      : kind(kind_is), rows(rows_are), dim(dim_is), count(static_cast<size_t>(rows * dim)), random(rows * 10007 + dim),
        x(kind, random.floats(count, 2.f, 0.3f)), dy(kind, random.floats(count, 1.f)),
        w(random.floats(dim, 1.f, 0.5f)), b(random.floats(dim, 1.f)), mean(random.floats(rows, 0.5f)),
        rstd(random.floats(rows, 0.5f, 1.f)) {}
  Kind kind;
  int64_t rows, dim;
  size_t count;
  Random random;
  Array x, dy;
  Floats w, b, mean, rstd;
};

void rms(const Case& c) {
  std::string label = label_of("rms_norm", c.kind, c.rows, c.dim);
  Results out = agreed(label, [&](size_t shift) {
    Buffer x(c.x.values, shift), w(values(c.w), shift), y(room(c.kind, c.count), shift);
    Buffer rstd(room<float>(c.rows), shift);
    expect_done(label, kernels().rms_norm(c.kind, x, w, kEps, c.rows, c.dim, y, rstd));
    return Results{y.read(label), rstd.read(label)};
  });
  Doubles want, want_rstd;
  for (int64_t row = 0; row < c.rows; ++row) {
    const float* x = c.x.at.data() + row * c.dim;
    double squares = 0;
    for (int64_t i = 0; i < c.dim; ++i) squares += double{x[i]} * x[i];
    const double r = 1 / std::sqrt(squares / c.dim + double{kEps});
    want_rstd.push_back(r);
    for (int64_t i = 0; i < c.dim; ++i) want.push_back(x[i] * r * c.w[i]);
  }
  expect_close(label, c.kind, floats(c.kind, out[0]), want);
  expect_close(label + " rstd", Kind::Fp32, read<float>(out[1]), want_rstd);

  label = label_of("rms_norm_grad", c.kind, c.rows, c.dim);
  out = agreed(label, [&](size_t shift) {
    Buffer dy(c.dy.values, shift), x(c.x.values, shift), w(values(c.w), shift), rstd(values(c.rstd), shift);
    Buffer dx(room(c.kind, c.count), shift);
    expect_done(label, kernels().rms_norm_grad(c.kind, dy, x, w, rstd, c.rows, c.dim, dx));
    return Results{dx.read(label)};
  });
  want.clear();
  for (int64_t row = 0; row < c.rows; ++row) {
    const float *x = c.x.at.data() + row * c.dim, *dy = c.dy.at.data() + row * c.dim;
    const double r = c.rstd[row];
    double dot = 0;
    for (int64_t i = 0; i < c.dim; ++i) dot += double{dy[i]} * c.w[i] * x[i];
    for (int64_t i = 0; i < c.dim; ++i) want.push_back(r * (double{dy[i]} * c.w[i] - x[i] * dot * r * r / c.dim));
  }
  expect_close(label, c.kind, floats(c.kind, out[0]), want);
}

void layer(const Case& c) {
  std::string label = label_of("layer_norm", c.kind, c.rows, c.dim);
  Results out = agreed(label, [&](size_t shift) {
    Buffer x(c.x.values, shift), w(values(c.w), shift), b(values(c.b), shift), y(room(c.kind, c.count), shift);
    Buffer mean(room<float>(c.rows), shift), rstd(room<float>(c.rows), shift);
    expect_done(label, kernels().layer_norm(c.kind, x, w, b, kEps, c.rows, c.dim, y, mean, rstd));
    return Results{y.read(label), mean.read(label), rstd.read(label)};
  });
  Doubles want, want_mean, want_rstd;
  for (int64_t row = 0; row < c.rows; ++row) {
    const float* x = c.x.at.data() + row * c.dim;
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < c.dim; ++i) sum += x[i];
    const double m = sum / c.dim;
    for (int64_t i = 0; i < c.dim; ++i) squares += (x[i] - m) * (x[i] - m);
    const double r = 1 / std::sqrt(squares / c.dim + double{kEps});
    want_mean.push_back(m), want_rstd.push_back(r);
    for (int64_t i = 0; i < c.dim; ++i) want.push_back((x[i] - m) * r * c.w[i] + c.b[i]);
  }
  expect_close(label, c.kind, floats(c.kind, out[0]), want);
  expect_close(label + " mean", Kind::Fp32, read<float>(out[1]), want_mean);
  expect_close(label + " rstd", Kind::Fp32, read<float>(out[2]), want_rstd);

  label = label_of("layer_norm_grad", c.kind, c.rows, c.dim);
  out = agreed(label, [&](size_t shift) {
    Buffer dy(c.dy.values, shift), x(c.x.values, shift), w(values(c.w), shift), mean(values(c.mean), shift);
    Buffer rstd(values(c.rstd), shift), dx(room(c.kind, c.count), shift);
    expect_done(label, kernels().layer_norm_grad(c.kind, dy, x, w, mean, rstd, c.rows, c.dim, dx));
    return Results{dx.read(label)};
  });
  want.clear();
  for (int64_t row = 0; row < c.rows; ++row) {
    const float *x = c.x.at.data() + row * c.dim, *dy = c.dy.at.data() + row * c.dim;
    const double r = c.rstd[row], m = c.mean[row];
    double flat = 0, along = 0;
    for (int64_t i = 0; i < c.dim; ++i) {
      flat += double{dy[i]} * c.w[i] / c.dim;
      along += double{dy[i]} * c.w[i] * (x[i] - m) * r * r / c.dim;
    }
    for (int64_t i = 0; i < c.dim; ++i) want.push_back(r * (double{dy[i]} * c.w[i] - flat - (x[i] - m) * along));
  }
  expect_close(label, c.kind, floats(c.kind, out[0]), want);
}

void bias(const Case& c) {
  const std::string label = label_of("add_bias", c.kind, c.rows, c.dim);
  const Results out = agreed(label, [&](size_t shift) {
    Buffer x(c.x.values, shift), b(values(c.b), shift), y(room(c.kind, c.count), shift);
    expect_done(label, kernels().add_bias(c.kind, x, b, c.rows, c.dim, y));
    return Results{y.read(label)};
  });
  Floats want = c.x.at;
  for (size_t i = 0; i < c.count; ++i) want[i] += c.b[i % c.dim];
  expect(label, out[0].bytes == values(c.kind, want).bytes, "differs");
}

// The gradients of a use's vectors: runs of rows one after another, then the runs.
void vectors(Kind kind, Rows use, int64_t dim) {
  const Case c(kind, use.batch * use.tokens, dim);
  const int64_t rows = use.batch * use.count, runs = (rows + kRun - 1) / kRun;
  const std::string label = label_of("weight grads", kind, rows, dim) + " from " + std::to_string(use.first);
  const Results out = agreed(label, [&](size_t shift) {
    Buffer dy(c.dy.values, shift), x(c.x.values, shift), mean(values(c.mean), shift), rstd(values(c.rstd), shift);
    Buffer part(room<float>(runs * dim), shift);
    Buffer scaled(room<float>(dim), shift), normalized(room<float>(dim), shift), plain(room<float>(dim), shift);
    expect_done(label, kernels().rms_norm_weight_grad(kind, dy, x, rstd, use, dim, part, scaled));
    expect_done(label, kernels().layer_norm_weight_grad(kind, dy, x, mean, rstd, use, dim, part, normalized));
    expect_done(label, kernels().bias_grad(kind, dy, use, dim, part, plain));
    part.read(label);
    return Results{scaled.read(label), normalized.read(label), plain.read(label)};
  });
  Floats want[3] = {Floats(dim), Floats(dim), Floats(dim)};
  for (int64_t run = 0; run < runs; ++run)
    for (int64_t i = 0; i < dim; ++i) {
      float part[3] = {};
      for (int64_t j = run * kRun; j < std::min(rows, (run + 1) * kRun); ++j) {
        const int64_t row = j / use.count * use.tokens + use.first + j % use.count;
        const float dy = c.dy.at[row * dim + i], x = c.x.at[row * dim + i];
        part[0] += dy * x * c.rstd[row];
        part[1] += dy * (x - c.mean[row]) * c.rstd[row];
        part[2] += dy;
      }
      for (int k = 0; k < 3; ++k) want[k][i] += part[k];
    }
  for (int k = 0; k < 3; ++k) expect(label, read<float>(out[k]) == want[k], "form " + std::to_string(k) + " differs");
}

} // namespace

void norms() {
  for (const Kind kind : kKinds)
    for (const int64_t dim : kDims) {
      for (const int64_t rows : kRows) {
        const Case c(kind, rows, dim);
        rms(c), layer(c), bias(c);
      }
      // Uses: all rows, a part of several batches, nothing, and runs that end inside of a batch.
      for (const Rows use : {Rows{1, 7, 0, 7}, {3, 70, 5, 40}, {2, 9, 4, 0}, {0, 9, 4, 5}, {2, 150, 3, 147},
                             {1, 256, 0, 256}})
        vectors(kind, use, dim);
    }
}

} // namespace check
