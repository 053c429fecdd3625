#include "kernel_headers.h"

#define ISA generic
#define ISA_NAME "generic"
#define KERNELS generic_kernels
#define VECTOR_BYTES 16
#define TILE_ROWS 6

#include "kernels.inc"
