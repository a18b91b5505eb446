/* vulkan.h - what the rest of the program may know about the Vulkan backend beside its table. */
#ifndef RQ_VULKAN_H
#define RQ_VULKAN_H

#include "backends/backend.h"
#include "backends/vulkan/features.h"

extern const rq_backend rq_backend_vulkan;

const rq_vk_features *rq_vulkan_features(const rq_device *device);

/* Times every arithmetic of products the device has (measure.c), with a matrix of n_out rows (0: as at the first start
 * on a device), takes the fastest and writes a line about each case to `text` (size > 0). Waits for the
 * device. */
rq_status rq_vulkan_measure(rq_device *device, uint32_t n_out, char *text, size_t size, rq_error *err);

/* ---- for tests ------------------------------------------------------------------------------------------- */

/* Messages of the validation layers since the process began (RQVK_VK_VALIDATE=1 in the environment), of all devices. */
uint32_t rq_vulkan_messages(const rq_device *device);

/* Makes the n-th call of the driver that can fail (1 = the next) return this VkResult instead of being made; 0
 * switches this off. The counts are of the whole process. */
void rq_vulkan_fail_at(uint64_t n, int32_t result);
/* The same of every n-th from now on. */
void rq_vulkan_fail_every(uint64_t n, int32_t result);
/* Calls of the driver so far; those that can fail since the last rq_vulkan_fail_at; objects that were made and not
 * destroyed. */
uint64_t rq_vulkan_calls(void);
uint64_t rq_vulkan_fallible_calls(void);
int64_t rq_vulkan_objects_alive(void);
/* From now on the device's memory is counted, as the driver says that it would be taken, and not allocated: plans of
 * models that fit nowhere are compared with what making them takes. Nothing can be run. The most bytes ever taken. */
void rq_vulkan_pretend(rq_device *device);
uint64_t rq_vulkan_most_bytes(const rq_device *device);
/* Pipelines made by this device, and of these how many the cache on disk had. */
uint32_t rq_vulkan_pipelines(const rq_device *device);

#endif
