/* calls.c - counters of driver calls, and a failure put into one of them. Process-wide, as those of base/mem.h. */
#include "backends/vulkan/calls.h"

#include "backends/vulkan/vulkan.h"

#include <stdatomic.h>

static _Atomic uint64_t n_calls, fail_at, fail_every, n_tried;
static _Atomic int64_t n_objects;
static _Atomic int32_t fail_with;

bool vk_call_fails(VkResult *failure)
{
    atomic_fetch_add(&n_calls, 1);
    uint64_t at = atomic_load(&fail_at), every = atomic_load(&fail_every),
             n = atomic_fetch_add(&n_tried, 1) + 1;
    if ((at == 0 || n != at) && (every == 0 || n % every != 0)) return false;
    *failure = (VkResult)atomic_load(&fail_with);
    return true;
}

void vk_call_made(void)
{
    atomic_fetch_add(&n_calls, 1);
}

VkResult vk_object_made(VkResult result)
{
    if (result == VK_SUCCESS) atomic_fetch_add(&n_objects, 1);
    return result;
}

void vk_object_gone(void)
{
    atomic_fetch_sub(&n_objects, 1);
}

void rq_vulkan_fail_at(uint64_t n, int32_t result)
{
    atomic_store(&fail_with, result);
    atomic_store(&n_tried, 0);
    atomic_store(&fail_every, 0);
    atomic_store(&fail_at, n);
}

void rq_vulkan_fail_every(uint64_t n, int32_t result)
{
    rq_vulkan_fail_at(0, result);
    atomic_store(&fail_every, n);
}

uint64_t rq_vulkan_calls(void)
{
    return atomic_load(&n_calls);
}

uint64_t rq_vulkan_fallible_calls(void)
{
    return atomic_load(&n_tried);
}

int64_t rq_vulkan_objects_alive(void)
{
    return atomic_load(&n_objects);
}
