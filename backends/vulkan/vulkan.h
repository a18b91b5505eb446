/* vulkan.h - what the rest of the program may know about the Vulkan backend beside its table. */
#ifndef RQ_VULKAN_H
#define RQ_VULKAN_H

#include "backends/backend.h"

extern const rq_backend rq_backend_vulkan;

/* Messages of the validation layers about this device since it was opened (RQVK_VK_VALIDATE=1 in the environment). */
uint32_t rq_vulkan_messages(const rq_device *device);

#endif
