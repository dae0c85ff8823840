// Runs libtorch's operators on CUDA tensors by their CPU kernels, over the memory of the emulated GPU (cudart.cpp).
//
// Every operator with a kernel for both devices gets a boxed kernel for CUDA. It views its tensors through the second,
// readable mapping and calls the CPU's kernel. Tensors stay CUDA tensors: the dispatcher, the caching allocator,
// autograd's device thread, streams and guards are libtorch's own. Tensors of two devices in one call are refused, as a
// GPU does; host code that reads a device pointer ends in a segmentation fault. An operator without a CPU kernel stays
// CUDA's and aborts with the name of the kernel that it launches, unless it is written out in products.cpp or
// attention.cpp.
#include "operators.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>

#include <memory>

// cudart.cpp
extern "C" void* emulated_shadow(const void* p);
extern "C" void emulated_launch();
extern "C" void emulated_copy(bool from_device, bool to_device);

namespace emulation {

Call::Call() { emulated_launch(); }

Tensor Call::to_cpu(const Tensor& x) {
  if (!x.defined() || !x.is_cuda()) return x;
  if (auto found = views.find(x.unsafeGetTensorImpl()); found != views.end()) return found->second;
  const auto options = x.options().device(at::kCPU).requires_grad(false);
  const Tensor view = x.numel() == 0
      ? at::empty_strided(x.sizes(), x.strides(), options)
      : at::from_blob(emulated_shadow(x.const_data_ptr()), x.sizes(), x.strides(), options);
  if (x.numel() == 0) empties.emplace_back(x, view);
  originals.emplace(view.unsafeGetTensorImpl(), x);
  views.emplace(x.unsafeGetTensorImpl(), view);
  return view;
}

Tensor Call::to_cuda(const Tensor& y) {
  if (!y.defined()) return y;
  if (auto found = originals.find(y.unsafeGetTensorImpl()); found != originals.end()) return found->second;
  const Tensor x = at::empty_strided(y.sizes(), y.strides(), y.options().device(at::kCUDA));
  if (y.numel() > 0) at::from_blob(emulated_shadow(x.const_data_ptr()), y.sizes(), y.strides(), y.options()).copy_(y);
  return x;
}

void Call::grow() {
  for (auto& [view, x] : originals)
    TORCH_CHECK(x.numel() == 0 || view->sizes() == x.sizes(), "a result of ", x.sizes(), " was resized to ",
                view->sizes());
  for (auto& [x, view] : empties)
    if (view.numel() > 0) {
      x.resize_(view.sizes());
      at::from_blob(emulated_shadow(x.const_data_ptr()), x.sizes(), x.strides(), view.options()).copy_(view);
    }
}

void expect_cuda(std::initializer_list<Tensor> tensors) {
  for (const Tensor& x : tensors)
    TORCH_CHECK(!x.defined() || x.is_cuda(), "Expected all tensors to be on the same device, but got one on ",
                x.device(), " beside others on cuda:0");
}

namespace {

using c10::IValue;

// Real kernels take a tensor on the CPU where it is a scalar, and a few what they index by.
void expect_one_device(const c10::OperatorHandle& op, const std::vector<Tensor>& tensors) {
  static const std::set<std::string> mixed{
      "aten::copy_", "aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_"};
  // Reads its scalars inside the kernel.
  static const std::set<std::string> strict{"aten::_fused_adamw_", "aten::_fused_adam_", "aten::_fused_sgd_"};
  const std::string& name = op.operator_name().name;
  if (mixed.count(name)) return;
  for (const Tensor& x : tensors)
    TORCH_CHECK(!x.defined() || x.is_cuda() || (x.dim() == 0 && !strict.count(name)),
                "Expected all tensors to be on the same device, but ", name, " was given a tensor ", x.sizes(), " on ",
                x.device(), " beside others on cuda:0");
}

// Operators whose result depends on values, so that the host waits for the GPU.
bool waits(const std::string& name) {
  static const std::set<std::string> names{"aten::equal", "aten::nonzero", "aten::masked_select", "aten::_unique2",
      "aten::unique_dim", "aten::unique_consecutive", "aten::bincount"};
  return names.count(name) > 0;
}

void emulated(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Call call;
  const std::string& name = op.operator_name().name;
  const size_t first = stack->size() - op.schema().arguments().size();
  std::vector<Tensor> tensors;
  for (size_t i = first; i < stack->size(); ++i) {
    const IValue& value = (*stack)[i];
    if (value.isTensor()) tensors.push_back(value.toTensor());
    else if (value.isTensorList()) for (const Tensor& x : value.toTensorVector()) tensors.push_back(x);
    else if (value.isList())
      for (const IValue& each : value.toListRef()) if (each.isTensor()) tensors.push_back(each.toTensor());
  }
  expect_one_device(op, tensors);
  if (name == "aten::copy_") emulated_copy(tensors[1].is_cuda(), tensors[0].is_cuda());
  else if (waits(name)) emulated_copy(true, false);

  for (size_t i = first; i < stack->size(); ++i) {
    IValue& value = (*stack)[i];
    if (value.isTensor()) value = call.to_cpu(value.toTensor());
    else if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const Tensor& x : value.toTensorVector()) list.push_back(call.to_cpu(x));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& x : value.toOptionalTensorList())
        list.push_back(x ? std::optional<Tensor>(call.to_cpu(*x)) : std::nullopt);
      value = list;
    } else if (value.isDevice() && value.toDevice().is_cuda()) value = c10::Device(at::kCPU);
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.grow();
  const size_t results = op.schema().returns().size();
  for (size_t i = stack->size() - results; i < stack->size(); ++i) {
    IValue& value = (*stack)[i];
    if (value.isTensor()) value = call.to_cuda(value.toTensor());
    else if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const Tensor& y : value.toTensorVector()) list.push_back(call.to_cuda(y));
      value = list;
    }
  }
}

// ---- Registration

// What makes tensors and views, what reads one value, and the choice of an attention kernel stay libtorch's own. The
// choice may be cuDNN's kernel, whose stand-in aborts.
bool keeps_its_kernel(const c10::FunctionSchema& schema) {
  static const std::set<std::string> names{"aten::empty", "aten::empty_strided", "aten::_local_scalar_dense",
      "aten::set_", "aten::resize_", "aten::record_stream", "aten::_pin_memory", "aten::is_pinned", "aten::is_set_to",
      "aten::view", "aten::as_strided", "aten::_reshape_alias", "aten::unfold", "aten::_efficientzerotensor",
      "aten::_fused_sdp_choice"};
  if (names.count(schema.name())) return true;
  for (const auto& result : schema.returns())
    if (result.alias_info() != nullptr && !result.alias_info()->isWrite()) return true;
  return false;
}

std::unique_ptr<Kernels> kernels;

} // namespace
} // namespace emulation

// Replaces the kernels of the process and returns how many; a second call does nothing.
extern "C" int emulate() {
  using namespace emulation;
  if (kernels) return 0;
  // Replacing kernels is the purpose.
  struct Silent : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  } silent;
  const c10::WarningUtils::WarningHandlerGuard guard(&silent);
  kernels = std::make_unique<Kernels>();
  write_products(*kernels);
  write_attention(*kernels);
  kernels->write("copy_", torch::CppFunction::makeFromBoxedFunction<&emulated>());

  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0) continue;
    const std::string base = name.name.substr(6);
    const std::string full = name.overload_name.empty() ? base : base + "." + name.overload_name;
    const auto op = dispatcher.findOp(name);
    if (kernels->written.count(full) || !op || !op->hasSchema() ||
        !op->hasKernelForDispatchKey(c10::DispatchKey::CUDA) || !op->hasKernelForDispatchKey(c10::DispatchKey::CPU) ||
        keeps_its_kernel(op->schema()))
      continue;
    kernels->write(full, torch::CppFunction::makeFromBoxedFunction<&emulated>());
  }
  return static_cast<int>(kernels->written.size());
}
