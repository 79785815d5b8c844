// The kernels for one instruction set; CMakeLists.txt sets the flags.
#include "variant.h"
#define SOFTGRAD_VARIANT "baseline"
namespace softgrad::baseline {
#include "simd.inc.h"
#include "kernels.inc.cpp"
}  // namespace softgrad::baseline
