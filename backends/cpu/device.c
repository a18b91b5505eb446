/* device.c - the processor backend's table: opening, memory, transfers. Programs are in program.c. */
#include "backends/cpu/device.h"

#include "backends/base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct rq_cpu_memory {
    rq_memory base;
    bool owned; /* mapped by us, not adopted */
} rq_cpu_memory;

/* From here on huge pages are asked for: fewer address translations while weights and cache pages stream, and
 * memory that nobody touches stays unbacked in units of 2 MiB. */
#define HUGE_BYTES (8ull << 20)

static void *map_zeros(uint64_t bytes)
{
    if (bytes > SIZE_MAX) return NULL;
    void *p =
        mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    if (bytes >= HUGE_BYTES) madvise(p, (size_t)bytes, MADV_HUGEPAGE);
    return p;
}

static uint32_t cpu_count(void)
{
    return 1;
}

static rq_status cpu_open(const rq_device_options *options, rq_device **out, rq_error *err)
{
    static const rq_device_options defaults;
    if (!options) options = &defaults;
    if (options->index != 0) return rq_fail(err, RQ_ERR_ARGUMENT, "there is one processor device, number 0");
    const char *name = options->implementation;
    bool reference = name && strcmp(name, "reference") == 0;
    const rq_cpu_isa *isa = name && !reference ? rq_cpu_isa_by_name(name) : rq_cpu_isa_best();
    if (!isa)
        return rq_fail(
            err, RQ_ERR_ARGUMENT,
            "this machine or build has no processor implementation named \"%s\" (there are: scalar, "
            "avx2, avx512, neon, reference)",
            name);
    rq_cpu_device *d = rq_calloc(1, sizeof *d);
    if (!d) return rq_fail(err, RQ_ERR_MEMORY, "out of memory while opening the processor device");
    d->base.backend = &rq_backend_cpu;
    d->isa = isa;
    d->vec = rq_vec_of(isa);
    d->reference = reference;
    d->delta_form = options->delta_form;
    rq_status status = rq_pool_create(reference ? 1 : options->n_threads, &d->pool, err);
    if (status != RQ_OK) {
        rq_free(d);
        return status;
    }
    *out = &d->base;
    return RQ_OK;
}

static void cpu_close(rq_device *device)
{
    if (!device) return;
    rq_cpu_device *d = (rq_cpu_device *)device;
    rq_pool_destroy(d->pool);
    if (d->scratch) munmap(d->scratch, d->scratch_bytes);
    rq_free(d);
}

rq_status rq_cpu_reserve_scratch(rq_cpu_device *d, uint64_t bytes, rq_error *err)
{
    if (bytes <= d->scratch_bytes) return RQ_OK;
    void *p = map_zeros(bytes);
    if (!p)
        return rq_fail(err, RQ_ERR_MEMORY, "cannot map %llu bytes of scratch memory",
                       (unsigned long long)bytes);
    if (d->scratch) munmap(d->scratch, d->scratch_bytes);
    d->taken_bytes += bytes - d->scratch_bytes;
    d->scratch = p;
    d->scratch_bytes = bytes;
    return RQ_OK;
}

/* Name of the processor as the system gives it; `text` is untouched when it does not. */
static void processor_name(char *text, size_t bytes)
{
    FILE *f = fopen("/proc/cpuinfo", "re");
    if (!f) return;
    char line[256];
    while (fgets(line, sizeof line, f)) {
        if (strncmp(line, "model name", 10) != 0) continue;
        const char *at = strchr(line, ':');
        if (!at) continue;
        at += 1 + strspn(at + 1, " \t");
        snprintf(text, bytes, "%.*s", (int)strcspn(at, "\n"), at);
        break;
    }
    fclose(f);
}

static uint64_t available_bytes(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    if (!f) return 0;
    char line[256];
    uint64_t kib = 0;
    while (fgets(line, sizeof line, f))
        if (strncmp(line, "MemAvailable:", 13) == 0) {
            kib = strtoull(line + 13, NULL, 10);
            break;
        }
    fclose(f);
    return kib * 1024;
}

static const char *features_of(const rq_cpu_device *d)
{
    if (d->reference) return "reference: every operation in double, unhurried";
    switch (d->isa->id) {
    case RQ_ISA_AVX2:
        return "avx2 fma f16c";
    case RQ_ISA_AVX512:
        return "avx512 vnni";
    case RQ_ISA_NEON:
        return "neon";
    case RQ_ISA_SCALAR:
        break;
    }
    return "scalar";
}

static void cpu_describe(rq_device *device, rq_device_info *out)
{
    const rq_cpu_device *d = (const rq_cpu_device *)device;
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "processor");
    processor_name(out->name, sizeof out->name);
    uint32_t n = rq_pool_size(d->pool);
    snprintf(out->features, sizeof out->features, "%u thread%s, %s", n, n == 1 ? "" : "s", features_of(d));
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0) out->memory_bytes = (uint64_t)pages * (uint64_t)page;
    out->free_bytes = available_bytes();
    out->taken_bytes = d->taken_bytes;
    out->host_memory = true;
}

static rq_status new_memory(rq_device *device, void *host, uint64_t bytes, bool owned, rq_memory **out,
                            rq_error *err)
{
    rq_cpu_memory *m = rq_calloc(1, sizeof *m);
    if (!m) return rq_fail(err, RQ_ERR_MEMORY, "out of memory");
    m->base.device = device;
    m->base.host = host;
    m->base.bytes = bytes;
    m->owned = owned;
    *out = &m->base;
    return RQ_OK;
}

static rq_status cpu_alloc(rq_device *device, uint64_t bytes, const char *label, rq_memory **out,
                           rq_error *err)
{
    void *p = map_zeros(bytes ? bytes : 1);
    if (!p)
        return rq_fail(err, RQ_ERR_MEMORY, "cannot map %llu bytes of memory for %s: %s",
                       (unsigned long long)bytes, label ? label : "the device", strerror(errno));
    rq_status status = new_memory(device, p, bytes, true, out, err);
    if (status != RQ_OK)
        munmap(p, (size_t)(bytes ? bytes : 1));
    else
        ((rq_cpu_device *)device)->taken_bytes += bytes;
    return status;
}

static rq_status cpu_adopt(rq_device *device, const void *host, uint64_t bytes, const char *label,
                           rq_memory **out, rq_error *err)
{
    (void)label;
    return new_memory(device, (void *)(uintptr_t)host, bytes, false, out, err); /* nobody writes to weights */
}

static void cpu_release(rq_memory *memory)
{
    if (!memory) return;
    if (((rq_cpu_memory *)memory)->owned) {
        munmap(memory->host, (size_t)(memory->bytes ? memory->bytes : 1));
        ((rq_cpu_device *)memory->device)->taken_bytes -= memory->bytes;
    }
    rq_free(memory);
}

static rq_status check_range(const rq_memory *m, uint64_t offset, uint64_t bytes, rq_error *err)
{
    if (offset > m->bytes || bytes > m->bytes - offset)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "a transfer of %llu bytes at %llu does not fit memory of %llu bytes",
                       (unsigned long long)bytes, (unsigned long long)offset, (unsigned long long)m->bytes);
    return RQ_OK;
}

static rq_status cpu_upload(rq_memory *dst, uint64_t offset, const void *src, uint64_t bytes, rq_error *err)
{
    rq_status status = check_range(dst, offset, bytes, err);
    if (status != RQ_OK) return status;
    if (!((rq_cpu_memory *)dst)->owned) return rq_fail(err, RQ_ERR_ARGUMENT, "adopted memory is read only");
    if (bytes) memcpy((char *)dst->host + offset, src, bytes);
    return RQ_OK;
}

static rq_status cpu_download(rq_memory *src, uint64_t offset, void *dst, uint64_t bytes, rq_error *err)
{
    rq_status status = check_range(src, offset, bytes, err);
    if (status != RQ_OK) return status;
    if (bytes) memcpy(dst, (const char *)src->host + offset, bytes);
    return RQ_OK;
}

/* run() returns when the program is done: the calling thread is one of the workers. */
static rq_status cpu_wait(rq_device *device, rq_error *err)
{
    (void)device;
    (void)err;
    return RQ_OK;
}

const rq_backend rq_backend_cpu = {
    .name = "cpu",
    .count = cpu_count,
    .open = cpu_open,
    .close = cpu_close,
    .describe = cpu_describe,
    .alloc = cpu_alloc,
    .adopt = cpu_adopt,
    .release = cpu_release,
    .upload = cpu_upload,
    .download = cpu_download,
    .supports = rq_cpu_supports,
    .implementation = rq_cpu_implementation,
    .compile = rq_cpu_compile,
    .scratch = rq_cpu_scratch,
    .destroy = rq_cpu_destroy,
    .run = rq_cpu_run,
    .wait = cpu_wait,
    .profile = rq_cpu_profile,
};
