/* device.h - which device computes. */
#ifndef RQ_ENGINE_DEVICE_H
#define RQ_ENGINE_DEVICE_H

#include "backends/backend.h"
#include "engine/rqvk.h"

/* Opens the device that params name: backend, device, n_threads and vk_disable. "auto" takes the first device that is
 * not the processor in disguise, else the processor, and says why in the log. The caller closes it. */
rq_status rq_engine_device(const rq_engine_params *params, rq_device **out, rq_error *err);

#endif
