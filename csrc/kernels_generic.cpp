#include "kernel_headers.h"

#define NAMESPACE generic
#define VECTOR_BYTES 16
#define TILE_ROWS 6

#include "kernels.inc"
