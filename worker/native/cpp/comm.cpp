// Tensors between processes: c10d's Gloo group over a rendezvous store that lives in Rust.
//
// There is one process group for a generation. A Group is a list of its ranks, and its reductions
// are built of sends and receives: those can be aborted from another thread, are fast at small
// sizes, and add in an order of ours.
#include "shim.h"

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <string>
#include <thread>

namespace coxswain {

using at::Tensor;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;
using Milliseconds = std::chrono::milliseconds;

extern "C" {
// Rust's side of the rendezvous store. A returned text is an error, allocated with cx_alloc.
struct StoreCalls {
  void* context;
  char* (*set)(void* context, const char* key, size_t key_len, const uint8_t* value, size_t value_len);
  // Waits for the key. `*value` is allocated with cx_alloc.
  char* (*get)(void* context, const char* key, size_t key_len, uint8_t** value, size_t* value_len);
};
}

namespace {

void raise(char* error, const std::string& what) {
  if (error == nullptr) return;
  const std::string text = what + ": " + error;
  std::free(error);
  throw std::runtime_error(text);
}

struct RustStore : c10d::Store {
  explicit RustStore(StoreCalls calls) : calls_(calls) {}

  void set(const std::string& key, const std::vector<uint8_t>& value) override {
    raise(calls_.set(calls_.context, key.data(), key.size(), value.data(), value.size()), "rendezvous set");
  }
  std::vector<uint8_t> get(const std::string& key) override {
    uint8_t* bytes = nullptr;
    size_t count = 0;
    raise(calls_.get(calls_.context, key.data(), key.size(), &bytes, &count), "rendezvous get");
    std::vector<uint8_t> value(bytes, bytes + count);
    std::free(bytes);
    return value;
  }
  void wait(const std::vector<std::string>& keys) override {
    for (const auto& key : keys) get(key);
  }
  void wait(const std::vector<std::string>& keys, const Milliseconds&) override { wait(keys); }
  c10::intrusive_ptr<c10d::Store> clone() override { return c10::make_intrusive<RustStore>(calls_); }
  int64_t add(const std::string&, int64_t) override { return refuse("add"); }
  bool deleteKey(const std::string&) override { return refuse("deleteKey"); }
  bool check(const std::vector<std::string>&) override { return refuse("check"); }
  int64_t getNumKeys() override { return refuse("getNumKeys"); }

 private:
  // Gloo's rendezvous needs set, get and wait. Anything else would be a new version's new habit,
  // which should be seen.
  int64_t refuse(const char* call) { throw std::runtime_error(std::string("the rendezvous store has no ") + call); }
  StoreCalls calls_;
};

// A tree over 0..count whose left part is the largest power of two below the count.
Tensor combine_range(const std::vector<Tensor>& parts, size_t first, size_t count, Op op) {
  if (count == 1) return parts[first];
  size_t half = 1;
  while (half * 2 < count) half *= 2;
  const Tensor left = combine_range(parts, first, half, op);
  const Tensor right = combine_range(parts, first + half, count - half, op);
  return op == Op::Sum ? at::add(left, right) : at::maximum(left, right);
}

} // namespace

Tensor combine(const std::vector<Tensor>& parts, Op op) {
  TORCH_CHECK(!parts.empty(), "nothing to combine");
  return combine_range(parts, 0, parts.size(), op);
}

// One process group, and what is in flight on it.
struct Network {
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
  std::mutex mutex;
  // The engine's thread. A send waits too, until its receiver is there; one that ends in a thread beside the
  // engine's keeps nobody from computing.
  const std::thread::id engine = std::this_thread::get_id();
  // A wait in progress: the peer that the computation waits for, or -1 where it goes on meanwhile; and since when.
  struct Wait {
    int peer;
    std::chrono::steady_clock::time_point since;
  };
  std::map<c10d::Work*, Wait> waiting;
  bool aborted = false;
  // Set once an exchange fails without an abort. Tracked here because most exchanges run inside a tensor
  // operation, whose error does not say so.
  std::atomic<bool> broken{false};
  // How long a wait may take. Left to itself a wait takes the bound that the group was formed with.
  Milliseconds operation{0};
  // How long the engine has waited for its peers in waits that have ended, in microseconds.
  int64_t ended_us = 0;

  // Starts a send of a contiguous tensor, or a receive into one. Gloo reads and writes memory of the host.
  WorkPtr post(Tensor x, bool sending, int peer, int tag) {
    TORCH_CHECK(x.device().is_cpu(), "an exchange was handed a tensor on ", x.device());
    std::vector<Tensor> list{std::move(x)};
    WorkPtr work;
    const std::string error =
        said([&] { work = sending ? gloo->send(list, peer, tag) : gloo->recv(list, peer, tag); });
    if (!error.empty()) fail(sending, peer, error);
    return work;
  }

  // Waits for the end of a send or a receive; `engine_waits` says whether the computation cannot go on before.
  void wait(const WorkPtr& work, bool sending, int peer, bool engine_waits) {
    const auto start = std::chrono::steady_clock::now();
    {
      std::lock_guard lock(mutex);
      if (aborted) throw std::runtime_error("the exchange was aborted");
      waiting[work.get()] = {engine_waits ? peer : -1, start};
    }
    const std::string error = said([&] {
      if (!work->wait(operation)) throw std::runtime_error("it did not complete");
    });
    {
      std::lock_guard lock(mutex);
      waiting.erase(work.get());
      if (engine_waits) ended_us += since_us(start);
    }
    if (!error.empty()) fail(sending, peer, error);
  }

  void abort() {
    std::lock_guard lock(mutex);
    aborted = true;
    for (auto& [work, wait] : waiting) work->abort();
  }

  // A rank that the engine waits for, or -1.
  int waits_for() {
    std::lock_guard lock(mutex);
    for (auto& [work, wait] : waiting)
      if (wait.peer >= 0) return wait.peer;
    return -1;
  }

  // How long the engine has waited for its peers, in microseconds, with the wait in progress.
  int64_t waited_us() {
    std::lock_guard lock(mutex);
    int64_t us = ended_us;
    for (auto& [work, wait] : waiting)
      if (wait.peer >= 0) us += since_us(wait.since);
    return us;
  }

 private:
  static int64_t since_us(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start).count();
  }

  static const char* doing(bool sending) { return sending ? "sending to" : "receiving from"; }

  // What `call` throws; empty where it ends well.
  template <class Call>
  static std::string said(Call&& call) {
    try {
      call();
      return "";
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    } catch (const std::exception& error) {
      return error.what();
    } catch (...) {
      return "an unknown C++ exception";
    }
  }

  // Reports a failed exchange: aborted by this rank, or failed with its peer.
  [[noreturn]] void fail(bool sending, int peer, const std::string& error) {
    std::lock_guard lock(mutex);
    if (aborted) throw std::runtime_error("the exchange was aborted");
    broken = true;
    throw std::runtime_error(std::string(doing(sending)) + " rank " + std::to_string(peer) + " failed: " + error);
  }
};

// The ranks are few and know each other: one message each way, and every rank combines what it has
// in the same tree. Tensors on a GPU travel through copies on the host and are combined on the GPU again.
struct Exchange::State {
  c10::intrusive_ptr<Group> group;
  std::vector<Tensor> outgoing, parts;
  // Where the parts belong.
  c10::Device device;
  std::vector<WorkPtr> sends, receives;
};

Exchange::Exchange(c10::intrusive_ptr<Group> owner, std::vector<Tensor> outgoing)
    : state(new State{std::move(owner), std::move(outgoing), {}, at::kCPU, {}, {}}) {
  const Group& group = *state->group;
  const size_t size = group.ranks.size();
  state->parts.resize(size);
  state->sends.resize(size);
  state->receives.resize(size);
  state->device = state->outgoing[static_cast<size_t>(group.index)].device();
  // One copy of a tensor that goes to several peers.
  Tensor newest, copy;
  auto on_host = [&](const Tensor& x) {
    if (!newest.is_same(x)) newest = x, copy = x.cpu();
    return copy;
  };
  for (size_t peer = 0; peer < size; ++peer) {
    if (static_cast<int>(peer) == group.index) {
      state->parts[peer] = state->outgoing[peer];
      continue;
    }
    Tensor& sent = state->outgoing[peer];
    state->parts[peer] = at::empty_like(sent, sent.options().device(at::kCPU));
    sent = on_host(sent);
    state->receives[peer] = group.network->post(state->parts[peer], false, group.ranks[peer], group.tag);
  }
  for (size_t peer = 0; peer < size; ++peer)
    if (static_cast<int>(peer) != group.index)
      state->sends[peer] = group.network->post(state->outgoing[peer], true, group.ranks[peer], group.tag);
}

Exchange::~Exchange() = default;

Tensor Exchange::finish(const Join& join) {
  State& s = *state;
  for (size_t peer = 0; peer < s.parts.size(); ++peer)
    if (s.receives[peer]) s.group->network->wait(s.receives[peer], false, s.group->ranks[peer], true);
  // What is of this rank is on its device already, where `to` hands it back as it is.
  for (Tensor& part : s.parts) part = part.to(s.device, /*non_blocking=*/false);
  Tensor result = join(s.parts);
  for (size_t peer = 0; peer < s.parts.size(); ++peer)
    if (s.sends[peer]) s.group->network->wait(s.sends[peer], true, s.group->ranks[peer], true);
  return result;
}

namespace {

std::vector<Tensor> to_all(const Group& group, const Tensor& own) {
  return std::vector<Tensor>(group.ranks.size(), own.contiguous());
}

std::vector<Tensor> slices(const Group& group, const Tensor& own, int64_t dim) {
  const auto ranks = static_cast<int64_t>(group.ranks.size());
  TORCH_CHECK(own.dim() > dim && own.size(dim) % ranks == 0, "dim ", dim, " of ", own.sizes(),
              " does not divide among ", ranks, " ranks");
  std::vector<Tensor> list;
  for (const Tensor& slice : own.chunk(ranks, dim)) list.push_back(slice.contiguous());
  TORCH_CHECK(list.size() == group.ranks.size(), "no slice of ", own.sizes(), " along dim ", dim, " may be empty");
  return list;
}

} // namespace

AllReduce::AllReduce(c10::intrusive_ptr<Group> group, const Tensor& own, Op op)
    : exchange(group, to_all(*group, own)), op(op) {}

Tensor AllReduce::finish() {
  return exchange.finish([this](const std::vector<Tensor>& parts) { return combine(parts, op); });
}

ReduceScatter::ReduceScatter(c10::intrusive_ptr<Group> group, const Tensor& own, int64_t dim)
    : exchange(group, slices(*group, own, dim)) {}

Tensor ReduceScatter::finish() {
  return exchange.finish([](const std::vector<Tensor>& parts) { return combine(parts, Op::Sum); });
}

Tensor all_gather(c10::intrusive_ptr<Group> group, const Tensor& own, int64_t dim) {
  TORCH_CHECK(dim >= 0 && own.dim() > dim, "no dim ", dim, " to gather in ", own.sizes());
  return Exchange(group, to_all(*group, own)).finish([dim](const std::vector<Tensor>& parts) {
    return parts.size() == 1 ? parts[0] : at::cat(parts, dim);
  });
}

// A send or a receive in flight, with the tensor that it reads or fills. One on a GPU has a copy on the host.
struct Transfer {
  std::shared_ptr<Network> network;
  WorkPtr work;
  Tensor tensor, staged;
  bool sending;
  int peer;
};

} // namespace coxswain

using namespace coxswain;

extern "C" {

// Joins the process group of a generation. `address` is the local address to bind to.
char* cx_network_new(
    StoreCalls calls, int rank, int world, const char* address, int64_t forming_ms, int64_t operation_ms, void** out) {
  return guarded([&] {
    auto options = c10d::ProcessGroupGloo::Options::create(Milliseconds(forming_ms));
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    auto network = std::make_shared<Network>();
    network->gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(
        c10::make_intrusive<RustStore>(calls), rank, world, options);
    network->operation = Milliseconds(operation_ms);
    *out = new std::shared_ptr<Network>(std::move(network));
  });
}
void cx_network_free(void* network) { delete static_cast<std::shared_ptr<Network>*>(network); }
void cx_network_abort(void* network) { (*static_cast<std::shared_ptr<Network>*>(network))->abort(); }
int cx_network_waits_for(void* network) { return (*static_cast<std::shared_ptr<Network>*>(network))->waits_for(); }
bool cx_network_broken(void* network) { return (*static_cast<std::shared_ptr<Network>*>(network))->broken; }
int64_t cx_network_waited_us(void* network) { return (*static_cast<std::shared_ptr<Network>*>(network))->waited_us(); }

// A group without a network: one rank alone, whose sums are its own values.
void* cx_group_new(void* network, const int* ranks, size_t count, int index, int tag) {
  auto shared = network == nullptr ? nullptr : *static_cast<std::shared_ptr<Network>*>(network);
  return c10::make_intrusive<Group>(std::move(shared), std::vector<int>(ranks, ranks + count), index, tag).release();
}
void cx_group_free(void* group) { release<Group>(group); }

char* cx_group_reduce(const void* group, const void* x, int op, void** out) {
  return guarded([&] {
    *out = handle(AllReduce(counted<Group>(group), tensor(x), static_cast<Op>(op)).finish());
  });
}
char* cx_group_gather(const void* group, const void* x, int64_t dim, void** out) {
  return guarded([&] { *out = handle(all_gather(counted<Group>(group), tensor(x), dim)); });
}

// Starts a send of a contiguous tensor, or a receive into one, with the process group's rank `peer`.
char* cx_transfer_new(void* network, const void* x, bool sending, int peer, int tag, void** out) {
  return guarded([&] {
    auto shared = *static_cast<std::shared_ptr<Network>*>(network);
    const Tensor& own = tensor(x);
    const Tensor staged = own.is_cpu() ? own : sending ? own.cpu() : at::empty_like(own, own.options().device(at::kCPU));
    TORCH_CHECK(own.is_contiguous(), "a transfer takes a contiguous tensor");
    auto work = shared->post(staged, sending, peer, tag);
    *out = new Transfer{std::move(shared), std::move(work), own, staged, sending, peer};
  });
}
char* cx_transfer_wait(void* transfer) {
  return guarded([&] {
    auto* t = static_cast<Transfer*>(transfer);
    const bool engine_waits = !t->sending || std::this_thread::get_id() == t->network->engine;
    t->network->wait(t->work, t->sending, t->peer, engine_waits);
    if (!t->sending && !t->tensor.is_cpu()) t->tensor.copy_(t->staged);
  });
}
void cx_transfer_free(void* transfer) { delete static_cast<Transfer*>(transfer); }

} // extern "C"
