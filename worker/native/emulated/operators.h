#pragma once
// What the operators of the emulated GPU share: a call's tensors on both sides, and how kernels are replaced.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace emulation {

using at::Tensor;

// The tensors of one call, on both sides.
struct Call {
  Call();

  Tensor to_cpu(const Tensor& x);
  Tensor to_cuda(const Tensor& y);

  // Hands on the sizes that the kernel gave to results without elements. Where they have
  // them already, libtorch does not warn of a resize.
  void grow();

 private:
  std::map<c10::TensorImpl*, Tensor> views;       // by the CUDA tensor
  std::map<c10::TensorImpl*, Tensor> originals;   // by the view
  std::vector<std::pair<Tensor, Tensor>> empties; // the CUDA tensor and its view
};

void expect_cuda(std::initializer_list<Tensor> tensors);

// The kernels that replace libtorch's, by the names of their operators without "aten::".
struct Kernels {
  torch::Library library;
  std::set<std::string> written;

  Kernels() : library(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__) {}

  template <class F>
  void write(const std::string& name, F kernel) {
    library.impl(name.c_str(), std::move(kernel));
    written.insert(name);
  }
};

void write_products(Kernels& kernels);  // products.cpp
void write_attention(Kernels& kernels); // attention.cpp

} // namespace emulation
