#pragma once
// Linear attention on a GPU. Gradients are libtorch's.
#include "function.h"

namespace coxswain {

// Every query sees all keys: q[b, t, h, k], k and v[b, s, g, k].
Tensor gpu_linear_attention(const Tensor& q_bthk, const Tensor& k_bsgk, const Tensor& v_bsgk);

// A query sees the keys up to its own, and what came to the state s[b, h, k, k] and z[b, h, k] before. The log decays
// [b, t, h] may be undefined. Returns the output and the state after the last token.
std::vector<Tensor> gpu_causal_linear_attention(
    const Tensor& q_bthk, const Tensor& k_btgk, const Tensor& v_btgk, const Tensor& log_decay_bth, const Tensor& s_bhkk,
    const Tensor& z_bhk);

} // namespace coxswain
