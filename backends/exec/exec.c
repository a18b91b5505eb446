/* exec.c - creating an executor and looking at it; run.c runs its steps. */
#include "backends/exec/exec.h"

#include "backends/base/mem.h"
#include "backends/exec/internal.h"
#include "backends/formats/kv_codec.h"

#include <stdatomic.h>
#include <string.h>

/* A copy of n items (of nothing: zeros), in *out. */
static rq_status copy_of(const void *items, size_t n, size_t bytes, void **out, rq_error *err)
{
    *out = rq_calloc(n ? n : 1, bytes);
    if (!*out) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the executor");
    if (n && items) memcpy(*out, items, n * bytes);
    return RQ_OK;
}

static bool is_power_of_two(uint32_t n)
{
    return n && !(n & (n - 1));
}

static bool is_exact_type(rq_type type)
{
    return type == RQ_TYPE_F16 || type == RQ_TYPE_BF16 || type == RQ_TYPE_F32;
}

static rq_status check_group(const rq_executor_params *p, uint32_t index, rq_error *err)
{
    const rq_cache_group *g = &p->groups[index];
    if (g->n_layers == 0 || g->n_heads == 0 || g->dim_k == 0 || g->dim_v == 0)
        return rq_fail(err, RQ_ERR_ARGUMENT, "cache group %u is empty", index);
    if (!is_exact_type(g->type_k) || !is_exact_type(g->type_v))
        return rq_fail(err, RQ_ERR_UNSUPPORTED, "exact cache pages hold f16, bf16 or f32");
    uint32_t coded = p->group_coded_pages ? p->group_coded_pages[index] : 0;
    if (!rq_group_is_coded(g)) {
        if (coded == 0) return RQ_OK;
        return rq_fail(err, RQ_ERR_ARGUMENT, "cache group %u has coded pages but no coded form", index);
    }
    if ((uint32_t)g->form_k > RQ_KV_TRIP || (uint32_t)g->form_v > RQ_KV_TRIP)
        return rq_fail(err, RQ_ERR_ARGUMENT, "cache group %u has a form that is none", index);
    if (g->dim_k % 8 || g->dim_v % 8 || g->dim_k > RQ_KV_MAX_DIM || g->dim_v > RQ_KV_MAX_DIM)
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "heads of %u and %u elements cannot be compressed; multiples of 8 up to %d can",
                       g->dim_k, g->dim_v, RQ_KV_MAX_DIM);
    if ((g->form_k == RQ_KV_TRIP || g->form_v == RQ_KV_TRIP) && !g->trip)
        return rq_fail(err, RQ_ERR_ARGUMENT, "cache group %u takes a round trip that nobody makes", index);
    if (g->recent_pages == 0 || coded == 0)
        return rq_fail(err, RQ_ERR_ARGUMENT, "cache group %u needs coded pages and at least one recent page",
                       index);
    return RQ_OK;
}

static rq_status check_states(const rq_executor_params *p, rq_error *err)
{
    if (p->n_states > RQ_MAX_STATE_GROUPS)
        return rq_fail(err, RQ_ERR_UNSUPPORTED, "%u state groups are more than the %d possible", p->n_states,
                       RQ_MAX_STATE_GROUPS);
    for (uint32_t i = 0; i < p->n_states; i++) {
        const rq_state_group *g = &p->states[i];
        bool conv = g->conv_channels != 0 && g->conv_taps >= 2 && g->conv_taps <= RQ_MAX_CONV_TAPS;
        if (!conv || g->n_layers == 0 || g->n_heads == 0 || g->dim_k == 0 || g->dim_v == 0)
            return rq_fail(err, RQ_ERR_ARGUMENT, "state group %u is empty", i);
        if (g->n_pending > RQ_MAX_PENDING || (g->n_key_heads != 0 && g->n_heads % g->n_key_heads != 0))
            return rq_fail(err, RQ_ERR_ARGUMENT,
                           "state group %u cannot keep %u tokens of %u heads for %u, at most %d", i,
                           g->n_pending, g->n_heads, g->n_key_heads, RQ_MAX_PENDING);
        if (p->state_device && p->state_device[i] >= p->n_devices)
            return rq_fail(err, RQ_ERR_ARGUMENT, "state group %u was placed on device %u of %u", i,
                           p->state_device[i], p->n_devices);
    }
    return RQ_OK;
}

static rq_status check_params(const rq_executor_params *p, rq_error *err)
{
    if (p->n_devices == 0) return rq_fail(err, RQ_ERR_ARGUMENT, "there is no device to run on");
    if (!is_power_of_two(p->caps.max_tokens) || p->caps.max_tokens > RQ_MAX_BUCKET)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "steps of %u tokens are not possible; a power of two up to %d is", p->caps.max_tokens,
                       RQ_MAX_BUCKET);
    if (p->caps.n_groups > RQ_MAX_GROUPS)
        return rq_fail(err, RQ_ERR_UNSUPPORTED, "%u cache groups are more than the %d possible",
                       p->caps.n_groups, RQ_MAX_GROUPS);
    if (p->caps.n_seqs == 0 || p->n_embd == 0 || p->n_vocab == 0)
        return rq_fail(err, RQ_ERR_ARGUMENT, "an executor needs sequences, a width and a vocabulary");
    for (uint32_t g = 0; g < p->caps.n_groups; g++) {
        if (p->group_device[g] >= p->n_devices)
            return rq_fail(err, RQ_ERR_ARGUMENT, "cache group %u was placed on device %u of %u", g,
                           p->group_device[g], p->n_devices);
        rq_status status = check_group(p, g, err);
        if (status != RQ_OK) return status;
    }
    return check_states(p, err);
}

static rq_status copy_params(rq_executor *ex, const rq_executor_params *p, rq_error *err)
{
    ex->params = *p;
    rq_step_caps_complete(&ex->params.caps);
    uint32_t n_groups = p->caps.n_groups;
    rq_status s = copy_of(p->devices, p->n_devices, sizeof *ex->devices, (void **)&ex->devices, err);
    if (s == RQ_OK) s = copy_of(p->weights, p->n_weights, sizeof *ex->weights, (void **)&ex->weights, err);
    if (s == RQ_OK) s = copy_of(p->groups, n_groups, sizeof *ex->groups, (void **)&ex->groups, err);
    if (s == RQ_OK)
        s = copy_of(p->states, p->n_states, sizeof *ex->state_groups, (void **)&ex->state_groups, err);
    if (s == RQ_OK)
        s = copy_of(p->state_device, p->n_states, sizeof(uint32_t), (void **)&ex->state_device, err);
    const struct {
        const uint32_t *from;
        uint32_t **to;
    } numbers[] = {{p->group_pages, &ex->group_pages},
                   {p->group_device, &ex->group_device},
                   {p->group_coded_pages, &ex->group_coded_pages},
                   {p->group_scratch_pages, &ex->group_scratch_pages}};
    for (int i = 0; i < 4 && s == RQ_OK; i++) /* without a list: zeros */
        s = copy_of(numbers[i].from, n_groups, sizeof(uint32_t), (void **)numbers[i].to, err);
    ex->params.devices = ex->devices;
    ex->params.weights = ex->weights;
    ex->params.groups = ex->groups;
    ex->params.states = ex->state_groups;
    ex->params.state_device = ex->state_device;
    ex->params.group_pages = ex->group_pages;
    ex->params.group_device = ex->group_device;
    ex->params.group_coded_pages = ex->group_coded_pages;
    ex->params.group_scratch_pages = ex->group_scratch_pages;
    return s;
}

static bool any_coded(const rq_executor *ex)
{
    for (uint32_t g = 0; g < ex->params.caps.n_groups; g++)
        if (rq_group_is_coded(&ex->groups[g])) return true;
    return false;
}

/* Of a quick plan: one token, the widest step that splits its attention, the widest of all. */
static bool is_left_out(const rq_executor *ex, uint32_t bucket, uint32_t widest)
{
    return ex->quick && bucket != 1 && bucket != RQ_NARROW_BUCKET && bucket != widest;
}

static rq_status plan_programs(rq_executor *ex, rq_error *err)
{
    rq_status status = RQ_OK;
    uint32_t widest = ex->params.caps.max_tokens;
    for (uint32_t t = 1; t <= widest && status == RQ_OK; t *= 2) {
        rq_exec_program *p = &ex->trunk[ex->n_trunk++];
        if (!is_left_out(ex, t, widest)) status = rq_exec_program_plan(ex, p, RQ_TAPE_TRUNK, t, err);
    }
    for (uint32_t t = 1; ex->params.drafts && t <= widest && status == RQ_OK; t *= 2) {
        rq_exec_program *p = &ex->follow[ex->n_follow++];
        if (!is_left_out(ex, t, widest)) status = rq_exec_program_plan(ex, p, RQ_TAPE_FOLLOW, t, err);
        if (status != RQ_OK || t > RQ_NARROW_BUCKET) continue;
        p = &ex->draft[ex->n_draft++];
        if (!is_left_out(ex, t, widest)) status = rq_exec_program_plan(ex, p, RQ_TAPE_DRAFT, t, err);
    }
    for (uint32_t i = 0; i < RQ_HEAD_BUCKETS && status == RQ_OK; i++)
        if (!is_left_out(ex, 1u << i, RQ_HEAD_ROWS))
            status = rq_exec_program_plan(ex, &ex->head[i], RQ_TAPE_HEAD, 1u << i, err);
    if (status == RQ_OK && any_coded(ex))
        status = rq_exec_program_plan(ex, &ex->encode, RQ_TAPE_ENCODE, 1, err);
    if (status != RQ_OK) return status;
    const rq_exec_program *one[] = {&ex->trunk[0], &ex->head[0]};
    for (int i = 0; i < 2; i++) {
        const rq_split *split = &one[i]->split;
        ex->info.n_segments += split->n_pieces;
        ex->info.n_copies += split->n_copies;
        for (uint32_t c = 0; c < split->n_copies; c++) ex->info.copy_bytes += split->copies[c].bytes;
    }
    ex->info.n_round_trips = (ex->info.n_segments - 2) / 2; /* trunk and head each begin where they are */
    ex->info.n_ops_trunk = ex->trunk[0].tape.n_ops;
    ex->info.n_ops_head = ex->head[0].tape.n_ops;
    return rq_exec_memory_list(ex, err);
}

static rq_status make_programs(rq_executor *ex, rq_error *err)
{
    bool coded = any_coded(ex);
    rq_status status = rq_exec_memory_make(ex, err);
    for (uint32_t i = 0; i < ex->n_trunk && status == RQ_OK; i++)
        status = rq_exec_program_compile(ex, &ex->trunk[i], 0, err);
    for (uint32_t i = 0; i < RQ_HEAD_BUCKETS * RQ_STEPS && status == RQ_OK; i++)
        status = rq_exec_program_compile(ex, &ex->head[i / RQ_STEPS], i % RQ_STEPS, err);
    if (status == RQ_OK && coded) status = rq_exec_program_compile(ex, &ex->encode, 0, err);
    for (uint32_t i = 0; i < ex->n_follow && status == RQ_OK; i++)
        status = rq_exec_program_compile(ex, &ex->follow[i], 0, err);
    for (uint32_t i = 0; i < ex->n_draft && status == RQ_OK; i++)
        status = rq_exec_program_compile(ex, &ex->draft[i], 0, err);
    ex->follows = ex->params.drafts;
    return status;
}

static rq_status place_ends(rq_executor *ex, rq_error *err)
{
    const rq_executor_params *p = &ex->params;
    ex->persist_device = p->place ? p->place(p->user, UINT32_MAX) : 0;
    ex->input_device = p->place_input ? p->place_input(p->user) : ex->persist_device;
    if (ex->persist_device >= p->n_devices || ex->input_device >= p->n_devices)
        return rq_fail(err, RQ_ERR_ARGUMENT, "the embedding was placed on device %u, the output on %u, of %u",
                       ex->input_device, ex->persist_device, p->n_devices);
    ex->device_info = rq_calloc(p->n_devices, sizeof *ex->device_info);
    if (!ex->device_info) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the executor");
    for (uint32_t d = 0; d < p->n_devices; d++)
        ex->devices[d]->backend->describe(ex->devices[d], &ex->device_info[d]);
    return RQ_OK;
}

/* An executor whose programs are planned and whose memory is listed. */
static rq_status plan_executor(const rq_executor_params *params, bool quick, rq_executor **out, rq_error *err)
{
    rq_status status = check_params(params, err);
    if (status != RQ_OK) return status;
    rq_executor *ex = rq_calloc(1, sizeof *ex);
    if (!ex) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the executor");
    ex->quick = quick;
    status = copy_params(ex, params, err);
    if (status == RQ_OK) status = place_ends(ex, err);
    if (status == RQ_OK) status = plan_programs(ex, err);
    if (status == RQ_OK)
        *out = ex;
    else
        rq_executor_free(ex);
    return status;
}

rq_status rq_executor_plan(const rq_executor_params *params, bool quick, rq_exec_list *list,
                           rq_executor_info *info, rq_error *err)
{
    rq_executor *ex = NULL;
    rq_status status = plan_executor(params, quick, &ex, err);
    if (status != RQ_OK) return status;
    *list = ex->list;
    *info = ex->info;
    rq_executor_free(ex);
    return RQ_OK;
}

rq_status rq_executor_create(const rq_executor_params *params, rq_executor **out, rq_error *err)
{
    rq_executor *ex = NULL;
    rq_status status = plan_executor(params, false, &ex, err);
    if (status != RQ_OK) return status;
    status = make_programs(ex, err);
    if (status == RQ_OK)
        *out = ex;
    else
        rq_executor_free(ex);
    return status;
}

const rq_exec_list *rq_executor_list(const rq_executor *ex)
{
    return &ex->list;
}

void rq_executor_free(rq_executor *ex)
{
    if (!ex) return;
    for (uint32_t s = 0; s < RQ_STEPS; s++)
        if (ex->slots[s].state == RQ_STEP_FLYING)
            for (uint32_t d = 0; d < ex->params.n_devices; d++)
                ex->devices[d]->backend->wait(ex->devices[d], NULL);
    for (uint32_t i = 0; i < RQ_TRUNK_BUCKETS; i++) rq_exec_program_free(ex, &ex->trunk[i]);
    for (uint32_t i = 0; i < RQ_HEAD_BUCKETS; i++) rq_exec_program_free(ex, &ex->head[i]);
    rq_exec_program_free(ex, &ex->encode);
    for (uint32_t i = 0; i < RQ_TRUNK_BUCKETS; i++) rq_exec_program_free(ex, &ex->follow[i]);
    for (uint32_t i = 0; i < RQ_DRAFT_BUCKETS; i++) rq_exec_program_free(ex, &ex->draft[i]);
    rq_exec_memory_free(ex);
    rq_free(ex->devices);
    rq_free(ex->device_info);
    rq_free(ex->weights);
    rq_free(ex->groups);
    rq_free(ex->state_groups);
    rq_free(ex->state_device);
    rq_free(ex->group_pages);
    rq_free(ex->group_device);
    rq_free(ex->group_coded_pages);
    rq_free(ex->group_scratch_pages);
    rq_free(ex);
}

void rq_executor_describe(const rq_executor *ex, rq_executor_info *out)
{
    *out = ex->info;
}

uint64_t rq_executor_not_finite(const rq_executor *ex)
{
    return atomic_load_explicit(&ex->not_finite, memory_order_relaxed);
}
