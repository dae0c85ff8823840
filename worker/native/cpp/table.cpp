// Rows of a small table turned over, with the table's gradient on the queue of weight gradients.
#include "function.h"

namespace coxswain {
namespace {

struct TableColumns : Function<TableColumns> {
  static Tensor forward(
      AutogradContext* ctx, const Tensor& anchor, const Tensor& table, const Tensor& rows, int64_t slot, int64_t wgrad_queue) {
    expect_fp32(table, "table_columns");
    TORCH_CHECK(table.dim() == 2 && rows.dim() == 1 && rows.scalar_type() == at::kLong && anchor.defined(),
                "table_columns takes a table [v, h] and rows [n], not ", table.sizes(), " and ", rows.sizes());
    ctx->save_for_backward({rows});
    ctx->saved_data["size"] = table.size(0);
    ctx->saved_data["slot"] = capsule_at<Slot>(slot);
    ctx->saved_data["wgrad_queue"] = capsule_at<WgradQueue>(wgrad_queue);
    return table.index_select(0, rows).t().contiguous();
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor rows = ctx->get_saved_variables()[0], dy = grads[0].to(at::kFloat).contiguous();
    const int64_t size = ctx->saved_data.at("size").toInt();
    const auto slot = kept<Slot>(ctx, "slot");
    kept<WgradQueue>(ctx, "wgrad_queue")->entries.push_back([slot, rows, dy, size] {
      const int64_t heads = dy.size(0), count = dy.size(1);
      Tensor sum = at::zeros({size, heads}, dy.options());
      float* to = sum.data_ptr<float>();
      if (sum.is_cuda()) {
        gpu::ran(gpu::kernels().table_grad(data<int64_t>(rows), floats(dy), heads, count, size, to),
                 "table_columns' gradient");
        return accumulate(*slot, sum);
      }
      const int64_t* row = data<int64_t>(rows);
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < count; ++i) to[row[i] * heads + h] += floats(dy)[h * count + i];
      accumulate(*slot, sum);
    });
    return {Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

} // namespace
} // namespace coxswain

using namespace coxswain;

extern "C" char* cx_table_columns(
    const void* anchor, const void* table, const void* rows, void* slot, void* wgrad_queue, void** out) {
  return guarded([&] {
    *out = handle(TableColumns::apply(tensor(anchor), tensor(table), tensor(rows), pointer(slot), pointer(wgrad_queue)));
  });
}
