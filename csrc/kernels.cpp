#include "kernels.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace llr_fast {

static const Kernels& choose() {
  const char* name = std::getenv("LLR_FAST_ISA");
  const std::string isa = name ? name : "";
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && (isa.empty() || isa == "avx512")) return avx512_kernels;
  if (avx2 && (isa.empty() || isa == "avx2")) return avx2_kernels;
#endif
  if (isa.empty() || isa == "generic") return generic_kernels;
  throw std::runtime_error("LLR_FAST_ISA=" + isa + ": this machine runs no such kernels");
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

static std::string instruction_set() { return kernels().isa; }

STABLE_TORCH_LIBRARY_FRAGMENT(llr_fast_native, m) { m.def("instruction_set() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(llr_fast_native, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&instruction_set));
}

}  // namespace llr_fast
