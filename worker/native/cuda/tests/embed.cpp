// Tables' rows and gradients bit by bit, and squared norms.
#include <algorithm>
#include <numeric>

#include "check.h"

namespace check {
namespace {

constexpr int64_t kStart = 50, kVocab = 9;

void rows_of_table(int64_t rows, int64_t dim) {
  Random random(rows + dim);
  Ints ids;
  for (int64_t row = 0; row < rows; ++row) ids.push_back(kStart - 3 + random.below(kVocab + 6));
  const Floats table = random.floats(kVocab * dim, 2.f);
  for (const Kind from : kKinds)
    for (const Kind to : kKinds) {
      const std::string label = std::string("embed ") + name_of(from) + " to " + name_of(to) + " " +
                                std::to_string(rows) + "x" + std::to_string(dim);
      const Array w(from, table);
      const Results out = agreed(label, [&](size_t shift) {
        Buffer at_ids(values(ids), shift), at_w(w.values, shift), y(room(to, rows * dim), shift);
        expect_done(label, kernels().embed(from, to, at_ids, at_w, kStart, kVocab, rows, dim, y));
        return Results{y.read(label)};
      });
      Floats want;
      for (const int64_t id : ids)
        for (int64_t i = 0; i < dim; ++i)
          want.push_back(id >= kStart && id < kStart + kVocab ? w.at[(id - kStart) * dim + i] : 0.f);
      expect(label, out[0].bytes == values(to, want).bytes, "differs");
    }
}

void grads_of_table(Kind kind, int64_t rows, int64_t dim, int64_t spread) {
  const std::string label = std::string("embed_grad ") + name_of(kind) + " " + std::to_string(rows) + "x" +
                            std::to_string(dim) + " of " + std::to_string(spread);
  Random random(rows + dim);
  Ints ids, order(rows), sorted;
  for (int64_t row = 0; row < rows; ++row) ids.push_back(kStart + kVocab / 2 - spread / 2 + random.below(spread));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return ids[a] < ids[b]; });
  for (const int64_t row : order) sorted.push_back(ids[row]);
  const Array dy(kind, random.floats(rows * dim, 1.f));
  Floats dw = random.floats(kVocab * dim, 1.f);
  const Results out = agreed(label, [&](size_t shift) {
    Buffer at_sorted(values(sorted), shift), at_order(values(order), shift), at_dy(dy.values, shift);
    Buffer at_dw(values(dw), shift);
    expect_done(label, kernels().embed_grad(kind, at_sorted, at_order, at_dy, kStart, kVocab, rows, dim, at_dw));
    return Results{at_dw.read(label)};
  });
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < dim && ids[row] >= kStart && ids[row] < kStart + kVocab; ++i)
      dw[(ids[row] - kStart) * dim + i] += dy.at[row * dim + i];
  expect(label, read<float>(out[0]) == dw, "differs");
}

void columns_of_table(int64_t heads, int64_t count, int64_t size) {
  const std::string label =
      "table_grad " + std::to_string(heads) + " " + std::to_string(count) + " " + std::to_string(size);
  Random random(count);
  Ints rows;
  for (int64_t i = 0; i < count; ++i) rows.push_back(random.below(size));
  const Floats dy = random.floats(heads * count, 1.f);
  const Results out = agreed(label, [&](size_t shift) {
    Buffer at(values(rows), shift), at_dy(values(dy), shift), sum(room<float>(size * heads), shift);
    expect_done(label, kernels().table_grad(at, at_dy, heads, count, size, sum));
    return Results{sum.read(label)};
  });
  Floats want(size * heads);
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t i = 0; i < count; ++i) want[rows[i] * heads + head] += dy[head * count + i];
  expect(label, read<float>(out[0]) == want, "differs");
}

void squares(int64_t count, int64_t block) {
  const std::string label = "sum_squares " + std::to_string(count) + " by " + std::to_string(block);
  const Floats x = Random(count).floats(count, 3.f);
  const int64_t blocks = (count + block - 1) / block;
  const Results out = agreed(label, [&](size_t shift) {
    Buffer at(values(x), shift), sums(room<double>(blocks), shift);
    expect_done(label, kernels().sum_squares(at, count, block, sums));
    return Results{sums.read(label)};
  });
  Doubles want(blocks);
  for (int64_t i = 0; i < count; ++i) want[i / block] += double{x[i]} * x[i];
  for (int64_t i = 0; i < blocks; ++i)
    expect(label, std::fabs(read<double>(out[0])[i] - want[i]) <= 1e-12 * want[i], "block " + std::to_string(i));
}

} // namespace

void embed() {
  for (const int64_t dim : kDims)
    for (const int64_t rows : kRows) {
      rows_of_table(rows, dim);
      // Many different ids of other shards too, and hundreds of equal ones.
      for (const Kind kind : kKinds)
        for (const int64_t spread : {40, 12, 1}) grads_of_table(kind, rows, dim, spread);
    }
  for (const int64_t size : {1, 32, 33, 100})
    for (const int64_t count : {0, 1, 500}) columns_of_table(3, count, size);
  columns_of_table(0, 5, 5);
  for (const int64_t count : {0, 1, 3, 5, 1024, 65536, 65537, 200003}) squares(count, 65536);
  squares(100, 7);
  squares(100, 100);
}

} // namespace check
