// Checks the emulated GPU: check FOLDER [read]
//
// Trains a small layer on the CPU and on the emulated GPU and compares bits, compares the attention kernels with plain
// formulas, and does what a GPU would refuse. `read` ends with a host's read of device memory, which must not succeed.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <thread>

namespace {

using at::Tensor;

int failures = 0;
void (*read_counts)(long*);

void expect(bool good, const std::string& what) {
  std::printf("%s %s\n", good ? "ok  " : "FAIL", what.c_str());
  failures += !good;
}

void expect_refused(const char* what, const std::function<void()>& call) {
  try {
    call();
    expect(false, std::string(what) + " was not refused");
  } catch (const std::exception& error) {
    const std::string text = error.what();
    expect(true, std::string(what) + ": " + text.substr(0, std::min(text.find('\n'), size_t{110})));
  }
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = a.detach().cpu().contiguous(), y = b.detach().cpu().contiguous();
  return x.sizes() == y.sizes() && x.scalar_type() == y.scalar_type() &&
      (x.numel() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0);
}

double distance(const Tensor& a, const Tensor& b) {
  return (a.detach().cpu().to(at::kDouble) - b.detach().cpu().to(at::kDouble)).abs().max().item<double>();
}

const at::Device gpu(at::kCUDA, 0);

// Numbers that look random; the same for equal seeds.
Tensor made(at::IntArrayRef shape, double seed, at::ScalarType kind = at::kFloat) {
  return at::arange(1, 1 + c10::multiply_integers(shape), at::kDouble).mul_(0.7 + seed).sin_().view(shape).to(kind);
}

// ---- Training: the same bits on both devices.

struct Seen : torch::autograd::Function<Seen> {
  static Tensor forward(torch::autograd::AutogradContext*, const Tensor& x) { return x * 1; }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*, torch::autograd::variable_list g) {
    if (g[0].is_cuda()) elsewhere = std::this_thread::get_id() != main_thread, threads = at::get_num_threads();
    return {g[0]};
  }
  static std::thread::id main_thread;
  static bool elsewhere;
  static int threads;
};
std::thread::id Seen::main_thread = std::this_thread::get_id();
bool Seen::elsewhere = false;
int Seen::threads = 0;

std::vector<Tensor> train(at::Device device, at::ScalarType kind) {
  const int64_t b = 2, t = 33, d = 96, h = 4;
  Tensor w = made({3 * d, d}, 1).mul_(0.1).to(device).requires_grad_(true);
  Tensor out = made({d, d}, 2).mul_(0.1).to(device).requires_grad_(true), table = made({50, d}, 3).to(device);
  Tensor m = at::zeros({3 * d, d}, w.options().requires_grad(false)), v = at::zeros_like(m);
  Tensor ids = at::arange(b * t, at::TensorOptions(at::kLong).device(device)).mul_(7).remainder_(50);
  std::vector<Tensor> results;
  for (int step = 1; step <= 3; ++step) {
    const Tensor seen = table.index_select(0, ids).view({b, t, d}).to(kind).requires_grad_(true);
    const Tensor x = Seen::apply(seen);
    const Tensor qkv = at::linear(x, w.to(kind)).view({b, t, 3, h, d / h}).permute({2, 0, 3, 1, 4});
    Tensor y = device.is_cpu() ? std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(qkv[0], qkv[1], qkv[2], 0.0, true))
        : kind == at::kFloat ? std::get<0>(at::_scaled_dot_product_efficient_attention(qkv[0], qkv[1], qkv[2], {}, true, 0.0, true))
                             : std::get<0>(at::_scaled_dot_product_flash_attention(qkv[0], qkv[1], qkv[2], 0.0, true));
    y = at::linear(at::silu(y.transpose(1, 2).reshape({b, t, d})), out.to(kind)).add(x);
    const Tensor loss = at::cross_entropy_loss(y.reshape({b * t, d}).to(at::kFloat), ids.remainder(d));
    const auto grads = torch::autograd::grad({loss}, {w, out, seen});
    at::NoGradGuard guard;
    const Tensor steps = at::full({}, step, at::TensorOptions(at::kFloat).device(device));
    at::_fused_adamw_(std::vector<Tensor>{w}, {grads[0]}, {m}, {v}, {}, {steps}, 1e-2, 0.9, 0.95, 0.1, 1e-8, false,
                      false, at::full({}, 2.0, at::TensorOptions(at::kFloat).device(device)));
    out.sub_(grads[1], 0.1);
    table.index_add_(0, ids, y.reshape({b * t, d}).to(at::kFloat).mul(1e-3));
    results.push_back(loss.detach());
  }
  for (const Tensor& x : {w, out, m, v, table}) results.push_back(x.detach());
  return results;
}

void check_training() {
  for (auto kind : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const auto one = train(at::kCPU, kind);
    long counts[4];
    read_counts(counts);
    const auto two = train(gpu, kind);
    read_counts(counts);
    bool same = true;
    for (size_t i = 0; i < one.size(); ++i) same &= same_bits(one[i], two[i]);
    expect(same, std::string("three steps in ") + c10::toString(kind) + " have the CPU's bits; loss " +
                     std::to_string(two[2].item<double>()) + "; waits " + std::to_string(counts[0]) +
                     ", copies to the host " + std::to_string(counts[1]) + ", to the device " +
                     std::to_string(counts[2]) + ", launches " + std::to_string(counts[3]));
    expect(counts[0] == 0 && counts[1] == 0, "and wait for nothing");
  }
  expect(Seen::elsewhere, "the backward pass runs on autograd's device thread");
  expect(Seen::threads == at::get_num_threads(), "which has " + std::to_string(Seen::threads) + " threads for the CPU's kernels");
}

// ---- Attention, against plain formulas in double.

struct Case {
  const char* name;
  int64_t b, t, s, h, g, k;
  bool causal;
  int64_t left, right; // -1: no bound
};

// q[b, t, h, k]; the output and the log-sums [b, h, t]. Causal and windows count from the end.
std::pair<Tensor, Tensor> plain(const Tensor& q, const Tensor& k, const Tensor& v, int64_t shift, int64_t left, int64_t right) {
  const int64_t t = q.size(1), s = k.size(1), groups = q.size(2) / k.size(2);
  auto heads = [groups](const Tensor& x) { return x.transpose(1, 2).repeat_interleave(groups, 1); };
  Tensor hidden = at::zeros({t, s}, at::kBool);
  auto marks = hidden.accessor<bool, 2>();
  for (int64_t i = 0; i < t; ++i)
    for (int64_t j = 0; j < s; ++j)
      marks[i][j] = (left >= 0 && j < i + shift - left) || (right >= 0 && j > i + shift + right);
  const Tensor scores = at::matmul(q.transpose(1, 2), heads(k).transpose(2, 3))
                            .div(std::sqrt(static_cast<double>(q.size(3))))
                            .masked_fill(hidden, -1e300);
  const Tensor p = scores.softmax(-1).masked_fill(hidden, 0);
  return {at::matmul(p, heads(v)).transpose(1, 2), scores.logsumexp(-1)};
}

// The output, the log-sums and the three gradients of one way to compute attention.
void compare(const std::string& name, const std::vector<Tensor>& got, const std::vector<Tensor>& wanted, double within) {
  double worst = 0;
  bool shapes = true;
  for (size_t i = 0; i < got.size(); ++i) {
    shapes &= got[i].sizes() == wanted[i].sizes() && got[i].is_cuda();
    if (shapes) worst = std::max(worst, distance(got[i], wanted[i].masked_fill(wanted[i] < -1e200, 0).masked_fill(wanted[i].isnan(), 0)));
  }
  char text[64];
  std::snprintf(text, sizeof text, ": within %.1e", worst);
  expect(shapes && worst < within, name + (shapes ? text : ": other shapes"));
}

void check_attention() {
  const Case cases[] = {
      {"all keys, t 33, s 77, k 24", 2, 33, 77, 4, 4, 24, false, -1, -1},
      {"causal, t 33", 2, 33, 33, 4, 4, 24, true, -1, -1},
      {"causal, grouped", 2, 33, 33, 8, 2, 24, true, -1, -1},
      {"causal, t 33, s 77", 1, 33, 77, 4, 2, 24, true, -1, -1},
      {"window to the left", 2, 33, 33, 4, 1, 24, true, 7, 0},
      {"window both ways, t 33, s 77", 1, 33, 77, 4, 2, 64, false, 5, 9},
  };
  for (const Case& c : cases) {
    for (auto kind : {at::kBFloat16, at::kHalf}) {
      const Tensor q = made({c.b, c.t, c.h, c.k}, 1, kind), k = made({c.b, c.s, c.g, c.k}, 2, kind);
      const Tensor v = made({c.b, c.s, c.g, c.k}, 3, kind), dout = made({c.b, c.t, c.h, c.k}, 4, kind);
      // In double, by autograd of the plain formula.
      std::vector<Tensor> in{q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble)};
      for (Tensor& x : in) x.requires_grad_(true);
      auto [out, log_sums] = plain(in[0], in[1], in[2], c.s - c.t, c.left, c.causal ? 0 : c.right);
      auto grads = torch::autograd::grad({out}, in, {dout.to(at::kDouble)});
      const std::vector<Tensor> wanted{out, log_sums, grads[0], grads[1], grads[2]};
      const std::string of = std::string(c10::toString(kind)) + ", " + c.name;
      const double within = kind == at::kHalf ? 1e-2 : 6e-2;

      const Tensor qd = q.to(gpu), kd = k.to(gpu), vd = v.to(gpu), gd = dout.to(gpu);
      auto bound = [](int64_t x) { return x < 0 ? std::optional<int64_t>() : std::optional<int64_t>(x); };
      auto f = at::_flash_attention_forward(qd, kd, vd, {}, {}, c.t, c.s, 0.0, c.causal, false, {}, bound(c.left), bound(c.right));
      auto g = at::_flash_attention_backward(gd, qd, kd, vd, std::get<0>(f), std::get<1>(f), {}, {}, c.t, c.s, 0.0,
                                             c.causal, std::get<2>(f), std::get<3>(f), {}, bound(c.left), bound(c.right));
      compare("flash by name, " + of, {std::get<0>(f), std::get<1>(f), std::get<0>(g), std::get<1>(g), std::get<2>(g)}, wanted, within);
      if (c.left >= 0) continue;

      // Heads first, by autograd's own formulas.
      std::vector<Tensor> leaves{qd.detach(), kd.detach(), vd.detach()};
      for (Tensor& x : leaves) x.requires_grad_(true);
      auto a = at::_scaled_dot_product_flash_attention(leaves[0].transpose(1, 2), leaves[1].transpose(1, 2), leaves[2].transpose(1, 2), 0.0, c.causal);
      const Tensor first = std::get<0>(a).transpose(1, 2);
      auto d = torch::autograd::grad({first}, leaves, {gd});
      compare("flash by autograd, " + of, {first, std::get<1>(a), d[0], d[1], d[2]}, wanted, within);
    }
    if (c.g != c.h || c.left >= 0) continue;
    // The memory-efficient kernel, in fp32. Its causal mask counts from the beginning.
    std::vector<Tensor> in{made({c.b, c.t, c.h, c.k}, 1, at::kDouble), made({c.b, c.s, c.g, c.k}, 2, at::kDouble), made({c.b, c.s, c.g, c.k}, 3, at::kDouble)};
    const Tensor dout = made({c.b, c.t, c.h, c.k}, 4);
    std::vector<Tensor> leaves;
    for (Tensor& x : in) x.requires_grad_(true), leaves.push_back(x.detach().to(at::kFloat).to(gpu).requires_grad_(true));
    auto [out, log_sums] = plain(in[0], in[1], in[2], 0, -1, c.causal ? 0 : -1);
    auto grads = torch::autograd::grad({out}, in, {dout.to(at::kDouble)});
    auto a = at::_scaled_dot_product_efficient_attention(leaves[0].transpose(1, 2), leaves[1].transpose(1, 2), leaves[2].transpose(1, 2), {}, true, 0.0, c.causal);
    const Tensor first = std::get<0>(a).transpose(1, 2);
    auto d = torch::autograd::grad({first}, leaves, {dout.to(gpu)});
    expect(std::get<1>(a).size(2) == (c.t + 31) / 32 * 32, "the log-sums are padded to 32");
    compare(std::string("efficient by autograd, ") + c.name, {first, std::get<1>(a).narrow(2, 0, c.t), d[0], d[1], d[2]},
            {out, log_sums, grads[0], grads[1], grads[2]}, 1e-4);
  }

  // Sequences one after another against each by itself.
  const auto kind = at::kBFloat16;
  const Tensor q = made({50, 4, 24}, 1, kind).to(gpu), k = made({50, 2, 24}, 2, kind).to(gpu), v = made({50, 2, 24}, 3, kind).to(gpu), dout = made({50, 4, 24}, 4, kind).to(gpu);
  const int64_t ends[] = {0, 17, 20, 50};
  const Tensor ends_d = at::tensor({0, 17, 20, 50}, at::kInt).to(gpu);
  auto f = at::_flash_attention_forward(q, k, v, ends_d, ends_d, 30, 30, 0.0, true, false);
  auto g = at::_flash_attention_backward(dout, q, k, v, std::get<0>(f), std::get<1>(f), ends_d, ends_d, 30, 30, 0.0, true, std::get<2>(f), std::get<3>(f));
  bool same = std::get<1>(f).sizes() == at::IntArrayRef({4, 50});
  for (int i = 0; i < 3; ++i) {
    const int64_t t = ends[i + 1] - ends[i];
    auto part = [&](const Tensor& x) { return x.narrow(0, ends[i], t).unsqueeze(0); };
    auto a = at::_flash_attention_forward(part(q), part(k), part(v), {}, {}, t, t, 0.0, true, false);
    auto b = at::_flash_attention_backward(part(dout), part(q), part(k), part(v), std::get<0>(a), std::get<1>(a), {}, {}, t, t, 0.0, true, std::get<2>(a), std::get<3>(a));
    same &= same_bits(part(std::get<0>(f)), std::get<0>(a)) && same_bits(std::get<1>(f).narrow(1, ends[i], t), std::get<1>(a)[0]) &&
        same_bits(part(std::get<0>(g)), std::get<0>(b)) && same_bits(part(std::get<1>(g)), std::get<1>(b)) && same_bits(part(std::get<2>(g)), std::get<2>(b));
  }
  expect(same, "flash over sequences has the bits of each by itself");
}

// ---- Operators by themselves.

void check_operators() {
  for (auto kind : {at::kBFloat16, at::kHalf}) {
    const Tensor a = made({5, 37}, 1, kind), b = made({37, 7}, 2, kind), c = made({5, 7}, 3), ad = a.to(gpu), bd = b.to(gpu);
    const Tensor wanted = at::mm(a.to(at::kFloat), b.to(at::kFloat));
    const std::string of = std::string(" of ") + c10::toString(kind) + " in fp32";
    expect(same_bits(at::mm(ad, bd, at::kFloat), wanted), "mm" + of);
    Tensor out = at::empty({5, 7}, ad.options().dtype(at::kFloat));
    at::mm_out(out, ad, bd, at::kFloat);
    expect(same_bits(out, wanted), "mm_out" + of);
    out = at::empty({0}, out.options());
    at::mm_out(out, bd.t(), ad.t(), at::kFloat);
    expect(out.sizes() == at::IntArrayRef({7, 5}) && distance(out, wanted.t()) < 1e-5, "mm_out of transposes, into an empty result" + of);
    Tensor sum = c.to(gpu);
    at::addmm_out(sum, sum, ad, bd, at::kFloat, 1, 1);
    expect(same_bits(sum, at::addmm(c, a.to(at::kFloat), b.to(at::kFloat))), "addmm_out in place" + of);
    expect(same_bits(at::addmm(c.to(gpu), ad, bd, at::kFloat), sum), "addmm" + of);
    Tensor flat = at::zeros({100}, sum.options()), view = flat.narrow(0, 10, 35).view({5, 7});
    at::addmm_out(view, view, ad, bd, at::kFloat, 0, 1);
    expect(same_bits(view, wanted) && flat.narrow(0, 0, 10).eq(0).all().item<bool>(), "addmm_out into a view with beta 0" + of);
    expect(same_bits(at::bmm(ad.unsqueeze(0), bd.unsqueeze(0), at::kFloat)[0], wanted), "bmm" + of);
  }
  const Tensor x = made({4, 9}, 5), xd = x.to(gpu);
  const Tensor ids = at::arange(40, at::kLong).mul(13).remainder(7), ids_d = ids.to(gpu);
  auto [v, i] = at::sort(ids, /*stable=*/true, 0, false);
  auto [vd, id] = at::sort(ids_d, /*stable=*/true, 0, false);
  expect(same_bits(v, vd) && same_bits(i, id), "sort, stable");
  expect(same_bits(at::index_select(x, 1, ids), at::index_select(xd, 1, ids_d)), "index_select");
  const auto on = at::TensorOptions(at::kFloat).device(gpu);
  expect(at::full({3}, 2.5, on).sum().item<float>() == 7.5f && at::zeros({3}, on).eq(0).all().item<bool>() &&
             at::empty({2, 3}, on).sizes() == at::IntArrayRef({2, 3}), "full, zeros, empty");
  expect(same_bits(at::stack({xd, xd}), at::stack({x, x})) && same_bits(at::cat({xd, xd}, 1), at::cat({x, x}, 1)), "stack, cat");
  Tensor bad = xd.clone();
  bad[2][3] = std::numeric_limits<float>::quiet_NaN();
  expect(at::isfinite(xd).all().item<bool>() && !at::isfinite(bad).all().item<bool>(), "isfinite().all()");
  Tensor to = at::empty({4, 9}, on), back = at::empty({4, 9});
  to.copy_(x), back.copy_(to);
  expect(same_bits(back, x) && same_bits(xd.t().to(at::kCPU, at::kBFloat16), x.t().to(at::kBFloat16)), "copies, with a change of type and strides");
  expect(!at::empty({1 << 20}, on).isfinite().any().item<bool>(), "fresh memory is NaN");

  // AdamW over lists, with steps on the device.
  auto adamw = [](at::Device device) {
    std::vector<Tensor> ps, gs, ms, vs, steps;
    for (int n : {1, 64, 131}) {
      ps.push_back(made({n}, n).to(device)), gs.push_back(made({n}, n + 0.5).to(device));
      ms.push_back(at::zeros_like(ps.back())), vs.push_back(at::zeros_like(ps.back()));
      steps.push_back(at::zeros({}, ps.back().options()));
    }
    for (int step = 0; step < 3; ++step) {
      for (Tensor& s : steps) s.add_(1);
      at::_fused_adamw_(ps, gs, ms, vs, {}, steps, 1e-2, 0.9, 0.95, 0.1, 1e-8, false, false, at::full({}, 2.0, ps[0].options()));
    }
    return at::cat({at::cat(ps), at::cat(ms), at::cat(vs)});
  };
  expect(same_bits(adamw(at::kCPU), adamw(gpu)), "fused AdamW");
}

void check_refusals() {
  const auto on = at::TensorOptions(at::kFloat).device(gpu);
  const Tensor x = at::ones({4}, on), q = at::ones({1, 2, 1, 8}, on), half = q.to(at::kBFloat16);
  expect_refused("mixed devices", [&] { at::add(x, at::ones({4})); });
  expect_refused("mixed devices in a product", [&] { at::mm(half[0][0], at::ones({8, 2}, at::kBFloat16), at::kFloat); });
  expect_refused("a result of another shape", [&] { Tensor out = at::empty({3}, on); at::add_out(out, x, x); });
  expect_refused("the CPU's attention", [&] { at::_scaled_dot_product_flash_attention_for_cpu(q, q, q); });
  expect_refused("flash in fp32", [&] { at::_flash_attention_forward(q, q, q, {}, {}, 2, 2, 0.0, true, false); });
  expect_refused("flash with 7 elements a head", [&] { const Tensor n = half.narrow(3, 0, 7).contiguous(); at::_flash_attention_forward(n, n, n, {}, {}, 2, 2, 0.0, true, false); });
  expect_refused("AdamW with a step on the host", [&] {
    at::_fused_adamw_(std::vector<Tensor>{x}, {x.clone()}, {x.clone()}, {x.clone()}, {}, {at::ones({})}, 1e-2, 0.9, 0.95, 0.1, 1e-8, false, false);
  });
  expect_refused("an fp64 result of bf16 factors", [&] { at::mm(half[0][0].t(), half[0][0], at::kDouble); });
}

} // namespace

int main(int count, char** arguments) {
  if (count < 2) return std::printf("check FOLDER [read]\n"), 2;
  // A worker has run code of the CPU before; what asks about GPUs must come after the libraries are open.
  expect(at::ones({3}).sum().item<float>() == 3, "the CPU alone");
  at::set_num_threads(2);
  const std::string folder = arguments[1];
  for (const char* name : {"/libtorch_cuda.so", "/libcoxswain_emulated_gpu.so"})
    if (dlopen((folder + name).c_str(), RTLD_LAZY | RTLD_GLOBAL) == nullptr) return std::printf("%s\n", dlerror()), 1;
  const int made = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "emulate"))();
  read_counts = reinterpret_cast<void (*)(long*)>(dlsym(RTLD_DEFAULT, "emulated_counts"));
  expect(made > 900 && at::hasCUDA(), std::to_string(made) + " operators emulated");
  check_training();
  check_attention();
  check_operators();
  check_refusals();
  std::printf("%d failures\n", failures);
  std::fflush(stdout);
  if (count > 2) {
    const Tensor x = at::ones({4}, at::TensorOptions().device(gpu));
    std::printf("a host's read of the GPU's memory: %f\n", static_cast<const float*>(x.const_data_ptr())[0]);
  }
  return failures != 0;
}
