#include "../kernels/isa.h"

#include <torch/csrc/stable/library.h>

#include <string>

namespace llr_fast {

static std::string instruction_set_name() { return instruction_set().name; }

STABLE_TORCH_LIBRARY_FRAGMENT(llr_fast_native, m) { m.def("instruction_set() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(llr_fast_native, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&instruction_set_name));
}

}  // namespace llr_fast
