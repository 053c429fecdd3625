#include <string>
#include <tuple>

#include "aten.h"
#include "kernels.h"

namespace llr_fast {
namespace {

using torch::stable::new_empty;
