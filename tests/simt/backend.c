/* backend.c - the CUDA backend over the simulator, and a list of backends that has it, for the tests that take one by
 * name (simt, or cuda as a user would): they link this in place of the program's own list. */
#include "tests/simt/backend.h"
#include "backends/cuda/cu.h"
#include "tests/simt/sim.h"

#include <string.h>

static uint32_t count(void)
{
    return 1;
}

static rq_status open_simulator(const rq_device_options *options, rq_device **out, rq_error *err)
{
    static const cu_image one = {""};
    return cu_open_with(&rq_backend_simt, &simt_api, &one, 1, options, out, err);
}

const rq_backend rq_backend_simt = {
    .name = "simt",
    .count = count,
    .open = open_simulator,
    CU_BACKEND_FUNCTIONS,
};

static const rq_backend *const backends[] = {&rq_backend_cpu, &rq_backend_simt, NULL};

const rq_backend *const *rq_backends(void)
{
    return backends;
}

const rq_backend *rq_backend_find(const char *name)
{
    if (name && strcmp(name, "cuda") == 0) return &rq_backend_simt;
    for (const rq_backend *const *b = backends; name && *b; b++)
        if (strcmp((*b)->name, name) == 0) return *b;
    return NULL;
}
