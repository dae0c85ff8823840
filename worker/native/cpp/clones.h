#pragma once
// One body, compiled for each instruction set and chosen by the processor when the program loads.
#if defined(__x86_64__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

// Helpers must become part of each clone: a call would go to a version for the oldest processor.
#define INLINE inline __attribute__((always_inline))
