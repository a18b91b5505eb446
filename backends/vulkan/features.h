/* features.h - what a Vulkan device can do beside what every kernel needs, and what of it is used. */
#ifndef RQ_VK_FEATURES_H
#define RQ_VK_FEATURES_H

#include "backends/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Optional abilities; their names (--vk-disable) are in features.c. */
typedef enum rq_vk_ability_kind {
    RQ_VK_FLOAT16,  /* float16 arithmetic in shaders */
    RQ_VK_INT8,     /* 8-bit integers in registers; every device we run on has them in memory */
    RQ_VK_INT_DOT,  /* dot product of four packed 8-bit integers, faster than multiplying them one by one */
    RQ_VK_SUBGROUP, /* sums and shuffles inside a subgroup */
    RQ_VK_FULL_SUBGROUPS, /* a pipeline may ask for whole subgroups of a given width */
    RQ_VK_COOPMAT,        /* cooperative matrices (VK_KHR_cooperative_matrix) with the Vulkan memory model */
    RQ_VK_ABILITIES
} rq_vk_ability_kind;

/* Types of the elements of a matrix, numbered as VkComponentTypeKHR. */
typedef enum rq_vk_component {
    RQ_VK_COMPONENT_F16 = 0,
    RQ_VK_COMPONENT_F32 = 1,
    RQ_VK_COMPONENT_S8 = 3,
    RQ_VK_COMPONENT_S32 = 5,
    RQ_VK_COMPONENT_U8 = 7,
    RQ_VK_COMPONENT_U32 = 9
} rq_vk_component;

/* result[m][n] = a[m][k] b[k][n] + c[m][n] by one subgroup. */
typedef struct rq_vk_shape {
    uint32_t m, n, k;
    uint32_t a, b, c, result; /* rq_vk_component, or another one we do not use */
    bool saturates;
} rq_vk_shape;

enum { RQ_VK_MAX_SHAPES = 32 };

typedef struct rq_vk_features {
    uint32_t present, used; /* 1 << rq_vk_ability_kind */
    uint32_t subgroup_size, subgroup_min, subgroup_max;
    uint32_t shared_bytes; /* shared memory of a workgroup */
    uint32_t n_shapes;     /* of cooperative matrices with the scope of a subgroup */
    rq_vk_shape shapes[RQ_VK_MAX_SHAPES];
} rq_vk_features;

static inline bool rq_vk_uses(const rq_vk_features *f, rq_vk_ability_kind kind)
{
    return f->used >> kind & 1;
}

/* "float16", "integer-dot", ... */
const char *rq_vk_ability_name(rq_vk_ability_kind kind);
/* The shape of these types that does most work at once, or NULL. */
const rq_vk_shape *rq_vk_shape_of(const rq_vk_features *f, rq_vk_component ab, rq_vk_component c);
/* Reads a list of abilities not to be used, "float16,coopmat" (NULL: none), into *mask. */
rq_status rq_vk_disable_read(const char *list, uint32_t *mask, rq_error *err);
/* "subgroups of 32, float16, integer-dot; not used: coopmat (disabled)" */
void rq_vk_features_text(const rq_vk_features *f, char *out, size_t size);

#endif
