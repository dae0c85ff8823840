#pragma once
// Tiles of attention in shared memory and registers: rows of tensors, products of two tiles, and sums over them.
//
// Thread (x, y) of 16 x 16 has the scores of rows 4 y .. 4 y + 3 and columns x, x + 16, x + 32, x + 48.
#include "attention_launch.h"

// Of loops with a fixed count, whose arrays must be in registers.
#define UNROLL_ALL UNROLL(64)

namespace coxswain::cuda::attention {

constexpr int kSlice = 32; // of the depth of a product of rows, in shared memory at one time
// Rows in shared memory are 16 bytes longer than what they hold: a column then lies in different banks.
constexpr int kSliceRow = kSlice + 4, kScoreRow = kTile + 4;
constexpr int kStaged = 2 * kTile * kSliceRow; // floats: two slices, or some whole rows

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T of[4];
};

// Rows of one head in a tensor [b, t, h, k], from a tile's first on.
template <class T>
struct HeadRows {
  T* data;
  int step, count; // from row to row, and how many rows there are
};

template <class T>
__device__ __forceinline__ HeadRows<T> rows_of(
    T* data, int64_t batch, int64_t length, int64_t heads, int64_t head, int64_t dim, int64_t first) {
  const int64_t left = length - first;
  return {data + ((batch * length + first) * heads + head) * dim, static_cast<int>(heads * dim),
          left < kTile ? static_cast<int>(left) : kTile};
}

// Four elements of a row from `col` on as fp32, zeros past the end of the row or the rows.
template <class T>
__device__ __forceinline__ float4 four(const HeadRows<const T>& from, int row, int col, int dim, bool vectors) {
  float4 x{0.f, 0.f, 0.f, 0.f};
  if (row >= from.count || col >= dim) return x;
  const T* at = from.data + row * from.step + col;
  if (vectors) {
    const Four<T> read = *reinterpret_cast<const Four<T>*>(at);
    return {up(read.of[0]), up(read.of[1]), up(read.of[2]), up(read.of[3])};
  }
  x.x = up(at[0]);
  if (col + 1 < dim) x.y = up(at[1]);
  if (col + 2 < dim) x.z = up(at[2]);
  if (col + 3 < dim) x.w = up(at[3]);
  return x;
}

// Copies `rows` rows from `row` on and `kCols` columns from `col` on into shared memory, kStep floats a row.
template <int kCols, int kStep, class T>
__device__ __forceinline__ void stage(
    const HeadRows<const T>& from, int row, int rows, int col, int dim, bool vectors, float* to) {
  constexpr int kFours = kCols / 4;
  UNROLL(2) for (int i = threadIdx.x; i < rows * kFours; i += kThreads) {
    const int r = i / kFours, c = i % kFours * 4;
    *reinterpret_cast<float4*>(to + r * kStep + c) = four(from, row + r, col + c, dim, vectors);
  }
}

// s[i][j] = row 4 y + i of a times row x + 16 j of b, for the thread (x, y).
template <class T>
__device__ __forceinline__ void multiply_rows(
    const HeadRows<const T>& a, const HeadRows<const T>& b, int dim, bool vectors, float* staged, float (&s)[4][4]) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  UNROLL_ALL for (int i = 0; i < 4; ++i) UNROLL_ALL for (int j = 0; j < 4; ++j) s[i][j] = 0.f;
  float *left = staged, *right = staged + kTile * kSliceRow;
  for (int from = 0; from < dim; from += kSlice) {
    __syncthreads();
    stage<kSlice, kSliceRow>(a, 0, kTile, from, dim, vectors, left);
    stage<kSlice, kSliceRow>(b, 0, kTile, from, dim, vectors, right);
    __syncthreads();
    UNROLL(1) for (int d = 0; d < kSlice; d += 4) {
      float4 l[4], r[4];
      UNROLL_ALL for (int i = 0; i < 4; ++i)
        l[i] = *reinterpret_cast<const float4*>(left + (4 * y + i) * kSliceRow + d);
      UNROLL_ALL for (int j = 0; j < 4; ++j)
        r[j] = *reinterpret_cast<const float4*>(right + (x + 16 * j) * kSliceRow + d);
      UNROLL_ALL for (int i = 0; i < 4; ++i) UNROLL_ALL for (int j = 0; j < 4; ++j) {
        s[i][j] = fmaf(l[i].x, r[j].x, s[i][j]);
        s[i][j] = fmaf(l[i].y, r[j].y, s[i][j]);
        s[i][j] = fmaf(l[i].z, r[j].z, s[i][j]);
        s[i][j] = fmaf(l[i].w, r[j].w, s[i][j]);
      }
    }
  }
}

// The rows 4 y .. 4 y + 3 and the columns 4 x + 64 j .. + 3 of a tile of 64 rows of kDim columns, for thread (x, y).
template <int kDim>
struct Sums {
  static constexpr int kParts = kDim / 64;
  float of[4][kParts][4];

  __device__ __forceinline__ void clear() {
    UNROLL_ALL for (int i = 0; i < 4; ++i) UNROLL_ALL for (int j = 0; j < kParts; ++j)
      UNROLL_ALL for (int c = 0; c < 4; ++c) of[i][j][c] = 0.f;
  }
  __device__ __forceinline__ void scale(int row, float by) {
    UNROLL_ALL for (int j = 0; j < kParts; ++j) UNROLL_ALL for (int c = 0; c < 4; ++c) of[row][j][c] *= by;
  }
  __device__ __forceinline__ void add(int row, float factor, const float4 (&b)[kParts]) {
    UNROLL_ALL for (int j = 0; j < kParts; ++j) {
      of[row][j][0] = fmaf(factor, b[j].x, of[row][j][0]);
      of[row][j][1] = fmaf(factor, b[j].y, of[row][j][1]);
      of[row][j][2] = fmaf(factor, b[j].z, of[row][j][2]);
      of[row][j][3] = fmaf(factor, b[j].w, of[row][j][3]);
    }
  }

  // Adds scores (kTurned: turned over) times the first `depth` rows of b.
  template <bool kTurned, class T>
  __device__ __forceinline__ void add_product(
      const float* scores, const HeadRows<const T>& b, int depth, int dim, bool vectors, float* staged) {
    constexpr int kRows = kDim < 128 ? 32 : 4096 / kDim; // at most 16 KiB at one time
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (int from = 0; from < depth; from += kRows) {
      __syncthreads();
      stage<kDim, kDim>(b, from, kRows, 0, dim, vectors, staged);
      __syncthreads();
      UNROLL(1) for (int d = 0; d < kRows; d += 4) {
        float4 a[4];
        UNROLL_ALL for (int i = 0; i < 4; ++i)
          a[i] = *reinterpret_cast<const float4*>(
              kTurned ? scores + (from + d + i) * kScoreRow + 4 * y : scores + (4 * y + i) * kScoreRow + from + d);
        UNROLL_ALL for (int e = 0; e < 4; ++e) {
          float4 row[kParts];
          UNROLL_ALL for (int j = 0; j < kParts; ++j)
            row[j] = *reinterpret_cast<const float4*>(staged + (d + e) * kDim + 4 * x + 64 * j);
          UNROLL_ALL for (int i = 0; i < 4; ++i) add(i, kTurned ? part(a[e], i) : part(a[i], e), row);
        }
      }
    }
  }
  static __device__ __forceinline__ float part(const float4& x, int i) {
    return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
  }

  template <class T>
  __device__ __forceinline__ void write(const HeadRows<T>& to, int dim, bool vectors) const {
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    UNROLL_ALL for (int i = 0; i < 4; ++i) {
      if (4 * y + i >= to.count) continue;
      UNROLL_ALL for (int j = 0; j < kParts; ++j) {
        const int col = 4 * x + 64 * j;
        T* at = to.data + (4 * y + i) * to.step + col;
        if (vectors) {
          if (col >= dim) continue;
          Four<T> made;
          UNROLL_ALL for (int c = 0; c < 4; ++c) down(of[i][j][c], made.of[c]);
          *reinterpret_cast<Four<T>*>(at) = made;
        } else {
          UNROLL_ALL for (int c = 0; c < 4; ++c)
            if (col + c < dim) down(of[i][j][c], at[c]);
        }
      }
    }
  }
};

// Of a tile in shared memory, the element (i, j) of a thread.
__device__ __forceinline__ float& score_at(float* scores, int i, int j) {
  return scores[(threadIdx.x / 16 * 4 + i) * kScoreRow + threadIdx.x % 16 + 16 * j];
}
__device__ __forceinline__ void put_scores(const float (&s)[4][4], float* scores) {
  UNROLL_ALL for (int i = 0; i < 4; ++i) UNROLL_ALL for (int j = 0; j < 4; ++j) score_at(scores, i, j) = s[i][j];
}

} // namespace coxswain::cuda::attention
