/* rig.h - an executor of a small random model on the Vulkan device; for the tests of this folder. */
#ifndef TEST_VULKAN_RIG_H
#define TEST_VULKAN_RIG_H

#include "backends/vulkan/vulkan.h"
#include "tests/ground/drive.h"
#include "tests/ground/synth.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct vulkan_rig {
    rq_device *device;
    rq_executor *ex;
    rq_executor_params params;
    driver drive;
} vulkan_rig;

static inline rq_status vulkan_rig_open(vulkan_rig *r, synth_model *m, uint32_t max_tokens, uint32_t n_seqs,
                                        rq_error *err)
{
    memset(r, 0, sizeof *r);
    rq_status status = rq_backend_vulkan.open(&(rq_device_options){0}, &r->device, err);
    if (status != RQ_OK) return status;
    r->params = synth_params(m, &r->device, 1, max_tokens, n_seqs, 4);
    status = rq_executor_create(&r->params, &r->ex, err);
    if (status == RQ_OK && !driver_open(&r->drive, r->ex, &r->params)) status = RQ_ERR_MEMORY;
    return status;
}

static inline void vulkan_rig_close(vulkan_rig *r)
{
    if (r->ex) driver_close(&r->drive);
    rq_executor_free(r->ex);
    if (r->device) r->device->backend->close(r->device);
    memset(r, 0, sizeof *r);
}

/* 77, for ctest: left out, when there is no driver and nobody insists on one. */
static inline int vulkan_absent(void)
{
    rq_device *device = NULL;
    rq_error err = {0};
    if (rq_backend_vulkan.open(&(rq_device_options){0}, &device, &err) == RQ_OK) {
        rq_backend_vulkan.close(device);
        return 0;
    }
    printf("%s\n", err.text);
    return getenv("RQVK_VK_REQUIRED") ? 1 : 77;
}

#endif
