// The kernels for one instruction set; CMakeLists.txt sets the flags.
#include "variant.h"
#define SOFTGRAD_VARIANT "avx2"
namespace softgrad::avx2 {
#include "simd.inc.h"
#include "kernels.inc.cpp"
}  // namespace softgrad::avx2
