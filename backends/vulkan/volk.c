/* volk.c - the loader: volk keeps its function pointers here. */
#define VOLK_IMPLEMENTATION
#include <volk.h>
