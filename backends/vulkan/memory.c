/* memory.c - device memory, and the way there and back through a staging buffer of fixed size. Memory that
 * kernels use is never visible to the processor. */
#include "backends/vulkan/vk.h"

#include "backends/base/mem.h"

#include <string.h>
#include <time.h>

/* Index of a memory type with these properties, UINT32_MAX when there is none. */
static uint32_t type_with(const VkPhysicalDeviceMemoryProperties *p, uint32_t allowed,
                          VkMemoryPropertyFlags wanted, VkMemoryPropertyFlags unwanted)
{
    for (uint32_t i = 0; i < p->memoryTypeCount; i++) {
        VkMemoryPropertyFlags flags = p->memoryTypes[i].propertyFlags;
        if ((allowed >> i & 1) && (flags & wanted) == wanted && !(flags & unwanted)) return i;
    }
    return UINT32_MAX;
}

uint32_t vk_memory_type(const VkPhysicalDeviceMemoryProperties *p, uint32_t allowed, bool host)
{
    const VkMemoryPropertyFlags local = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT,
                                seen = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT,
                                plain = seen | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    const struct {
        VkMemoryPropertyFlags wanted, unwanted;
    } choices[2][3] = {
        {{local, seen}, {local, 0}, {local, 0}},
        {{plain | VK_MEMORY_PROPERTY_HOST_CACHED_BIT, local}, {plain, local}, {plain, 0}},
    };
    uint32_t type = UINT32_MAX;
    for (int i = 0; i < 3 && type == UINT32_MAX; i++)
        type = type_with(p, allowed, choices[host][i].wanted, choices[host][i].unwanted);
    return type;
}

/* The largest heap of the device's own memory, as the driver counts it where it does. */
void vk_memory_sizes(const vk_device *d, uint64_t *total, uint64_t *unused)
{
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 p = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2,
                                           .pNext = d->has_budget ? &budget : NULL};
    VK_DO(vkGetPhysicalDeviceMemoryProperties2(d->physical, &p));
    *total = *unused = 0;
    for (uint32_t i = 0; i < p.memoryProperties.memoryHeapCount; i++) {
        const VkMemoryHeap *heap = &p.memoryProperties.memoryHeaps[i];
        if (!(heap->flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) || heap->size <= *total) continue;
        *total = heap->size;
        uint64_t may = d->has_budget ? budget.heapBudget[i] : heap->size,
                 used = d->has_budget ? budget.heapUsage[i] : d->taken_bytes;
        *unused = may > used ? may - used : 0;
    }
}

static rq_status make_buffer(vk_device *d, uint64_t bytes, bool host, const char *label, VkBuffer *buffer,
                             VkDeviceMemory *memory, uint64_t *taken, rq_error *err)
{
    VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                               .size = bytes ? (bytes + 15) & ~15ull : 16,
                               .usage = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT |
                                        (host ? 0u
                                              : (VkBufferUsageFlags)VK_BUFFER_USAGE_STORAGE_BUFFER_BIT |
                                                    VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT)};
    if (bytes > d->max_bytes)
        return rq_fail(err, RQ_ERR_MEMORY, "%s gives no more than %.1f MiB at once, and %s is %.1f MiB",
                       d->properties.deviceName, (double)d->max_bytes / 1048576, label,
                       (double)bytes / 1048576);
    VkResult r = VK_MAKE(d->vk.vkCreateBuffer(d->device, &info, NULL, buffer));
    if (r != VK_SUCCESS) return vk_fail(d, r, "making a buffer", err);
    VkMemoryRequirements need;
    VK_DO(d->vk.vkGetBufferMemoryRequirements(d->device, *buffer, &need));
    uint32_t type = vk_memory_type(&d->memory_properties, need.memoryTypeBits, host);
    r = VK_ERROR_OUT_OF_DEVICE_MEMORY;
    if (d->pretends && !host) {
        r = VK_SUCCESS;
    } else if (type != UINT32_MAX) {
        VkMemoryAllocateFlagsInfo flags = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                           .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
        VkMemoryAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                         .pNext = host ? NULL : &flags,
                                         .allocationSize = need.size,
                                         .memoryTypeIndex = type};
        r = VK_MAKE(d->vk.vkAllocateMemory(d->device, &allocate, NULL, memory));
        if (r == VK_SUCCESS) {
            r = VK_TRY(d->vk.vkBindBufferMemory(d->device, *buffer, *memory, 0));
            if (r != VK_SUCCESS) VK_DROP(d->vk.vkFreeMemory(d->device, *memory, NULL));
        }
    }
    if (r != VK_SUCCESS) {
        VK_DROP(d->vk.vkDestroyBuffer(d->device, *buffer, NULL));
        *buffer = VK_NULL_HANDLE;
        *memory = VK_NULL_HANDLE;
        if (r == VK_ERROR_OUT_OF_DEVICE_MEMORY || r == VK_ERROR_OUT_OF_HOST_MEMORY)
            return rq_fail(err, RQ_ERR_MEMORY,
                           "%s has no %.1f MiB of memory left for %s (%.1f MiB are taken by this program)",
                           d->properties.deviceName, (double)bytes / 1048576, label,
                           (double)d->taken_bytes / 1048576);
        return vk_fail(d, r, "allocating memory", err);
    }
    *taken = need.size;
    d->taken_bytes += need.size;
    if (!host && d->taken_bytes > d->most_bytes) d->most_bytes = d->taken_bytes;
    return RQ_OK;
}

/* ---- transfers ------------------------------------------------------------------------------------------- */

static rq_status begin_transfer(vk_device *d, rq_error *err)
{
    if (d->lost) return vk_is_lost(d, err);
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                      .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
    VkResult r = VK_TRY(d->vk.vkBeginCommandBuffer(d->transfer, &begin));
    if (r != VK_SUCCESS) return vk_fail(d, r, "recording a transfer", err);
    VkMemoryBarrier all = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                           .srcAccessMask = VK_ACCESS_MEMORY_WRITE_BIT | VK_ACCESS_MEMORY_READ_BIT,
                           .dstAccessMask = VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT};
    VK_DO(d->vk.vkCmdPipelineBarrier(d->transfer, VK_PIPELINE_STAGE_ALL_COMMANDS_BIT,
                                     VK_PIPELINE_STAGE_TRANSFER_BIT, 0, 1, &all, 0, NULL, 0, NULL));
    return RQ_OK;
}

static rq_status end_transfer(vk_device *d, rq_error *err)
{
    VkMemoryBarrier all = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                           .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT,
                           .dstAccessMask = VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT};
    VK_DO(d->vk.vkCmdPipelineBarrier(d->transfer, VK_PIPELINE_STAGE_TRANSFER_BIT,
                                     VK_PIPELINE_STAGE_ALL_COMMANDS_BIT | VK_PIPELINE_STAGE_HOST_BIT, 0, 1,
                                     &all, 0, NULL, 0, NULL));
    VkResult r = VK_TRY(d->vk.vkEndCommandBuffer(d->transfer));
    VkSubmitInfo submit = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &d->transfer};
    if (r == VK_SUCCESS) r = VK_TRY(d->vk.vkResetFences(d->device, 1, &d->transfer_fence));
    if (r == VK_SUCCESS) r = VK_TRY(d->vk.vkQueueSubmit(d->queue, 1, &submit, d->transfer_fence));
    if (r == VK_SUCCESS)
        r = VK_TRY(d->vk.vkWaitForFences(d->device, 1, &d->transfer_fence, VK_TRUE, UINT64_MAX));
    return r == VK_SUCCESS ? RQ_OK : vk_fail(d, r, "a transfer", err);
}

/* Counted, but not there (rq_vulkan_pretend). */
static bool is_pretended(const rq_memory *m)
{
    return ((const vk_memory *)m)->memory == VK_NULL_HANDLE;
}

static rq_status check_range(const rq_memory *m, uint64_t offset, uint64_t bytes, rq_error *err)
{
    if (offset > m->bytes || bytes > m->bytes - offset)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "a transfer of %llu bytes at %llu does not fit memory of %llu bytes",
                       (unsigned long long)bytes, (unsigned long long)offset, (unsigned long long)m->bytes);
    return RQ_OK;
}

rq_status vk_upload(rq_memory *dst, uint64_t offset, const void *src, uint64_t bytes, rq_error *err)
{
    vk_device *d = (vk_device *)dst->device;
    rq_status status = check_range(dst, offset, bytes, err);
    if (is_pretended(dst)) return status;
    for (uint64_t done = 0, n; status == RQ_OK && done < bytes; done += n) {
        n = bytes - done < d->staging.bytes ? bytes - done : d->staging.bytes;
        memcpy(d->staging.host, (const char *)src + done, (size_t)n);
        status = begin_transfer(d, err);
        if (status != RQ_OK) break;
        VkBufferCopy copy = {.srcOffset = 0, .dstOffset = offset + done, .size = n};
        VK_DO(d->vk.vkCmdCopyBuffer(d->transfer, d->staging.buffer, ((vk_memory *)dst)->buffer, 1, &copy));
        status = end_transfer(d, err);
    }
    return status;
}

rq_status vk_download(rq_memory *src, uint64_t offset, void *dst, uint64_t bytes, rq_error *err)
{
    vk_device *d = (vk_device *)src->device;
    rq_status status = check_range(src, offset, bytes, err);
    if (status == RQ_OK && is_pretended(src))
        return rq_fail(err, RQ_ERR_INTERNAL, "memory that is only counted has no bytes");
    for (uint64_t done = 0, n; status == RQ_OK && done < bytes; done += n) {
        n = bytes - done < d->staging.bytes ? bytes - done : d->staging.bytes;
        status = begin_transfer(d, err);
        if (status != RQ_OK) break;
        VkBufferCopy copy = {.srcOffset = offset + done, .dstOffset = 0, .size = n};
        VK_DO(d->vk.vkCmdCopyBuffer(d->transfer, ((vk_memory *)src)->buffer, d->staging.buffer, 1, &copy));
        status = end_transfer(d, err);
        if (status == RQ_OK) memcpy((char *)dst + done, d->staging.host, (size_t)n);
    }
    return status;
}

/* ---- allocation ------------------------------------------------------------------------------------------ */

static rq_status fill_zero(vk_memory *m, rq_error *err)
{
    vk_device *d = (vk_device *)m->base.device;
    if (is_pretended(&m->base)) return RQ_OK;
    rq_status status = begin_transfer(d, err);
    if (status != RQ_OK) return status;
    VK_DO(d->vk.vkCmdFillBuffer(d->transfer, m->buffer, 0, VK_WHOLE_SIZE, 0));
    return end_transfer(d, err);
}

static rq_status allocate(rq_device *device, uint64_t bytes, const char *label, vk_memory **out,
                          rq_error *err)
{
    vk_device *d = (vk_device *)device;
    vk_memory *m = rq_calloc(1, sizeof *m);
    if (!m) return rq_fail(err, RQ_ERR_MEMORY, "out of memory");
    m->base = (rq_memory){.device = device, .bytes = bytes};
    rq_status status = make_buffer(d, bytes, false, label ? label : "the device", &m->buffer, &m->memory,
                                   &m->taken_bytes, err);
    if (status != RQ_OK) {
        rq_free(m);
        return status;
    }
    if (is_pretended(&m->base)) { /* an address nobody follows */
        m->address = 1ull << 44 | d->taken_bytes << 8;
        *out = m;
        return RQ_OK;
    }
    VkBufferDeviceAddressInfo where = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO,
                                       .buffer = m->buffer};
    m->address = VK_DO(d->vk.vkGetBufferDeviceAddress(d->device, &where));
    *out = m;
    return RQ_OK;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

rq_status vk_measure(vk_device *d, rq_error *err)
{
    const bool slow = d->properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
    const uint64_t bytes = slow ? 4u << 20 : 32u << 20;
    const uint32_t n_copies = slow ? 1 : 8, n_rounds = 3;
    rq_memory *m = NULL;
    rq_status status = vk_alloc(&d->base, 2 * bytes, "measuring", &m, err);
    uint64_t best = UINT64_MAX;
    for (uint32_t round = 0; round < n_rounds && status == RQ_OK; round++) {
        uint64_t start = now_ns();
        status = begin_transfer(d, err);
        if (status != RQ_OK) break;
        VkBufferCopy copy = {.dstOffset = bytes, .size = bytes};
        for (uint32_t i = 0; i < n_copies; i++)
            VK_DO(d->vk.vkCmdCopyBuffer(d->transfer, ((vk_memory *)m)->buffer, ((vk_memory *)m)->buffer, 1,
                                        &copy));
        status = end_transfer(d, err);
        uint64_t took = now_ns() - start;
        if (took < best) best = took;
    }
    if (m) vk_release(m);
    if (status == RQ_OK) d->bytes_per_second = 2e9 * (double)bytes * n_copies / (double)(best ? best : 1);
    return status;
}

rq_status vk_alloc(rq_device *device, uint64_t bytes, const char *label, rq_memory **out, rq_error *err)
{
    vk_memory *m = NULL;
    rq_status status = allocate(device, bytes, label, &m, err);
    if (status != RQ_OK || !m) return status;
    status = fill_zero(m, err);
    if (status == RQ_OK)
        *out = &m->base;
    else
        vk_release(&m->base);
    return status;
}

rq_status vk_alloc_host(rq_device *device, uint64_t bytes, const char *label, rq_memory **out, rq_error *err)
{
    vk_device *d = (vk_device *)device;
    vk_memory *m = rq_calloc(1, sizeof *m);
    if (!m) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for %s", label);
    vk_staging s = {0};
    rq_status status = vk_staging_make(d, bytes, &s, err);
    if (status != RQ_OK) {
        rq_free(m);
        return status;
    }
    *m = (vk_memory){
        .base = {.device = device, .host = s.host, .bytes = bytes}, .buffer = s.buffer, .memory = s.memory};
    *out = &m->base;
    return RQ_OK;
}

rq_status vk_adopt(rq_device *device, const void *host, uint64_t bytes, const char *label, rq_memory **out,
                   rq_error *err)
{
    vk_memory *m = NULL;
    rq_status status = allocate(device, bytes, label, &m, err);
    if (status != RQ_OK || !m) return status;
    status = vk_upload(&m->base, 0, host, bytes, err);
    if (status == RQ_OK)
        *out = &m->base;
    else
        vk_release(&m->base);
    return status;
}

void rq_vulkan_pretend(rq_device *device)
{
    vk_device *d = (vk_device *)device;
    d->pretends = true;
    d->most_bytes = d->taken_bytes;
}

uint64_t rq_vulkan_most_bytes(const rq_device *device)
{
    return ((const vk_device *)device)->most_bytes;
}

void vk_release(rq_memory *memory)
{
    if (!memory) return;
    vk_memory *m = (vk_memory *)memory;
    vk_device *d = (vk_device *)memory->device;
    VK_DO(d->vk.vkDeviceWaitIdle(d->device));
    VK_DROP(d->vk.vkDestroyBuffer(d->device, m->buffer, NULL));
    if (!is_pretended(memory)) VK_DROP(d->vk.vkFreeMemory(d->device, m->memory, NULL));
    d->taken_bytes -= m->taken_bytes;
    rq_free(m);
}

rq_status vk_staging_make(vk_device *d, uint64_t bytes, vk_staging *out, rq_error *err)
{
    uint64_t taken = 0;
    rq_status status = make_buffer(d, bytes, true, "transfers", &out->buffer, &out->memory, &taken, err);
    if (status != RQ_OK) return status;
    d->taken_bytes -= taken; /* the processor's memory */
    out->bytes = bytes;
    void *host;
    VkResult r = VK_TRY(d->vk.vkMapMemory(d->device, out->memory, 0, VK_WHOLE_SIZE, 0, &host));
    if (r != VK_SUCCESS) {
        vk_staging_free(d, out);
        return vk_fail(d, r, "mapping memory", err);
    }
    out->host = host;
    return RQ_OK;
}

void vk_staging_free(vk_device *d, vk_staging *s)
{
    if (s->buffer != VK_NULL_HANDLE) VK_DROP(d->vk.vkDestroyBuffer(d->device, s->buffer, NULL));
    if (s->memory != VK_NULL_HANDLE) VK_DROP(d->vk.vkFreeMemory(d->device, s->memory, NULL));
    memset(s, 0, sizeof *s);
}
