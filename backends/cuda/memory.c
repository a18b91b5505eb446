/* memory.c - device memory, and the way there and back, in the order of the stream. */
#include "backends/cuda/cu.h"

#include "backends/base/mem.h"

uint64_t cu_taken(uint64_t bytes)
{
    /* kernels read rows in whole words of 16 bytes, so a little before and behind what they need */
    return ((bytes + 15) & ~15ull) + 32;
}

static rq_status check_range(const rq_memory *m, uint64_t offset, uint64_t bytes, rq_error *err)
{
    if (offset > m->bytes || bytes > m->bytes - offset)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "a transfer of %llu bytes at %llu does not fit memory of %llu bytes",
                       (unsigned long long)bytes, (unsigned long long)offset, (unsigned long long)m->bytes);
    return RQ_OK;
}

static rq_status finish(cu_device *d, int result, const char *what, rq_error *err)
{
    if (result == 0) result = d->api.stream_wait(d->stream);
    return result ? cu_fail(d, result, what, err) : RQ_OK;
}

rq_status cu_upload(rq_memory *dst, uint64_t offset, const void *src, uint64_t bytes, rq_error *err)
{
    cu_device *d = (cu_device *)dst->device;
    rq_status status = check_range(dst, offset, bytes, err);
    if (status != RQ_OK || bytes == 0) return status;
    int result = d->api.context_set(d->context);
    if (result == 0) result = d->api.copy_to_device(cu_address(dst) + offset, src, bytes, d->stream);
    return finish(d, result, "a transfer", err);
}

rq_status cu_download(rq_memory *src, uint64_t offset, void *dst, uint64_t bytes, rq_error *err)
{
    cu_device *d = (cu_device *)src->device;
    rq_status status = check_range(src, offset, bytes, err);
    if (status != RQ_OK || bytes == 0) return status;
    int result = d->api.context_set(d->context);
    if (result == 0) result = d->api.copy_to_host(dst, cu_address(src) + offset, bytes, d->stream);
    return finish(d, result, "a transfer", err);
}

rq_status cu_alloc(rq_device *device, uint64_t bytes, const char *label, rq_memory **out, rq_error *err)
{
    cu_device *d = (cu_device *)device;
    cu_memory *m = rq_calloc(1, sizeof *m);
    if (!m) return rq_fail(err, RQ_ERR_MEMORY, "out of memory");
    m->base = (rq_memory){.device = device, .bytes = bytes};
    m->taken_bytes = cu_taken(bytes);
    int result = d->api.context_set(d->context);
    if (result == 0) result = d->api.memory_alloc(&m->address, m->taken_bytes);
    if (result) {
        rq_free(m);
        if (result == CUDA_OUT_OF_MEMORY)
            return rq_fail(err, RQ_ERR_MEMORY, "%s has no %llu bytes of memory left for %s", d->name,
                           (unsigned long long)bytes, label ? label : "the device");
        return cu_fail(d, result, "allocating memory", err);
    }
    d->taken_bytes += m->taken_bytes;
    result = d->api.memory_set(m->address, 0, m->taken_bytes, d->stream);
    rq_status status = finish(d, result, "clearing memory", err);
    if (status == RQ_OK)
        *out = &m->base;
    else
        cu_release(&m->base);
    return status;
}

rq_status cu_adopt(rq_device *device, const void *host, uint64_t bytes, const char *label, rq_memory **out,
                   rq_error *err)
{
    rq_memory *m = NULL;
    rq_status status = cu_alloc(device, bytes, label, &m, err);
    if (status != RQ_OK || !m) return status;
    status = cu_upload(m, 0, host, bytes, err);
    if (status == RQ_OK)
        *out = m;
    else
        cu_release(m);
    return status;
}

void cu_release(rq_memory *memory)
{
    if (!memory) return;
    cu_memory *m = (cu_memory *)memory;
    cu_device *d = (cu_device *)memory->device;
    d->api.context_set(d->context);
    if (d->stream) d->api.stream_wait(d->stream);
    d->api.memory_free(m->address);
    d->taken_bytes -= m->taken_bytes;
    rq_free(m);
}
