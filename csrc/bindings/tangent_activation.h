#pragma once
#include <optional>
#include <string>
#include <tuple>

#include "../kernels/isa.h"
#include "aten.h"

namespace llr_fast {

Statistic statistic_named(const std::string& name);

// As the operator llr_fast::tangent_activation_backward.
std::tuple<Tensor, Tensor> tangent_activation_backward(std::optional<Tensor> d_out, std::optional<Tensor> d_stat,
                                                       Tensor tangents, Tensor slope, Tensor stat,
                                                       std::string statistic, bool needs_slope);

}  // namespace llr_fast
