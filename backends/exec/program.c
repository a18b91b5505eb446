/* program.c - from a family's tape to compiled pieces. */
#include "backends/base/mem.h"
#include "backends/exec/internal.h"
#include "backends/ops.h"
#include "backends/tape/fuse.h"

#include <string.h>

/* Does the operation compute for routed experts: by its kind, or because it takes the result of one that does and
 * turns it row by row (activation, scale)? */
static bool is_experts(const rq_tape *tape, const rq_op *op)
{
    for (;;) {
        if (op->kind == RQ_OP_GROUP || op->kind == RQ_OP_MATMUL_EXPERTS || op->kind == RQ_OP_COMBINE)
            return true;
        bool by_row = op->kind == RQ_OP_GLU || op->kind == RQ_OP_SCALE || op->kind == RQ_OP_MUL;
        if (!by_row || op < tape->ops || op >= tape->ops + tape->n_ops) return false;
        const rq_value *x = &tape->values[op->in[0]];
        const rq_op *writer = op;
        bool found = false;
        while (!found && x->space == RQ_SPACE_ACT && writer > tape->ops) {
            writer--;
            for (uint32_t o = 0; o < writer->n_out; o++) {
                const rq_value *y = &tape->values[writer->out[o]];
                found |= y->space == RQ_SPACE_ACT && y->index == x->index;
            }
        }
        if (!found || writer->kind == RQ_OP_COMBINE) return false;
        op = writer;
    }
}

/* Where an operation runs: at its cache, at the persistent memory, or where its layer was placed. */
static uint32_t device_of(void *user, const rq_tape *tape, const rq_op *op)
{
    const rq_executor *ex = user;
    uint32_t flags = rq_op_get(op->kind)->flags;
    if (flags & RQ_OP_READS_SAMPLED) return ex->input_device;
    for (uint32_t i = 0; i < op->n_in; i++) {
        const rq_value *v = &tape->values[op->in[i]];
        if (!op->in[i]) continue;
        if (v->space == RQ_SPACE_CACHE && v->index < ex->params.caps.n_groups)
            return ex->group_device[v->index];
        if (v->space == RQ_SPACE_STATE && v->index < ex->params.n_states) return ex->state_device[v->index];
        if (v->space == RQ_SPACE_PERSIST) return ex->persist_device;
    }
    if (ex->params.place_experts && is_experts(tape, op))
        return ex->params.place_experts(ex->params.user, op->layer);
    return ex->params.place ? ex->params.place(ex->params.user, op->layer) : 0;
}

static bool supports_fused(void *user, const rq_tape *tape, const rq_op *op)
{
    rq_executor *ex = user;
    uint32_t d = device_of(user, tape, op);
    if (d >= ex->params.n_devices) return false;
    for (uint32_t i = 0; i < op->prim_count; i++) /* what runs on two devices stays apart */
        if (device_of(user, tape, &tape->prims[op->prim_first + i]) != d) return false;
    rq_device *device = ex->devices[d];
    rq_error why = {0};
    return device->backend->supports(device, tape, op, &why);
}

/* ---- does the tape fit what the executor was told? ----------------------------------------------------- */

static rq_status check_weight(const rq_executor *ex, const rq_value *v, rq_error *err)
{
    if (v->index >= ex->params.n_weights)
        return rq_fail(err, RQ_ERR_INTERNAL, "the forward pass uses weight %u of %u", v->index,
                       ex->params.n_weights);
    const rq_weight *w = &ex->weights[v->index];
    uint64_t end;
    if (w->type != v->type || !rq_add_u64(v->offset, rq_value_span(v), &end) || end > w->bytes)
        return rq_fail(err, RQ_ERR_FORMAT,
                       "weight %s is smaller than the forward pass expects, or of another type",
                       w->name ? w->name : "?");
    return RQ_OK;
}

static rq_status check_persist(const rq_executor *ex, const rq_value *v, rq_error *err)
{
    const uint32_t rows[RQ_PERSIST_COUNT] = {[RQ_PERSIST_HIDDEN] = ex->params.n_embd,
                                             [RQ_PERSIST_LOGITS] = ex->params.n_vocab,
                                             [RQ_PERSIST_SAMPLED] = 1};
    rq_type type = v->index == RQ_PERSIST_SAMPLED ? RQ_TYPE_I32 : RQ_TYPE_F32;
    if (v->index == RQ_PERSIST_TRAIL) { /* views of whole rows */
        uint64_t row = 4ull * ex->params.n_embd, bytes = row * rq_trail_rows(&ex->params.caps),
                 span = rq_value_span(v);
        if (ex->params.drafts && v->type == RQ_TYPE_F32 && v->ne[0] == ex->params.n_embd &&
            v->offset % row == 0 && v->offset <= bytes && span <= bytes - v->offset)
            return RQ_OK;
        return rq_fail(err, RQ_ERR_INTERNAL, "the forward pass looks for hidden rows where there are none");
    }
    if (v->index == RQ_PERSIST_CAPTURE) { /* views of any shape */
        uint64_t bytes = 4ull * ex->params.capture_floats * ex->params.caps.max_tokens,
                 span = rq_value_span(v);
        if (v->type == RQ_TYPE_F32 && v->offset <= bytes && span <= bytes - v->offset) return RQ_OK;
        return rq_fail(err, RQ_ERR_INTERNAL, "the forward pass leaves more behind than there is room for");
    }
    if (v->index >= RQ_PERSIST_COUNT || v->type != type || v->offset != 0 ||
        (v->index != RQ_PERSIST_SAMPLED && v->ne[0] != rows[v->index]))
        return rq_fail(err, RQ_ERR_INTERNAL,
                       "the forward pass sees persistent memory %u in a shape of its own", v->index);
    return RQ_OK;
}

/* k, v and q of a cache operation against the group's shape; any may be NULL. */
static rq_status check_cache(const rq_executor *ex, const rq_value *c, const rq_value *k, const rq_value *v,
                             const rq_value *q, rq_error *err)
{
    if (c->index >= ex->params.caps.n_groups || c->layer >= ex->groups[c->index].n_layers)
        return rq_fail(err, RQ_ERR_INTERNAL,
                       "the forward pass uses layer %u of cache group %u, which does not exist", c->layer,
                       c->index);
    const rq_cache_group *g = &ex->groups[c->index];
    bool fits = (!k || (k->ne[0] == g->dim_k && k->ne[1] == g->n_heads)) &&
                (!v || (v->ne[0] == g->dim_v && v->ne[1] == g->n_heads)) &&
                (!q || (q->ne[0] == g->dim_k && q->ne[1] % g->n_heads == 0));
    if (!fits)
        return rq_fail(err, RQ_ERR_INTERNAL, "cache group %u has another shape than the forward pass uses",
                       c->index);
    return RQ_OK;
}

/* The shapes of a recurrent operation against the state group's. */
static rq_status check_state(const rq_executor *ex, const rq_tape *t, const rq_op *op, rq_error *err)
{
    const rq_value *s = &t->values[op->in[0]];
    if (s->index >= ex->params.n_states || s->layer >= ex->state_groups[s->index].n_layers)
        return rq_fail(err, RQ_ERR_INTERNAL,
                       "the forward pass uses layer %u of state group %u, which does not exist", s->layer,
                       s->index);
    const rq_state_group *g = &ex->state_groups[s->index];
    const rq_value *a = &t->values[op->in[2]], *b = &t->values[op->in[3]];
    bool fits = op->kind == RQ_OP_SHORT_CONV
                    ? a->ne[0] == g->conv_channels && a->ne[1] == g->conv_taps
                    : a->ne[0] == g->dim_k && b->ne[0] == g->dim_v && b->ne[1] == g->n_heads &&
                          (g->n_key_heads == 0 || a->ne[1] == g->n_key_heads);
    if (fits) return RQ_OK;
    return rq_fail(err, RQ_ERR_INTERNAL, "state group %u has another shape than the forward pass uses",
                   s->index);
}

static rq_status check_op(const rq_executor *ex, const rq_tape *t, const rq_op *op, rq_error *err)
{
    rq_status status = RQ_OK;
    for (uint32_t i = 0; i < op->n_in && status == RQ_OK; i++) {
        const rq_value *v = &t->values[op->in[i]];
        if (!op->in[i]) continue;
        if (v->space == RQ_SPACE_WEIGHT) status = check_weight(ex, v, err);
        if (v->space == RQ_SPACE_PERSIST) status = check_persist(ex, v, err);
    }
    if (status != RQ_OK) return status;
    const rq_value *v = t->values;
    if (op->kind == RQ_OP_KV_WRITE)
        return check_cache(ex, &v[op->in[0]], &v[op->in[1]], &v[op->in[2]], NULL, err);
    if (op->kind == RQ_OP_SHORT_CONV || op->kind == RQ_OP_DELTA_RULE) return check_state(ex, t, op, err);
    if (op->kind == RQ_OP_KV_ENCODE) {
        status = check_cache(ex, &v[op->in[0]], NULL, NULL, NULL, err);
        if (status == RQ_OK && !rq_group_is_coded(&ex->groups[v[op->in[0]].index]))
            return rq_fail(err, RQ_ERR_INTERNAL, "cache group %u has no form to encode its pages in",
                           v[op->in[0]].index);
        return status;
    }
    if (op->kind == RQ_OP_ATTEND) {
        status = check_cache(ex, &v[op->in[0]], NULL, NULL, &v[op->in[1]], err);
        if (status != RQ_OK) return status;
        if (op->in[2] && ex->groups[v[op->in[0]].index].n_heads % v[op->in[2]].ne[1])
            return rq_fail(err, RQ_ERR_INTERNAL, "cache group %u has %u heads, and %u means",
                           v[op->in[0]].index, ex->groups[v[op->in[0]].index].n_heads, v[op->in[2]].ne[1]);
        if (v[op->out[0]].ne[0] != v[op->in[1]].ne[1] * ex->groups[v[op->in[0]].index].dim_v)
            return rq_fail(err, RQ_ERR_INTERNAL,
                           "attention over cache group %u returns another width than its values",
                           v[op->in[0]].index);
    }
    return RQ_OK;
}

static bool is_encoded_before(const rq_tape *t, uint32_t at, const rq_value *cache)
{
    while (at-- > 0) {
        const rq_value *v = &t->values[t->ops[at].in[0]];
        if (t->ops[at].kind == RQ_OP_KV_ENCODE && v->index == cache->index && v->layer == cache->layer)
            return true;
    }
    return false;
}

/* Wide trunks encode every layer before they attend over it, narrow ones leave it to the encoding tape: or else
 * pages would be read that nobody made. */
static rq_status check_encodes(const rq_executor *ex, const rq_tape *t, rq_error *err)
{
    for (uint32_t i = 0; i < t->n_ops; i++) {
        const rq_op *op = &t->ops[i];
        const rq_value *cache = &t->values[op->in[0]];
        if (op->kind == RQ_OP_KV_ENCODE && t->bucket <= RQ_NARROW_BUCKET)
            return rq_fail(err, RQ_ERR_INTERNAL, "a forward pass of %u tokens encodes pages itself",
                           t->bucket);
        if (op->kind == RQ_OP_ATTEND && t->bucket > RQ_NARROW_BUCKET &&
            rq_group_is_coded(&ex->groups[cache->index]) && !is_encoded_before(t, i, cache))
            return rq_fail(err, RQ_ERR_INTERNAL,
                           "the forward pass of %u tokens attends over layer %u of cache group %u without "
                           "encoding its full pages",
                           t->bucket, cache->layer, cache->index);
    }
    return RQ_OK;
}

static rq_status check_supported(const rq_executor *ex, const rq_exec_program *p, rq_error *err)
{
    for (uint32_t i = 0; i < p->split.n_pieces; i++) {
        const rq_piece *piece = &p->split.pieces[i];
        rq_device *device = ex->devices[piece->device];
        for (uint32_t o = piece->first; o < piece->first + piece->count; o++) {
            rq_error why = {0};
            if (device->backend->supports(device, &p->tape, &p->tape.ops[o], &why)) continue;
            return rq_fail(err, RQ_ERR_UNSUPPORTED, "%s cannot run %s: %s", device->backend->name,
                           rq_op_get(p->tape.ops[o].kind)->name,
                           why.text[0] ? why.text : "it has no kernel for it");
        }
    }
    return RQ_OK;
}

/* ---- planning and compiling ---------------------------------------------------------------------------- */

static void encode_all(const rq_executor *ex, rq_tape *t)
{
    for (uint32_t g = 0; g < ex->params.caps.n_groups; g++)
        for (uint32_t l = 0; l < ex->groups[g].n_layers && rq_group_is_coded(&ex->groups[g]); l++)
            rq_op_kv_encode(t, rq_tape_cache(t, g, l));
}

static uint64_t read_by(const rq_tape *t, const rq_op *op)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < op->prim_count; i++) bytes += read_by(t, &t->prims[op->prim_first + i]);
    if (op->prim_count != 0 || op->kind == RQ_OP_EMBED) return bytes;
    for (uint32_t i = 0; i < op->n_in; i++) {
        const rq_value *w = &t->values[op->in[i]];
        if (!op->in[i] || w->space != RQ_SPACE_WEIGHT) continue;
        uint64_t parts = (uint64_t)w->ne[2] * w->ne[3];
        if (op->kind == RQ_OP_MATMUL_EXPERTS && i == 0) {
            uint64_t named = (uint64_t)t->values[op->in[2]].ne[0] * t->bucket;
            if (parts > named) parts = named;
        }
        bytes += parts * w->ne[1] * rq_row_bytes(w->type, w->ne[0]);
    }
    return bytes;
}

rq_status rq_exec_program_plan(rq_executor *ex, rq_exec_program *p, rq_tape_kind kind, uint32_t bucket,
                               rq_error *err)
{
    rq_tape_init(&p->tape, bucket);
    p->tape.groups = ex->groups;
    p->tape.n_groups = ex->params.caps.n_groups;
    p->tape.persist_rows[RQ_PERSIST_HIDDEN] = ex->params.caps.max_tokens;
    p->tape.persist_rows[RQ_PERSIST_LOGITS] = RQ_HEAD_ROWS;
    p->tape.persist_rows[RQ_PERSIST_SAMPLED] = ex->params.caps.n_seqs;
    p->tape.persist_rows[RQ_PERSIST_CAPTURE] = ex->params.capture_floats ? ex->params.caps.max_tokens : 0;
    p->tape.persist_rows[RQ_PERSIST_TRAIL] = ex->params.drafts ? rq_trail_rows(&ex->params.caps) : 0;
    if (kind == RQ_TAPE_ENCODE)
        encode_all(ex, &p->tape);
    else
        ex->params.build(ex->params.user, kind, &p->tape);
    rq_status status = rq_tape_check(&p->tape, err);
    if (status != RQ_OK) return status;
    if (p->tape.n_ops == 0) return rq_fail(err, RQ_ERR_INTERNAL, "the forward pass is empty");
    for (uint32_t i = 0; i < p->tape.n_ops; i++) {
        status = check_op(ex, &p->tape, &p->tape.ops[i], err);
        if (status != RQ_OK) return status;
    }
    if (kind == RQ_TAPE_TRUNK || kind == RQ_TAPE_FOLLOW) status = check_encodes(ex, &p->tape, err);
    if (status != RQ_OK) return status;
    if (!ex->params.no_fusion) {
        status = rq_tape_fuse(&p->tape, supports_fused, ex, err);
        if (status != RQ_OK) return status;
    }
    status = rq_split_make(&p->tape, ex->params.n_devices, device_of, ex, &p->split, err);
    if (status == RQ_OK) status = check_supported(ex, p, err);
    if (status == RQ_OK) status = rq_plan_make(&p->tape, &p->split, ex->params.n_devices, &p->plan, err);
    p->weight_bytes = 0;
    for (uint32_t i = 0; i < p->tape.n_ops; i++) p->weight_bytes += read_by(&p->tape, &p->tape.ops[i]);
    return status;
}

rq_status rq_exec_program_compile(rq_executor *ex, rq_exec_program *p, uint32_t slot, rq_error *err)
{
    uint32_t n = p->split.n_pieces;
    if (!p->segments) p->segments = rq_calloc(n, sizeof *p->segments);
    p->programs[slot] = rq_calloc(n, sizeof **p->programs);
    if (!p->segments || !p->programs[slot])
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for %u compiled pieces", n);
    for (uint32_t i = 0; i < n; i++) {
        const rq_piece *piece = &p->split.pieces[i];
        rq_device *device = ex->devices[piece->device];
        p->segments[i] = (rq_segment){.tape = &p->tape,
                                      .first = piece->first,
                                      .count = piece->count,
                                      .arena_offset = rq_plan_offsets(&p->plan, piece->device),
                                      .barrier = p->plan.barrier + piece->first};
        const rq_bindings *bindings = &ex->bindings[piece->device * RQ_STEPS + slot];
        rq_status status =
            device->backend->compile(device, &p->segments[i], bindings, &p->programs[slot][i], err);
        if (status != RQ_OK) return status;
    }
    return RQ_OK;
}

void rq_exec_program_free(rq_executor *ex, rq_exec_program *p)
{
    for (uint32_t slot = 0; slot < RQ_STEPS; slot++) {
        for (uint32_t i = 0; p->programs[slot] && i < p->split.n_pieces; i++) {
            rq_program *program = p->programs[slot][i];
            if (program) program->device->backend->destroy(program);
        }
        rq_free(p->programs[slot]);
    }
    rq_free(p->segments);
    rq_plan_free(&p->plan);
    rq_split_free(&p->split);
    rq_tape_free(&p->tape);
    memset(p, 0, sizeof *p);
}
