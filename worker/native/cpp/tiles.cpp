#include "tiles.h"

#include <cstring>
#include <limits>

#include "random.h"

// Vectors of 16 floats are passed between functions that become one; there is no boundary to keep.
#pragma GCC diagnostic ignored "-Wpsabi"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MANY_SETS 1
#endif

namespace coxswain::tiles {

#ifdef MANY_SETS
// 32 registers of 16 floats: 16 hold sums.
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace v4 {
namespace {
#define ROWS 8
#define VECTORS 2
#include "tiles.inc"
#undef ROWS
#undef VECTORS
} // namespace
} // namespace v4
#pragma GCC pop_options

// 16 registers of 8 floats: 8 hold sums.
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace v3 {
namespace {
#define ROWS 4
#define VECTORS 1
#include "tiles.inc"
#undef ROWS
#undef VECTORS
} // namespace
} // namespace v3
#pragma GCC pop_options
#endif

namespace base {
namespace {
#define ROWS 2
#define VECTORS 1
#include "tiles.inc"
#undef ROWS
#undef VECTORS
} // namespace
} // namespace base

const Kernels& kernels() {
#ifdef MANY_SETS
  static const Kernels& chosen = __builtin_cpu_supports("x86-64-v4") ? v4::table
      : __builtin_cpu_supports("x86-64-v3")                          ? v3::table
                                                                     : base::table;
  return chosen;
#else
  return base::table;
#endif
}

} // namespace coxswain::tiles
