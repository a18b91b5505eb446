#include "tools/bench/drafts.h"

#include "backends/base/file.h"

#include <stdio.h>
#include <string.h>

enum { PROMPT = 256, MOST_DEPTH = 6 };

typedef struct totals {
    uint64_t generated, drafted, accepted, steps;
    double ms;
} totals;

static rq_status continue_piece(rq_session *s, const rq_token *ids, uint32_t n_gen, totals *t, rq_error *err)
{
    rq_request r = rq_request_default();
    r.sampling.temperature = 0;
    r.max_tokens = n_gen;
    r.ignore_eos = true;
    r.fresh = true;
    rq_event e = {0};
    rq_status status = rq_submit(s, ids, PROMPT, NULL, 0, &r, err);
    while (status == RQ_OK && e.finish == RQ_FINISH_NONE) status = rq_next(s, &e, -1, err);
    if (status != RQ_OK) return status;
    if (e.finish == RQ_FINISH_ERROR) {
        *err = e.error;
        return RQ_ERR_INTERNAL;
    }
    t->generated += e.n_generated;
    t->drafted += e.n_drafted;
    t->accepted += e.n_accepted;
    t->steps += e.n_generated - e.n_accepted;
    t->ms += e.generate_ms;
    return RQ_OK;
}

static void print(uint32_t depth, const totals *t, uint32_t n_prompts, double without, bool json)
{
    /* the first token of each answer belongs to its prompt */
    double rate = (double)(t->generated - n_prompts) * 1e3 / t->ms;
    double share = t->drafted ? (double)t->accepted / (double)t->drafted : 0;
    double per_step = (double)t->generated / (double)t->steps, gain = without > 0 ? rate / without : 1;
    if (json)
        printf("{\"depth\": %u, \"generated\": %llu, \"guesses\": %llu, \"right\": %llu, "
               "\"tokens_per_step\": %.3f, "
               "\"tokens_per_second\": %.2f, \"gain\": %.3f}\n",
               depth, (unsigned long long)t->generated, (unsigned long long)t->drafted,
               (unsigned long long)t->accepted, per_step, rate, gain);
    else
        printf("| %5u | %9llu | %9llu | %6.1f %% | %13.2f | %12.2f | %5.2f |\n", depth,
               (unsigned long long)t->generated, (unsigned long long)t->drafted, 100 * share, per_step, rate,
               gain);
    fflush(stdout);
}

static rq_status one_depth(const rq_model *model, const rq_engine_params *params, uint32_t depth,
                           const rq_tokens *text, uint32_t n_prompts, uint32_t n_gen, totals *t,
                           rq_error *err)
{
    rq_engine_params p = *params;
    p.draft = depth ? "mtp" : "off";
    p.draft_depth = depth;
    p.n_ctx = PROMPT + n_gen;
    p.n_sessions = 1;
    rq_engine *engine = NULL;
    rq_session *s = NULL;
    rq_status status = rq_engine_create(model, &p, &engine, err);
    if (status == RQ_OK) status = rq_session_create(engine, &s, err);
    size_t apart = (text->n - PROMPT) / n_prompts;
    totals warm = {0};
    if (status == RQ_OK) status = continue_piece(s, text->ids, n_gen, &warm, err);
    for (uint32_t i = 0; i < n_prompts && status == RQ_OK; i++)
        status = continue_piece(s, text->ids + i * apart, n_gen, t, err);
    rq_session_free(s);
    rq_engine_free(engine);
    return status;
}

rq_status rq_bench_drafts(const rq_model *model, const rq_engine_params *params, const char *path,
                          uint32_t n_prompts, uint32_t n_gen, bool json, rq_error *err)
{
    rq_map map = {0};
    rq_tokens text = {0};
    rq_status status = rq_map_open(path, &map, err);
    if (status == RQ_OK)
        status = rq_tokenize(model, (const char *)map.data, (size_t)map.bytes, 0, &text, err);
    rq_map_close(&map);
    if (status == RQ_OK && (n_prompts == 0 || n_gen < 2 || text.n < PROMPT + n_prompts))
        status =
            rq_fail(err, RQ_ERR_ARGUMENT,
                    "%.300s has %zu tokens; %u prompts of %d tokens and at least 2 tokens to generate are "
                    "wanted",
                    path, text.n, n_prompts, PROMPT);
    if (status == RQ_OK && !json)
        puts("| depth | generated |   guesses |    right | tokens a step | tokens/second |  gain |\n"
             "| ----: | --------: | --------: | -------: | ------------: | -----------: | ----: |");
    double without = 0;
    for (uint32_t depth = 0; depth <= MOST_DEPTH && status == RQ_OK; depth++) {
        totals t = {0};
        status = one_depth(model, params, depth, &text, n_prompts, n_gen, &t, err);
        if (status != RQ_OK) break;
        print(depth, &t, n_prompts, without, json);
        if (depth == 0) without = (double)(t.generated - n_prompts) * 1e3 / t.ms;
    }
    rq_tokens_free(&text);
    return status;
}
