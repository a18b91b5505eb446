/* fake_engine.c - an engine that only pretends, for tests of the server: it implements engine/rqvk.h with
 * byte-level tokens and invented words, and misbehaves on demand. A prompt steers it with words of the form
 * @name=value (the last one of a name counts):
 *   @tokens=N  end the turn after N tokens (12)      @say=TEXT  write TEXT byte by byte ('_' is a space, '~' a line feed)
 *   @delay=MS  time per token (1)                    @prompt=MS time for the prompt (0)
 *   @fail=N    fail after N tokens                   @device=N  the same, and the whole engine is gone
 *   @submit=1  rq_submit fails
 * The environment variable FAKE_LOAD_MS makes loading slow; a model path holding "missing" fails, one holding
 * "plain" has no chat format, of one holding "opens" every prompt ends inside of thoughts (between <think> and </think>,
 * which are left out of earlier answers). */
#include "engine/plan.h"

#include "backends/base/mem.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BOS = 256, IM_START, IM_END, EOS, FIRST_WORD, MAX_EVENTS = 1 << 14, TEXT_MAX = 512 };

static const char *const words[] = {" alpha",
                                    " beta",
                                    " gamma",
                                    " delta",
                                    " one",
                                    " two",
                                    " three",
                                    " four",
                                    ",",
                                    " caf\xC3\xA9",
                                    " \xE6\x97\xA5\xE6\x9C\xAC",
                                    " \xF0\x9F\x98\x80",
                                    ".",
                                    " red",
                                    " green",
                                    " blue",
                                    " tree",
                                    " house",
                                    " \"quoted\"",
                                    " back\\slash",
                                    "\n"};
enum { N_WORDS = sizeof words / sizeof *words, N_VOCAB = FIRST_WORD + N_WORDS };

struct rq_model {
    char path[256];
    char bytes[256]; /* the texts of the byte tokens */
};

struct rq_engine {
    const rq_model *model;
    rq_engine_params params;
    pthread_mutex_t lock;
    rq_engine_stats stats;
    bool failed;
};

typedef struct fake_event {
    rq_event event;
    char text[TEXT_MAX];
} fake_event;

struct rq_session {
    rq_engine *engine;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool quit, cancel, work, running;
    rq_tokens held;
    rq_request request;
    char stops[RQ_MAX_STOPS][RQ_MAX_STOP_BYTES + 1];
    uint32_t n_prompt, n_reused;
    char prompt[8192]; /* the end of the prompt, as text */
    fake_event *events;
    size_t n_events, next_event;
    fake_event current;
};

/* ---- model --------------------------------------------------------------------------------------------- */

static void sleep_ms(long ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

rq_status rq_model_load(const char *path, rq_model **out, rq_error *err)
{
    const char *delay = getenv("FAKE_LOAD_MS");
    if (delay) sleep_ms(strtol(delay, NULL, 10));
    if (strstr(path, "missing")) return rq_fail(err, RQ_ERR_IO, "%s: cannot be opened: no such file", path);
    rq_model *model = rq_calloc(1, sizeof *model);
    if (!model) return rq_fail(err, RQ_ERR_MEMORY, "no memory");
    snprintf(model->path, sizeof model->path, "%s", path);
    for (int i = 0; i < 256; i++) model->bytes[i] = (char)i;
    *out = model;
    return RQ_OK;
}

void rq_model_free(rq_model *model)
{
    rq_free(model);
}

void rq_model_describe(const rq_model *model, rq_model_info *out)
{
    *out = (rq_model_info){.path = model->path,
                           .name = "fake",
                           .architecture = "fake",
                           .description = "fake 0B bytes",
                           .chat_format = strstr(model->path, "plain") ? "none" : "chatml",
                           .n_params = 1,
                           .file_bytes = 1,
                           .n_ctx_train = 4096,
                           .n_layers = 1,
                           .n_embd = 1,
                           .n_vocab = N_VOCAB};
}

void rq_tokens_free(rq_tokens *tokens)
{
    rq_free(tokens->ids);
    *tokens = (rq_tokens){0};
}

static bool push(rq_tokens *tokens, rq_token id)
{
    void *array = tokens->ids;
    if (!rq_grow(&array, &tokens->cap, tokens->n + 1, sizeof id)) return false;
    tokens->ids = array;
    tokens->ids[tokens->n++] = id;
    return true;
}

rq_status rq_tokenize(const rq_model *model, const char *text, size_t bytes, unsigned flags, rq_tokens *out,
                      rq_error *err)
{
    (void)model;
    bool ok = !(flags & RQ_ADD_BOS) || push(out, BOS);
    for (size_t i = 0; i < bytes && ok; i++) ok = push(out, (unsigned char)text[i]);
    return ok ? RQ_OK : rq_fail(err, RQ_ERR_MEMORY, "no memory");
}

const char *rq_token_bytes(const rq_model *model, rq_token id, size_t *bytes)
{
    static const char *const special[] = {"<bos>", "<|im_start|>", "<|im_end|>", "<eos>"};
    const char *text = "";
    if (id >= FIRST_WORD && id < N_VOCAB)
        text = words[id - FIRST_WORD];
    else if (id >= BOS && id < FIRST_WORD)
        text = special[id - BOS];
    else if (id >= 0 && id < 256) {
        *bytes = 1;
        return &model->bytes[id];
    }
    *bytes = strlen(text);
    return text;
}

rq_status rq_detokenize(const rq_model *model, const rq_token *ids, size_t n, bool special, char **out,
                        rq_error *err)
{
    char *text = rq_malloc(n * 16 + 1);
    if (!text) return rq_fail(err, RQ_ERR_MEMORY, "no memory");
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        size_t bytes;
        const char *piece = rq_token_bytes(model, ids[i], &bytes);
        if (ids[i] >= BOS && ids[i] < FIRST_WORD && !special) continue;
        memcpy(text + at, piece, bytes);
        at += bytes;
    }
    text[at] = '\0';
    *out = text;
    return RQ_OK;
}

void rq_string_free(char *text)
{
    rq_free(text);
}

rq_status rq_chat_tokenize(const rq_model *model, const rq_message *messages, size_t n_messages,
                           rq_opening open, rq_tokens *out, size_t *boundaries, rq_error *err)
{
    rq_status status = RQ_OK;
    if (strstr(model->path, "plain"))
        return rq_fail(err, RQ_ERR_UNSUPPORTED, "%s has no chat format", model->path);
    for (size_t i = 0; i < n_messages && status == RQ_OK; i++) {
        push(out, IM_START);
        status = rq_tokenize(model, messages[i].role, strlen(messages[i].role), 0, out, err);
        push(out, '\n');
        if (status == RQ_OK) {
            status = rq_tokenize(model, messages[i].content, messages[i].content_bytes, 0, out, err);
        }
        push(out, IM_END);
        push(out, '\n');
        if (boundaries) boundaries[i] = out->n;
    }
    if (open && status == RQ_OK) {
        push(out, IM_START);
        status = rq_tokenize(model, "assistant\n", 10, 0, out, err);
    }
    return status;
}

/* A path that holds "opens": prompts open the thoughts, unless none are wanted. */
rq_thought_marks rq_chat_thoughts(const rq_model *model, rq_opening open)
{
    return (rq_thought_marks){.open = "<think>",
                              .close = "</think>",
                              .label = "",
                              .opened = strstr(model->path, "opens") && open != RQ_OPEN_PLAIN,
                              .forgotten = true};
}

/* ---- engine -------------------------------------------------------------------------------------------- */

rq_status rq_engine_create(const rq_model *model, const rq_engine_params *params, rq_engine **out,
                           rq_error *err)
{
    rq_engine *engine = rq_calloc(1, sizeof *engine);
    if (!engine) return rq_fail(err, RQ_ERR_MEMORY, "no memory");
    engine->model = model;
    engine->params = *params;
    if (!engine->params.n_ctx) engine->params.n_ctx = 4096;
    if (!engine->params.n_sessions) engine->params.n_sessions = 1;
    pthread_mutex_init(&engine->lock, NULL);
    if (params->log) params->log(params->log_user, "fake engine: nothing is computed");
    *out = engine;
    return RQ_OK;
}

void rq_engine_free(rq_engine *engine)
{
    if (!engine) return;
    pthread_mutex_destroy(&engine->lock);
    rq_free(engine);
}

void rq_engine_describe(const rq_engine *engine, rq_engine_info *out)
{
    rq_engine *e = (rq_engine *)engine;
    pthread_mutex_lock(&e->lock);
    *out = (rq_engine_info){.backend = "fake",
                            .device = "none",
                            .type_k = "f16",
                            .type_v = "f16",
                            .n_ctx = e->params.n_ctx,
                            .n_sessions = e->params.n_sessions,
                            .n_batch = 512,
                            .n_threads = 1,
                            .cache_tokens = (uint64_t)e->params.n_ctx * e->params.n_sessions,
                            .failed = e->failed};
    if (e->failed) snprintf(out->failure, sizeof out->failure, "the fake device was unplugged");
    pthread_mutex_unlock(&e->lock);
}

void rq_engine_get_stats(const rq_engine *engine, rq_engine_stats *out)
{
    rq_engine *e = (rq_engine *)engine;
    pthread_mutex_lock(&e->lock);
    *out = e->stats;
    pthread_mutex_unlock(&e->lock);
}

void rq_list_devices(void (*line)(void *user, const char *text), void *user)
{
    line(user, "fake: no device at all");
}

rq_status rq_plan_text(const rq_model *model, const rq_engine_params *params, bool json, char **text,
                       rq_error *err)
{
    *text = rq_strdup(json ? "{}\n" : "nothing is planned\n");
    return *text != NULL ? RQ_OK : rq_fail(err, RQ_ERR_MEMORY, "out of memory");
}

rq_sampling rq_sampling_default(void)
{
    return (rq_sampling){.temperature = 0.8f,
                         .top_k = 40,
                         .top_p = 0.95f,
                         .min_p = 0.05f,
                         .repeat_penalty = 1,
                         .repeat_last_n = 64};
}

rq_request rq_request_default(void)
{
    return (rq_request){.sampling = rq_sampling_default(), .n_logprobs = -1};
}

/* ---- one session's work -------------------------------------------------------------------------------- */

static long directive(const rq_session *s, const char *name, long otherwise, const char **text)
{
    char key[32];
    snprintf(key, sizeof key, "@%s=", name);
    long value = otherwise;
    for (const char *at = s->prompt; (at = strstr(at, key));) {
        at += strlen(key);
        value = strtol(at, NULL, 10);
        if (text) *text = at;
    }
    return value;
}

static bool cancelled(rq_session *s)
{
    pthread_mutex_lock(&s->lock);
    bool yes = s->cancel || s->quit;
    pthread_mutex_unlock(&s->lock);
    return yes;
}

/* Sleeps, but no longer than until a cancel. */
static bool wait_ms(rq_session *s, long ms)
{
    for (; ms > 0 && !cancelled(s); ms -= 5) sleep_ms(ms < 5 ? ms : 5);
    return !cancelled(s);
}

static void post(rq_session *s, const rq_event *event, const char *text, size_t bytes)
{
    pthread_mutex_lock(&s->lock);
    if (s->n_events < MAX_EVENTS - (event->finish == RQ_FINISH_NONE)) { /* the last one always fits */
        fake_event *out = &s->events[s->n_events++];
        out->event = *event;
        if (bytes > TEXT_MAX) bytes = TEXT_MAX;
        memcpy(out->text, text, bytes);
        out->event.text_bytes = bytes;
    }
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

typedef struct writer {
    char pending[4096];
    size_t n;
} writer;

/* Index of the first stop string in the pending text, or -1. */
static long find_stop(const rq_session *s, const writer *w)
{
    long first = -1;
    for (size_t i = 0; i < s->request.n_stop; i++) {
        const char *at = memmem(w->pending, w->n, s->stops[i], strlen(s->stops[i]));
        if (at && (first < 0 || at - w->pending < first)) first = at - w->pending;
    }
    return first;
}

/* How much of the pending text can go out: whole characters, nothing that may begin a stop string. */
static size_t releasable(const rq_session *s, const writer *w)
{
    size_t hold = 0, at = 0;
    for (size_t i = 0; i < s->request.n_stop; i++) {
        size_t length = strlen(s->stops[i]) - 1;
        if (length > hold) hold = length;
    }
    size_t end = w->n > hold ? w->n - hold : 0;
    while (at < end) {
        unsigned char c = (unsigned char)w->pending[at];
        size_t length = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
        if (at + length > end) break;
        at += length;
    }
    return at;
}

static rq_token choose(const rq_session *s, uint32_t index, const char *say)
{
    if (say) return say[index] == '_' ? ' ' : say[index] == '~' ? '\n' : (unsigned char)say[index];
    uint64_t h = s->request.sampling.temperature > 0 ? s->request.sampling.seed + 1 : 0;
    for (size_t i = 0; s->prompt[i]; i++) h = h * 1099511628211u + (unsigned char)s->prompt[i];
    h = (h + index) * 6364136223846793005u;
    h ^= h >> 29;
    rq_token id = FIRST_WORD + (rq_token)(h * 0x9E3779B97F4A7C15u >> 40) % N_WORDS;
    for (size_t i = 0; i < s->request.sampling.n_bias; i++) { /* a strong bias decides */
        if (s->request.sampling.bias[i].bias >= 50) id = s->request.sampling.bias[i].token;
    }
    return id;
}

static void count_token(rq_session *s)
{
    pthread_mutex_lock(&s->engine->lock);
    s->engine->stats.generated_tokens++;
    s->engine->stats.steps++;
    s->engine->stats.step_tokens++;
    pthread_mutex_unlock(&s->engine->lock);
}

static void fill_logprobs(const rq_session *s, rq_event *event)
{
    event->chosen = (rq_token_logprob){.token = event->token, .logprob = -0.125f};
    if (s->request.n_logprobs < 1) return;
    event->n_top = (uint32_t)s->request.n_logprobs;
    for (uint32_t i = 0; i < event->n_top; i++) {
        rq_token other = i == 0 ? event->token : FIRST_WORD + (event->token + (rq_token)i) % N_WORDS;
        event->top[i] = (rq_token_logprob){.token = other, .logprob = -0.125f - (float)i};
    }
}

static void finish(rq_session *s, rq_event *event, rq_finish how, writer *w, size_t bytes)
{
    event->finish = how;
    event->generate_ms = event->n_generated > 1 ? (double)(event->n_generated - 1) : 0;
    post(s, event, w->pending, bytes);
}

static void generate(rq_session *s)
{
    const char *say = NULL;
    directive(s, "say", 0, &say);
    size_t say_length = say ? strcspn(say, "\n @") : 0;
    long n_tokens = directive(s, "tokens", say ? (long)say_length : 12, NULL),
         delay = directive(s, "delay", 1, NULL);
    long fail = directive(s, "fail", -1, NULL), device = directive(s, "device", -1, NULL);
    if (say && n_tokens > (long)say_length) n_tokens = (long)say_length;
    writer w = {.n = 0};
    rq_event event = {.token = -1,
                      .n_prompt = s->n_prompt,
                      .n_reused = s->n_reused,
                      .prompt_ms = 1,
                      .reuse_note = "the fake's reason"};
    bool alive = wait_ms(s, directive(s, "prompt", 0, NULL));
    for (uint32_t i = 0;; i++) {
        alive = alive && wait_ms(s, delay);
        event.token = -1;
        event.n_top = 0;
        if (!alive) {
            finish(s, &event, RQ_FINISH_CANCELLED, &w, 0);
            return;
        }
        if ((long)i == fail || (long)i == device) {
            rq_fail(&event.error, RQ_ERR_DEVICE, "the fake device failed after %u tokens", (unsigned)i);
            pthread_mutex_lock(&s->engine->lock);
            if ((long)i == device) s->engine->failed = true;
            pthread_mutex_unlock(&s->engine->lock);
            finish(s, &event, RQ_FINISH_ERROR, &w, 0);
            return;
        }
        if ((long)i >= n_tokens && !s->request.ignore_eos) {
            finish(s, &event, RQ_FINISH_EOS, &w, w.n);
            return;
        }
        event.token = choose(s, say ? i % (uint32_t)say_length : i, say);
        event.n_generated = i + 1;
        event.n_drafted = 2 * event.n_generated;
        event.n_accepted = event.n_generated;
        fill_logprobs(s, &event);
        count_token(s);
        push(&s->held, event.token);
        size_t bytes;
        const char *text = rq_token_bytes(s->engine->model, event.token, &bytes);
        memcpy(w.pending + w.n, text, bytes);
        w.n += bytes;
        long stop = find_stop(s, &w);
        if (stop >= 0) {
            finish(s, &event, RQ_FINISH_STOP, &w, (size_t)stop);
            return;
        }
        if (event.n_generated >= s->request.max_tokens || s->held.n >= s->engine->params.n_ctx) {
            finish(s, &event, RQ_FINISH_LENGTH, &w, w.n);
            return;
        }
        size_t out = releasable(s, &w);
        post(s, &event, w.pending, out);
        memmove(w.pending, w.pending + out, w.n - out);
        w.n -= out;
    }
}

static void count_running(rq_engine *engine, int change)
{
    pthread_mutex_lock(&engine->lock);
    engine->stats.running += (uint32_t)change;
    pthread_mutex_unlock(&engine->lock);
}

static void *work(void *user)
{
    rq_session *s = user;
    for (;;) {
        pthread_mutex_lock(&s->lock);
        while (!s->work && !s->quit) pthread_cond_wait(&s->changed, &s->lock);
        bool quit = s->quit;
        s->work = false;
        pthread_mutex_unlock(&s->lock);
        if (quit) return NULL;
        generate(s);
        count_running(s->engine, -1);
    }
}

/* ---- session ------------------------------------------------------------------------------------------- */

rq_status rq_session_create(rq_engine *engine, rq_session **out, rq_error *err)
{
    rq_session *s = rq_calloc(1, sizeof *s);
    if (s) s->events = rq_calloc(MAX_EVENTS, sizeof *s->events);
    if (!s || !s->events) {
        rq_free(s);
        return rq_fail(err, RQ_ERR_MEMORY, "no memory");
    }
    s->engine = engine;
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_lock(&engine->lock);
    engine->stats.sessions++;
    pthread_mutex_unlock(&engine->lock);
    pthread_create(&s->thread, NULL, work, s);
    *out = s;
    return RQ_OK;
}

void rq_session_free(rq_session *session)
{
    if (!session) return;
    pthread_mutex_lock(&session->lock);
    session->quit = true;
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
    pthread_join(session->thread, NULL);
    pthread_cond_destroy(&session->changed);
    pthread_mutex_destroy(&session->lock);
    rq_tokens_free(&session->held);
    rq_free((void *)session->request.sampling.bias);
    rq_free(session->events);
    rq_free(session);
}

static rq_status take_request(rq_session *s, const rq_request *request, rq_error *err)
{
    rq_free((void *)s->request.sampling.bias);
    s->request = *request;
    s->request.sampling.bias = NULL;
    for (size_t i = 0; i < request->n_stop; i++)
        snprintf(s->stops[i], sizeof s->stops[i], "%s", request->stop[i]);
    if (!request->sampling.n_bias) return RQ_OK;
    rq_logit_bias *bias = rq_malloc(request->sampling.n_bias * sizeof *bias);
    if (!bias) return rq_fail(err, RQ_ERR_MEMORY, "no memory");
    memcpy(bias, request->sampling.bias, request->sampling.n_bias * sizeof *bias);
    s->request.sampling.bias = bias;
    return RQ_OK;
}

static void take_prompt(rq_session *s, const rq_token *tokens, size_t n)
{
    size_t shared = 0, at = 0;
    if (s->request.fresh) s->held.n = 0;
    while (shared < s->held.n && shared + 1 < n && s->held.ids[shared] == tokens[shared]) shared++;
    s->n_prompt = (uint32_t)n;
    s->n_reused = (uint32_t)shared;
    s->held.n = 0;
    for (size_t i = 0; i < n; i++) push(&s->held, tokens[i]);
    for (size_t i = n > sizeof s->prompt - 1 ? n - (sizeof s->prompt - 1) : 0; i < n; i++) {
        s->prompt[at++] = tokens[i] > 0 && tokens[i] < 256 ? (char)tokens[i] : '\n';
    }
    s->prompt[at] = '\0';
}

rq_status rq_submit(rq_session *session, const rq_token *tokens, size_t n, const size_t *boundaries,
                    size_t n_boundaries, const rq_request *request, rq_error *err)
{
    (void)boundaries;
    (void)n_boundaries;
    if (n >= session->engine->params.n_ctx) return rq_fail(err, RQ_ERR_CAPACITY, "%zu tokens do not fit", n);
    pthread_mutex_lock(&session->lock);
    rq_status status = session->running ? rq_fail(err, RQ_ERR_ARGUMENT, "a request is still running")
                                        : take_request(session, request, err);
    if (status == RQ_OK) {
        take_prompt(session, tokens, n);
        if (directive(session, "submit", 0, NULL))
            status = rq_fail(err, RQ_ERR_DEVICE, "the fake submit failed");
    }
    if (status == RQ_OK) {
        session->n_events = session->next_event = 0;
        session->cancel = false;
        session->work = session->running = true;
        count_running(session->engine, 1);
        pthread_mutex_lock(&session->engine->lock);
        session->engine->stats.prompt_tokens += n;
        session->engine->stats.reused_tokens += session->n_reused;
        pthread_mutex_unlock(&session->engine->lock);
        pthread_cond_broadcast(&session->changed);
    }
    pthread_mutex_unlock(&session->lock);
    return status;
}

rq_status rq_next(rq_session *session, rq_event *event, int timeout_ms, rq_error *err)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    until.tv_sec += timeout_ms / 1000 + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&session->lock);
    rq_status status = RQ_OK;
    if (!session->running) status = rq_fail(err, RQ_ERR_ARGUMENT, "no request is running");
    while (status == RQ_OK && session->next_event == session->n_events) {
        if (timeout_ms == 0 || pthread_cond_timedwait(&session->changed, &session->lock, &until) != 0) {
            status = rq_fail(err, RQ_ERR_TIMEOUT, "nothing yet");
        }
    }
    if (status == RQ_OK) {
        session->current = session->events[session->next_event++];
        session->current.event.text = session->current.text;
        *event = session->current.event;
        if (event->finish != RQ_FINISH_NONE) session->running = false;
    }
    pthread_mutex_unlock(&session->lock);
    return status;
}

void rq_cancel(rq_session *session)
{
    pthread_mutex_lock(&session->lock);
    session->cancel = true;
    pthread_mutex_unlock(&session->lock);
}

rq_status rq_session_truncate(rq_session *session, size_t n, rq_error *err)
{
    (void)err;
    if (n < session->held.n) session->held.n = n;
    return RQ_OK;
}

size_t rq_session_length(const rq_session *session)
{
    return session->held.n;
}
