#include "tools/kv/listen.h"

#include "backends/base/file.h"
#include "backends/base/mem.h"
#include "tools/common/progress.h"

/* Texts longer than this are cut: tokens would not fit the counters of a capture. */
enum { MAX_TEXT_BYTES = 1 << 28 };

typedef struct text {
    rq_tokens body, start; /* start: what the model wants in front, nothing or one token */
    uint32_t window, n_tokens, n_windows;
} text;

static void text_free(text *t)
{
    rq_tokens_free(&t->body);
    rq_tokens_free(&t->start);
}

static rq_status read_text(const rq_model *model, const char *path, text *t, rq_error *err)
{
    rq_map map;
    rq_status s = rq_map_open(path, &map, err);
    if (s) return s;
    uint64_t bytes = map.bytes < MAX_TEXT_BYTES ? map.bytes : MAX_TEXT_BYTES;
    s = rq_tokenize(model, (const char *)map.data, bytes, 0, &t->body, err);
    if (!s) s = rq_tokenize(model, "", 0, RQ_MODEL_BOS, &t->start, err);
    if (!s && rq_map_lost(&map)) s = rq_fail(err, RQ_ERR_IO, "%s became shorter while it was read", path);
    rq_map_close(&map);
    if (!s && t->body.n + t->start.n < 2)
        s = rq_fail(err, RQ_ERR_ARGUMENT, "%s holds less than two tokens", path);
    return s;
}

static rq_status cut(const kv_listen *l, uint32_t n_ctx_train, text *t, rq_error *err)
{
    uint64_t have = t->body.n + t->start.n, want = l->n_tokens ? l->n_tokens : have;
    t->window = l->window ? l->window : n_ctx_train;
    if (t->window > n_ctx_train)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "windows of %u tokens are longer than the model's trained context of %u", t->window,
                       n_ctx_train);
    if (l->repeat && want < t->window) want = t->window;
    if (!l->repeat && want > have) want = have;
    if (want > UINT32_MAX / 2) want = UINT32_MAX / 2;
    if (want < t->window) t->window = (uint32_t)want;
    t->n_windows = l->one_window ? 1 : (uint32_t)(want / t->window);
    t->n_tokens = t->n_windows * t->window;
    return RQ_OK;
}

/* The tokens of window w: the model's own beginning, then the body from where the window before ended. */
static void fill(const text *t, uint32_t w, rq_token *out)
{
    size_t body = t->window - t->start.n, at = (size_t)w * body % t->body.n;
    for (size_t i = 0; i < t->start.n; i++) out[i] = t->start.ids[i];
    for (size_t i = t->start.n; i < t->window; i++) {
        out[i] = t->body.ids[at];
        at = at + 1 < t->body.n ? at + 1 : 0;
    }
}

static rq_status run_windows(rq_engine *engine, const text *t, rq_token *tokens, rq_error *err)
{
    rq_session *session = NULL;
    rq_status s = rq_session_create(engine, &session, err);
    rq_progress progress = rq_progress_start(stderr, "evaluate", "tokens", t->n_tokens);
    for (uint32_t w = 0; !s && w < t->n_windows; w++) {
        fill(t, w, tokens);
        s = rq_session_truncate(session, 0, err);
        if (!s) s = rq_evaluate(session, tokens, t->window, 0, RQ_LOGITS_NONE, NULL, NULL, err);
        rq_progress_set(&progress, (uint64_t)(w + 1) * t->window);
    }
    rq_progress_end(&progress);
    rq_session_free(session);
    return s;
}

rq_status kv_listen_run(const kv_listen *l,
                        rq_status (*ready)(void *user, const kv_listen_plan *plan, rq_error *err),
                        rq_status (*rows)(void *user, const rq_kv_captured *rows, rq_error *err), void *user,
                        rq_error *err)
{
    rq_model *model = NULL;
    rq_engine *engine = NULL;
    rq_token *tokens = NULL;
    text t = {0};
    rq_model_info info;
    rq_status s = rq_engine_args_open(l->engine, &model, NULL, err);
    if (s) return s;
    rq_model_describe(model, &info);
    s = read_text(model, l->text_path, &t, err);
    if (!s) s = cut(l, info.n_ctx_train, &t, err);
    if (!s) {
        tokens = rq_malloc(sizeof *tokens * t.window);
        if (!tokens) s = rq_fail(err, RQ_ERR_MEMORY, "out of memory for %u tokens", t.window);
    }
    if (!s) {
        fill(&t, 0, tokens);
        s = ready(user, &(kv_listen_plan){model, t.window, t.n_tokens, tokens}, err);
    }
    if (!s) {
        rq_kv_hooks hooks = {
            .capture = rows, .capture_user = user, .layers = l->layers, .n_layers = l->n_layers};
        rq_engine_params params = l->engine->params;
        params.n_ctx = t.window < 2 ? 2 : t.window;
        params.n_sessions = 1;
        params.cache_tokens = 0;
        params.type_k = params.type_v = "f16";
        params.kv_swa = NULL;
        params.kv_profile = "none";
        params.kv_hooks = &hooks;
        s = rq_engine_create(model, &params, &engine, err);
    }
    if (!s) s = run_windows(engine, &t, tokens, err);
    rq_engine_free(engine);
    rq_model_free(model);
    rq_free(tokens);
    text_free(&t);
    return s;
}
