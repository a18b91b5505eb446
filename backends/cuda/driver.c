/* driver.c - the table of driver functions from the driver's own library. */
#include "backends/cuda/api.h"

#include <dlfcn.h>
#include <string.h>

rq_status cuda_driver_load(cuda_api *out, rq_error *err)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return rq_fail(
            err, RQ_ERR_DEVICE,
            "there is no CUDA driver on this machine (libcuda.so.1 was not found); install NVIDIA's "
            "driver, or use --backend cpu");
    cuda_api api;
#define CUDA_FIND(member, symbol, parameters)                                                                \
    {                                                                                                        \
        void *found = dlsym(library, #symbol);                                                               \
        if (!found) {                                                                                        \
            dlclose(library);                                                                                \
            return rq_fail(err, RQ_ERR_DEVICE,                                                               \
                           "the CUDA driver lacks " #symbol ": it is older than CUDA 12; update it");        \
        }                                                                                                    \
        memcpy(&api.member, &found, sizeof found);                                                           \
    }
    CUDA_API(CUDA_FIND)
#undef CUDA_FIND
#define CUDA_FIND_NEWER(member, symbol, parameters)                                                          \
    {                                                                                                        \
        void *found = dlsym(library, #symbol);                                                               \
        memcpy(&api.member, &found, sizeof found);                                                           \
    }
    CUDA_API_NEWER(CUDA_FIND_NEWER)
#undef CUDA_FIND_NEWER
    *out = api;
    return RQ_OK;
}
