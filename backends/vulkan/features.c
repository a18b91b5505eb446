/* features.c - what a device can do, what of it our kernels use, and switching it on. */
#include "backends/vulkan/features.h"

#include "backends/base/mem.h"
#include "backends/vulkan/vk.h"

#include <stdio.h>
#include <string.h>

static const char *const names[RQ_VK_ABILITIES] = {"float16",  "int8",           "integer-dot",
                                                   "subgroup", "full-subgroups", "coopmat"};

const char *rq_vk_ability_name(rq_vk_ability_kind kind)
{
    return (uint32_t)kind < RQ_VK_ABILITIES ? names[kind] : "?";
}

rq_status rq_vk_disable_read(const char *list, uint32_t *mask, rq_error *err)
{
    uint32_t out = 0;
    for (const char *at = list; at && *at;) {
        size_t n = strcspn(at, ",");
        uint32_t kind = 0;
        while (kind < RQ_VK_ABILITIES && (strlen(names[kind]) != n || memcmp(names[kind], at, n) != 0))
            kind++;
        if (kind == RQ_VK_ABILITIES)
            return rq_fail(
                err, RQ_ERR_ARGUMENT,
                "there is no Vulkan feature \"%.*s\" to disable; there are float16, int8, integer-dot, "
                "subgroup, full-subgroups and coopmat",
                (int)(n < 40 ? n : 40), at);
        out |= 1u << kind;
        at += n;
        if (*at == ',') at++;
    }
    *mask = out;
    return RQ_OK;
}

const rq_vk_shape *rq_vk_shape_of(const rq_vk_features *f, rq_vk_component ab, rq_vk_component c)
{
    const rq_vk_shape *best = NULL;
    for (uint32_t i = 0; i < f->n_shapes; i++) {
        const rq_vk_shape *s = &f->shapes[i];
        if (s->a != ab || s->b != ab || s->c != c || s->result != c || s->saturates) continue;
        if (!best || (uint64_t)s->m * s->n * s->k > (uint64_t)best->m * best->n * best->k) best = s;
    }
    return best;
}

void rq_vk_features_text(const rq_vk_features *f, char *out, size_t size)
{
    size_t at = 0;
    int n = snprintf(out, size, "subgroups of %u", f->subgroup_size);
    for (int part = 0; part < 2; part++) {
        bool first = true;
        for (uint32_t k = 0; k < RQ_VK_ABILITIES; k++) {
            if (!(f->present >> k & 1) || (f->used >> k & 1) == (uint32_t)part) continue;
            at += n > 0 ? (size_t)n : 0;
            if (at >= size) return;
            n = snprintf(out + at, size - at, "%s%s", part == 0 || !first ? ", " : "; not used: ", names[k]);
            first = false;
        }
    }
}

/* ---- reading a device ------------------------------------------------------------------------------------ */

/* The extension is younger than the headers of Debian 12; numbers of the Vulkan registry. */
#ifndef VK_KHR_cooperative_matrix
#define VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME "VK_KHR_cooperative_matrix"
#endif
enum { TYPE_COOPMAT_FEATURES = 1000506000, TYPE_COOPMAT_PROPERTIES = 1000506001, SCOPE_SUBGROUP = 3 };

typedef struct coopmat_features {
    VkStructureType type;
    void *next;
    VkBool32 matrix, robust_access;
} coopmat_features;

typedef struct coopmat_properties {
    VkStructureType type;
    void *next;
    uint32_t m, n, k;
    int32_t a, b, c, result; /* enumerations */
    VkBool32 saturates;
    int32_t scope; /* an enumeration */
} coopmat_properties;

typedef VkResult(VKAPI_PTR *coopmat_query)(VkPhysicalDevice, uint32_t *, coopmat_properties *);

enum { MAX_EXTENSIONS = 1024 };

bool vk_has_extension(VkPhysicalDevice device, const char *name)
{
    uint32_t n = 0;
    if (VK_TRY(vkEnumerateDeviceExtensionProperties(device, NULL, &n, NULL)) != VK_SUCCESS) return false;
    if (n > MAX_EXTENSIONS) n = MAX_EXTENSIONS;
    VkExtensionProperties *all = rq_calloc(n ? n : 1, sizeof *all);
    if (!all) return false;
    bool found = false;
    VkResult r = VK_TRY(vkEnumerateDeviceExtensionProperties(device, NULL, &n, all));
    if (r == VK_SUCCESS || r == VK_INCOMPLETE)
        for (uint32_t i = 0; i < n && !found; i++) found = strcmp(all[i].extensionName, name) == 0;
    rq_free(all);
    return found;
}

/* The structures of the optional abilities, linked in front of `next`. */
typedef struct optional_features {
    VkPhysicalDeviceShaderIntegerDotProductFeatures dot;
    VkPhysicalDeviceSubgroupSizeControlFeatures control;
    coopmat_features coopmat;
} optional_features;

static void *link_features(optional_features *o, uint32_t kinds, void *next)
{
    memset(o, 0, sizeof *o);
    if (kinds >> RQ_VK_INT_DOT & 1) {
        o->dot.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES;
        o->dot.pNext = next;
        next = &o->dot;
    }
    if (kinds >> RQ_VK_FULL_SUBGROUPS & 1) {
        o->control.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES;
        o->control.pNext = next;
        next = &o->control;
    }
    if (kinds >> RQ_VK_COOPMAT & 1) {
        o->coopmat.type = (VkStructureType)TYPE_COOPMAT_FEATURES;
        o->coopmat.next = next;
        next = &o->coopmat;
    }
    return next;
}

static const char *const extension_of[RQ_VK_ABILITIES] = {
    [RQ_VK_INT_DOT] = VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME,
    [RQ_VK_FULL_SUBGROUPS] = VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME,
    [RQ_VK_COOPMAT] = VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME};

static void read_shapes(VkInstance instance, VkPhysicalDevice device, rq_vk_features *out)
{
    coopmat_query query = (coopmat_query)(void (*)(void))vkGetInstanceProcAddr(
        instance, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR");
    coopmat_properties all[64];
    uint32_t n = sizeof all / sizeof *all;
    memset(all, 0, sizeof all);
    for (uint32_t i = 0; i < n; i++) all[i].type = (VkStructureType)TYPE_COOPMAT_PROPERTIES;
    if (!query) return;
    VkResult r = query(device, &n, all);
    if (r != VK_SUCCESS && r != VK_INCOMPLETE) return;
    for (uint32_t i = 0; i < n && out->n_shapes < RQ_VK_MAX_SHAPES; i++)
        if (all[i].scope == SCOPE_SUBGROUP)
            out->shapes[out->n_shapes++] = (rq_vk_shape){.m = all[i].m,
                                                         .n = all[i].n,
                                                         .k = all[i].k,
                                                         .a = (uint32_t)all[i].a,
                                                         .b = (uint32_t)all[i].b,
                                                         .c = (uint32_t)all[i].c,
                                                         .result = (uint32_t)all[i].result,
                                                         .saturates = all[i].saturates};
}

static void read_properties(VkPhysicalDevice device, uint32_t kinds, rq_vk_features *out, bool *dot_is_fast)
{
    VkPhysicalDeviceShaderIntegerDotProductProperties dot = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES};
    VkPhysicalDeviceSubgroupSizeControlProperties control = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES};
    VkPhysicalDeviceSubgroupProperties subgroup = {.sType =
                                                       VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES};
    if (kinds >> RQ_VK_INT_DOT & 1) dot.pNext = subgroup.pNext, subgroup.pNext = &dot;
    if (kinds >> RQ_VK_FULL_SUBGROUPS & 1) control.pNext = subgroup.pNext, subgroup.pNext = &control;
    VkPhysicalDeviceProperties2 p = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                     .pNext = &subgroup};
    VK_DO(vkGetPhysicalDeviceProperties2(device, &p));
    out->subgroup_size = subgroup.subgroupSize;
    out->subgroup_min = control.minSubgroupSize ? control.minSubgroupSize : subgroup.subgroupSize;
    out->subgroup_max = control.maxSubgroupSize ? control.maxSubgroupSize : subgroup.subgroupSize;
    out->shared_bytes = p.properties.limits.maxComputeSharedMemorySize;
    *dot_is_fast = dot.integerDotProduct4x8BitPackedSignedAccelerated;
    const VkSubgroupFeatureFlags need =
        VK_SUBGROUP_FEATURE_BASIC_BIT | VK_SUBGROUP_FEATURE_ARITHMETIC_BIT | VK_SUBGROUP_FEATURE_SHUFFLE_BIT;
    if ((subgroup.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT) &&
        (subgroup.supportedOperations & need) == need)
        out->present |= 1u << RQ_VK_SUBGROUP;
}

void vk_features_read(VkInstance instance, VkPhysicalDevice device, uint32_t disabled, rq_vk_features *out)
{
    memset(out, 0, sizeof *out);
    uint32_t kinds = 0;
    for (uint32_t k = 0; k < RQ_VK_ABILITIES; k++)
        if (extension_of[k] && vk_has_extension(device, extension_of[k])) kinds |= 1u << k;
    optional_features o;
    VkPhysicalDeviceVulkan12Features f12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
    VkPhysicalDeviceFeatures2 f = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                   .pNext = link_features(&o, kinds, &f12)};
    VK_DO(vkGetPhysicalDeviceFeatures2(device, &f));
    bool dot_is_fast;
    read_properties(device, kinds, out, &dot_is_fast);
    if (f12.shaderFloat16) out->present |= 1u << RQ_VK_FLOAT16;
    if (f12.shaderInt8) out->present |= 1u << RQ_VK_INT8;
    if (o.dot.shaderIntegerDotProduct) out->present |= 1u << RQ_VK_INT_DOT;
    if (o.control.subgroupSizeControl && o.control.computeFullSubgroups)
        out->present |= 1u << RQ_VK_FULL_SUBGROUPS;
    if (o.coopmat.matrix && f12.vulkanMemoryModel) {
        read_shapes(instance, device, out);
        if (out->n_shapes) out->present |= 1u << RQ_VK_COOPMAT;
    }
    uint32_t wanted = 0; /* by some kernel */
    for (uint32_t i = 0; i < vk_n_shaders; i++) wanted |= vk_shaders[i].needs;
    out->used = out->present & wanted & ~disabled;
    if (!dot_is_fast) out->used &= ~(1u << RQ_VK_INT_DOT); /* the driver would multiply one by one */
}

VkResult vk_features_create(VkPhysicalDevice physical, const VkDeviceQueueCreateInfo *queue,
                            const rq_vk_features *use, VkDevice *out)
{
    uint32_t kinds = 0, n_names = 0;
    const char *extensions[RQ_VK_ABILITIES];
    for (uint32_t k = 0; k < RQ_VK_ABILITIES; k++)
        if (extension_of[k] && (use->used >> k & 1)) {
            kinds |= 1u << k;
            extensions[n_names++] = extension_of[k];
        }
    optional_features o;
    VkPhysicalDeviceVulkan12Features f12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
                                            .bufferDeviceAddress = VK_TRUE,
                                            .scalarBlockLayout = VK_TRUE,
                                            .storageBuffer8BitAccess = VK_TRUE,
                                            .shaderFloat16 = use->used >> RQ_VK_FLOAT16 & 1,
                                            .shaderInt8 = use->used >> RQ_VK_INT8 & 1,
                                            .vulkanMemoryModel = use->used >> RQ_VK_COOPMAT & 1};
    VkPhysicalDeviceVulkan11Features f11 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES,
                                            .pNext = &f12,
                                            .storageBuffer16BitAccess = VK_TRUE};
    VkPhysicalDeviceFeatures2 f = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                   .pNext = link_features(&o, kinds, &f11),
                                   .features = {.shaderInt64 = VK_TRUE}};
    o.dot.shaderIntegerDotProduct = kinds >> RQ_VK_INT_DOT & 1;
    o.control.subgroupSizeControl = o.control.computeFullSubgroups = kinds >> RQ_VK_FULL_SUBGROUPS & 1;
    o.coopmat.matrix = kinds >> RQ_VK_COOPMAT & 1;
    VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = &f,
                               .queueCreateInfoCount = 1,
                               .pQueueCreateInfos = queue,
                               .enabledExtensionCount = n_names,
                               .ppEnabledExtensionNames = extensions};
    return VK_MAKE(vkCreateDevice(physical, &info, NULL, out));
}
