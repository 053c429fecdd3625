// The instruction sets that the kernels are compiled for, and the choice of one.
#pragma once
#include "kernels.h"

// Clang does not know the target pragma that these need, and gets the generic kernels.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define X86_KERNELS
#endif

namespace llr_fast {

struct InstructionSet {
  const char* name;
  Kernels<float> of_float;
  Kernels<double> of_double;
};

extern const InstructionSet generic;
#if defined(X86_KERNELS)
extern const InstructionSet avx2, avx512;
#endif

// The widest that this machine runs, or the one that the environment variable LLR_FAST_ISA names.
const InstructionSet& instruction_set();

template <class T>
const Kernels<T>& kernels();
template <>
inline const Kernels<float>& kernels() {
  return instruction_set().of_float;
}
template <>
inline const Kernels<double>& kernels() {
  return instruction_set().of_double;
}

}  // namespace llr_fast
