// The embedding table's rows, and their gradients.
#include "function.h"
#include "kernels.h"

namespace coxswain {
namespace {

// Rows of the table for the ids that this shard holds, zero for the others.
Tensor embed(const Tensor& ids_n, const Tensor& w_vd, int64_t start, at::ScalarType kind) {
  TORCH_CHECK(ids_n.scalar_type() == at::kLong && w_vd.dim() == 2, "embed takes ids and a [v, d] table");
  expect_beside(ids_n, w_vd, "embed");
  const Tensor ids = ids_n.contiguous(), w = w_vd.contiguous();
  const int64_t vocab = w.size(0), dim = w.size(1), rows = ids.numel();
  if (w.is_cuda()) {
    Tensor y = at::empty({rows, dim}, w.options().dtype(kind));
    gpu::ran(gpu::kernels().embed(gpu::kind_of(w, "embed"), gpu::kind_of(y, "embed"), data<int64_t>(ids),
                                  w.const_data_ptr(), start, vocab, rows, dim, y.data_ptr()),
             "embed");
    return y;
  }
  Tensor y = at::empty({rows, dim}, w.options());
  const auto bytes = static_cast<size_t>(dim) * w.element_size();
  const char* from = static_cast<const char*>(w.const_data_ptr());
  char* to = static_cast<char*>(y.data_ptr());
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t id = ids.const_data_ptr<int64_t>()[row] - start;
    char* out = to + static_cast<size_t>(row) * bytes;
    if (id >= 0 && id < vocab) std::memcpy(out, from + static_cast<size_t>(id) * bytes, bytes);
    else std::memset(out, 0, bytes);
  }
  return y.to(kind);
}

// Adds each row of dy to its id's row, in row order: the order in which equal ids are added is fixed.
void embed_grad(const Tensor& ids_n, const Tensor& dy_nd, Slot& slot, int64_t start) {
  Tensor& dw = buffer(slot);
  TORCH_CHECK(ids_n.scalar_type() == at::kLong && dw.dim() == 2 && dw.is_contiguous() &&
                  dy_nd.numel() == ids_n.numel() * dw.size(1),
              "embed_grad has ", dy_nd.sizes(), " for ids ", ids_n.sizes());
  if (slot.fresh) dw.zero_();
  slot.fresh = false;
  const Tensor ids = ids_n.flatten().contiguous(), dy = dy_nd.contiguous();
  const int64_t vocab = dw.size(0), dim = dw.size(1);
  float* grad = dw.data_ptr<float>();
  expect_beside(ids, dy, "embed_grad");
  expect_beside(dw, dy, "embed_grad");
  if (dy.is_cuda()) {
    // Equal ids stay in row order.
    const auto [sorted, order] = at::sort(ids, /*stable=*/true, /*dim=*/0, /*descending=*/false);
    gpu::ran(gpu::kernels().embed_grad(gpu::kind_of(dy, "embed_grad"), data<int64_t>(sorted), data<int64_t>(order),
                                       dy.const_data_ptr(), start, vocab, ids.numel(), dim, grad),
             "embed_grad");
    return;
  }
  by_kind(dy, "embed_grad", [&](auto kind) {
    using T = decltype(kind);
    for (int64_t row = 0; row < ids.numel(); ++row) {
      const int64_t id = ids.const_data_ptr<int64_t>()[row] - start;
      if (id >= 0 && id < vocab) kernels::add(data<T>(dy) + row * dim, dim, grad + id * dim);
    }
  });
}

} // namespace
} // namespace coxswain

using namespace coxswain;

extern "C" {

// `kind` is libtorch's number of the result's element type.
char* cx_embed(const void* ids, const void* w, int64_t start, int kind, void** out) {
  return guarded([&] {
    *out = handle(embed(tensor(ids), tensor(w), start, static_cast<at::ScalarType>(kind)));
  });
}
char* cx_embed_grad(const void* ids, const void* dy, void* slot, int64_t start) {
  return guarded([&] { embed_grad(tensor(ids), tensor(dy), *static_cast<Slot*>(slot), start); });
}

} // extern "C"
