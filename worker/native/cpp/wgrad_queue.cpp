// Slots, queues and what was deferred on them, and backward with a given gradient.
#include "shim.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

namespace coxswain {

void run(DeferredWgrads deferred) {
  at::NoGradGuard guard;
  for (auto& entry : deferred) {
    entry();
    entry = nullptr;
  }
}

DeferredWgrads WgradQueue::take() {
  DeferredWgrads deferred = std::move(entries);
  entries.clear();
  return deferred;
}

// Taken out first: an entry that fails is not tried again with the next micro-batch.
void WgradQueue::flush() { run(take()); }

} // namespace coxswain

using namespace coxswain;

extern "C" {

void* cx_slot_new() { return c10::make_intrusive<Slot>().release(); }
void cx_slot_free(void* slot) { release<Slot>(slot); }
void cx_slot_set(void* slot, const void* grad) {
  auto* target = static_cast<Slot*>(slot);
  target->grad = tensor(grad);
  target->fresh = true;
}
bool cx_slot_fresh(const void* slot) { return static_cast<const Slot*>(slot)->fresh; }

void* cx_wgrad_queue_new() { return c10::make_intrusive<WgradQueue>().release(); }
void cx_wgrad_queue_free(void* wgrad_queue) { release<WgradQueue>(wgrad_queue); }
void cx_wgrad_queue_hold(void* wgrad_queue, bool held) { static_cast<WgradQueue*>(wgrad_queue)->held = held; }
char* cx_wgrad_queue_flush(void* wgrad_queue) { return guarded([&] { static_cast<WgradQueue*>(wgrad_queue)->flush(); }); }
void* cx_wgrad_queue_take(void* wgrad_queue) { return new DeferredWgrads(static_cast<WgradQueue*>(wgrad_queue)->take()); }

// What ran is gone from the list, also after an error; freeing drops the rest.
char* cx_deferred_run(void* deferred) { return guarded([&] { run(std::exchange(*static_cast<DeferredWgrads*>(deferred), {})); }); }
void cx_deferred_free(void* deferred) { delete static_cast<DeferredWgrads*>(deferred); }

char* cx_grad(const void* output, const void* grad, const void* input, void** out) {
  return guarded([&] {
    *out = handle(torch::autograd::grad({tensor(output)}, {tensor(input)}, {tensor(grad)})[0]);
  });
}

} // extern "C"
