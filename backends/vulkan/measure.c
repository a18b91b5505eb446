/* measure.c - which arithmetic is the fastest on a device: every kind it has multiplies a matrix of Q4_K, the commonest
 * type, once as in generation and once as in a prompt, and attends to coded and exact pages as in a prompt. A kind whose
 * results are not those of f32 within the tolerance of the operation is not taken, whatever its driver says. What was
 * found is kept on disk for the device and its driver, so that the next start takes the same kinds and gives the same
 * bits; where it cannot be kept nothing is timed, and results alone decide. */
#include "backends/vulkan/vk.h"

#include "backends/base/mem.h"
#include "backends/formats/types.h"
#include "backends/ops.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { N_IN = 4096, N_OUT = 16384, PROMPT = 256, PROMPT_OUT = 4096, BATCH = 8, BATCHES = 3 };
/* Attention: KV heads, query heads of each, their size, positions before the prompt. */
enum { KV_HEADS = 8, GROUP = 4, HEAD_DIM = 128, BEFORE = 2048, FEW = 16, FEW_OUT = 192, FEW_BEFORE = 192 };

typedef struct bench {
    vk_device *d;
    uint32_t n_out, bucket;
    bool untimed; /* only the results matter */
    bool small;   /* a test */
    rq_memory *weights, *arena;
    uint64_t y_offset, y_bytes;
    float *right, *y; /* what f32 gave, what the kind at hand gave */
    /* attention */
    rq_cache_group group;
    rq_cache_pool pool;
    rq_step_caps caps;
    rq_step step;
    uint32_t *words;
} bench;

static uint32_t kv_heads(const bench *b)
{
    return b->small ? 1 : KV_HEADS;
}

static void bench_free(bench *b)
{
    vk_release(b->pool.slabs[0]);
    vk_release(b->pool.coded_slabs[0]);
    vk_release(b->pool.table);
    vk_release(b->pool.coded_table);
    rq_free(b->words);
    vk_release(b->weights);
    vk_release(b->arena);
    rq_free(b->right);
    rq_free(b->y);
}

static uint64_t random_bytes(uint8_t *out, uint64_t bytes, uint64_t seed)
{
    for (uint64_t i = 0; i < bytes; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        out[i] = (uint8_t)(seed >> 56);
    }
    return seed;
}

/* In (-1, 1). */
static void random_floats(float *out, uint64_t n, uint64_t seed)
{
    for (uint64_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        out[i] = (float)(int32_t)(seed >> 32) * 0x1p-31f;
    }
}

/* Bytes without structure; scales are positive halves near 2^-8. */
static void fill(uint8_t *w, uint64_t bytes, float *x, uint64_t n)
{
    const rq_type_info *info = rq_type_get(RQ_TYPE_Q4_K);
    uint64_t seed = random_bytes(w, bytes, 1);
    for (uint64_t at = 0; at < bytes; at += info->block_bytes) w[at + 1] = w[at + 3] = 0x1c;
    random_floats(x, n, seed);
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

/* Seconds of one run: the best of a few batches. */
static rq_status run_program(bench *b, rq_program *program, double *best, rq_error *err)
{
    rq_status status = vk_run(program, b->words, err);
    if (status == RQ_OK) status = vk_wait(&b->d->base, err);
    *best = HUGE_VAL;
    for (int i = 0; i < (b->small ? 1 : BATCHES) && status == RQ_OK && !b->untimed; i++) {
        double start = seconds();
        for (int k = 0; k < BATCH && status == RQ_OK; k++) status = vk_run(program, b->words, err);
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

bool vk_agrees(const float *y, const float *right, uint64_t n, double tolerance)
{
    double error = 0, reference = 0;
    for (uint64_t i = 0; i < n; i++) {
        double d = (double)y[i] - (double)right[i];
        error += d * d;
        reference += (double)right[i] * (double)right[i];
    }
    return reference > 0 && error <= tolerance * reference; /* not a number agrees with nothing */
}

/* ---- attention ------------------------------------------------------------------------------------------- */

/* Memory of the device with these bytes, or with random ones and `fixed` from `at` on in every `period` of them. */
static rq_status random_memory(bench *b, uint64_t bytes, uint64_t period, uint64_t at, uint8_t mask,
                               uint8_t fixed, rq_memory **out, rq_error *err)
{
    uint8_t *x = rq_malloc(bytes);
    if (!x) return rq_fail(err, RQ_ERR_MEMORY, "out of memory while measuring kernels");
    random_bytes(x, bytes, 7);
    for (uint64_t i = 0; i < bytes; i++)
        if (i % period >= at) x[i] = (uint8_t)((x[i] & mask) | fixed);
    rq_status status = vk_alloc(&b->d->base, bytes, "measuring kernels", out, err);
    if (status == RQ_OK) status = vk_upload(*out, 0, x, bytes, err);
    rq_free(x);
    return status;
}

/* Pages in exact form (halves below one) and in 3 bits for `before` tokens and those of the step. */
static rq_status make_pages(bench *b, uint32_t before, rq_error *err)
{
    b->group = (rq_cache_group){.n_layers = 1,
                                .n_heads = kv_heads(b),
                                .dim_k = HEAD_DIM,
                                .dim_v = HEAD_DIM,
                                .type_k = RQ_TYPE_F16,
                                .type_v = RQ_TYPE_F16,
                                .form_k = RQ_KV_C3,
                                .form_v = RQ_KV_C3,
                                .recent_pages = 2};
    uint32_t n = (before + b->bucket + RQ_PAGE_TOKENS - 1) / RQ_PAGE_TOKENS;
    b->caps = (rq_step_caps){.max_tokens = b->bucket, .n_groups = 1, .n_seqs = 1, .max_pages = n};
    rq_step_caps_complete(&b->caps);
    rq_cache_pool *p = &b->pool;
    *p = (rq_cache_pool){.group = &b->group,
                         .layout = rq_page_layout_of(&b->group),
                         .n_slabs = 1,
                         .n_pages = n,
                         .coded_layout = rq_coded_layout_of(&b->group),
                         .n_coded_slabs = 1,
                         .n_coded = n};
    p->layout.slab_shift = p->coded_layout.slab_shift = 20;
    uint64_t codes = p->coded_layout.k_bytes + p->coded_layout.v_bytes;
    /* the high byte of every half: exponents of 2^-1 and below; scales of codes: 2^-2 and thereabouts */
    rq_status status = random_memory(b, n * p->layout.page_bytes, 2, 1, 0x83, 0x30, &p->slabs[0], err);
    if (status == RQ_OK)
        status = random_memory(b, n * p->coded_layout.page_bytes, p->coded_layout.head_bytes, codes, 0x07,
                               0x58, &p->coded_slabs[0], err);
    uint32_t *table = rq_malloc(4ull * n);
    int32_t *ids = rq_calloc(b->bucket, sizeof *ids);
    b->words = rq_calloc(rq_step_words(&b->caps), 4);
    if (status == RQ_OK && (!table || !ids || !b->words))
        status = rq_fail(err, RQ_ERR_MEMORY, "out of memory while measuring kernels");
    for (uint32_t i = 0; table && i < n; i++) table[i] = n - 1 - i;
    rq_memory **tables[2] = {&p->table, &p->coded_table};
    for (int i = 0; i < 2 && status == RQ_OK; i++) {
        status = vk_alloc(&b->d->base, 4ull * n, "measuring kernels", tables[i], err);
        if (status == RQ_OK) status = vk_upload(*tables[i], 0, table, 4ull * n, err);
    }
    if (status == RQ_OK) {
        const uint32_t *of_group[RQ_MAX_GROUPS] = {table};
        rq_step_init(&b->step, &b->caps, &b->group, b->words);
        if (rq_step_add_run(&b->step, 0, ids, b->bucket, before, of_group) < 0)
            status = rq_fail(err, RQ_ERR_INTERNAL, "a step for measuring does not fit");
        else
            rq_step_finish(&b->step);
    }
    rq_free(table);
    rq_free(ids);
    return status;
}

static rq_status attend_make(bench *b, uint32_t before, rq_error *err)
{
    uint64_t n = (uint64_t)HEAD_DIM * GROUP * kv_heads(b) * b->bucket;
    b->y_offset = b->y_bytes = 4 * n;
    b->right = rq_malloc(4 * n);
    b->y = rq_malloc(4 * n);
    rq_status status = RQ_OK;
    if (!b->right || !b->y) status = rq_fail(err, RQ_ERR_MEMORY, "out of memory while measuring kernels");
    if (status == RQ_OK) status = vk_alloc(&b->d->base, 8 * n, "measuring kernels", &b->arena, err);
    if (status == RQ_OK) {
        random_floats(b->y, n, 3);
        status = vk_upload(b->arena, 0, b->y, 4 * n, err);
    }
    return status == RQ_OK ? make_pages(b, before, err) : status;
}

static rq_status time_attend(bench *b, vk_math math, double *best, rq_error *err)
{
    rq_tape tape;
    rq_tape_init(&tape, b->bucket);
    rq_ref cache = rq_tape_cache(&tape, 0, 0),
           q = rq_tape_act(&tape, RQ_TYPE_F32, HEAD_DIM, GROUP * kv_heads(b), b->bucket, 1);
    rq_ref y = rq_op_attend(&tape, cache, q, HEAD_DIM, 0.5f, 0);
    uint64_t offsets[8] = {0};
    const uint8_t barrier[1] = {0};
    const rq_bindings bindings = {.arena = b->arena, .pools = &b->pool, .caps = &b->caps};
    const rq_segment segment = {.tape = &tape, .count = 1, .arena_offset = offsets, .barrier = barrier};
    rq_program *program = NULL;
    rq_status status = rq_tape_check(&tape, err);
    if (status == RQ_OK && tape.n_values <= sizeof offsets / sizeof *offsets) {
        offsets[y] = b->y_offset;
        b->d->attend = math;
        status = vk_compile(&b->d->base, &segment, &bindings, &program, err);
    }
    if (status == RQ_OK) status = run_program(b, program, best, err);
    if (program) vk_destroy(program);
    rq_tape_free(&tape);
    return status;
}

/* ---- choosing -------------------------------------------------------------------------------------------- */

typedef enum what { A_TOKEN, A_PROMPT, ATTENTION } what;

/* The kinds to compare; the emulated one only where it was asked for by name. */
static bool serves(const bench *b, what w, vk_math math)
{
    if (w != ATTENTION) return vk_math_serves(b->d, math, b->bucket);
    if (math == VK_MATH_EMULATED && !b->d->math_is_forced) return false;
    return vk_attend_serves(b->d, math);
}

/* The fastest kind whose results agree; with `only` other than VK_MATHS that one and f32 alone are looked at. Adds a
 * line to `text`. `small`: a tiny case. */
static rq_status fastest(vk_device *d, what w, uint32_t n_out, vk_math only, vk_math *out, char *text,
                         size_t size, rq_error *err)
{
    bool small = n_out != 0;
    bench b = {.d = d, .untimed = only != VK_MATHS, .small = small};
    b.bucket = w == A_TOKEN ? 1 : small ? FEW : PROMPT;
    b.n_out = small ? n_out : w == A_TOKEN ? N_OUT : PROMPT_OUT;
    uint32_t before = small ? FEW_BEFORE : BEFORE;
    vk_math saved = d->attend;
    rq_status status = w == ATTENTION ? attend_make(&b, before, err) : bench_make(&b, err);
    double best = HUGE_VAL, s = 0,
           tolerance = w == ATTENTION ? rq_op_tolerance(RQ_OP_ATTEND, RQ_TYPE_F16)
                                      : rq_op_tolerance(RQ_OP_MATMUL, RQ_TYPE_Q4_K);
    size_t at = strlen(text);
    if (w == ATTENTION)
        snprintf(text + at, size - at, "%u tokens, attention over %u, 3 bits:", b.bucket, before + b.bucket);
    else
        snprintf(text + at, size - at, "%u token%s, Q4_K [%d, %u]:", b.bucket, b.bucket == 1 ? "" : "s", N_IN,
                 b.n_out);
    vk_math chosen = VK_MATH_F32;
    for (uint32_t math = 0; math < VK_MATHS && status == RQ_OK; math++) {
        if (!serves(&b, w, (vk_math)math) ||
            (only != VK_MATHS && math != VK_MATH_F32 && math != (uint32_t)only))
            continue;
        status =
            w == ATTENTION ? time_attend(&b, (vk_math)math, &s, err) : time_kind(&b, (vk_math)math, &s, err);
        if (status != RQ_OK) break;
        if (math == VK_MATH_F32) memcpy(b.right, b.y, b.y_bytes);
        bool good = vk_agrees(b.y, b.right, b.y_bytes / 4, tolerance);
        at = strlen(text);
        snprintf(text + at, size - at, " %s %.3f ms%s", vk_math_name((vk_math)math), b.untimed ? 0 : 1e3 * s,
                 good ? "" : " (wrong results)");
        if (good && (b.untimed || s < best)) {
            best = s;
            chosen = (vk_math)math;
        }
    }
    if (status == RQ_OK) *out = chosen;
    d->attend = saved;
    at = strlen(text);
    snprintf(text + at, size - at, "\n");
    bench_free(&b);
    return status;
}

rq_status rq_vulkan_measure(rq_device *device, uint32_t n_out, char *text, size_t size, rq_error *err)
{
    vk_device *d = (vk_device *)device;
    vk_math matvec = d->matvec, matmul = d->matmul, attend = d->attend, was[2] = {matvec, matmul};
    text[0] = 0;
    rq_status status = fastest(d, A_TOKEN, n_out, VK_MATHS, &matvec, text, size, err);
    if (status == RQ_OK) status = fastest(d, A_PROMPT, n_out, VK_MATHS, &matmul, text, size, err);
    if (status == RQ_OK) status = fastest(d, ATTENTION, n_out, VK_MATHS, &attend, text, size, err);
    d->matvec = status == RQ_OK ? matvec : was[0];
    d->matmul = status == RQ_OK ? matmul : was[1];
    if (status == RQ_OK) d->attend = attend;
    return status;
}

/* Gives up what the programs above left with the device. */
static void forget(vk_device *d)
{
    while (d->scratch) {
        vk_scratch_memory *s = d->scratch;
        d->scratch = s->next;
        vk_release(s->memory);
        rq_free(s);
    }
    for (uint32_t i = 0; i < VK_RING; i++) d->ring[i].copied_to = NULL;
    while (d->steps) {
        vk_step *s = d->steps;
        d->steps = s->next;
        vk_release(&s->memory->base);
        rq_free(s);
    }
}

/* The kinds the device would take unmeasured, less those that are wrong. */
static void check_only(vk_device *d)
{
    char text[512] = "";
    rq_error err;
    vk_math matvec = VK_MATH_F32, matmul = VK_MATH_F32, was[2] = {d->matvec, d->matmul};
    rq_status status = fastest(d, A_TOKEN, FEW_OUT, was[0], &matvec, text, sizeof text, &err);
    if (status == RQ_OK) status = fastest(d, A_PROMPT, FEW_OUT, was[1], &matmul, text, sizeof text, &err);
    d->matvec = status == RQ_OK ? matvec : VK_MATH_F32;
    d->matmul = status == RQ_OK ? matmul : VK_MATH_F32;
    forget(d);
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
        d->attend = choice.attend < VK_MATHS ? (vk_math)choice.attend : d->attend;
        return;
    }
    if (!vk_choice_can_be_kept(d)) { /* another start might find another kind, and give other bits */
        check_only(d);
        return;
    }
    char text[768];
    rq_error err;
    rq_status status = rq_vulkan_measure(&d->base, 0, text, sizeof text, &err);
    forget(d);
    if (status != RQ_OK) {
        d->matvec = d->matmul = d->attend = VK_MATH_F32;
        return;
    }
    choice.matvec = (uint8_t)d->matvec;
    choice.matmul = (uint8_t)d->matmul;
    choice.attend = (uint8_t)d->attend;
    vk_choice_save(d, &choice);
}
