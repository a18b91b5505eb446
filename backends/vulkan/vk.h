/* vk.h - the Vulkan backend's own structures. Everything a shader touches is reached through device addresses;
 * there are no descriptor sets. A program is a few command buffers recorded once and submitted again and again.
 *
 * Threads: a device is used by one thread at a time, as the executor does. */
#ifndef RQ_VK_H
#define RQ_VK_H

#include "backends/backend.h"
#include "backends/vulkan/calls.h"
#include "backends/vulkan/features.h"
#include "backends/vulkan/vulkan.h"

#include <volk.h>

enum {
    VK_RING = 8, /* runs and copies in flight: those of two steps */
    VK_MAX_PIPELINES = 1024,
    VK_PUSH_ADDRESSES = 6,
    VK_PUSH_WORDS = 20
};

#define VK_STAGING_BYTES (8ull << 20)

/* The push block of every shader (shaders/common.glsl). */
typedef struct vk_push {
    uint64_t a[VK_PUSH_ADDRESSES];
    uint32_t u[VK_PUSH_WORDS];
} vk_push;

/* Kernels every device runs, in the order of shaders/CMakeLists.txt. Variants that need an optional ability follow
 * them in vk_shaders[] and are found by name (vk_variant). */
typedef enum vk_shader {
    VK_EMBED,
    VK_NORM,
    VK_POINTWISE,
    VK_ROPE,
    VK_ROTATE,
    VK_MATVEC,
    VK_MATMUL,
    VK_QUANTIZE,
    VK_HALVE,
    VK_KV_WRITE,
    VK_KV_ENCODE,
    VK_ATTEND,
    VK_ATTEND_TILE,
    VK_ATTEND_MERGE,
    VK_ROUTE,
    VK_GROUP,
    VK_COMBINE,
    VK_SELECT,
    VK_ARGMAX,
    VK_SHORT_CONV,
    VK_DELTA_RULE,
    VK_DELTA_PAIRS,
    VK_DELTA_CHUNK,
    VK_SHADER_COUNT,
    VK_MAX_SHADERS = 256 /* with the variants */
} vk_shader;

enum { VK_CONSTANTS = 8 }; /* specialisation constants of a pipeline: ids 0 to 7, those left out are 0 */

typedef struct vk_pipeline {
    vk_shader shader;
    uint32_t constants[VK_CONSTANTS];
    VkPipeline pipeline;
} vk_pipeline;

typedef struct vk_memory {
    rq_memory base;
    VkBuffer buffer;
    VkDeviceMemory memory;
    uint64_t address;
    uint64_t taken_bytes; /* of the device's memory */
} vk_memory;

/* Memory the processor writes and the device reads, or the other way round. */
typedef struct vk_staging {
    VkBuffer buffer;
    VkDeviceMemory memory;
    uint8_t *host;
    uint64_t bytes;
} vk_staging;

/* One place of the ring: the step's words on their way to the device, and the fence of the last run there. */
typedef struct vk_slot {
    vk_staging words;
    VkCommandBuffer copy; /* recorded for `copied_to` */
    const struct vk_step *copied_to;
    VkFence fence;
    bool flying;
    uint64_t serial; /* of the run */
} vk_slot;

/* The step as the device sees it; one for each size of step there is. */
typedef struct vk_step {
    vk_memory *memory;
    uint32_t words; /* of the step without its list of table edits */
    struct vk_step *next;
} vk_step;

/* The library's entry (instance.c). */
typedef struct vk_instance {
    VkInstance handle;
    VkDebugUtilsMessengerEXT messenger;
} vk_instance;

/* NULL with a sentence when there is no driver, or none that is new enough. */
vk_instance *vk_instance_open(rq_error *err);
void vk_instance_close(vk_instance *instance);
/* Physical devices that can run our kernels, the fastest kind first; returns how many were written. */
uint32_t vk_instance_devices(const vk_instance *instance, VkPhysicalDevice *out, uint32_t max);
/* ---- features.c ------------------------------------------------------------------------------------------ */

bool vk_has_extension(VkPhysicalDevice device, const char *name);
/* What the device can do, and what of it our kernels use; bits of `disabled` are not used. */
void vk_features_read(VkInstance instance, VkPhysicalDevice device, uint32_t disabled, rq_vk_features *out);
/* A device with what every kernel needs and what `use` says is used. */
VkResult vk_features_create(VkPhysicalDevice physical, const VkDeviceQueueCreateInfo *queue,
                            const rq_vk_features *use, VkDevice *out);
/* What the device lacks, or NULL. */
const char *vk_device_lacks(VkPhysicalDevice device);

/* Arithmetic of products, slower kinds first (products.c). EMULATED is the kernel of cooperative matrices with plain
 * arithmetic in their place, for tests. */
typedef enum vk_math {
    VK_MATH_F32,
    VK_MATH_F16,
    VK_MATH_DOT,
    VK_MATH_EMULATED,
    VK_MATH_COOPMAT,
    VK_MATHS
} vk_math;

typedef struct vk_scratch_memory {
    rq_memory *memory;
    struct vk_scratch_memory *next;
} vk_scratch_memory;

typedef struct vk_device {
    rq_device base;
    vk_instance *instance;
    VkPhysicalDevice physical;
    VkPhysicalDeviceProperties properties;
    VkPhysicalDeviceMemoryProperties memory_properties;
    rq_vk_features features;
    vk_math matvec, matmul; /* of products in buckets up to 8, and in wider ones */
    vk_math attend;         /* of attention in wider ones */
    bool math_is_forced;    /* by name */
    rq_delta_form delta_form;
    uint32_t queue_family;
    bool lost, has_budget;
    bool pretends; /* memory is counted and not allocated; nothing runs */
    VkDevice device;
    struct VolkDeviceTable vk;
    VkQueue queue;
    VkCommandPool commands;
    VkPipelineLayout layout;
    VkPipelineCache cache;
    uint64_t cache_hash; /* of what the file had */
    VkShaderModule modules[VK_MAX_SHADERS];
    vk_pipeline *pipelines;
    uint32_t n_pipelines;
    vk_memory *tables; /* of the quantised types (tables.c) */
    vk_scratch_memory *scratch;
    uint64_t scratch_wanted; /* by the programs that were planned */
    vk_staging staging;
    VkCommandBuffer transfer;
    VkFence transfer_fence;
    vk_step *steps;
    vk_slot ring[VK_RING];
    uint32_t next_slot;
    uint64_t n_runs;
    uint64_t taken_bytes;    /* of device memory, by everything */
    uint64_t most_bytes;     /* the most it ever was */
    uint64_t max_bytes;      /* of one allocation */
    double bytes_per_second; /* read and written by a copy, measured when the device was opened */
} vk_device;

/* ---- device.c -------------------------------------------------------------------------------------------- */

/* The sentence for a failed call; remembers that the device is lost. */
rq_status vk_fail(vk_device *d, VkResult result, const char *what, rq_error *err);
/* The sentence for whatever is asked of a device that is lost. */
rq_status vk_is_lost(const vk_device *d, rq_error *err);

/* ---- cache.c --------------------------------------------------------------------------------------------- */

/* Makes d->cache, from the file where there is one of this device, driver and set of shaders. */
VkResult vk_cache_load(vk_device *d);
/* Writes the file when pipelines were made that it does not have; failure is of no consequence. */
void vk_cache_save(vk_device *d);

/* ---- memory.c -------------------------------------------------------------------------------------------- */

rq_status vk_alloc(rq_device *device, uint64_t bytes, const char *label, rq_memory **out, rq_error *err);
rq_status vk_adopt(rq_device *device, const void *host, uint64_t bytes, const char *label, rq_memory **out,
                   rq_error *err);
void vk_release(rq_memory *memory);
/* Sets d->bytes_per_second. */
rq_status vk_measure(vk_device *d, rq_error *err);
/* Memory of the processor that the device writes; it has a host address. */
rq_status vk_alloc_host(rq_device *device, uint64_t bytes, const char *label, rq_memory **out, rq_error *err);
rq_status vk_upload(rq_memory *dst, uint64_t offset, const void *src, uint64_t bytes, rq_error *err);
rq_status vk_download(rq_memory *src, uint64_t offset, void *dst, uint64_t bytes, rq_error *err);
rq_status vk_staging_make(vk_device *d, uint64_t bytes, vk_staging *out, rq_error *err);
void vk_staging_free(vk_device *d, vk_staging *s);

/* The type to allocate from, of those allowed, or UINT32_MAX. What kernels use is the device's own and not visible to
 * the processor where there is such memory; staging is the processor's, cached, and not the device's. */
uint32_t vk_memory_type(const VkPhysicalDeviceMemoryProperties *p, uint32_t allowed, bool host);
/* Bytes of the device's largest heap, and how many of them nobody has taken. */
void vk_memory_sizes(const vk_device *d, uint64_t *total, uint64_t *unused);

static inline uint64_t vk_address(const rq_memory *m)
{
    return m ? ((const vk_memory *)m)->address : 0;
}

/* ---- pipelines.c ----------------------------------------------------------------------------------------- */

/* The shader of this name (shaders/CMakeLists.txt), or VK_SHADER_COUNT when this build has none, or when it needs an
 * ability that the device lacks or was told not to use. */
vk_shader vk_variant(const vk_device *d, const char *name);
/* The pipeline of a shader with these constants, made at first use. */
rq_status vk_pipeline_get(vk_device *d, vk_shader shader, const uint32_t constants[VK_CONSTANTS],
                          VkPipeline *out, rq_error *err);
void vk_pipelines_free(vk_device *d);

/* ---- tables.c -------------------------------------------------------------------------------------------- */

/* Tables of the quantised types for weights.glsl; free with rq_free. NULL when out of memory. */
uint8_t *vk_tables_make(uint64_t *bytes);

/* ---- program.c ------------------------------------------------------------------------------------------- */

typedef struct vk_builder vk_builder;

bool vk_supports(rq_device *device, const rq_tape *tape, const rq_op *op, rq_error *why);
const char *vk_implementation(rq_device *device, const rq_tape *tape, const rq_op *op);
rq_status vk_compile(rq_device *device, const rq_segment *segment, const rq_bindings *bindings,
                     rq_program **out, rq_error *err);
rq_status vk_scratch_of(rq_device *device, const rq_segment *segment, const rq_bindings *bindings,
                        rq_scratch *sum, rq_error *err);
void vk_destroy(rq_program *program);
rq_status vk_run(rq_program *program, const uint32_t *step_words, rq_error *err);
rq_status vk_wait(rq_device *device, rq_error *err);
rq_status vk_profile(rq_program *program, const uint32_t *step_words, uint64_t *ns, rq_error *err);
uint64_t vk_mark(rq_device *device);
rq_status vk_wait_mark(rq_device *device, uint64_t mark, rq_error *err);
rq_status vk_fetch(rq_memory *src, uint64_t offset, rq_memory *host, uint64_t bytes, rq_error *err);

/* For ops.c: the operation being compiled. */
typedef struct vk_view {
    uint64_t address; /* of the first element; 0: none */
    rq_type type;
    uint32_t ne[4];
    uint32_t stride[4]; /* floats (of f32 and i32 values) */
} vk_view;

const rq_tape *vk_tape(const vk_builder *b);
const rq_bindings *vk_bindings(const vk_builder *b);
vk_device *vk_device_of(const vk_builder *b);
vk_view vk_value(vk_builder *b, rq_ref ref);
uint64_t vk_step_address(const vk_builder *b); /* 0 when the tape reads no step */
uint64_t vk_pool_address(vk_builder *b, uint32_t group);
/* Address of `bytes` of scratch shared by all programs, or 0 after a failure. */
uint64_t vk_scratch(vk_builder *b, uint64_t bytes);
/* Header word that counts the active tokens or rows; UINT32_MAX: the whole bucket. */
uint32_t vk_extent_word(const vk_builder *b);
/* A dispatch of x * y * z workgroups; `after` waits for the dispatch before it. */
void vk_dispatch(vk_builder *b, vk_shader shader, const uint32_t constants[VK_CONSTANTS], const vk_push *push,
                 uint32_t x, uint32_t y, uint32_t z, bool after);
void vk_op_fail(vk_builder *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* recurrent.c */
void vk_short_conv(vk_builder *b, const rq_op *op);
void vk_delta_rule(vk_builder *b, const rq_op *op);
/* Scratch memory that the operation wants, 0 where it goes token by token. */
uint64_t vk_delta_scratch(const vk_builder *b, const rq_op *op);

/* Notes of ops.c from operation to operation of a program; zero at first. */
uint64_t *vk_memo(vk_builder *b);
/* The scratch memory that operations use in turn, as large as the tape's largest wants it; what products left there is
 * overwritten. The first dispatch that writes it waits for the one before it. */
uint64_t vk_shared_scratch(vk_builder *b);

/* ---- products.c ------------------------------------------------------------------------------------------ */

/* The form a product wants its activations in. */
typedef enum vk_form { VK_FORM_F32, VK_FORM_BYTES, VK_FORM_HALVES } vk_form;

typedef struct vk_product {
    vk_shader shader;
    vk_form form;
} vk_product;

/* Chooses the arithmetic of products: what the device is good at, or the kind of that name ("float32", "float16",
 * "integer-dot", "coopmat"; NULL or "vulkan": no wish). Before the device is made. */
rq_status vk_math_choose(vk_device *d, const char *implementation, uint32_t disabled, rq_error *err);
const char *vk_math_name(vk_math math);
/* Has the device this kind for products in the bucket? */
bool vk_math_serves(const vk_device *d, vk_math math, uint32_t bucket);
/* The kernel of a product with weights of a type in a bucket. */
vk_product vk_product_of(const vk_device *d, rq_type type, uint32_t bucket);
/* The kernel of a prompt's attention in tiles (attend_tile.glsl) and the form of its queries. */
vk_product vk_attend_of(const vk_device *d);
/* Has the device this kind for the attention of prompts? */
bool vk_attend_serves(const vk_device *d, vk_math math);
/* Scratch memory of `rows` rows of activations in that form. */
uint64_t vk_form_bytes(vk_form form, uint32_t n_in, uint64_t rows);

/* ---- measure.c ------------------------------------------------------------------------------------------- */

/* At the first start on a device: measures and keeps the choice on disk (cache.c); later takes it from there. */
void vk_measure_once(vk_device *d);
/* Is the normalised squared error of n results at most the tolerance? */
bool vk_agrees(const float *y, const float *right, uint64_t n, double tolerance);

typedef struct vk_choice {
    uint32_t used; /* abilities it was made with */
    uint8_t matvec, matmul, attend, zero;
} vk_choice;

/* cache.c: the choice kept for this device, driver, shaders and `used`, which the caller fills; false when there is
 * none. */
bool vk_choice_load(const vk_device *d, vk_choice *choice);
bool vk_choice_can_be_kept(const vk_device *d);
void vk_choice_save(const vk_device *d, const vk_choice *choice);

/* ---- ops.c ----------------------------------------------------------------------------------------------- */

void vk_compile_op(vk_builder *b, const rq_op *op);
bool vk_op_supported(const vk_device *d, const rq_tape *tape, const rq_op *op, rq_error *why);

/* ---- generated: the shaders ------------------------------------------------------------------------------ */

typedef struct vk_spirv {
    const char *name;
    uint32_t needs; /* 1 << rq_vk_ability_kind, of all it needs */
    const uint32_t *words;
    size_t bytes;
} vk_spirv;
extern const vk_spirv vk_shaders[];
extern const uint32_t vk_n_shaders;

#endif
