/* devices.c - finds and opens what an engine computes on. */
#include "engine/device.h"
#include "engine/memory.h"
#include "engine/place/place.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A backend's name with digits behind it, or none: "vulkan1", "cpu". NULL: it is something else. */
static const rq_backend *by_number(const char *text, uint32_t *index)
{
    for (const rq_backend *const *b = rq_backends(); *b != NULL; b++) {
        size_t n = strlen((*b)->name);
        if (strncmp(text, (*b)->name, n) != 0 || text[n + strspn(text + n, "0123456789")] != 0 ||
            strlen(text + n) > 4)
            continue;
        *index = (uint32_t)strtoul(text + n, NULL, 10);
        return *b;
    }
    return NULL;
}

/* Takes over a device that was opened. */
static void take_in(rq_place_devices *d, rq_device *device, bool card, const rq_engine_params *p)
{
    uint32_t i = d->n++, same = 0;
    d->open[i] = device;
    d->n_cards += card;
    memset(&d->info[i], 0, sizeof d->info[i]);
    device->backend->describe(device, &d->info[i]);
    for (uint32_t k = 0; k < i; k++) same += d->open[k]->backend == device->backend;
    if (card)
        snprintf(d->name[i], sizeof d->name[i], "%.16s%u", device->backend->name, same);
    else
        snprintf(d->name[i], sizeof d->name[i], "processor");
    uint64_t override = card ? p->device_memory : p->host_memory;
    uint64_t there = d->info[i].host_memory ? rq_memory_available() : d->info[i].free_bytes;
    d->shares[i] = card && override == 0 && (d->info[i].host_memory || d->info[i].on_processor);
    if (d->shares[i]) there = there / 4 * 3; /* of a memory that everybody uses */
    d->budget[i] = override != 0 ? override : there;
}

static rq_status open_processor(rq_place_devices *d, bool card, const rq_engine_params *p, rq_error *err)
{
    rq_device_options options = {.n_threads = p->n_threads};
    rq_device *device = NULL;
    rq_status status = rq_backend_cpu.open(&options, &device, err);
    if (status == RQ_OK) take_in(d, device, card, p);
    return status;
}

/* One name of the list. */
static rq_status open_named(rq_place_devices *d, const char *name, const rq_engine_params *p, rq_error *err)
{
    rq_engine_params one = *p;
    char number[16];
    uint32_t index = 0;
    const rq_backend *backend = by_number(name, &index);
    snprintf(number, sizeof number, "%u", index);
    one.device = backend != NULL ? number : name;
    if (backend != NULL) one.backend = backend->name;
    rq_device *device = NULL;
    rq_status status = rq_engine_device(&one, &device, err);
    if (status == RQ_OK) take_in(d, device, true, p);
    return status;
}

static rq_status open_list(rq_place_devices *d, const rq_engine_params *p, rq_error *err)
{
    for (const char *at = p->device;; at++) {
        char name[128];
        size_t n = strcspn(at, ",");
        if (n == 0 || n >= sizeof name)
            return rq_fail(err, RQ_ERR_ARGUMENT,
                           "--device takes names or numbers separated by commas, not \"%.100s\"", p->device);
        if (d->n_cards == RQ_MAX_CARDS)
            return rq_fail(err, RQ_ERR_ARGUMENT, "an engine can use %d devices, and \"%.100s\" are more",
                           RQ_MAX_CARDS, p->device);
        memcpy(name, at, n);
        name[n] = 0;
        rq_status status = open_named(d, name, p, err);
        if (status != RQ_OK) return status;
        at += n;
        if (*at == 0) return RQ_OK;
    }
}

rq_status rq_place_open(const rq_engine_params *p, rq_place_devices *out, rq_error *err)
{
    memset(out, 0, sizeof *out);
    rq_status status = RQ_OK;
    uint32_t index = 0;
    if (p->device != NULL && (strchr(p->device, ',') != NULL || by_number(p->device, &index) != NULL)) {
        status = open_list(out, p, err);
    } else {
        rq_device *device = NULL;
        status = rq_engine_device(p, &device, err);
        if (status != RQ_OK) return status;
        take_in(out, device, device->backend != &rq_backend_cpu, p);
        if (out->n_cards == 0) return RQ_OK; /* it is the processor */
    }
    return status == RQ_OK ? open_processor(out, false, p, err) : status;
}

void rq_place_drop_processor(rq_place_devices *d)
{
    if (d->n == d->n_cards) return;
    d->n--;
    d->open[d->n]->backend->close(d->open[d->n]);
    d->open[d->n] = NULL;
}

void rq_place_close(rq_place_devices *d)
{
    for (uint32_t i = 0; i < d->n; i++)
        if (d->open[i] != NULL) d->open[i]->backend->close(d->open[i]);
    memset(d, 0, sizeof *d);
}
