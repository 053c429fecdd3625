// What the kernels include, ahead of the choice of an instruction set. Of the standard library's templates they
// use none on built-in types: the linker could keep an instance that was compiled for another CPU.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <new>

#include "isa.h"
#include "padding.h"
