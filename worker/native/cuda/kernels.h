#pragma once
// The shim's own kernels on a GPU, as a table of functions that libcoxswain_cuda.so hands over when a worker opens it.
// What each computes stands in ../cpp/kernels.h; the shim calls one or the other by where its tensors are.
//
// Pointers are of the device unless said otherwise, rows are contiguous, and all work goes to the default stream, in
// order: nothing here waits for the GPU. Arithmetic is fp32. Sums are taken in an order that the shape of a row or of a
// use fixes: no atomics, so a layout or a second run changes no bit. A function returns null, or an error's text, which
// lives as long as the process.
#include <cstddef>
#include <cstdint>

namespace coxswain::cuda {

enum class Kind : int32_t { Fp32 = 0, Bf16 = 1, Fp16 = 2 };

// The rows of one use of a vector in [batch, tokens, dim]: tokens first..first + count of each batch, batch by batch.
struct Rows {
  int64_t batch, tokens, first, count;
};

// Of a dropout: an element whose 32 bits are below the threshold is dropped, others are multiplied (../cpp/random.h).
struct Drop {
  uint64_t key;
  uint32_t threshold;
  float scale;
};

using Error = const char*;

struct Kernels {
  int64_t version; // kVersion of the header that the library was built with

  // The device's name, compute capability and multiprocessors, as "NVIDIA H100 80GB HBM3, sm_90, 132 multiprocessors",
  // into `text` of `size` bytes on the host.
  Error (*describe)(int device, char* text, size_t size);
  // The error of an earlier launch, if there is one.
  Error (*error)();

  // y = x rstd w, rstd = 1 / sqrt(mean(x^2) + eps): x and y [rows, dim], rstd [rows].
  Error (*rms_norm)(Kind, const void* x, const float* w, float eps, int64_t rows, int64_t dim, void* y, float* rstd);
  Error (*rms_norm_grad)(
      Kind, const void* dy, const void* x, const float* w, const float* rstd, int64_t rows, int64_t dim, void* dx);
  // dw[dim] = the sum over the use's rows of dy x rstd: runs of kRun rows in order, then the runs in order. `runs` has
  // room for (batch * count + kRun - 1) / kRun * dim floats. The row numbers of x, dy and rstd are those of all rows.
  Error (*rms_norm_weight_grad)(
      Kind, const void* dy, const void* x, const float* rstd, Rows, int64_t dim, float* runs, float* dw);

  // y = (x - mean) rstd w + b.
  Error (*layer_norm)(
      Kind, const void* x, const float* w, const float* b, float eps, int64_t rows, int64_t dim, void* y, float* mean,
      float* rstd);
  Error (*layer_norm_grad)(
      Kind, const void* dy, const void* x, const float* w, const float* mean, const float* rstd, int64_t rows,
      int64_t dim, void* dx);
  Error (*layer_norm_weight_grad)(
      Kind, const void* dy, const void* x, const float* mean, const float* rstd, Rows, int64_t dim, float* runs,
      float* dw);

  // y = x + b, and db[dim] = the sum over the use's rows of dy.
  Error (*add_bias)(Kind, const void* x, const float* b, int64_t rows, int64_t dim, void* y);
  Error (*bias_grad)(Kind, const void* dy, Rows, int64_t dim, float* runs, float* db);

  // y = act(a) b, or act(a) where b is null; `by` is a kernels::Activation. Then da, and db where b is not null.
  Error (*activate)(int by, Kind, const void* a, const void* b, int64_t count, void* y);
  Error (*activate_grad)(
      int by, Kind, const void* dy, const void* a, const void* b, int64_t count, void* da, void* db);

  // x and y [batch, tokens, heads, 2 half], cos and sin [tokens, half]; `sign` is -1 for the way back.
  Error (*rope)(
      Kind, const void* x, const float* cos, const float* sin, float sign, int64_t batch, int64_t tokens,
      int64_t heads, int64_t half, void* y);

  // Cross-entropy over columns start..start + columns of a vocabulary: logits [rows, columns].
  // largest[rows]: each row's maximum; a NaN is passed by.
  Error (*row_maxima)(Kind, const void* logits, int64_t rows, int64_t columns, float* largest);
  // parts[2, rows]: the sum of exp(logit - largest), and the target's logit less the largest, 0 where it is not here.
  // Logits stay as they are, in every kind.
  Error (*row_sums)(
      Kind, const void* logits, int64_t rows, int64_t columns, int64_t start, const int64_t* targets,
      const float* largest, float* parts);
  // losses[rows] = weight (log parts[0] - parts[1]), 0 where the target is negative; weights may be null, for 1.
  Error (*row_losses)(const float* parts, const int64_t* targets, const float* weights, int64_t rows, double* losses);
  // Logits become their gradient times *factor, in place; a row whose target is negative becomes zeros, even of NaN.
  Error (*logits_grad)(
      Kind, void* logits, int64_t rows, int64_t columns, int64_t start, const int64_t* targets, const float* weights,
      const float* largest, const float* sums, const double* factor);

  // y[rows, dim] of kind `to`: the table's rows ids - start, zeros for ids outside of start..start + vocab.
  Error (*embed)(
      Kind from, Kind to, const int64_t* ids, const void* table, int64_t start, int64_t vocab, int64_t rows,
      int64_t dim, void* y);
  // dw[id - start] += dy's rows of each id, in row order. `sorted` has the ids in rising order and `order` the row that
  // each stood in, equal ids in row order. Ids outside of start..start + vocab add nothing.
  Error (*embed_grad)(
      Kind, const int64_t* sorted, const int64_t* order, const void* dy, int64_t start, int64_t vocab, int64_t rows,
      int64_t dim, float* dw);
  // sum[size, heads] = the sum over i, in order, of dy[head, i] where rows[i] is the row.
  Error (*table_grad)(
      const int64_t* rows, const float* dy, int64_t heads, int64_t count, int64_t size, float* sum);

  // sums[i] = the sum of squares, in double, of x's elements block * i .. block * (i + 1), the last block shorter.
  Error (*sum_squares)(const float* x, int64_t count, int64_t block, double* sums);

  // x and y: `batch` runs of `run` elements; element j of run b has the index b * stride + first + j.
  Error (*drop)(Kind, const void* x, Drop, int64_t batch, int64_t run, uint64_t stride, uint64_t first, void* y);
};

constexpr int64_t kVersion = 1;
// Rows that a sum over rows takes one after another.
constexpr int64_t kRun = 128;

} // namespace coxswain::cuda

// What the library exports.
extern "C" const coxswain::cuda::Kernels* coxswain_cuda_kernels();
