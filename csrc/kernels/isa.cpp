#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace llr_fast {

static const InstructionSet& choose() {
  const char* name = std::getenv("LLR_FAST_ISA");
  const std::string isa = name ? name : "";
#if defined(X86_KERNELS)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (has_avx512 && (isa.empty() || isa == "avx512")) return avx512;
  if (has_avx2 && (isa.empty() || isa == "avx2")) return avx2;
#endif
  if (isa.empty() || isa == "generic") return generic;
  throw std::runtime_error("LLR_FAST_ISA=" + isa + ": this machine runs no such kernels");
}

const InstructionSet& instruction_set() {
  static const InstructionSet& chosen = choose();
  return chosen;
}

}  // namespace llr_fast
