// The shim's own autograd functions. Weights are constants to autograd: a backward pass returns the
// input's gradient and files what the weight's gradient needs on the tape.
//
// Shapes: b batch, t tokens, d model dim, n = b*t rows, h heads, k head dim, o output features.
#include "shim.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "kernels.h"

namespace coxswain {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Rows of a loop that one thread should take at least: below this, starting a thread costs more.
constexpr int64_t kRowGrain = 16;
constexpr int64_t kElementGrain = 32768;

const float* data(const Tensor& x) { return x.const_data_ptr<float>(); }

void expect_fp32_cpu(const Tensor& x, const char* what) {
  TORCH_CHECK(x.device().is_cpu() && x.scalar_type() == at::kFloat, what, " takes fp32 tensors on the CPU, not ",
              x.scalar_type(), " on ", x.device());
}

// Handles cross `Function::apply` as numbers, and are kept by the graph as counted references.
int64_t pointer(const void* handle) { return reinterpret_cast<int64_t>(handle); }
template <class T>
c10::intrusive_ptr<T> counted_at(int64_t pointer) { return counted<T>(reinterpret_cast<void*>(pointer)); }
template <class T>
c10::IValue capsule_at(int64_t pointer) { return c10::IValue::make_capsule(counted_at<T>(pointer)); }
template <class T>
c10::intrusive_ptr<T> kept(const AutogradContext* ctx, const char* key) {
  return c10::static_intrusive_pointer_cast<T>(ctx->saved_data.at(key).toCapsule());
}

void accumulate(Slot& slot, const Tensor& part) {
  if (slot.fresh) slot.grad.copy_(part); else slot.grad.add_(part);
  slot.fresh = false;
}

// y[n, o] = x[n, d] w[o, d]^T
struct Linear : Function<Linear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w, int64_t slot, int64_t tape) {
    const Tensor x_nd = x.reshape({-1, x.size(-1)});
    ctx->save_for_backward({x_nd, w});
    ctx->saved_data["slot"] = capsule_at<Slot>(slot);
    ctx->saved_data["tape"] = capsule_at<Tape>(tape);
    auto shape = x.sizes().vec();
    shape.back() = w.size(0);
    return at::mm(x_nd, w.t()).view(shape);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor x_nd = saved[0], w = saved[1];
    const Tensor dy_no = grads[0].reshape({-1, w.size(0)});
    const auto slot = kept<Slot>(ctx, "slot");
    kept<Tape>(ctx, "tape")->entries.push_back([slot, x_nd, dy_no] {
      // Accumulation happens inside the product; the order of its sums does not depend on `fresh`.
      if (slot->fresh) at::mm_out(slot->grad, dy_no.t(), x_nd); else slot->grad.addmm_(dy_no.t(), x_nd);
      slot->fresh = false;
    });
    auto shape = grads[0].sizes().vec();
    shape.back() = w.size(1);
    return {at::mm(dy_no, w).view(shape), Tensor(), Tensor(), Tensor()};
  }
};

// y = x / rms(x) * w over the last dim (arXiv 1910.07467).
struct RmsNorm : Function<RmsNorm> {
  static Tensor forward(
      AutogradContext* ctx, const Tensor& x_in, const Tensor& w, double eps, int64_t slot, int64_t tape) {
    expect_fp32_cpu(x_in, "rms_norm");
    expect_fp32_cpu(w, "rms_norm");
    TORCH_CHECK(x_in.dim() > 0 && x_in.size(-1) > 0 && w.is_contiguous() && w.numel() == x_in.size(-1),
                "rms_norm has weights ", w.sizes(), " for x ", x_in.sizes());
    const Tensor x = x_in.contiguous();
    const int64_t dim = x.size(-1), rows = x.numel() / dim;
    Tensor y = at::empty_like(x), rstd = at::empty({rows}, x.options());
    float* y_data = y.data_ptr<float>();
    float* rstd_data = rstd.data_ptr<float>();
    at::parallel_for(0, rows, kRowGrain, [&, x_data = data(x), w_data = data(w)](int64_t first, int64_t last) {
      kernels::rms_norm_rows(x_data + first * dim, w_data, static_cast<float>(eps), last - first, dim,
                             y_data + first * dim, rstd_data + first);
    });
    ctx->save_for_backward({x, w, rstd});
    ctx->saved_data["slot"] = capsule_at<Slot>(slot);
    ctx->saved_data["tape"] = capsule_at<Tape>(tape);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor x = saved[0], w = saved[1], rstd = saved[2], dy = grads[0].contiguous();
    const int64_t dim = x.size(-1), rows = x.numel() / dim;
    Tensor dx = at::empty_like(x);
    float* dx_data = dx.data_ptr<float>();
    at::parallel_for(0, rows, kRowGrain, [&, dim](int64_t first, int64_t last) {
      kernels::rms_norm_grad_rows(data(dy) + first * dim, data(x) + first * dim, data(w), data(rstd) + first,
                                  last - first, dim, dx_data + first * dim);
    });
    const auto slot = kept<Slot>(ctx, "slot");
    kept<Tape>(ctx, "tape")->entries.push_back([slot, x, dy, rstd, dim, rows] {
      Tensor dw = at::empty({dim}, x.options());
      float* dw_data = dw.data_ptr<float>();
      at::parallel_for(0, dim, 64, [&](int64_t first, int64_t last) {
        kernels::rms_norm_weight_grad(data(dy), data(x), data(rstd), rows, dim, first, last, dw_data);
      });
      accumulate(*slot, dw);
    });
    return {dx, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// Rotary positions (arXiv 2104.09864), halves rotated as in the Hugging Face layout.
// x[b, t, h, k]; cos and sin [t, k/2] for the positions at hand.
struct Rope : Function<Rope> {
  static Tensor rotate(const Tensor& x_in, const Tensor& cos, const Tensor& sin, float sign) {
    expect_fp32_cpu(x_in, "rope");
    TORCH_CHECK(x_in.dim() == 4 && x_in.size(3) % 2 == 0, "rope takes [b, t, h, even k], not ", x_in.sizes());
    for (const Tensor& table : {cos, sin}) {
      expect_fp32_cpu(table, "rope");
      TORCH_CHECK(table.is_contiguous() && table.sizes() == at::IntArrayRef({x_in.size(1), x_in.size(3) / 2}),
                  "rope tables are ", table.sizes(), " for x ", x_in.sizes());
    }
    const Tensor x = x_in.contiguous();
    const int64_t tokens = x.size(1), heads = x.size(2), half = x.size(3) / 2;
    Tensor y = at::empty_like(x);
    float* y_data = y.data_ptr<float>();
    at::parallel_for(0, x.size(0) * tokens, kRowGrain, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        const int64_t at = row * heads * half * 2, position = row % tokens * half;
        kernels::rope_heads(data(x) + at, data(cos) + position, data(sin) + position, sign, heads, half, y_data + at);
      }
    });
    return y;
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return rotate(x, cos, sin, 1.f);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {rotate(grads[0], saved[0], saved[1], -1.f), Tensor(), Tensor()};
  }
};

// silu(a) * b (arXiv 2002.05202); keeps a and b only and computes the sigmoid twice.
struct SwiGlu : Function<SwiGlu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& a_in, const Tensor& b_in) {
    expect_fp32_cpu(a_in, "swiglu");
    expect_fp32_cpu(b_in, "swiglu");
    TORCH_CHECK(a_in.sizes() == b_in.sizes(), "swiglu has ", a_in.sizes(), " and ", b_in.sizes());
    const Tensor a = a_in.contiguous(), b = b_in.contiguous();
    Tensor y = at::empty_like(a);
    float* y_data = y.data_ptr<float>();
    at::parallel_for(0, a.numel(), kElementGrain, [&](int64_t first, int64_t last) {
      kernels::swiglu(data(a) + first, data(b) + first, last - first, y_data + first);
    });
    ctx->save_for_backward({a, b});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor a = saved[0], b = saved[1], dy = grads[0].contiguous();
    Tensor da = at::empty_like(a), db = at::empty_like(b);
    float* da_data = da.data_ptr<float>();
    float* db_data = db.data_ptr<float>();
    at::parallel_for(0, a.numel(), kElementGrain, [&](int64_t first, int64_t last) {
      kernels::swiglu_grad(data(dy) + first, data(a) + first, data(b) + first, last - first, da_data + first,
                           db_data + first);
    });
    return {da, db};
  }
};

// Megatron's f (arXiv 1909.08053): the identity forward, a sum over the tensor axis backward. While
// the sum travels, the weight gradients filed so far are computed.
struct CopyToGroup : Function<CopyToGroup> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, int64_t group, int64_t tape) {
    ctx->saved_data["group"] = capsule_at<Group>(group);
    ctx->saved_data["tape"] = capsule_at<Tape>(tape);
    return x.view_as(x);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    Exchange exchange(kept<Group>(ctx, "group"), grads[0].contiguous(), Op::Sum);
    kept<Tape>(ctx, "tape")->flush();
    return {exchange.finish(), Tensor(), Tensor()};
  }
};

// Megatron's g: a sum over the tensor axis forward, the identity backward.
struct ReduceFromGroup : Function<ReduceFromGroup> {
  static Tensor forward(AutogradContext*, const Tensor& x, int64_t group) {
    return Exchange(counted_at<Group>(group), x.contiguous(), Op::Sum).finish();
  }
  static variable_list backward(AutogradContext*, variable_list grads) { return {grads[0], Tensor()}; }
};

// The sum over rows of -log softmax(logits)[target], the vocabulary being split over the group; a
// target of -1 counts nothing. The logits are consumed: their memory turns into exponentials and,
// backward, into their own gradient.
struct CrossEntropy : Function<CrossEntropy> {
  static Tensor forward(
      AutogradContext* ctx, Tensor logits_nv, const Tensor& targets_n, int64_t vocab_start, int64_t group_at) {
    expect_fp32_cpu(logits_nv, "cross_entropy");
    TORCH_CHECK(logits_nv.is_contiguous() && logits_nv.dim() == 2 && targets_n.is_contiguous(),
                "cross_entropy takes contiguous [n, v] logits");
    TORCH_CHECK(targets_n.scalar_type() == at::kLong && targets_n.numel() == logits_nv.size(0),
                "cross_entropy has targets ", targets_n.sizes(), " for logits ", logits_nv.sizes());
    const auto group = counted_at<Group>(group_at);
    const int64_t rows = logits_nv.size(0), vocab = logits_nv.size(1);
    float* logits = logits_nv.mutable_data_ptr<float>();
    const int64_t* targets = targets_n.const_data_ptr<int64_t>();

    Tensor largest_n = at::empty({rows}, logits_nv.options());
    at::parallel_for(0, rows, kRowGrain, [&, out = largest_n.data_ptr<float>()](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) out[row] = kernels::max_of(logits + row * vocab, vocab);
    });
    largest_n = Exchange(group, largest_n, Op::Max).finish();

    // Row 0: sums of exponentials. Row 1: the target's logit less the maximum, on the rank that has it.
    Tensor parts_2n = at::zeros({2, rows}, logits_nv.options());
    at::parallel_for(0, rows, kRowGrain, [&, out = parts_2n.data_ptr<float>()](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        const int64_t target = targets[row] - vocab_start;
        const float shift = data(largest_n)[row];
        if (targets[row] >= 0 && target >= 0 && target < vocab) out[rows + row] = logits[row * vocab + target] - shift;
        out[row] = kernels::exp_and_sum(logits + row * vocab, shift, vocab);
      }
    });
    parts_2n = Exchange(group, parts_2n, Op::Sum).finish();

    double loss = 0;
    const float* parts = data(parts_2n);
    for (int64_t row = 0; row < rows; ++row)
      if (targets[row] >= 0) loss += std::log(static_cast<double>(parts[row])) - static_cast<double>(parts[rows + row]);
    ctx->saved_data["vocab_start"] = vocab_start;
    ctx->save_for_backward({logits_nv.detach(), targets_n, parts_2n});
    return at::scalar_tensor(loss, at::kDouble);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    Tensor logits_nv = saved[0];
    const Tensor targets_n = saved[1], parts_2n = saved[2];
    const int64_t rows = logits_nv.size(0), vocab = logits_nv.size(1);
    const int64_t start = ctx->saved_data.at("vocab_start").toInt();
    const float weight = static_cast<float>(grads[0].item<double>());
    float* logits = logits_nv.mutable_data_ptr<float>();
    at::parallel_for(0, rows, kRowGrain, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        const int64_t target = targets_n.const_data_ptr<int64_t>()[row];
        // A product with zero would keep a NaN; rows that count nothing are cleared.
        if (target < 0) {
          std::memset(logits + row * vocab, 0, static_cast<size_t>(vocab) * sizeof(float));
          continue;
        }
        kernels::scale(logits + row * vocab, weight / data(parts_2n)[row], vocab);
        if (target >= start && target < start + vocab) logits[row * vocab + target - start] -= weight;
      }
    });
    return {logits_nv, Tensor(), Tensor(), Tensor()};
  }
};

// Rows of the table for the ids that this rank holds, zero for the others.
Tensor embed(const Tensor& ids_n, const Tensor& w_vd, int64_t start) {
  expect_fp32_cpu(w_vd, "embed");
  TORCH_CHECK(ids_n.scalar_type() == at::kLong && w_vd.dim() == 2, "embed takes ids and a [v, d] table");
  const Tensor ids = ids_n.contiguous(), w = w_vd.contiguous();
  const int64_t vocab = w.size(0), dim = w.size(1), rows = ids.numel();
  Tensor y = at::empty({rows, dim}, w.options());
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t id = ids.const_data_ptr<int64_t>()[row] - start;
    float* out = y.data_ptr<float>() + row * dim;
    const auto bytes = static_cast<size_t>(dim) * sizeof(float);
    if (id >= 0 && id < vocab) std::memcpy(out, data(w) + id * dim, bytes); else std::memset(out, 0, bytes);
  }
  return y;
}

// Adds each row of dy to its id's row, in row order: the order in which equal ids are added is fixed.
void embed_grad(const Tensor& ids_n, const Tensor& dy_nd, Slot& slot, int64_t start) {
  expect_fp32_cpu(dy_nd, "embed_grad");
  TORCH_CHECK(ids_n.scalar_type() == at::kLong && slot.grad.dim() == 2 &&
                  dy_nd.numel() == ids_n.numel() * slot.grad.size(1),
              "embed_grad has ", dy_nd.sizes(), " for ids ", ids_n.sizes());
  if (slot.fresh) slot.grad.zero_();
  slot.fresh = false;
  const Tensor ids = ids_n.contiguous(), dy = dy_nd.contiguous();
  const int64_t vocab = slot.grad.size(0), dim = slot.grad.size(1);
  float* grad = slot.grad.data_ptr<float>();
  for (int64_t row = 0; row < ids.numel(); ++row) {
    const int64_t id = ids.const_data_ptr<int64_t>()[row] - start;
    if (id < 0 || id >= vocab) continue;
    for (int64_t i = 0; i < dim; ++i) grad[id * dim + i] += data(dy)[row * dim + i];
  }
}

// The flash kernel, exact and O(t) in memory (arXiv 2205.14135). q[b, t, h, k], k and v [b, s, g, k]
// with g dividing h; the result is [b, t, h, k]. Causal: row i sees keys up to i + s - t.
Tensor attention(const Tensor& q_bthk, const Tensor& k_bsgk, const Tensor& v_bsgk, bool causal) {
  const int64_t groups = q_bthk.size(2) / k_bsgk.size(2);
  auto heads_first = [groups](const Tensor& x) {
    const Tensor x_bhtk = x.transpose(1, 2);
    if (groups == 1) return x_bhtk;
    auto shape = x_bhtk.sizes().vec();
    return x_bhtk.unsqueeze(2).expand({shape[0], shape[1], groups, shape[2], shape[3]})
        .reshape({shape[0], shape[1] * groups, shape[2], shape[3]});
  };
  const Tensor q = q_bthk.transpose(1, 2), k = heads_first(k_bsgk), v = heads_first(v_bsgk);
  const Tensor out = q.device().is_cpu()
      ? std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal))
      : at::scaled_dot_product_attention(q, k, v, {}, 0.0, causal);
  return out.transpose(1, 2).contiguous();
}

// Squared norms are sums over blocks of this many elements, in a fixed tree over the blocks.
constexpr int64_t kNormBlock = 65536;

double tree_sum(const double* values, int64_t count) {
  if (count == 1) return values[0];
  int64_t half = 1;
  while (half * 2 < count) half *= 2;
  return tree_sum(values, half) + tree_sum(values + half, count - half);
}

double sum_squares(const Tensor& x_in) {
  const Tensor x = x_in.contiguous();
  const int64_t count = x.numel(), blocks = (count + kNormBlock - 1) / kNormBlock;
  std::vector<double> sums(static_cast<size_t>(blocks));
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t start = block * kNormBlock;
      sums[static_cast<size_t>(block)] = kernels::sum_squares(data(x) + start, std::min(kNormBlock, count - start));
    }
  });
  return blocks == 0 ? 0 : tree_sum(sums.data(), blocks);
}

} // namespace

void Tape::flush() {
  at::NoGradGuard guard;
  // Taken out first: an entry that fails is not tried again with the next micro-batch.
  const auto filed = std::move(entries);
  entries.clear();
  for (const auto& entry : filed) entry();
}

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
char* cx_tape_flush(void* tape) { return guarded([&] { static_cast<Tape*>(tape)->flush(); }); }

char* cx_grad(const void* output, const void* grad, const void* input, void** out) {
  return guarded([&] {
    *out = handle(torch::autograd::grad({tensor(output)}, {tensor(input)}, {tensor(grad)})[0]);
  });
}
char* cx_linear(const void* x, const void* w, void* slot, void* tape, void** out) {
  return guarded([&] { *out = handle(Linear::apply(tensor(x), tensor(w), pointer(slot), pointer(tape))); });
}
char* cx_rms_norm(const void* x, const void* w, double eps, void* slot, void* tape, void** out) {
  return guarded([&] { *out = handle(RmsNorm::apply(tensor(x), tensor(w), eps, pointer(slot), pointer(tape))); });
}
char* cx_rope(const void* x, const void* cos, const void* sin, void** out) {
  return guarded([&] { *out = handle(Rope::apply(tensor(x), tensor(cos), tensor(sin))); });
}
char* cx_swiglu(const void* a, const void* b, void** out) {
  return guarded([&] { *out = handle(SwiGlu::apply(tensor(a), tensor(b))); });
}
char* cx_copy_to_group(const void* x, void* group, void* tape, void** out) {
  return guarded([&] { *out = handle(CopyToGroup::apply(tensor(x), pointer(group), pointer(tape))); });
}
char* cx_reduce_from_group(const void* x, void* group, void** out) {
  return guarded([&] { *out = handle(ReduceFromGroup::apply(tensor(x), pointer(group))); });
}
char* cx_cross_entropy(const void* logits, const void* targets, int64_t vocab_start, void* group, void** out) {
  return guarded([&] {
    *out = handle(CrossEntropy::apply(tensor(logits), tensor(targets), vocab_start, pointer(group)));
  });
}
char* cx_embed(const void* ids, const void* w, int64_t start, void** out) {
  return guarded([&] { *out = handle(embed(tensor(ids), tensor(w), start)); });
}
char* cx_embed_grad(const void* ids, const void* dy, void* slot, int64_t start) {
  return guarded([&] { embed_grad(tensor(ids), tensor(dy), *static_cast<Slot*>(slot), start); });
}
char* cx_attention(const void* q, const void* k, const void* v, bool causal, void** out) {
  return guarded([&] { *out = handle(attention(tensor(q), tensor(k), tensor(v), causal)); });
}
char* cx_sum_squares(const void* x, double* out) {
  return guarded([&] { *out = sum_squares(tensor(x)); });
}

// One step of AdamW (arXiv 1711.05101) by libtorch's fused kernel; gradients are divided by
// `divisor` first. `step` counts from 1.
char* cx_adamw(
    void* const* params, void* const* grads, void* const* exp_avgs, void* const* exp_avg_sqs, size_t count,
    double step, double lr, double beta1, double beta2, double weight_decay, double eps, double divisor) {
  return guarded([&] {
    if (count == 0) return;
    at::NoGradGuard guard;
    const auto ps = tensors(params, count);
    const auto options = ps[0].options();
    const std::vector<Tensor> steps(count, at::full({}, step, options));
    at::_fused_adamw_(ps, tensors(grads, count), tensors(exp_avgs, count), tensors(exp_avg_sqs, count), {}, steps, lr,
                      beta1, beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false,
                      at::full({}, divisor, options));
  });
}

} // extern "C"
