/* launches.c - how many kernels a generated token costs, layer by layer, worked out from the tape: no card is needed. */
#include "backends/base/mem.h"
#include "backends/ops.h"
#include "backends/tape/fuse.h"
#include "engine/kv/plan.h"
#include "engine/models/model.h"
#include "engine/plan.h"

enum { CONTEXT = 4096 };

static bool supports(void *user, const rq_tape *tape, const rq_op *op)
{
    const rq_backend *backend = user;
    rq_error why = {0};
    return backend->supports(NULL, tape, op, &why);
}

static rq_status count(const rq_backend *backend, const rq_model *model, rq_kv_plan *kv, rq_tape *t,
                       void (*row)(void *user, const rq_launch_row *row), void *user, rq_error *err)
{
    rq_step_caps caps = {
        .max_tokens = 1, .n_groups = t->n_groups, .n_seqs = 1, .max_pages = CONTEXT / RQ_PAGE_TOKENS};
    rq_step_caps_complete(&caps);
    t->persist_rows[RQ_PERSIST_HIDDEN] = t->persist_rows[RQ_PERSIST_LOGITS] =
        t->persist_rows[RQ_PERSIST_SAMPLED] = 1;
    rq_pass_build(&kv->pass, RQ_TAPE_TRUNK, t);
    rq_status status = rq_tape_check(t, err);
    if (status == RQ_OK) status = rq_tape_fuse(t, supports, (void *)(uintptr_t)backend, err);
    uint32_t *per_op = status == RQ_OK ? rq_calloc(t->n_ops, sizeof *per_op) : NULL;
    if (status == RQ_OK && !per_op)
        status = rq_fail(err, RQ_ERR_MEMORY, "out of memory for counting launches");
    if (status == RQ_OK)
        status =
            backend->launches(t, kv->groups, t->n_groups, model->states, model->n_states, &caps, per_op, err);
    for (uint32_t i = 0; status == RQ_OK && i < t->n_ops; i++) {
        const rq_launch_row line = {
            .layer = t->ops[i].layer, .op = rq_op_get(t->ops[i].kind)->name, .launches = per_op[i]};
        row(user, &line);
    }
    rq_free(per_op);
    return status;
}

rq_status rq_count_launches(const rq_model *model, const rq_engine_params *params,
                            void (*row)(void *user, const rq_launch_row *row), void *user, rq_error *err)
{
    const rq_backend *backend = rq_backend_find(params->backend);
    if (!backend || !backend->launches)
        return rq_fail(err, RQ_ERR_ARGUMENT, "\"%s\" is no backend of this build that launches kernels",
                       params->backend ? params->backend : "");
    rq_kv_plan kv = {0};
    rq_tape tape;
    rq_tape_init(&tape, 1);
    rq_status status = rq_kv_plan_choose(&kv, model, params, err);
    if (status == RQ_OK) status = rq_kv_plan_finish(&kv, model, params, CONTEXT, err);
    tape.groups = kv.groups;
    tape.n_groups = model->n_groups;
    if (status == RQ_OK) status = count(backend, model, &kv, &tape, row, user, err);
    rq_tape_free(&tape);
    rq_kv_plan_free(&kv);
    return status;
}
