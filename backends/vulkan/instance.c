/* instance.c - finding the driver and its devices. The library is loaded when a device is asked for: a machine
 * without one starts the program as well. */
#include "backends/vulkan/vk.h"

#include "backends/base/mem.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Atomic uint32_t n_messages; /* of the validation layers, in the whole process */

static VKAPI_ATTR VkBool32 VKAPI_CALL count_message(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                                    VkDebugUtilsMessageTypeFlagsEXT types,
                                                    const VkDebugUtilsMessengerCallbackDataEXT *data,
                                                    void *user)
{
    (void)types;
    (void)user;
    if (severity < VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT) return VK_FALSE;
    atomic_fetch_add(&n_messages, 1);
    fprintf(stderr, "vulkan: %s\n", data->pMessage);
    return VK_FALSE;
}

uint32_t rq_vulkan_messages(const rq_device *device)
{
    (void)device;
    return atomic_load(&n_messages);
}

vk_instance *vk_instance_open(rq_error *err)
{
    if (volkInitialize() != VK_SUCCESS) {
        rq_fail(
            err, RQ_ERR_DEVICE,
            "there is no Vulkan driver on this machine (libvulkan.so.1 was not found); install the driver of "
            "the graphics card, or use --backend cpu");
        return NULL;
    }
    if (volkGetInstanceVersion() < VK_API_VERSION_1_2) {
        rq_fail(err, RQ_ERR_DEVICE,
                "Vulkan on this machine is older than 1.2; update the driver, or use --backend cpu");
        return NULL;
    }
    vk_instance *in = rq_calloc(1, sizeof *in);
    if (!in) {
        rq_fail(err, RQ_ERR_MEMORY, "out of memory while opening Vulkan");
        return NULL;
    }
    const char *wanted = getenv("RQVK_VK_VALIDATE");
    bool validate = wanted && strcmp(wanted, "1") == 0;
    static const char *const layers[] = {"VK_LAYER_KHRONOS_validation"};
    static const char *const extensions[] = {VK_EXT_DEBUG_UTILS_EXTENSION_NAME};
    VkDebugUtilsMessengerCreateInfoEXT messages = {
        .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
        .messageSeverity =
            VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
        .messageType =
            VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_TYPE_PERFORMANCE_BIT_EXT,
        .pfnUserCallback = count_message};
    VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                             .pApplicationName = "rqvk",
                             .apiVersion = VK_API_VERSION_1_2};
    VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                 .pNext = validate ? &messages : NULL,
                                 .pApplicationInfo = &app,
                                 .enabledLayerCount = validate,
                                 .ppEnabledLayerNames = layers,
                                 .enabledExtensionCount = validate,
                                 .ppEnabledExtensionNames = extensions};
    VkResult r = VK_MAKE(vkCreateInstance(&info, NULL, &in->handle));
    if (r != VK_SUCCESS) {
        rq_free(in);
        if (r == VK_ERROR_LAYER_NOT_PRESENT)
            rq_fail(err, RQ_ERR_DEVICE,
                    "RQVK_VK_VALIDATE=1 asks for the Vulkan validation layers, which are not installed");
        else if (r == VK_ERROR_INCOMPATIBLE_DRIVER)
            rq_fail(
                err, RQ_ERR_DEVICE,
                "there is no Vulkan driver on this machine; install the driver of the graphics card, or use "
                "--backend cpu");
        else
            rq_fail(err, RQ_ERR_DEVICE,
                    "no Vulkan driver could be started (error %d); update the driver of the graphics card, "
                    "or use "
                    "--backend cpu",
                    (int)r);
        return NULL;
    }
    volkLoadInstanceOnly(in->handle);
    if (validate &&
        VK_MAKE(vkCreateDebugUtilsMessengerEXT(in->handle, &messages, NULL, &in->messenger)) != VK_SUCCESS)
        in->messenger = VK_NULL_HANDLE;
    return in;
}

void vk_instance_close(vk_instance *in)
{
    if (!in) return;
    if (in->messenger != VK_NULL_HANDLE)
        VK_DROP(vkDestroyDebugUtilsMessengerEXT(in->handle, in->messenger, NULL));
    VK_DROP(vkDestroyInstance(in->handle, NULL));
    rq_free(in);
}

const char *vk_device_lacks(VkPhysicalDevice device)
{
    VkPhysicalDeviceProperties p;
    VK_DO(vkGetPhysicalDeviceProperties(device, &p));
    if (p.apiVersion < VK_API_VERSION_1_2) return "Vulkan 1.2";
    VkPhysicalDeviceVulkan12Features f12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
    VkPhysicalDeviceVulkan11Features f11 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES,
                                            .pNext = &f12};
    VkPhysicalDeviceFeatures2 f = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &f11};
    VK_DO(vkGetPhysicalDeviceFeatures2(device, &f));
    if (!f12.bufferDeviceAddress) return "buffer device addresses";
    if (!f12.scalarBlockLayout) return "scalar block layout";
    if (!f.features.shaderInt64) return "64-bit integers in shaders";
    if (!f11.storageBuffer16BitAccess) return "16-bit storage";
    if (!f12.storageBuffer8BitAccess) return "8-bit storage";
    return NULL;
}

/* Discrete cards, then integrated ones, then virtual ones, then processors. */
static int rank_of(VkPhysicalDevice device)
{
    VkPhysicalDeviceProperties p;
    VK_DO(vkGetPhysicalDeviceProperties(device, &p));
    switch (p.deviceType) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
        return 0;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
        return 1;
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
        return 2;
    default:
        return 3;
    }
}

uint32_t vk_instance_devices(const vk_instance *in, VkPhysicalDevice *out, uint32_t max)
{
    VkPhysicalDevice all[32];
    uint32_t n = 32, kept = 0;
    VkResult r = VK_TRY(vkEnumeratePhysicalDevices(in->handle, &n, all));
    if (r != VK_SUCCESS && r != VK_INCOMPLETE) return 0;
    for (int rank = 0; rank < 4; rank++)
        for (uint32_t i = 0; i < n && kept < max; i++)
            if (rank_of(all[i]) == rank && !vk_device_lacks(all[i])) out[kept++] = all[i];
    return kept;
}
