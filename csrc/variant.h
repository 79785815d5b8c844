// What a variant includes before it opens its namespace.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels.h"

#define FORCE_INLINE __attribute__((always_inline))  // a call for each vector costs as much as its exp
#define NEVER_INLINE __attribute__((noinline))  // element by element, and in every loop's end: a third of the binary
