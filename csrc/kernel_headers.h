// What the kernels include, ahead of the choice of an instruction set. No templates of the standard library: the linker
// could keep an instance that was compiled for another CPU.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <new>

#include "kernels.h"
