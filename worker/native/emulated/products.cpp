// Products with an fp32 result. cuBLAS has them, the CPU has not; the checks are those of libtorch's CUDA code.
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>

#include "operators.h"

namespace emulation {
namespace {

void expect_product(const Tensor& a, const Tensor& b, at::ScalarType type) {
  expect_cuda({a, b});
  const at::ScalarType from = a.scalar_type();
  TORCH_CHECK(from == b.scalar_type(), "input dtypes must be the same");
  TORCH_CHECK(type == from || (type == at::kFloat && (from == at::kHalf || from == at::kBFloat16)),
              "out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs");
}

// For mm and bmm.
Tensor& product_out(const Tensor& a, const Tensor& b, at::ScalarType type, Tensor& out) {
  expect_product(a, b, type);
  expect_cuda({out});
  TORCH_CHECK(out.scalar_type() == type, "out_dtype must be the same as the dtype of the provided out tensor");
  Call call;
  Tensor result = call.to_cpu(out);
  at::matmul_out(result, call.to_cpu(a).to(type), call.to_cpu(b).to(type));
  call.grow();
  return out;
}

Tensor product(const Tensor& a, const Tensor& b, at::ScalarType type) {
  Tensor out = at::empty({0}, a.options().dtype(type));
  return product_out(a, b, type, out);
}

Tensor& addmm_out(
    const Tensor& self, const Tensor& a, const Tensor& b, at::ScalarType type, const at::Scalar& beta,
    const at::Scalar& alpha, Tensor& out) {
  expect_product(a, b, type);
  expect_cuda({self, out});
  TORCH_CHECK(out.scalar_type() == type, "out_dtype must be the same as the dtype of the provided out tensor");
  TORCH_CHECK(self.scalar_type() == type || self.scalar_type() == a.scalar_type(),
              "self dtype must match either out_dtype or mat1 dtype");
  Call call;
  Tensor result = call.to_cpu(out);
  at::addmm_out(result, call.to_cpu(self).to(type), call.to_cpu(a).to(type), call.to_cpu(b).to(type), beta, alpha);
  call.grow();
  return out;
}

Tensor addmm(
    const Tensor& self, const Tensor& a, const Tensor& b, at::ScalarType type, const at::Scalar& beta,
    const at::Scalar& alpha) {
  Tensor out = at::empty({0}, a.options().dtype(type));
  return addmm_out(self, a, b, type, beta, alpha, out);
}

} // namespace

void write_products(Kernels& kernels) {
  kernels.write("mm.dtype", TORCH_FN(product));
  kernels.write("mm.dtype_out", TORCH_FN(product_out));
  kernels.write("bmm.dtype", TORCH_FN(product));
  kernels.write("bmm.dtype_out", TORCH_FN(product_out));
  kernels.write("addmm.dtype", TORCH_FN(addmm));
  kernels.write("addmm.dtype_out", TORCH_FN(addmm_out));
}

} // namespace emulation
