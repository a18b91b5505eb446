/* api.h - the CUDA driver as a table of functions. On a machine with a card it is filled from the driver's library
 * (driver.c); tests fill it with a simulator and let calls fail. Signatures are those of cuda.h with its handles as
 * plain pointers and numbers, written from its documentation; tests/simt/api_agrees.cpp holds them to that header
 * where a toolkit is installed. */
#ifndef RQ_CUDA_API_H
#define RQ_CUDA_API_H

#include "backends/base/status.h"

#include <stddef.h>
#include <stdint.h>

/* CUDA_KERNEL_NODE_PARAMS_v2 */
typedef struct cuda_kernel_node {
    void *function;
    unsigned int grid[3], block[3], shared_bytes;
    void **params, **extra;
    void *kernel, *context;
} cuda_kernel_node;

/* CUgraphEdgeData: when a launch may begin that depends on another */
typedef struct cuda_edge {
    unsigned char from_port, to_port, type, reserved[5];
} cuda_edge;
/* For port and type: as soon as the other one lets it. */
enum { CUDA_EDGE_PROGRAMMATIC = 1 };

/* Results: 0 is success; cuda_result_memory: out of memory. Others only have a name. */
enum { CUDA_OK = 0, CUDA_OUT_OF_MEMORY = 2, CUDA_NO_DEVICE = 100 };
/* After one of these no call of the context works any more. */
enum { CUDA_CONTEXT_BROKEN_FIRST = 700, CUDA_CONTEXT_BROKEN_LAST = 719 };

/* Flags: a stream that does not wait for the default one; an event that only orders. */
enum { CUDA_STREAM_ALONE = 1, CUDA_EVENT_NO_TIME = 2 };

/* Device attributes asked for (CUdevice_attribute). */
enum {
    CUDA_ATTRIBUTE_PROCESSORS = 16,
    CUDA_ATTRIBUTE_MAJOR = 75,
    CUDA_ATTRIBUTE_MINOR = 76,
    CUDA_ATTRIBUTE_SHARED_BYTES = 97 /* most a block may have when a kernel asks for it */
};
/* Function attributes set (CUfunction_attribute): most bytes of shared memory given at the launch. */
enum { CUDA_FUNCTION_SHARED_BYTES = 8 };

/* X(member, name in the driver, parameters) */
#define CUDA_API(X)                                                                                          \
    X(init, cuInit, (unsigned int))                                                                          \
    X(driver_version, cuDriverGetVersion, (int *))                                                           \
    X(error_name, cuGetErrorName, (int, const char **))                                                      \
    X(device_count, cuDeviceGetCount, (int *))                                                               \
    X(device_get, cuDeviceGet, (int *, int))                                                                 \
    X(device_name, cuDeviceGetName, (char *, int, int))                                                      \
    X(device_attribute, cuDeviceGetAttribute, (int *, int, int))                                             \
    X(context_retain, cuDevicePrimaryCtxRetain, (void **, int))                                              \
    X(context_release, cuDevicePrimaryCtxRelease_v2, (int))                                                  \
    X(context_set, cuCtxSetCurrent, (void *))                                                                \
    X(memory_info, cuMemGetInfo_v2, (size_t *, size_t *))                                                    \
    X(module_load, cuModuleLoadData, (void **, const void *))                                                \
    X(module_unload, cuModuleUnload, (void *))                                                               \
    X(module_function, cuModuleGetFunction, (void **, void *, const char *))                                 \
    X(function_attribute, cuFuncSetAttribute, (void *, int, int))                                            \
    X(memory_alloc, cuMemAlloc_v2, (uint64_t *, size_t))                                                     \
    X(memory_free, cuMemFree_v2, (uint64_t))                                                                 \
    X(memory_set, cuMemsetD8Async, (uint64_t, unsigned char, size_t, void *))                                \
    X(copy_to_device, cuMemcpyHtoDAsync_v2, (uint64_t, const void *, size_t, void *))                        \
    X(copy_to_host, cuMemcpyDtoHAsync_v2, (void *, uint64_t, size_t, void *))                                \
    X(host_alloc, cuMemHostAlloc, (void **, size_t, unsigned int))                                           \
    X(host_free, cuMemFreeHost, (void *))                                                                    \
    X(stream_create, cuStreamCreate, (void **, unsigned int))                                                \
    X(stream_destroy, cuStreamDestroy_v2, (void *))                                                          \
    X(stream_wait, cuStreamSynchronize, (void *))                                                            \
    X(event_create, cuEventCreate, (void **, unsigned int))                                                  \
    X(event_destroy, cuEventDestroy_v2, (void *))                                                            \
    X(event_record, cuEventRecord, (void *, void *))                                                         \
    X(event_wait, cuEventSynchronize, (void *))                                                              \
    X(event_elapsed, cuEventElapsedTime, (float *, void *, void *))                                          \
    X(launch, cuLaunchKernel,                                                                                \
      (void *, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int,           \
       unsigned int, void *, void **, void **))                                                              \
    X(graph_create, cuGraphCreate, (void **, unsigned int))                                                  \
    X(graph_add_kernel, cuGraphAddKernelNode_v2,                                                             \
      (void **, void *, void *const *, size_t, const cuda_kernel_node *))                                    \
    X(graph_instantiate, cuGraphInstantiateWithFlags, (void **, void *, unsigned long long))                 \
    X(graph_launch, cuGraphLaunch, (void *, void *))                                                         \
    X(graph_exec_destroy, cuGraphExecDestroy, (void *))                                                      \
    X(graph_destroy, cuGraphDestroy, (void *))
/* What older drivers lack, where it is NULL: of before CUDA 12.3. */
#define CUDA_API_NEWER(X)                                                                                    \
    X(graph_add_edges, cuGraphAddDependencies_v2,                                                            \
      (void *, void *const *, void *const *, const cuda_edge *, size_t))

typedef struct cuda_api {
#define CUDA_MEMBER(member, symbol, parameters) int(*member) parameters;
    CUDA_API(CUDA_MEMBER)
    CUDA_API_NEWER(CUDA_MEMBER)
#undef CUDA_MEMBER
} cuda_api;

#ifdef __cplusplus
extern "C" {
#endif
/* Fills the table from the driver's library, which stays loaded as long as the process. A sentence when there is no
 * driver, or one that lacks a function that is not among the newer ones. */
rq_status cuda_driver_load(cuda_api *out, rq_error *err);
#ifdef __cplusplus
}
#endif

#endif
