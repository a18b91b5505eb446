#include "tests/ground/host.h"

#include "backends/base/mem.h"
#include "backends/cpu/reference/reference.h"
#include "tests/ground/synth.h"

#include <string.h>

typedef struct host_device {
    rq_device base;
    host_options options;
    uint64_t allocated, transfers, calls, fail_at;
    synth_rng rng;
} host_device;

typedef struct host_memory {
    rq_memory base;
    rq_memory open; /* the same with its host address */
    void *data;
    bool owned;
} host_memory;

typedef struct host_program {
    rq_program base;
    rq_segment segment;
    rq_bindings bindings;
    rq_cache_pool pools[RQ_MAX_GROUPS]; /* with open memory */
    rq_state_pool states[RQ_MAX_STATE_GROUPS];
    uint32_t *order;
} host_program;

static const rq_backend host_backend;

rq_device *host_open(const host_options *options)
{
    host_device *d = rq_calloc(1, sizeof *d);
    if (!d) return NULL;
    d->base.backend = &host_backend;
    d->options = *options;
    d->rng.state = options->shuffle;
    return &d->base;
}

static void host_close(rq_device *device)
{
    rq_free(device);
}

static void host_describe(rq_device *device, rq_device_info *out)
{
    const host_device *d = (const host_device *)device;
    *out = (rq_device_info){.name = "host", .taken_bytes = d->allocated, .host_memory = !d->options.hidden};
}

uint64_t host_allocated(rq_device *device)
{
    return ((host_device *)device)->allocated;
}

uint64_t host_transfers(rq_device *device)
{
    return ((host_device *)device)->transfers;
}

void host_fail_at(rq_device *device, uint64_t k)
{
    ((host_device *)device)->calls = 0;
    ((host_device *)device)->fail_at = k;
}

static bool fails(host_device *d)
{
    return ++d->calls == d->fail_at;
}

static rq_status make(rq_device *device, void *data, uint64_t bytes, bool owned, rq_memory **out,
                      rq_error *err)
{
    host_device *d = (host_device *)device;
    host_memory *m = fails(d) ? NULL : rq_calloc(1, sizeof *m);
    if (!m) return rq_fail(err, RQ_ERR_MEMORY, "no memory");
    m->data = owned ? rq_calloc_aligned(64, bytes) : data;
    if (!m->data) {
        rq_free(m);
        return rq_fail(err, RQ_ERR_MEMORY, "no memory");
    }
    m->owned = owned;
    m->base = (rq_memory){.device = device, .host = d->options.hidden ? NULL : m->data, .bytes = bytes};
    m->open = (rq_memory){.device = device, .host = m->data, .bytes = bytes};
    if (owned) d->allocated += bytes;
    *out = &m->base;
    return RQ_OK;
}

static rq_status host_alloc(rq_device *device, uint64_t bytes, const char *label, rq_memory **out,
                            rq_error *err)
{
    return make(device, NULL, bytes, true, out, err);
}

static rq_status host_adopt(rq_device *device, const void *host, uint64_t bytes, const char *label,
                            rq_memory **out, rq_error *err)
{
    return make(device, (void *)host, bytes, false, out, err);
}

static void host_release(rq_memory *memory)
{
    host_memory *m = (host_memory *)memory;
    if (m->owned) {
        ((host_device *)memory->device)->allocated -= memory->bytes;
        rq_free(m->data);
    }
    rq_free(m);
}

static rq_status host_upload(rq_memory *dst, uint64_t offset, const void *src, uint64_t bytes, rq_error *err)
{
    if (offset > dst->bytes || bytes > dst->bytes - offset)
        return rq_fail(err, RQ_ERR_INTERNAL, "upload outside the memory");
    memmove((char *)((host_memory *)dst)->data + offset, src, bytes);
    ((host_device *)dst->device)->transfers++;
    return RQ_OK;
}

static rq_status host_download(rq_memory *src, uint64_t offset, void *dst, uint64_t bytes, rq_error *err)
{
    if (offset > src->bytes || bytes > src->bytes - offset)
        return rq_fail(err, RQ_ERR_INTERNAL, "download outside the memory");
    memmove(dst, (char *)((host_memory *)src)->data + offset, bytes);
    ((host_device *)src->device)->transfers++;
    return RQ_OK;
}

static bool host_supports(rq_device *device, const rq_tape *tape, const rq_op *op, rq_error *why)
{
    const host_options *o = &((host_device *)device)->options;
    bool refused = (o->no_fused && op->kind >= RQ_OP_FUSED_FIRST) || (o->refuse && op->kind == o->refuse);
    if (refused) rq_fail(why, RQ_ERR_UNSUPPORTED, "the test device refuses it");
    return !refused;
}

static const char *host_implementation(rq_device *device, const rq_tape *tape, const rq_op *op)
{
    return "reference";
}

static const rq_memory *open_of(const rq_memory *memory)
{
    return memory ? &((const host_memory *)memory)->open : NULL;
}

static rq_status host_compile(rq_device *device, const rq_segment *segment, const rq_bindings *bindings,
                              rq_program **out, rq_error *err)
{
    host_program *p = fails((host_device *)device) ? NULL : rq_calloc(1, sizeof *p);
    if (!p) return rq_fail(err, RQ_ERR_MEMORY, "no memory");
    p->order = rq_calloc(segment->count, sizeof *p->order);
    if (!p->order) {
        rq_free(p);
        return rq_fail(err, RQ_ERR_MEMORY, "no memory");
    }
    p->base.device = device;
    p->segment = *segment;
    p->bindings = *bindings;
    for (uint32_t g = 0; g < bindings->caps->n_groups; g++) {
        p->pools[g] = bindings->pools[g];
        for (uint32_t s = 0; s < p->pools[g].n_slabs; s++)
            p->pools[g].slabs[s] = (rq_memory *)open_of(p->pools[g].slabs[s]);
        for (uint32_t s = 0; s < p->pools[g].n_coded_slabs; s++)
            p->pools[g].coded_slabs[s] = (rq_memory *)open_of(p->pools[g].coded_slabs[s]);
        p->pools[g].table = (rq_memory *)open_of(p->pools[g].table);
        p->pools[g].scratch = (rq_memory *)open_of(p->pools[g].scratch);
        p->pools[g].coded_table = (rq_memory *)open_of(p->pools[g].coded_table);
    }
    for (uint32_t i = 0; i < segment->tape->n_values; i++) {
        const rq_value *v = &segment->tape->values[i];
        if (v->space != RQ_SPACE_STATE) continue;
        p->states[v->index] = bindings->states[v->index];
        p->states[v->index].memory = (rq_memory *)open_of(bindings->states[v->index].memory);
    }
    *out = &p->base;
    return RQ_OK;
}

static void host_destroy(rq_program *program)
{
    rq_free(((host_program *)program)->order);
    rq_free(program);
}

static void *address(void *user, const rq_tape *tape, rq_ref ref)
{
    const host_program *p = user;
    const rq_value *v = &tape->values[ref];
    if (v->space == RQ_SPACE_ACT)
        return rq_reference_act(tape, ref, open_of(p->bindings.arena)->host, p->segment.arena_offset);
    if (v->space == RQ_SPACE_PERSIST) return (char *)open_of(p->bindings.persist[v->index])->host + v->offset;
    const rq_binding *b = &p->bindings.weights[v->index];
    return (char *)open_of(b->memory)->host + b->offset + v->offset;
}

static rq_status host_run(rq_program *program, const uint32_t *step_words, rq_error *err)
{
    host_program *p = (host_program *)program;
    host_device *d = (host_device *)program->device;
    const rq_segment *s = &p->segment;
    if (d->options.idle) return RQ_OK;
    const rq_memory *sampled = open_of(p->bindings.persist[RQ_PERSIST_SAMPLED]);
    rq_reference_env env = {.address = address,
                            .user = p,
                            .pools = p->pools,
                            .states = p->states,
                            .caps = p->bindings.caps,
                            .step_words = step_words,
                            .sampled = sampled ? sampled->host : NULL};
    for (uint32_t i = 0; i < s->count; i++) p->order[i] = i;
    for (uint32_t first = 0, end; d->options.shuffle && first < s->count; first = end) {
        for (end = first + 1; end < s->count && !s->barrier[end]; end++) {
        }
        for (uint32_t i = end - 1; i > first; i--) {
            uint32_t j = first + synth_below(&d->rng, i - first + 1), swap = p->order[i];
            p->order[i] = p->order[j];
            p->order[j] = swap;
        }
    }
    rq_status status = RQ_OK;
    for (uint32_t i = 0; i < s->count && status == RQ_OK; i++)
        status = rq_reference_run(s->tape, &s->tape->ops[s->first + p->order[i]], &env, err);
    return status;
}

static rq_status host_wait(rq_device *device, rq_error *err)
{
    return RQ_OK;
}

static rq_status host_profile(rq_program *program, const uint32_t *step_words, uint64_t *ns, rq_error *err)
{
    for (uint32_t i = 0; i < ((host_program *)program)->segment.count; i++) ns[i] = i + 1;
    return host_run(program, step_words, err);
}

static const rq_backend host_backend = {.name = "host",
                                        .close = host_close,
                                        .describe = host_describe,
                                        .alloc = host_alloc,
                                        .adopt = host_adopt,
                                        .release = host_release,
                                        .upload = host_upload,
                                        .download = host_download,
                                        .supports = host_supports,
                                        .implementation = host_implementation,
                                        .compile = host_compile,
                                        .destroy = host_destroy,
                                        .run = host_run,
                                        .wait = host_wait,
                                        .profile = host_profile};
