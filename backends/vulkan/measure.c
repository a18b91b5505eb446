/* measure.c - which arithmetic of products is the fastest on a device: every kind it has multiplies a matrix of Q4_K,
 * the commonest type, once as in generation and once as in a prompt; a kind whose results are not those of f32 within
 * the tolerance of operations is not taken, whatever its driver says. What was found is kept on disk for the device
 * and its driver, so that the next start takes the same kinds and gives the same bits. */
#include "backends/vulkan/vk.h"

#include "backends/base/mem.h"
#include "backends/formats/types.h"
#include "backends/ops.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { N_IN = 4096, N_OUT = 16384, PROMPT = 256, PROMPT_OUT = 4096, BATCH = 8, BATCHES = 3 };

typedef struct bench {
    vk_device *d;
    uint32_t n_out, bucket;
    rq_memory *weights, *arena;
    uint64_t y_offset, y_bytes;
    float *right, *y; /* what f32 gave, what the kind at hand gave */
} bench;

static void bench_free(bench *b)
{
    vk_release(b->weights);
    vk_release(b->arena);
    rq_free(b->right);
    rq_free(b->y);
}

/* Bytes without structure; scales are positive halves near 2^-8. */
static void fill(uint8_t *w, uint64_t bytes, float *x, uint64_t n)
{
    const rq_type_info *info = rq_type_get(RQ_TYPE_Q4_K);
    uint64_t seed = 1;
    for (uint64_t i = 0; i < bytes; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        w[i] = (uint8_t)(seed >> 56);
    }
    for (uint64_t at = 0; at < bytes; at += info->block_bytes) w[at + 1] = w[at + 3] = 0x1c;
    for (uint64_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        x[i] = (float)(int32_t)(seed >> 32) * 0x1p-31f;
    }
}

static rq_status bench_make(bench *b, rq_error *err)
{
    const rq_type_info *info = rq_type_get(RQ_TYPE_Q4_K);
    uint64_t row = (uint64_t)N_IN / info->block_elems * info->block_bytes, bytes = row * b->n_out;
    uint64_t x_bytes = 4ull * N_IN * b->bucket;
    b->y_offset = x_bytes;
    b->y_bytes = 4ull * b->n_out * b->bucket;
    uint8_t *w = rq_malloc(bytes);
    float *x = rq_malloc(x_bytes);
    b->right = rq_malloc(b->y_bytes);
    b->y = rq_malloc(b->y_bytes);
    rq_status status = RQ_OK;
    if (!w || !x || !b->right || !b->y)
        status = rq_fail(err, RQ_ERR_MEMORY, "out of memory while measuring kernels");
    rq_device *device = &b->d->base;
    if (status == RQ_OK) {
        fill(w, bytes, x, x_bytes / 4);
        status = vk_alloc(device, bytes, "measuring kernels", &b->weights, err);
    }
    if (status == RQ_OK) status = vk_alloc(device, x_bytes + b->y_bytes, "measuring kernels", &b->arena, err);
    if (status == RQ_OK) status = vk_upload(b->weights, 0, w, bytes, err);
    if (status == RQ_OK) status = vk_upload(b->arena, 0, x, x_bytes, err);
    rq_free(w);
    rq_free(x);
    return status;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds of one product: the best of a few batches. */
static rq_status run_program(bench *b, rq_program *program, double *best, rq_error *err)
{
    rq_status status = vk_run(program, NULL, err);
    if (status == RQ_OK) status = vk_wait(&b->d->base, err);
    *best = HUGE_VAL;
    for (int i = 0; i < BATCHES && status == RQ_OK; i++) {
        double start = seconds();
        for (int k = 0; k < BATCH && status == RQ_OK; k++) status = vk_run(program, NULL, err);
        if (status == RQ_OK) status = vk_wait(&b->d->base, err);
        double s = (seconds() - start) / BATCH;
        if (s < *best) *best = s;
    }
    if (status == RQ_OK) status = vk_download(b->arena, b->y_offset, b->y, b->y_bytes, err);
    return status;
}

static rq_status time_kind(bench *b, vk_math math, double *best, rq_error *err)
{
    rq_tape tape;
    rq_tape_init(&tape, b->bucket);
    const uint32_t ne[4] = {N_IN, b->n_out, 1, 1};
    rq_ref w = rq_tape_weight(&tape, 0, RQ_TYPE_Q4_K, ne, "measured");
    rq_ref x = rq_tape_act(&tape, RQ_TYPE_F32, N_IN, b->bucket, 1, 1), y = rq_op_matmul(&tape, w, x);
    uint64_t offsets[8] = {0};
    const uint8_t barrier[1] = {0};
    const rq_binding binding = {.memory = b->weights};
    const rq_bindings bindings = {.weights = &binding, .arena = b->arena};
    const rq_segment segment = {.tape = &tape, .count = 1, .arena_offset = offsets, .barrier = barrier};
    rq_program *program = NULL;
    rq_status status = rq_tape_check(&tape, err);
    if (status == RQ_OK && tape.n_values <= sizeof offsets / sizeof *offsets) {
        offsets[y] = b->y_offset;
        b->d->matvec = b->d->matmul = math;
        status = vk_compile(&b->d->base, &segment, &bindings, &program, err);
    }
    if (status == RQ_OK) status = run_program(b, program, best, err);
    if (program) vk_destroy(program);
    rq_tape_free(&tape);
    return status;
}

/* Are the results those of f32, as far as the tolerance of products asks? */
static bool agrees(const bench *b)
{
    double error = 0, reference = 0;
    for (uint64_t i = 0; i < b->y_bytes / 4; i++) {
        double d = (double)b->y[i] - (double)b->right[i];
        error += d * d;
        reference += (double)b->right[i] * (double)b->right[i];
    }
    return reference > 0 && error <= rq_op_tolerance(RQ_OP_MATMUL, RQ_TYPE_Q4_K) * reference;
}

/* The fastest kind for a bucket; adds a line to `text`. */
static rq_status fastest(vk_device *d, uint32_t bucket, uint32_t n_out, vk_math *out, char *text, size_t size,
                         rq_error *err)
{
    bench b = {.d = d, .n_out = n_out, .bucket = bucket};
    rq_status status = bench_make(&b, err);
    double best = HUGE_VAL, s = 0;
    size_t at = strlen(text);
    snprintf(text + at, size - at, "%u token%s, Q4_K [%d, %u]:", bucket, bucket == 1 ? "" : "s", N_IN, n_out);
    for (uint32_t math = 0; math < VK_MATHS && status == RQ_OK; math++) {
        if (!vk_math_serves(d, (vk_math)math, bucket)) continue;
        status = time_kind(&b, (vk_math)math, &s, err);
        if (status != RQ_OK) break;
        if (math == VK_MATH_F32) memcpy(b.right, b.y, b.y_bytes);
        bool good = agrees(&b);
        at = strlen(text);
        snprintf(text + at, size - at, " %s %.3f ms%s", vk_math_name((vk_math)math), 1e3 * s,
                 good ? "" : " (wrong results)");
        if (good && s < best) {
            best = s;
            *out = (vk_math)math;
        }
    }
    at = strlen(text);
    snprintf(text + at, size - at, "\n");
    bench_free(&b);
    return status;
}

rq_status rq_vulkan_measure(rq_device *device, uint32_t n_out, char *text, size_t size, rq_error *err)
{
    vk_device *d = (vk_device *)device;
    vk_math matvec = d->matvec, matmul = d->matmul, was[2] = {matvec, matmul};
    text[0] = 0;
    rq_status status = fastest(d, 1, n_out ? n_out : N_OUT, &matvec, text, size, err);
    if (status == RQ_OK)
        status = fastest(d, n_out ? 16 : PROMPT, n_out ? n_out : PROMPT_OUT, &matmul, text, size, err);
    d->matvec = status == RQ_OK ? matvec : was[0];
    d->matmul = status == RQ_OK ? matmul : was[1];
    return status;
}

void vk_measure_once(vk_device *d)
{
    uint32_t kinds = 0;
    for (uint32_t math = 0; math < VK_MATHS; math++)
        kinds += vk_math_serves(d, (vk_math)math, 1) || vk_math_serves(d, (vk_math)math, PROMPT);
    if (d->math_is_forced || kinds < 2 || d->properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU) return;
    vk_choice choice = {.used = d->features.used};
    if (vk_choice_load(d, &choice)) {
        d->matvec = choice.matvec < VK_MATHS ? (vk_math)choice.matvec : d->matvec;
        d->matmul = choice.matmul < VK_MATHS ? (vk_math)choice.matmul : d->matmul;
        return;
    }
    if (!vk_choice_can_be_kept(d)) return; /* another start might find another kind, and give other bits */
    char text[512];
    rq_error err;
    rq_status status = rq_vulkan_measure(&d->base, 0, text, sizeof text, &err);
    while (d->scratch) { /* of these programs alone */
        vk_scratch_memory *s = d->scratch;
        d->scratch = s->next;
        vk_release(s->memory);
        rq_free(s);
    }
    if (status != RQ_OK) return;
    choice.matvec = (uint8_t)d->matvec;
    choice.matmul = (uint8_t)d->matmul;
    vk_choice_save(d, &choice);
}
