/* pool.h - a cache pool as shaders see it (shaders/pages.glsl). */
#ifndef RQ_VK_POOL_H
#define RQ_VK_POOL_H

#include "backends/vulkan/vk.h"

/* A block of device memory with the addresses of the pool's slabs and tables and the geometry of its pages.
 * Release it with vk_release. */
rq_status vk_pool_block(vk_device *d, const rq_cache_pool *pool, const rq_step_caps *caps, rq_memory **out,
                        rq_error *err);

/* Bytes of it. */
uint64_t vk_pool_block_bytes(void);

#endif
