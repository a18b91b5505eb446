/* device.c - opening and closing a Vulkan device, and the backend's table. */
#include "backends/vulkan/vk.h"

#include "backends/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEVICES = 16 };

rq_status vk_is_lost(const vk_device *d, rq_error *err)
{
    return rq_fail(err, RQ_ERR_DEVICE, "%s was lost (a crash of its driver, or a reset); start again",
                   d->properties.deviceName);
}

rq_status vk_fail(vk_device *d, VkResult result, const char *what, rq_error *err)
{
    if (result == VK_ERROR_DEVICE_LOST) {
        d->lost = true;
        return rq_fail(err, RQ_ERR_DEVICE, "%s was lost during %s (a crash of its driver, or a reset)",
                       d->properties.deviceName, what);
    }
    if (result == VK_ERROR_OUT_OF_DEVICE_MEMORY || result == VK_ERROR_OUT_OF_HOST_MEMORY)
        return rq_fail(err, RQ_ERR_MEMORY, "%s ran out of memory while %s", d->properties.deviceName, what);
    return rq_fail(err, RQ_ERR_DEVICE, "%s failed while %s (Vulkan error %d)", d->properties.deviceName, what,
                   (int)result);
}

static uint32_t vk_count(void)
{
    rq_error err;
    vk_instance *in = vk_instance_open(&err);
    if (!in) return 0;
    VkPhysicalDevice devices[MAX_DEVICES];
    uint32_t n = vk_instance_devices(in, devices, MAX_DEVICES);
    vk_instance_close(in);
    return n;
}

static void vk_close(rq_device *device)
{
    if (!device) return;
    vk_device *d = (vk_device *)device;
    if (d->device != VK_NULL_HANDLE) {
        VK_DO(d->vk.vkDeviceWaitIdle(d->device));
        vk_cache_save(d);
        while (d->steps) {
            vk_step *s = d->steps;
            d->steps = s->next;
            if (s->memory) vk_release(&s->memory->base);
            rq_free(s);
        }
        for (uint32_t i = 0; i < VK_RING; i++) {
            vk_staging_free(d, &d->ring[i].words);
            if (d->ring[i].fence != VK_NULL_HANDLE)
                VK_DROP(d->vk.vkDestroyFence(d->device, d->ring[i].fence, NULL));
        }
        if (d->tables) vk_release(&d->tables->base);
        while (d->scratch) {
            vk_scratch_memory *s = d->scratch;
            d->scratch = s->next;
            vk_release(s->memory);
            rq_free(s);
        }
        vk_staging_free(d, &d->staging);
        if (d->transfer_fence != VK_NULL_HANDLE)
            VK_DROP(d->vk.vkDestroyFence(d->device, d->transfer_fence, NULL));
        vk_pipelines_free(d);
        if (d->cache != VK_NULL_HANDLE) VK_DROP(d->vk.vkDestroyPipelineCache(d->device, d->cache, NULL));
        if (d->layout != VK_NULL_HANDLE) VK_DROP(d->vk.vkDestroyPipelineLayout(d->device, d->layout, NULL));
        if (d->commands != VK_NULL_HANDLE) VK_DROP(d->vk.vkDestroyCommandPool(d->device, d->commands, NULL));
        VK_DROP(d->vk.vkDestroyDevice(d->device, NULL));
    }
    vk_instance_close(d->instance);
    rq_free(d);
}

/* Number of the device asked for by number or by part of its name, UINT32_MAX when there is none. */
static uint32_t find_device(const VkPhysicalDevice *devices, uint32_t n, const rq_device_options *options)
{
    if (!options->name) return options->index < n ? options->index : UINT32_MAX;
    if (options->name[0] && strspn(options->name, "0123456789") == strlen(options->name)) {
        unsigned long number = strtoul(options->name, NULL, 10);
        return number < n ? (uint32_t)number : UINT32_MAX;
    }
    for (uint32_t i = 0; i < n; i++) {
        VkPhysicalDeviceProperties p;
        VK_DO(vkGetPhysicalDeviceProperties(devices[i], &p));
        if (options->name[0] && strcasestr(p.deviceName, options->name)) return i;
    }
    return UINT32_MAX;
}

static rq_status no_such_device(const VkPhysicalDevice *devices, uint32_t n, const rq_device_options *options,
                                rq_error *err)
{
    char known[300] = "", asked[48];
    for (uint32_t i = 0; i < n; i++) {
        VkPhysicalDeviceProperties p;
        VK_DO(vkGetPhysicalDeviceProperties(devices[i], &p));
        size_t at = strlen(known);
        snprintf(known + at, sizeof known - at, "%s%u: %.60s", i ? ", " : "", i, p.deviceName);
    }
    if (options->name)
        snprintf(asked, sizeof asked, "\"%.40s\"", options->name);
    else
        snprintf(asked, sizeof asked, "%u", options->index);
    return rq_fail(err, RQ_ERR_ARGUMENT, "there is no Vulkan device %s on this machine (%s)", asked, known);
}

/* Why there is nothing to run on. */
static rq_status no_device(vk_device *d, rq_error *err)
{
    VkPhysicalDevice first;
    uint32_t one = 1;
    VkResult r = VK_TRY(vkEnumeratePhysicalDevices(d->instance->handle, &one, &first));
    if ((r != VK_SUCCESS && r != VK_INCOMPLETE) || one == 0)
        return rq_fail(
            err, RQ_ERR_DEVICE,
            "Vulkan finds no device on this machine; install the driver of the graphics card, or use "
            "--backend cpu");
    VkPhysicalDeviceProperties p;
    VK_DO(vkGetPhysicalDeviceProperties(first, &p));
    const char *lacks = vk_device_lacks(first);
    return rq_fail(err, RQ_ERR_DEVICE, "%s, or its driver, lacks %s; update the driver, or use --backend cpu",
                   p.deviceName, lacks ? lacks : "something we need");
}

static rq_status choose(vk_device *d, const rq_device_options *options, rq_error *err)
{
    VkPhysicalDevice devices[MAX_DEVICES];
    uint32_t disabled = 0, n = vk_instance_devices(d->instance, devices, MAX_DEVICES);
    if (n == 0) return no_device(d, err);
    uint32_t index = find_device(devices, n, options);
    if (index == UINT32_MAX) return no_such_device(devices, n, options, err);
    d->physical = devices[index];
    VkPhysicalDeviceMaintenance3Properties limits = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES};
    VkPhysicalDeviceProperties2 p = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                     .pNext = &limits};
    VK_DO(vkGetPhysicalDeviceProperties2(d->physical, &p));
    d->properties = p.properties;
    d->max_bytes = limits.maxMemoryAllocationSize;
    rq_status status = rq_vk_disable_read(options->disable, &disabled, err);
    if (status != RQ_OK) return status;
    d->has_budget = vk_has_extension(d->physical, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
    vk_features_read(d->instance->handle, d->physical, disabled, &d->features);
    status = vk_math_choose(d, options->implementation, disabled, err);
    if (status != RQ_OK) return status;
    VK_DO(vkGetPhysicalDeviceMemoryProperties(d->physical, &d->memory_properties));
    return RQ_OK;
}

static rq_status make_device(vk_device *d, rq_error *err)
{
    VkQueueFamilyProperties families[32];
    uint32_t n = 32;
    VK_DO(vkGetPhysicalDeviceQueueFamilyProperties(d->physical, &n, families));
    d->queue_family = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++) /* one for computing alone where there is */
        if ((families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) &&
            (d->queue_family == UINT32_MAX || !(families[i].queueFlags & VK_QUEUE_GRAPHICS_BIT)))
            d->queue_family = i;
    if (d->queue_family == UINT32_MAX)
        return rq_fail(err, RQ_ERR_DEVICE, "%s has no queue for computing", d->properties.deviceName);
    float priority = 1;
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                     .queueFamilyIndex = d->queue_family,
                                     .queueCount = 1,
                                     .pQueuePriorities = &priority};
    VkResult r = vk_features_create(d->physical, &queue, &d->features, &d->device);
    if (r != VK_SUCCESS) {
        d->device = VK_NULL_HANDLE;
        return vk_fail(d, r, "opening it", err);
    }
    volkLoadDeviceTable(&d->vk, d->device);
    VK_DO(d->vk.vkGetDeviceQueue(d->device, d->queue_family, 0, &d->queue));
    return RQ_OK;
}

static rq_status make_objects(vk_device *d, rq_error *err)
{
    VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                    .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                    .queueFamilyIndex = d->queue_family};
    VkPushConstantRange push = {VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof(vk_push)};
    VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                         .pushConstantRangeCount = 1,
                                         .pPushConstantRanges = &push};
    VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    VkCommandBuffer buffers[1 + VK_RING];
    VkResult r = VK_MAKE(d->vk.vkCreateCommandPool(d->device, &pool, NULL, &d->commands));
    if (r == VK_SUCCESS) r = VK_MAKE(d->vk.vkCreatePipelineLayout(d->device, &layout, NULL, &d->layout));
    if (r == VK_SUCCESS) r = vk_cache_load(d);
    if (r == VK_SUCCESS) r = VK_MAKE(d->vk.vkCreateFence(d->device, &fence, NULL, &d->transfer_fence));
    for (uint32_t i = 0; i < VK_RING && r == VK_SUCCESS; i++)
        r = VK_MAKE(d->vk.vkCreateFence(d->device, &fence, NULL, &d->ring[i].fence));
    if (r == VK_SUCCESS) {
        VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                            .commandPool = d->commands,
                                            .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                            .commandBufferCount = 1 + VK_RING};
        r = VK_TRY(d->vk.vkAllocateCommandBuffers(d->device, &info, buffers));
    }
    if (r != VK_SUCCESS) return vk_fail(d, r, "opening it", err);
    d->transfer = buffers[0];
    for (uint32_t i = 0; i < VK_RING; i++) d->ring[i].copy = buffers[1 + i];
    d->pipelines = rq_calloc(VK_MAX_PIPELINES, sizeof *d->pipelines);
    if (!d->pipelines) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the list of kernels");
    rq_status status = vk_staging_make(d, VK_STAGING_BYTES, &d->staging, err);
    if (status != RQ_OK) return status;
    uint64_t bytes;
    uint8_t *tables = vk_tables_make(&bytes);
    if (!tables) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the tables of quantised types");
    rq_memory *memory = NULL;
    status = vk_adopt(&d->base, tables, bytes, "tables of quantised types", &memory, err);
    d->tables = (vk_memory *)memory;
    rq_free(tables);
    return status == RQ_OK ? vk_measure(d, err) : status;
}

static rq_status vk_open(const rq_device_options *options, rq_device **out, rq_error *err)
{
    static const rq_device_options defaults;
    if (!options) options = &defaults;
    vk_device *d = rq_calloc(1, sizeof *d);
    if (!d) return rq_fail(err, RQ_ERR_MEMORY, "out of memory while opening a Vulkan device");
    d->base.backend = &rq_backend_vulkan;
    d->delta_form = options->delta_form;
    d->instance = vk_instance_open(err);
    rq_status status = d->instance ? choose(d, options, err) : RQ_ERR_DEVICE;
    if (status == RQ_OK) status = make_device(d, err);
    if (status == RQ_OK) status = make_objects(d, err);
    if (status == RQ_OK) vk_measure_once(d);
    if (status != RQ_OK) {
        vk_close(&d->base);
        return status;
    }
    *out = &d->base;
    return RQ_OK;
}

static void vk_describe(rq_device *device, rq_device_info *out)
{
    const vk_device *d = (const vk_device *)device;
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "%.*s", (int)sizeof out->name - 1, d->properties.deviceName);
    VkPhysicalDeviceDriverProperties driver = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
    VkPhysicalDeviceProperties2 p = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                     .pNext = &driver};
    VK_DO(vkGetPhysicalDeviceProperties2(d->physical, &p));
    int n = snprintf(out->features, sizeof out->features, "driver %.40s %.40s, Vulkan %u.%u, ",
                     driver.driverName, driver.driverInfo, VK_API_VERSION_MAJOR(d->properties.apiVersion),
                     VK_API_VERSION_MINOR(d->properties.apiVersion));
    if (n > 0 && (size_t)n < sizeof out->features)
        rq_vk_features_text(&d->features, out->features + n, sizeof out->features - (size_t)n);
    out->on_processor = d->properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
    vk_memory_sizes(d, &out->memory_bytes, &out->free_bytes);
    out->taken_bytes = d->taken_bytes;
}

const rq_vk_features *rq_vulkan_features(const rq_device *device)
{
    return &((const vk_device *)device)->features;
}

uint32_t rq_vulkan_pipelines(const rq_device *device)
{
    return ((const vk_device *)device)->n_pipelines;
}

const rq_backend rq_backend_vulkan = {
    .name = "vulkan",
    .count = vk_count,
    .open = vk_open,
    .close = vk_close,
    .describe = vk_describe,
    .alloc = vk_alloc,
    .adopt = vk_adopt,
    .release = vk_release,
    .upload = vk_upload,
    .download = vk_download,
    .supports = vk_supports,
    .implementation = vk_implementation,
    .compile = vk_compile,
    .scratch = vk_scratch_of,
    .destroy = vk_destroy,
    .run = vk_run,
    .wait = vk_wait,
    .mark = vk_mark,
    .wait_mark = vk_wait_mark,
    .alloc_host = vk_alloc_host,
    .fetch = vk_fetch,
    .profile = vk_profile,
};
