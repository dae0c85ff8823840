// Sums over groups of ranks. A Group is a list of the ranks of a network that lives in Rust, and its
// reductions are built of sends and receives: those can be aborted from another thread, are fast at small
// sizes, and add in an order of ours.
#include "shim.h"

#include <ATen/ATen.h>

#include <cstdlib>
#include <string>

namespace coxswain {

using at::Tensor;

namespace {

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

// The reference to Rust's network that a group holds.
struct Network {
  explicit Network(NetworkCalls calls) : calls(calls) {}
  ~Network() { calls.network_free(calls.network); }
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  const NetworkCalls calls;
};

namespace {

void raise(char* error) {
  if (error == nullptr) return;
  const std::string text = error;
  std::free(error);
  throw std::runtime_error(text);
}

// A message on its way. Its memory has to outlive it.
class Message {
 public:
  Message() = default;
  // Starts a send of a contiguous tensor, or a receive into one, of the host.
  Message(const Network& network, const Tensor& x, bool sending, int peer, int tag) : calls_(&network.calls) {
    TORCH_CHECK(x.device().is_cpu(), "an exchange was handed a tensor on ", x.device());
    raise(calls_->start(calls_->network, x.data_ptr(), x.nbytes(), sending, peer, tag, &exchange_));
  }
  Message(Message&& other) noexcept { *this = std::move(other); }
  Message& operator=(Message&& other) noexcept {
    std::swap(calls_, other.calls_);
    std::swap(exchange_, other.exchange_);
    return *this;
  }
  ~Message() {
    if (exchange_ != nullptr) calls_->free(exchange_);
  }
  // Waits for its end, where there is one.
  void wait() {
    if (exchange_ != nullptr) raise(calls_->wait(exchange_));
  }

 private:
  const NetworkCalls* calls_ = nullptr;
  void* exchange_ = nullptr;
};

} // namespace

Group::Group(NetworkCalls calls, std::vector<int> ranks, int index, int tag)
    : network(calls.network == nullptr ? nullptr : new Network(calls)), ranks(std::move(ranks)), index(index), tag(tag) {}
Group::~Group() = default;

// The ranks are few and know each other: one message each way, and every rank combines what it has
// in the same tree. Tensors on a GPU travel through copies on the host and are combined on the GPU again.
struct Exchange::State {
  c10::intrusive_ptr<Group> group;
  std::vector<Tensor> outgoing, parts;
  // Where the parts belong.
  c10::Device device;
  // After what they read and fill, so that they end first.
  std::vector<Message> sends, receives;
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
    state->receives[peer] = Message(*group.network, state->parts[peer], false, group.ranks[peer], group.tag);
  }
  for (size_t peer = 0; peer < size; ++peer)
    if (static_cast<int>(peer) != group.index)
      state->sends[peer] = Message(*group.network, state->outgoing[peer], true, group.ranks[peer], group.tag);
}

Exchange::~Exchange() = default;

Tensor Exchange::finish(const Join& join) {
  State& s = *state;
  for (Message& receive : s.receives) receive.wait();
  // What is of this rank is on its device already, where `to` hands it back as it is.
  for (Tensor& part : s.parts) part = part.to(s.device, /*non_blocking=*/false);
  Tensor result = join(s.parts);
  for (Message& send : s.sends) send.wait();
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

} // namespace coxswain

using namespace coxswain;

extern "C" {

// A group without a network: one rank alone, whose sums are its own values.
void* cx_group_new(NetworkCalls calls, const int* ranks, size_t count, int index, int tag) {
  return c10::make_intrusive<Group>(calls, std::vector<int>(ranks, ranks + count), index, tag).release();
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

} // extern "C"
