/* launched.c - which kernels a process launched, one name a line, into the file that RQVK_SIMT_LAUNCHED names: for the test
 * that compares them with those there are (test_simt --launched). */
#include "tests/simt/sim.h"

#include <stdio.h>
#include <stdlib.h>

__attribute__((destructor)) static void write_names(void)
{
    const char *path = getenv("RQVK_SIMT_LAUNCHED"), *name;
    FILE *out = path ? fopen(path, "w") : NULL;
    bool launched;
    if (!out) return;
    for (uint32_t i = 0; (name = simt_kernel(i, &launched)) != NULL; i++)
        if (launched) fprintf(out, "%s\n", name);
    fclose(out);
}
