// Slots, tapes and what was filed on them, and backward with a given gradient.
#include "shim.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

namespace coxswain {

void run(Filed filed) {
  at::NoGradGuard guard;
  for (auto& entry : filed) {
    entry();
    entry = nullptr;
  }
}

Filed Tape::take() {
  Filed filed = std::move(entries);
  entries.clear();
  return filed;
}

// Taken out first: an entry that fails is not tried again with the next micro-batch.
void Tape::flush() { run(take()); }

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

void* cx_tape_new() { return c10::make_intrusive<Tape>().release(); }
void cx_tape_free(void* tape) { release<Tape>(tape); }
void cx_tape_hold(void* tape, bool held) { static_cast<Tape*>(tape)->held = held; }
char* cx_tape_flush(void* tape) { return guarded([&] { static_cast<Tape*>(tape)->flush(); }); }
void* cx_tape_take(void* tape) { return new Filed(static_cast<Tape*>(tape)->take()); }

// What ran is gone from the list, also after an error; freeing drops the rest.
char* cx_filed_run(void* filed) { return guarded([&] { run(std::exchange(*static_cast<Filed*>(filed), {})); }); }
void cx_filed_free(void* filed) { delete static_cast<Filed*>(filed); }

char* cx_grad(const void* output, const void* grad, const void* input, void** out) {
  return guarded([&] {
    *out = handle(torch::autograd::grad({tensor(output)}, {tensor(input)}, {tensor(grad)})[0]);
  });
}

} // extern "C"
