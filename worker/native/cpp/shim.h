#pragma once
// What the shim's files share. Every function that Rust calls is extern "C", returns an error text
// (to be freed with cx_free) or null, and lets no exception out. Tensors cross as at::Tensor*, as
// they do in torch-sys; an out tensor belongs to the caller.
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/util/Exception.h>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

namespace coxswain {

char* error_text(const char* what) noexcept;

template <class F>
char* guarded(F&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    return error_text(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return error_text(error.what());
  } catch (...) {
    return error_text("an unknown C++ exception");
  }
}

inline const at::Tensor& tensor(const void* handle) { return *static_cast<const at::Tensor*>(handle); }
inline void* handle(at::Tensor value) { return new at::Tensor(std::move(value)); }

inline std::vector<at::Tensor> tensors(void* const* handles, size_t count) {
  std::vector<at::Tensor> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i) list.push_back(tensor(handles[i]));
  return list;
}

// Slots, queues and groups are counted: a graph or a deferred entry that still names one keeps it alive,
// whatever order their owners on the Rust side are dropped in.
template <class T>
c10::intrusive_ptr<T> counted(const void* handle) {
  return c10::intrusive_ptr<T>::reclaim_copy(static_cast<T*>(const_cast<void*>(handle)));
}
template <class T>
void release(void* handle) { c10::intrusive_ptr<T>::reclaim(static_cast<T*>(handle)); }

// Where the gradient of one use of a parameter is accumulated. The first contribution after a
// change of buffer overwrites, so buffers need not be zeroed.
struct Slot : torch::CustomClassHolder {
  at::Tensor grad;
  bool fresh = true;
};

// Weight gradients that a backward pass has deferred and that are still to be computed, in order.
using DeferredWgrads = std::vector<std::function<void()>>;
// Computes them, and lets go of each one's tensors as soon as it is done.
void run(DeferredWgrads deferred);

// Where backward passes file weight gradients: the W action of zero-bubble schedules takes them from
// here, and they are run at once where the schedule does not split backward.
struct WgradQueue : torch::CustomClassHolder {
  DeferredWgrads entries;
  // Whether backward passes leave the entries alone while their sums travel.
  bool held = false;
  DeferredWgrads take();
  void flush();
};

extern "C" {
// Rust's side of the network. A returned text is an error, allocated with cx_alloc.
struct NetworkCalls {
  // A counted reference, or null where there is no network; `network_free` gives it back.
  const void* network;
  // Starts a send of memory of the host, or a receive into it, which stays where it is until `free`.
  char* (*start)(const void* network, void* memory, size_t bytes, bool sending, int peer, int tag, void** exchange);
  char* (*wait)(void* exchange);
  void (*free)(void* exchange);
  void (*network_free)(const void* network);
};
}

struct Network;

// A list of ranks of a network, and this process's place in it. Without a network there is one rank,
// whose sums are its own values.
struct Group : torch::CustomClassHolder {
  Group(NetworkCalls calls, std::vector<int> ranks, int index, int tag);
  ~Group() override;

  const std::unique_ptr<Network> network;
  const std::vector<int> ranks;
  const int index; // of this process among the ranks
  const int tag;
};

enum class Op : int { Sum = 0, Max = 1 };

// Combines the parts in a fixed binary tree over their indices.
at::Tensor combine(const std::vector<at::Tensor>& parts, Op op);

// One message from each rank of a group to each other, in flight: the constructor starts them.
struct Exchange {
  // `outgoing[peer]` goes to that peer; all are contiguous and have the same shape and type.
  Exchange(c10::intrusive_ptr<Group> group, std::vector<at::Tensor> outgoing);
  ~Exchange();
  // Waits for what the peers sent and joins it, this rank's own part at its place.
  using Join = std::function<at::Tensor(const std::vector<at::Tensor>&)>;
  at::Tensor finish(const Join& join);
  struct State;
  std::unique_ptr<State> state;
};

// The values of all ranks combined in the tree over the group; all ranks get the same bits.
struct AllReduce {
  AllReduce(c10::intrusive_ptr<Group> group, const at::Tensor& own, Op op);
  at::Tensor finish();
  Exchange exchange;
  Op op;
};

// This rank's slice along `dim` of the sum of all ranks' values: the bits of an all-reduce.
struct ReduceScatter {
  ReduceScatter(c10::intrusive_ptr<Group> group, const at::Tensor& own, int64_t dim);
  at::Tensor finish();
  Exchange exchange;
};

// The values of all ranks, one after another along `dim`.
at::Tensor all_gather(c10::intrusive_ptr<Group> group, const at::Tensor& own, int64_t dim);

} // namespace coxswain
