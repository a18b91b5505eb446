/* device.c - opening and closing a card, its kernels, and the backend's table. */
#include "backends/cuda/cu.h"

#include "backends/base/mem.h"
#include "backends/cuda/cuda.h"

#include <stdio.h>
#include <string.h>

rq_status cu_fail(cu_device *d, int result, const char *what, rq_error *err)
{
    const char *name = NULL;
    if (d->api.error_name) d->api.error_name(result, &name);
    if (result == CUDA_OUT_OF_MEMORY)
        return rq_fail(err, RQ_ERR_MEMORY, "%s ran out of memory while %s", d->name, what);
    if (result >= CUDA_CONTEXT_BROKEN_FIRST && result <= CUDA_CONTEXT_BROKEN_LAST) d->lost = true;
    return rq_fail(err, RQ_ERR_DEVICE, "%s failed while %s (%s, CUDA error %d)", d->name, what,
                   name ? name : "?", result);
}

const char *cu_kernel_name(uint32_t kernel, char name[32])
{
    static const char *const names[] = {
#define CU_NAME(n, threads) #n,
        CUDA_KERNELS(CU_NAME)
#undef CU_NAME
    };
    if (kernel < CU_MATVEC_1)
        snprintf(name, 32, "%s", names[kernel]);
    else if (kernel < CU_MATMUL)
        snprintf(name, 32, "matvec_%u_%d", (kernel - CU_MATVEC_1) % RQ_TYPE_LIMIT,
                 kernel < CU_MATVEC_4   ? 1
                 : kernel < CU_MATVEC_8 ? 4
                                        : 8);
    else
        snprintf(name, 32, "matmul_%u", kernel - CU_MATMUL);
    return name;
}

uint32_t cu_kernel_threads(uint32_t kernel)
{
    static const uint16_t threads[] = {
#define CU_THREADS(n, threads) threads,
        CUDA_KERNELS(CU_THREADS)
#undef CU_THREADS
    };
    return kernel < CU_MATVEC_1 ? threads[kernel]
           : kernel < CU_MATMUL ? CUDA_MATVEC_THREADS
                                : CUDA_MATMUL_THREADS;
}

uint32_t cu_kernel_shared_bytes(uint32_t kernel)
{
    static const struct {
        uint32_t kernel, bytes;
    } large[] = {
#define CU_LARGE(n, bytes) {CU_##n, bytes},
        CUDA_LARGE_KERNELS(CU_LARGE)
#undef CU_LARGE
    };
    for (uint32_t i = 0; i < sizeof large / sizeof *large; i++)
        if (large[i].kernel == kernel) return large[i].bytes;
    return 0;
}

rq_status cu_function(cu_device *d, uint32_t kernel, void **out, rq_error *err)
{
    *out = d->functions[kernel]; /* found before */
    char name[32];
    cu_kernel_name(kernel, name);
    int result = 0;
    for (uint32_t i = 0; i < d->n_modules && !d->functions[kernel]; i++) {
        result = d->api.module_function(&d->functions[kernel], d->modules[i], name);
        if (result) d->functions[kernel] = NULL;
    }
    int shared = (int)cu_kernel_shared_bytes(kernel);
    if (d->functions[kernel] && !*out && shared > 0) {
        result = d->api.function_attribute(d->functions[kernel], CUDA_FUNCTION_SHARED_BYTES, shared);
        if (result) d->functions[kernel] = NULL;
    }
    *out = d->functions[kernel];
    return *out ? RQ_OK
                : rq_fail(err, RQ_ERR_DEVICE, "the kernel %s cannot be loaded (CUDA error %d)", name, result);
}

void cu_close(rq_device *device)
{
    if (!device) return;
    cu_device *d = (cu_device *)device;
    if (d->context) {
        d->api.context_set(d->context);
        if (d->stream) d->api.stream_wait(d->stream);
        while (d->steps) {
            cu_step *s = d->steps;
            d->steps = s->next;
            cu_release(s->memory);
            rq_free(s);
        }
        while (d->scratch) {
            cu_shared_scratch *s = d->scratch;
            d->scratch = s->next;
            cu_release(s->memory);
            rq_free(s);
        }
        for (uint32_t i = 0; i < CU_RING; i++) {
            if (d->ring[i].words) d->api.host_free(d->ring[i].words);
            if (d->ring[i].copied) d->api.event_destroy(d->ring[i].copied);
        }
        cu_release(d->tables);
        for (uint32_t i = 0; i < d->n_modules; i++) d->api.module_unload(d->modules[i]);
        if (d->stream) d->api.stream_destroy(d->stream);
        d->api.context_release(d->ordinal);
    }
    rq_free(d);
}

static rq_status open_card(cu_device *d, const rq_device_options *options, rq_error *err)
{
    const cuda_api *api = &d->api;
    int n = 0, version = 0, result = api->init(0);
    snprintf(d->name, sizeof d->name, "the CUDA driver");
    if (result == CUDA_NO_DEVICE)
        return rq_fail(err, RQ_ERR_DEVICE, "the CUDA driver finds no card on this machine");
    if (result == 0) result = api->driver_version(&version);
    if (result == 0) result = api->device_count(&n);
    if (result) return cu_fail(d, result, "starting", err);
    if (options->index >= (uint32_t)n)
        return rq_fail(err, RQ_ERR_ARGUMENT, "there is no CUDA device %u: there %s %d, numbered from 0",
                       options->index, n == 1 ? "is" : "are", n);
    result = api->device_get(&d->ordinal, (int)options->index);
    if (result == 0) result = api->device_name(d->name, sizeof d->name, d->ordinal);
    int processors = 0, shared = 0;
    if (result == 0) result = api->device_attribute(&processors, CUDA_ATTRIBUTE_PROCESSORS, d->ordinal);
    if (result == 0) result = api->device_attribute(&d->major, CUDA_ATTRIBUTE_MAJOR, d->ordinal);
    if (result == 0) result = api->device_attribute(&d->minor, CUDA_ATTRIBUTE_MINOR, d->ordinal);
    if (result == 0) result = api->device_attribute(&shared, CUDA_ATTRIBUTE_SHARED_BYTES, d->ordinal);
    if (result) return cu_fail(d, result, "saying what it is", err);
    d->shared_bytes = shared > 0 ? (uint32_t)shared : 0;
    d->n_processors = processors > 0 ? (uint32_t)processors : 1;
    d->overlaps = d->major >= 9 && api->graph_add_edges;
    if (d->major * 10 + d->minor < 75)
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "%s is too old: kernels are for compute capability 7.5 and up, it has %d.%d", d->name,
                       d->major, d->minor);
    result = api->context_retain(&d->context, d->ordinal);
    if (result) {
        d->context = NULL;
        return cu_fail(d, result, "opening it", err);
    }
    result = api->context_set(d->context);
    if (result == 0) {
        result = api->stream_create(&d->stream, CUDA_STREAM_ALONE);
        if (result) d->stream = NULL;
    }
    for (uint32_t i = 0; i < CU_RING && result == 0; i++) {
        result = api->event_create(&d->ring[i].copied, CUDA_EVENT_NO_TIME);
        if (result) d->ring[i].copied = NULL;
    }
    return result ? cu_fail(d, result, "opening it", err) : RQ_OK;
}

rq_status cu_open_with(const rq_backend *backend, const cuda_api *api, const cu_image *images,
                       uint32_t n_images, const rq_device_options *options, rq_device **out, rq_error *err)
{
    static const rq_device_options defaults;
    if (!options) options = &defaults;
    if (options->implementation && strcmp(options->implementation, backend->name) != 0)
        return rq_fail(err, RQ_ERR_ARGUMENT, "CUDA has no implementation named \"%s\"",
                       options->implementation);
    cu_device *d = rq_calloc(1, sizeof *d);
    if (!d) return rq_fail(err, RQ_ERR_MEMORY, "out of memory while opening a CUDA device");
    d->base.backend = backend;
    d->api = *api;
    d->delta_form = options->delta_form;
    rq_status status = open_card(d, options, err);
    for (uint32_t i = 0; i < n_images && i < CU_MAX_MODULES && status == RQ_OK; i++) {
        int result = api->module_load(&d->modules[d->n_modules], images[i].data);
        if (result)
            status = cu_fail(d, result,
                             "loading kernels (a driver older than the toolkit they were made with?)", err);
        else
            d->n_modules++;
    }
    if (status == RQ_OK) status = cu_tables_make(d, &d->tables, err);
    if (status != RQ_OK) {
        cu_close(&d->base);
        return status;
    }
    *out = &d->base;
    return RQ_OK;
}

void cu_describe(rq_device *device, rq_device_info *out)
{
    cu_device *d = (cu_device *)device;
    memset(out, 0, sizeof *out);
    out->taken_bytes = d->taken_bytes;
    snprintf(out->name, sizeof out->name, "%s", d->name);
    snprintf(out->features, sizeof out->features, "compute capability %d.%d, %u multiprocessors%s", d->major,
             d->minor, d->n_processors, d->overlaps ? ", launches overlap" : "");
    size_t left = 0, all = 0;
    if (d->api.context_set(d->context) == 0 && d->api.memory_info(&left, &all) == 0) {
        out->memory_bytes = all;
        out->free_bytes = left;
    }
}

static uint32_t cuda_count(void)
{
    cuda_api api;
    int n = 0;
    if (cu_image_count == 0 || cuda_driver_load(&api, NULL) != RQ_OK) return 0;
    return api.init(0) == 0 && api.device_count(&n) == 0 && n > 0 ? (uint32_t)n : 0;
}

static rq_status cuda_open(const rq_device_options *options, rq_device **out, rq_error *err)
{
    cuda_api api;
    if (cu_image_count == 0) /* said first: no driver would help */
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "this build has no CUDA kernels: make it with -DRQVK_CUDA=ON where nvcc is installed");
    rq_status status = cuda_driver_load(&api, err);
    if (status != RQ_OK) return status;
    return cu_open_with(&rq_backend_cuda, &api, cu_images, cu_image_count, options, out, err);
}

const rq_backend rq_backend_cuda = {
    .name = "cuda",
    .count = cuda_count,
    .open = cuda_open,
    CU_BACKEND_FUNCTIONS,
};
