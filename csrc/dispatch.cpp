// Which of the compiled variants this processor runs.
#include "kernels.h"

namespace softgrad {

const Kernels* const* available() {
  static const Kernels* list[4] = {};
  if (list[0]) return list;
  const Kernels* found[4] = {};
  int n = 0;
#if defined(SOFTGRAD_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    found[n++] = &avx512::kernels;
  if (avx2) found[n++] = &avx2::kernels;  // every processor with AVX2 and FMA has F16C
#endif
  found[n++] = &baseline::kernels;
  for (int i = n - 1; i >= 0; --i) list[i] = found[i];  // list[0] last: a second thread sees all or nothing
  return list;
}

}  // namespace softgrad
