#pragma once
// The hash of ../cpp/random.h, which draws dropout, compiled for the device too.
#include "../cpp/clones.h"
#undef INLINE
#define INLINE __host__ __device__ inline
#include "../cpp/random.h"
