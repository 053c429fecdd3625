// What the kernels include, ahead of the choice of an instruction set.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "kernels.h"
