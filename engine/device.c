/* device.c - which device computes: what was asked for, or the best there is. */
#include "engine/device.h"

#include "engine/say.h"

#include <stdio.h>
#include <string.h>

static rq_status no_such_backend(const char *name, rq_error *err)
{
    char known[128] = "auto";
    for (const rq_backend *const *b = rq_backends(); *b != NULL; b++) {
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, ", %s", (*b)->name);
    }
    return rq_fail(err, RQ_ERR_ARGUMENT, "there is no backend \"%.40s\" in this build (%s)", name, known);
}

static bool is_processor(const rq_backend *b)
{
    return strcmp(b->name, "cpu") == 0;
}

static rq_status open_on(const rq_backend *b, const rq_engine_params *p, rq_device **out, rq_error *err)
{
    rq_device_options options = {.n_threads = p->n_threads, .name = p->device, .disable = p->vk_disable};
    rq_device *device = NULL;
    rq_status status = b->open(&options, &device, err);
    if (status != RQ_OK) return status;
    rq_device_info info;
    b->describe(device, &info);
    if (is_processor(b) && p->device && strcmp(p->device, "0") != 0 && !strcasestr(info.name, p->device)) {
        b->close(device);
        return rq_fail(err, RQ_ERR_ARGUMENT, "there is no processor \"%.40s\" (0: %s)", p->device, info.name);
    }
    *out = device;
    return RQ_OK;
}

/* The first device of any backend that is no processor; NULL without an error when there is none. */
static rq_device *open_card(const rq_engine_params *p)
{
    for (const rq_backend *const *b = rq_backends(); *b != NULL; b++) {
        rq_device *device = NULL;
        rq_error why;
        if (is_processor(*b)) continue;
        if (open_on(*b, p, &device, &why) != RQ_OK) {
            rq_say(p, "backend: not %s: %s", (*b)->name, why.text);
            continue;
        }
        rq_device_info info;
        (*b)->describe(device, &info);
        if (!info.on_processor || p->device) return device;
        rq_say(p,
               "backend: not %s: its best device, %s, computes on the processor, where the cpu backend is "
               "faster",
               (*b)->name, info.name);
        (*b)->close(device);
    }
    return NULL;
}

rq_status rq_engine_device(const rq_engine_params *p, rq_device **out, rq_error *err)
{
    bool automatic = p->backend == NULL || strcmp(p->backend, "auto") == 0;
    const rq_backend *backend = rq_backend_find(automatic ? "cpu" : p->backend);
    if (backend == NULL) return no_such_backend(automatic ? "cpu" : p->backend, err);
    if (!automatic) return open_on(backend, p, out, err);
    rq_device *card = open_card(p);
    if (card != NULL) {
        *out = card;
        return RQ_OK;
    }
    rq_status status = open_on(backend, p, out, err);
    if (status == RQ_ERR_ARGUMENT && p->device)
        return rq_fail(err, status,
                       "there is no device \"%.40s\" on this machine; --list-devices shows those there are",
                       p->device);
    return status;
}
