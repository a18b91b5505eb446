/* pipelines.c - compute pipelines by shader and specialisation constants. */
#include "backends/vulkan/vk.h"

#include "backends/base/mem.h"

#include <string.h>

static rq_status module_of(vk_device *d, vk_shader shader, VkShaderModule *out, rq_error *err)
{
    if (d->modules[shader] == VK_NULL_HANDLE) {
        VkShaderModuleCreateInfo info = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                         .codeSize = vk_shaders[shader].bytes,
                                         .pCode = vk_shaders[shader].words};
        VkResult r = VK_MAKE(d->vk.vkCreateShaderModule(d->device, &info, NULL, &d->modules[shader]));
        if (r != VK_SUCCESS) return vk_fail(d, r, "loading a shader", err);
    }
    *out = d->modules[shader];
    return RQ_OK;
}

vk_shader vk_variant(const vk_device *d, const char *name)
{
    for (uint32_t i = 0; i < vk_n_shaders && i < VK_MAX_SHADERS; i++)
        if (strcmp(vk_shaders[i].name, name) == 0)
            return (vk_shaders[i].needs & ~d->features.used) == 0 ? (vk_shader)i : VK_SHADER_COUNT;
    return VK_SHADER_COUNT;
}

rq_status vk_pipeline_get(vk_device *d, vk_shader shader, const uint32_t constants[VK_CONSTANTS],
                          VkPipeline *out, rq_error *err)
{
    for (uint32_t i = 0; i < d->n_pipelines; i++) {
        const vk_pipeline *p = &d->pipelines[i];
        if (p->shader != shader || memcmp(p->constants, constants, sizeof p->constants) != 0) continue;
        *out = p->pipeline;
        return RQ_OK;
    }
    if (d->n_pipelines == VK_MAX_PIPELINES)
        return rq_fail(err, RQ_ERR_CAPACITY, "more than %d kinds of kernels are needed", VK_MAX_PIPELINES);
    VkShaderModule module = VK_NULL_HANDLE;
    rq_status status = module_of(d, shader, &module, err);
    if (status != RQ_OK) return status;
    VkSpecializationMapEntry entries[VK_CONSTANTS];
    for (uint32_t i = 0; i < VK_CONSTANTS; i++) entries[i] = (VkSpecializationMapEntry){i, 4 * i, 4};
    VkSpecializationInfo special = {VK_CONSTANTS, entries, 4 * VK_CONSTANTS, constants};
    bool whole = vk_shaders[shader].needs >> RQ_VK_FULL_SUBGROUPS & 1;
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfo width = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO,
        .requiredSubgroupSize = d->features.subgroup_size};
    VkComputePipelineCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .pNext = whole ? &width : NULL,
                  .flags = whole ? VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT : 0,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = module,
                  .pName = "main",
                  .pSpecializationInfo = &special},
        .layout = d->layout};
    VkPipeline pipeline;
    VkResult r = VK_MAKE(d->vk.vkCreateComputePipelines(d->device, d->cache, 1, &info, NULL, &pipeline));
    if (r != VK_SUCCESS) return vk_fail(d, r, "compiling a shader", err);
    vk_pipeline *p = &d->pipelines[d->n_pipelines++];
    p->shader = shader;
    memcpy(p->constants, constants, sizeof p->constants);
    p->pipeline = *out = pipeline;
    return RQ_OK;
}

void vk_pipelines_free(vk_device *d)
{
    for (uint32_t i = 0; i < d->n_pipelines; i++)
        VK_DROP(d->vk.vkDestroyPipeline(d->device, d->pipelines[i].pipeline, NULL));
    for (uint32_t i = 0; i < VK_MAX_SHADERS; i++)
        if (d->modules[i] != VK_NULL_HANDLE)
            VK_DROP(d->vk.vkDestroyShaderModule(d->device, d->modules[i], NULL));
    rq_free(d->pipelines);
    d->pipelines = NULL;
    d->n_pipelines = 0;
}
