#include "backends/backend.h"

#include "backends/cuda/cuda.h"

#ifdef RQVK_HAS_VULKAN
#include "backends/vulkan/vulkan.h"
#endif

#include <string.h>

static const rq_backend *const backends[] = {
    &rq_backend_cpu,
#ifdef RQVK_HAS_VULKAN
    &rq_backend_vulkan,
#endif
    &rq_backend_cuda,
    NULL,
};

const rq_backend *const *rq_backends(void)
{
    return backends;
}

const rq_backend *rq_backend_find(const char *name)
{
    for (const rq_backend *const *b = backends; name && *b; b++)
        if (strcmp((*b)->name, name) == 0) return *b;
    return NULL;
}
