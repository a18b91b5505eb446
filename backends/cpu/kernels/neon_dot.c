/* neon_dot.c - the NEON kernels for machines with the dot-product instruction (Armv8.2 and later). */
#define RQ_NEON_DOT
#include "backends/cpu/kernels/neon.c"
