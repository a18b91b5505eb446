/* products.c - which kernel multiplies weights of a type on a device. Every kind of arithmetic is optional but f32; a
 * device takes the kinds that it does in hardware, or the one it was opened for by name, or what was measured. */
#include "backends/vulkan/vk.h"

#include <string.h>

static const char *const names[VK_MATHS] = {"float32", "float16", "integer-dot", "coopmat-emulated",
                                            "coopmat"};

/* The abilities a kind of arithmetic needs. */
static const uint32_t needs[VK_MATHS] = {
    0, 1u << RQ_VK_FLOAT16, 1u << RQ_VK_INT_DOT | 1u << RQ_VK_SUBGROUP | 1u << RQ_VK_FULL_SUBGROUPS,
    1u << RQ_VK_FLOAT16 | 1u << RQ_VK_SUBGROUP | 1u << RQ_VK_FULL_SUBGROUPS,
    1u << RQ_VK_COOPMAT | 1u << RQ_VK_FLOAT16 | 1u << RQ_VK_SUBGROUP | 1u << RQ_VK_FULL_SUBGROUPS};

/* Shaders by kind; a kind without a name goes through the one below it. */
static const char *const matvecs[VK_MATHS] = {NULL, NULL, "matvec_dot", NULL, NULL};
static const char *const matmuls[VK_MATHS] = {"matmul", "matmul_f16", "matmul_dot", "matmul_emulated",
                                              "matmul_coopmat"};
static const char *const attends[VK_MATHS] = {"attend_tile", NULL, NULL, "attend_emulated", "attend_coopmat"};

/* Sums inside a subgroup are written for 4 to 64 invocations. */
static bool good_width(const vk_device *d)
{
    return d->features.subgroup_size >= 4 && d->features.subgroup_size <= 64;
}

/* The one shape of matmul_coopmat.comp. */
static bool good_shape(const vk_device *d)
{
    for (uint32_t i = 0; i < d->features.n_shapes; i++) {
        const rq_vk_shape *s = &d->features.shapes[i];
        if (s->m == 16 && s->n == 16 && s->k == 16 && s->a == RQ_VK_COMPONENT_F16 &&
            s->b == RQ_VK_COMPONENT_F16 && s->c == RQ_VK_COMPONENT_F32 && s->result == RQ_VK_COMPONENT_F32 &&
            !s->saturates)
            return true;
    }
    return false;
}

static bool has(const vk_device *d, vk_math math)
{
    if (math == VK_MATH_COOPMAT && !good_shape(d)) return false;
    if ((needs[math] >> RQ_VK_FULL_SUBGROUPS & 1) && !good_width(d)) return false;
    return (needs[math] & ~d->features.used) == 0;
}

rq_status vk_math_choose(vk_device *d, const char *implementation, uint32_t disabled, rq_error *err)
{
    d->matvec = d->matmul = d->attend = VK_MATH_F32;
    if (implementation && strcmp(implementation, "vulkan") != 0) {
        vk_math math = VK_MATH_F32;
        while (math < VK_MATHS && strcmp(names[math], implementation) != 0) math++;
        if (math == VK_MATHS)
            return rq_fail(err, RQ_ERR_ARGUMENT, "Vulkan has no implementation named \"%s\"", implementation);
        uint32_t missing = needs[math] & ~(d->features.present & ~disabled);
        for (uint32_t k = 0; k < RQ_VK_ABILITIES; k++)
            if (missing >> k & 1)
                return rq_fail(err, RQ_ERR_UNSUPPORTED, "%s lacks %s, which products in %s need",
                               d->properties.deviceName, rq_vk_ability_name((rq_vk_ability_kind)k),
                               implementation);
        d->features.used |= needs[math]; /* asked for by name: even where the driver does it step by step */
        d->matvec = d->matmul = d->attend = math;
        d->math_is_forced = true;
        return RQ_OK;
    }
    /* attention takes another kind only where it was measured to be the faster one (measure.c) */
    if (d->properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU) return RQ_OK; /* it has no faster kind */
    if (has(d, VK_MATH_DOT)) d->matvec = VK_MATH_DOT;
    for (uint32_t math = VK_MATHS; math-- > 0 && d->matmul == VK_MATH_F32;)
        if (math != VK_MATH_EMULATED && has(d, (vk_math)math)) d->matmul = (vk_math)math;
    return RQ_OK;
}

const char *vk_math_name(vk_math math)
{
    return (uint32_t)math < VK_MATHS ? names[math] : "?";
}

/* Blocks are codes and scales, which every kind takes; halves also take f16 and bf16, but not f32 and f64. */
static bool takes(vk_math math, rq_type type)
{
    const rq_type_info *info = rq_type_get((uint32_t)type);
    if (math == VK_MATH_F32 || info->block_elems > 1) return true;
    return math >= VK_MATH_EMULATED && (type == RQ_TYPE_F16 || type == RQ_TYPE_BF16);
}

vk_product vk_product_of(const vk_device *d, rq_type type, uint32_t bucket)
{
    bool narrow = bucket <= 8;
    for (uint32_t math = (narrow ? d->matvec : d->matmul) + 1u; math-- > VK_MATH_F16;) {
        const char *name = narrow ? matvecs[math] : matmuls[math];
        if (!name || !has(d, (vk_math)math) || !takes((vk_math)math, type)) continue;
        if (math == VK_MATH_EMULATED && d->matmul != VK_MATH_EMULATED) continue;
        vk_shader shader = vk_variant(d, name);
        if (shader == VK_SHADER_COUNT) continue;
        return (vk_product){shader, math == VK_MATH_DOT        ? VK_FORM_BYTES
                                    : math >= VK_MATH_EMULATED ? VK_FORM_HALVES
                                                               : VK_FORM_F32};
    }
    if (!narrow) return (vk_product){VK_MATMUL, VK_FORM_F32};
    vk_shader shader = good_width(d) ? vk_variant(d, "matvec_subgroup") : VK_SHADER_COUNT;
    return (vk_product){shader == VK_SHADER_COUNT ? VK_MATVEC : shader, VK_FORM_F32};
}

uint64_t vk_form_bytes(vk_form form, uint32_t n_in, uint64_t rows)
{
    uint64_t padded = ((uint64_t)n_in + 31) / 32 * 32;
    switch (form) {
    case VK_FORM_BYTES: /* and 8 bytes for sixteen of them: shaders/dot.glsl */
        return rows * padded / 2 * 3;
    case VK_FORM_HALVES: /* and a scale for each row: shaders/halve.comp */
        return rows * (2 * padded + 4);
    default:
        return 0;
    }
}

bool vk_math_serves(const vk_device *d, vk_math math, uint32_t bucket)
{
    if (math == VK_MATH_F32) return true;
    const char *name = bucket <= 8 ? matvecs[math] : matmuls[math];
    return math != VK_MATH_EMULATED && name && has(d, math) && vk_variant(d, name) != VK_SHADER_COUNT;
}

bool vk_attend_serves(const vk_device *d, vk_math math)
{
    if (math == VK_MATH_F32) return true;
    /* four subgroups are at least a row of invocations for each of 32 queries */
    return attends[math] && has(d, math) && d->features.subgroup_size >= 8 &&
           vk_variant(d, attends[math]) != VK_SHADER_COUNT;
}

vk_product vk_attend_of(const vk_device *d)
{
    if (d->attend == VK_MATH_F32 || !vk_attend_serves(d, d->attend))
        return (vk_product){VK_ATTEND_TILE, VK_FORM_F32};
    return (vk_product){vk_variant(d, attends[d->attend]), VK_FORM_HALVES};
}
