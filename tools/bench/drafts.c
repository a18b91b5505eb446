#include "tools/bench/drafts.h"

#include "backends/base/file.h"
#include "tools/common/progress.h"

#include <stdio.h>
#include <string.h>

enum { PROMPT = 256, MOST_DEPTH = 6 };

/* A run of one depth: the counters of its engine while all of its sessions were generating, summed up. */
typedef struct totals {
    uint64_t generated, drafted, accepted, steps, weight_bytes, ns;
} totals;

typedef struct moment {
    rq_engine_stats stats;
    uint64_t ns;
} moment;

static moment look(const rq_engine *engine)
{
    moment m;
    rq_engine_get_stats(engine, &m.stats);
    m.ns = rq_tool_now_ns();
    return m;
}

static void add(totals *t, const moment *a, const moment *b)
{
    t->generated += b->stats.generated_tokens - a->stats.generated_tokens;
    t->drafted += b->stats.drafted_tokens - a->stats.drafted_tokens;
    t->accepted += b->stats.accepted_tokens - a->stats.accepted_tokens;
    t->steps += b->stats.steps - a->stats.steps;
    t->weight_bytes += b->stats.weight_bytes - a->stats.weight_bytes;
    t->ns += b->ns - a->ns;
}

/* A piece of the text for each session, continued at the same time. What happens between the moment when the last of them
 * has its first token and the one when the first of them ends is added to *t. */
static rq_status continue_pieces(const rq_engine *engine, rq_session *const *s, uint32_t n,
                                 const rq_token *const *pieces, uint32_t n_gen, totals *t, rq_error *err)
{
    rq_request r = rq_request_default();
    r.sampling.temperature = 0;
    r.max_tokens = n_gen;
    r.ignore_eos = true;
    r.fresh = true;
    rq_status status = RQ_OK;
    rq_event e[RQ_BENCH_SESSIONS] = {0};
    for (uint32_t i = 0; i < n && status == RQ_OK; i++)
        status = rq_submit(s[i], pieces[i], PROMPT, NULL, 0, &r, err);
    moment begin = {.ns = 0}, end = {.ns = 0};
    for (uint32_t left = n; left > 0 && status == RQ_OK;) {
        bool all = true;
        for (uint32_t i = 0; i < n && status == RQ_OK; i++) { /* nobody waits for a reader */
            if (e[i].finish == RQ_FINISH_NONE) {
                status = rq_next(s[i], &e[i], -1, err);
                if (status == RQ_OK && e[i].finish == RQ_FINISH_ERROR) {
                    *err = e[i].error;
                    status = RQ_ERR_INTERNAL;
                }
                if (e[i].finish != RQ_FINISH_NONE && left-- == n) end = look(engine);
            }
            all = all && e[i].n_generated > 0;
        }
        if (all && begin.ns == 0) begin = look(engine);
    }
    if (status == RQ_OK && begin.ns != 0 && end.ns > begin.ns) add(t, &begin, &end);
    return status;
}

static void print(uint32_t n_sessions, uint32_t depth, const totals *t, const totals *without, bool json)
{
    double rate = (double)t->generated * 1e9 / (double)t->ns;
    double share = t->drafted ? (double)t->accepted / (double)t->drafted : 0;
    double per_step = (double)t->generated / (double)t->steps;
    double gain = rate / ((double)without->generated * 1e9 / (double)without->ns);
    double bytes = (double)t->weight_bytes / (double)t->generated;
    double weights = bytes / ((double)without->weight_bytes / (double)without->generated);
    if (json)
        printf("{\"sessions\": %u, \"depth\": %u, \"generated\": %llu, \"guesses\": %llu, \"right\": %llu, "
               "\"tokens_per_step\": %.3f, \"weight_bytes_per_token\": %.0f, \"weights\": %.3f, "
               "\"tokens_per_second\": %.2f, \"gain\": %.3f}\n",
               n_sessions, depth, (unsigned long long)t->generated, (unsigned long long)t->drafted,
               (unsigned long long)t->accepted, per_step, bytes, weights, rate, gain);
    else
        printf("| %8u | %5u | %9llu | %9llu | %6.1f %% | %13.2f | %7.2f | %13.2f | %5.2f |\n", n_sessions,
               depth, (unsigned long long)t->generated, (unsigned long long)t->drafted, 100 * share, per_step,
               weights, rate, gain);
    fflush(stdout);
}

static rq_status one_depth(const rq_model *model, const rq_engine_params *params, uint32_t depth,
                           const rq_tokens *text, uint32_t n_sessions, uint32_t n_rounds, uint32_t n_gen,
                           totals *t, rq_error *err)
{
    rq_engine_params p = *params;
    p.draft = depth ? "mtp" : "off";
    p.draft_depth = depth;
    p.n_ctx = PROMPT + n_gen;
    p.n_sessions = n_sessions;
    rq_engine *engine = NULL;
    rq_session *s[RQ_BENCH_SESSIONS] = {0};
    rq_status status = rq_engine_create(model, &p, &engine, err);
    for (uint32_t i = 0; i < n_sessions && status == RQ_OK; i++)
        status = rq_session_create(engine, &s[i], err);
    size_t apart = (text->n - PROMPT) / ((size_t)n_rounds * n_sessions);
    totals warm = {0};
    for (uint32_t i = 0; i <= n_rounds && status == RQ_OK; i++) { /* the first one warms up */
        const rq_token *pieces[RQ_BENCH_SESSIONS];
        for (uint32_t k = 0; k < n_sessions; k++)
            pieces[k] = text->ids + ((size_t)(i ? i - 1 : 0) * n_sessions + k) * apart;
        status = continue_pieces(engine, s, n_sessions, pieces, n_gen, i ? t : &warm, err);
    }
    for (uint32_t i = 0; i < n_sessions; i++) rq_session_free(s[i]);
    rq_engine_free(engine);
    if (status == RQ_OK && (t->generated == 0 || t->steps == 0))
        status = rq_fail(err, RQ_ERR_ARGUMENT, "the answers are too short to measure: ask for more tokens");
    return status;
}

rq_status rq_bench_drafts(const rq_model *model, const rq_engine_params *params, const char *path,
                          uint32_t n_sessions, uint32_t n_rounds, uint32_t n_gen, bool json, rq_error *err)
{
    rq_map map = {0};
    rq_tokens text = {0};
    rq_status status = rq_map_open(path, &map, err);
    if (status == RQ_OK)
        status = rq_tokenize(model, (const char *)map.data, (size_t)map.bytes, 0, &text, err);
    rq_map_close(&map);
    size_t n_pieces = (size_t)n_rounds * n_sessions;
    if (status == RQ_OK && (n_sessions < 1 || n_sessions > RQ_BENCH_SESSIONS))
        status = rq_fail(err, RQ_ERR_ARGUMENT, "drafts are measured for 1 to %d sessions, not %u",
                         RQ_BENCH_SESSIONS, n_sessions);
    if (status == RQ_OK && (n_rounds == 0 || n_gen < 2 || text.n < PROMPT + n_pieces))
        status =
            rq_fail(err, RQ_ERR_ARGUMENT,
                    "%.300s has %zu tokens; %zu prompts of %d tokens and at least 2 tokens to generate are "
                    "wanted",
                    path, text.n, n_pieces, PROMPT);
    if (status == RQ_OK && !json)
        puts("| sessions | depth | generated |   guesses |    right | tokens a step | weights | "
             "tokens/second |  "
             "gain |\n"
             "| -------: | ----: | --------: | --------: | -------: | ------------: | ------: | "
             "------------: | "
             "----: |");
    totals without = {0};
    for (uint32_t depth = 0; depth <= MOST_DEPTH && status == RQ_OK; depth++) {
        totals t = {0};
        status = one_depth(model, params, depth, &text, n_sessions, n_rounds, n_gen, &t, err);
        if (status != RQ_OK) break;
        if (depth == 0) without = t;
        print(n_sessions, depth, &t, &without, json);
    }
    rq_tokens_free(&text);
    return status;
}
