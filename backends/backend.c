#include "backends/backend.h"
#include "backends/vulkan/vulkan.h"

#include <string.h>

static const rq_backend *const backends[] = {&rq_backend_cpu, &rq_backend_vulkan, NULL};

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
