/* request.c - the table of request parameters and what applies it; see request.h. Texts of messages, prompts
 * and stop strings are read by request_text.c. */
#include "server/request.h"

#include "backends/base/mem.h"
#include "server/json_check.h"
#include "server/request_text.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool rq_api_fail(rq_api_error *out, int http_status, const char *param, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    *out = (rq_api_error){.http_status = http_status,
                          .type = http_status >= 500 ? "server_error" : "invalid_request_error"};
    if (param) snprintf(out->param, sizeof out->param, "%s", param);
    rq_fail(&out->error, RQ_ERR_ARGUMENT, "%s", text);
    return false;
}

/* ---- the table ----------------------------------------------------------------------------------------- */

typedef enum param_kind {
    P_BOOL,    /* bool at `offset` */
    P_INT,     /* int32_t at `offset`, min..max */
    P_INT64,   /* int64_t */
    P_FLOAT,   /* float */
    P_READ,    /* `read` looks at it */
    P_IGNORED, /* changes nothing here; `type` is still checked */
    P_REFUSED  /* known, not offered: only a value that asks for nothing passes */
} param_kind;

enum { T_ANY, T_STRING = 1, T_BOOL = 2, T_NUMBER = 4, T_OBJECT = 8, T_ARRAY = 16 };
enum {
    CHAT = 1 << RQ_API_CHAT,
    TEXT = 1 << RQ_API_COMPLETION,
    TOK = 1 << RQ_API_TOKENIZE,
    DETOK = 1 << RQ_API_DETOKENIZE,
    TEMPLATE = 1 << RQ_API_TEMPLATE,
    BOTH = CHAT | TEXT
};

typedef struct param {
    const char *name;
    unsigned apis;
    param_kind kind;
    size_t offset;
    double min, max;
    bool (*read)(rq_text_reader *reader, const char *name, const cJSON *value);
    unsigned type;       /* P_IGNORED */
    const char *neutral; /* P_REFUSED: a string that asks for nothing, beside null, false, 0, "" and empty */
    double neutral_number; /* P_REFUSED: likewise */
} param;

#define BOOL(n, a, field)                                                                                    \
    {                                                                                                        \
        .name = n, .apis = a, .kind = P_BOOL, .offset = offsetof(rq_api_request, field)                      \
    }
#define NUMBER(n, a, k, field, low, high)                                                                    \
    {                                                                                                        \
        .name = n, .apis = a, .kind = k, .offset = offsetof(rq_api_request, field), .min = low, .max = high  \
    }
#define REFUSED(n, a)                                                                                        \
    {                                                                                                        \
        .name = n, .apis = a, .kind = P_REFUSED                                                              \
    }

static bool read_stream_options(rq_text_reader *r, const char *name, const cJSON *value)
{
    if (!cJSON_IsObject(value)) return rq_api_fail(r->error, 400, name, "'%s' must be an object", name);
    const cJSON *usage = cJSON_GetObjectItemCaseSensitive(value, "include_usage");
    if (usage && !cJSON_IsBool(usage) && !cJSON_IsNull(usage)) {
        return rq_api_fail(r->error, 400, "stream_options.include_usage",
                           "'stream_options.include_usage' must be true or false");
    }
    r->out->include_usage = cJSON_IsTrue(usage);
    return true;
}

static bool read_response_format(rq_text_reader *r, const char *name, const cJSON *value)
{
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(value, "type");
    if (!cJSON_IsObject(value) || !cJSON_IsString(type)) {
        return rq_api_fail(r->error, 400, name, "'%s' must be an object with a string 'type'", name);
    }
    if (!strcmp(type->valuestring, "text")) return true;
    return rq_api_fail(r->error, 400, name,
                       "'%s' of type '%.40s' is not offered by this server; only 'text' is", name,
                       type->valuestring);
}

static bool read_tools(rq_text_reader *r, const char *name, const cJSON *value)
{
    if (!cJSON_IsArray(value)) return rq_api_fail(r->error, 400, name, "'%s' must be an array", name);
    const cJSON *choice = cJSON_GetObjectItemCaseSensitive(r->out->root, "tool_choice");
    if (!value->child || (cJSON_IsString(choice) && !strcmp(choice->valuestring, "none"))) return true;
    return rq_api_fail(r->error, 400, name,
                       "this server does not call tools yet; leave '%s' out or send tool_choice 'none'",
                       name);
}

static bool read_tool_choice(rq_text_reader *r, const char *name, const cJSON *value)
{
    if (cJSON_IsString(value) &&
        (!strcmp(value->valuestring, "none") || !strcmp(value->valuestring, "auto"))) {
        return true;
    }
    return rq_api_fail(r->error, 400, name,
                       "'%s' may be 'none' or 'auto': this server does not call tools yet", name);
}

/* How much to think: there are two ways, so all efforts but "none" are one. */
static bool read_effort(rq_text_reader *r, const char *name, const cJSON *value)
{
    static const char *const efforts[] = {"none", "minimal", "low", "medium", "high", "xhigh"};
    for (size_t i = 0; cJSON_IsString(value) && i < sizeof efforts / sizeof *efforts; i++)
        if (!strcmp(value->valuestring, efforts[i])) {
            r->out->opening = i == 0 ? RQ_OPEN_PLAIN : RQ_OPEN_THINKING;
            return true;
        }
    return rq_api_fail(r->error, 400, name,
                       "'%s' must be 'none', 'minimal', 'low', 'medium', 'high' or 'xhigh'", name);
}

static bool read_template_kwargs(rq_text_reader *r, const char *name, const cJSON *value)
{
    if (!cJSON_IsObject(value)) return rq_api_fail(r->error, 400, name, "'%s' must be an object", name);
    const cJSON *member;
    cJSON_ArrayForEach(member, value)
    {
        if (strcmp(member->string, "enable_thinking") != 0)
            return rq_api_fail(r->error, 400, name, "'%s' may hold 'enable_thinking' alone, not '%.40s'",
                               name, member->string);
        if (!cJSON_IsBool(member))
            return rq_api_fail(r->error, 400, "chat_template_kwargs.enable_thinking",
                               "'chat_template_kwargs.enable_thinking' must be true or false");
        r->out->opening = cJSON_IsTrue(member) ? RQ_OPEN_THINKING : RQ_OPEN_PLAIN;
    }
    return true;
}

/* Names of llama.cpp. */
static bool read_reasoning_format(rq_text_reader *r, const char *name, const cJSON *value)
{
    const char *format = cJSON_IsString(value) ? value->valuestring : "";
    r->out->keep_thoughts = strcmp(format, "none") == 0;
    if (r->out->keep_thoughts || !strcmp(format, "auto") || !strcmp(format, "deepseek")) return true;
    return rq_api_fail(
        r->error, 400, name,
        "'%s' must be 'auto' or 'deepseek' (thoughts come as reasoning_content), or 'none' (they "
        "stay in the content)",
        name);
}

static bool read_modalities(rq_text_reader *r, const char *name, const cJSON *value)
{
    if (!cJSON_IsArray(value)) return rq_api_fail(r->error, 400, name, "'%s' must be an array", name);
    for (const cJSON *item = value->child; item; item = item->next) {
        if (!cJSON_IsString(item) || strcmp(item->valuestring, "text") != 0) {
            return rq_api_fail(r->error, 400, name, "'%s' may only contain 'text'", name);
        }
    }
    return true;
}

static bool read_best_of(rq_text_reader *r, const char *name, const cJSON *value)
{
    if (cJSON_IsNumber(value) && value->valuedouble == 1) return true;
    return rq_api_fail(r->error, 400, name, "'%s' may only be 1; ask for several answers with 'n'", name);
}

/* A chat's `logprobs` is a switch, a completion's a number of alternatives. */
static bool read_logprobs(rq_text_reader *r, const char *name, const cJSON *value)
{
    if (r->out->api == RQ_API_CHAT) {
        if (!cJSON_IsBool(value)) return rq_api_fail(r->error, 400, name, "'%s' must be true or false", name);
        r->out->want_logprobs = cJSON_IsTrue(value);
        return true;
    }
    double v = value->valuedouble;
    if (!cJSON_IsNumber(value) || v != floor(v) || v < 0 || v > RQ_MAX_LOGPROBS) {
        return rq_api_fail(r->error, 400, name, "'%s' must be a whole number between 0 and %d", name,
                           RQ_MAX_LOGPROBS);
    }
    r->out->generation.n_logprobs = (int32_t)v;
    return true;
}

static const param params[] = {
    /* what to continue */
    {"messages", CHAT | TEMPLATE, P_READ, .read = rq_read_messages},
    {"prompt", TEXT, P_READ, .read = rq_read_prompt},
    {"content", TOK, P_READ, .read = rq_read_content},
    {"tokens", DETOK, P_READ, .read = rq_read_tokens},
    /* how far */
    NUMBER("max_tokens", BOTH, P_INT, want_max_tokens, -1, INT32_MAX),
    NUMBER("max_completion_tokens", BOTH, P_INT, want_max_completion_tokens, -1, INT32_MAX),
    NUMBER("n_predict", BOTH, P_INT, want_n_predict, -1, INT32_MAX),
    {"stop", BOTH, P_READ, .read = rq_read_stop},
    BOOL("ignore_eos", BOTH, generation.ignore_eos),
    /* sampling */
    NUMBER("temperature", BOTH, P_FLOAT, generation.sampling.temperature, 0, 2),
    NUMBER("top_p", BOTH, P_FLOAT, generation.sampling.top_p, 0, 1),
    NUMBER("top_k", BOTH, P_INT, generation.sampling.top_k, -1, INT32_MAX),
    NUMBER("min_p", BOTH, P_FLOAT, generation.sampling.min_p, 0, 1),
    NUMBER("presence_penalty", BOTH, P_FLOAT, generation.sampling.presence_penalty, -2, 2),
    NUMBER("frequency_penalty", BOTH, P_FLOAT, generation.sampling.frequency_penalty, -2, 2),
    NUMBER("repeat_penalty", BOTH, P_FLOAT, generation.sampling.repeat_penalty, 0.01, 100),
    NUMBER("repeat_last_n", BOTH, P_INT, generation.sampling.repeat_last_n, -1, 1 << 24),
    NUMBER("seed", BOTH, P_INT64, seed, -1, 9007199254740992.0),
    {"logit_bias", BOTH, P_READ, .read = rq_read_logit_bias},
    /* what comes back */
    NUMBER("n", BOTH, P_INT, n, 1, RQ_MAX_N),
    {"logprobs", BOTH, P_READ, .read = read_logprobs},
    NUMBER("top_logprobs", CHAT, P_INT, want_top_logprobs, 0, RQ_MAX_LOGPROBS),
    BOOL("stream", BOTH, stream),
    {"stream_options", BOTH, P_READ, .read = read_stream_options},
    BOOL("echo", TEXT, echo),
    BOOL("cache_prompt", BOTH, cache_prompt),
    BOOL("add_special", TOK, add_special),
    BOOL("parse_special", TOK, parse_special),
    BOOL("with_pieces", TOK, with_pieces),
    /* asked for in a way that may mean nothing */
    {"response_format", BOTH, P_READ, .read = read_response_format},
    {"tools", CHAT | TEMPLATE, P_READ, .read = read_tools},
    {"tool_choice", CHAT | TEMPLATE, P_READ, .read = read_tool_choice},
    {"modalities", CHAT, P_READ, .read = read_modalities},
    {"reasoning_effort", CHAT | TEMPLATE, P_READ, .read = read_effort},
    {"chat_template_kwargs", CHAT | TEMPLATE, P_READ, .read = read_template_kwargs},
    {"reasoning_format", CHAT, P_READ, .read = read_reasoning_format},
    {"best_of", TEXT, P_READ, .read = read_best_of},
    /* changes nothing here */
    {"model", BOTH | TOK | DETOK | TEMPLATE, P_IGNORED, .type = T_STRING},
    {"user", BOTH, P_IGNORED, .type = T_STRING},
    {"safety_identifier", BOTH, P_IGNORED, .type = T_STRING},
    {"prompt_cache_key", BOTH, P_IGNORED, .type = T_STRING},
    {"prompt_cache_retention", BOTH, P_IGNORED, .type = T_STRING},
    {"service_tier", BOTH, P_IGNORED, .type = T_STRING},
    {"store", BOTH, P_IGNORED, .type = T_BOOL},
    {"metadata", BOTH, P_IGNORED, .type = T_OBJECT},
    {"parallel_tool_calls", CHAT, P_IGNORED, .type = T_BOOL},
    /* known, not offered */
    REFUSED("functions", CHAT),
    {"function_call", CHAT, P_REFUSED, .neutral = "none"},
    REFUSED("audio", CHAT),
    REFUSED("prediction", CHAT),
    REFUSED("web_search_options", CHAT),
    REFUSED("reasoning", CHAT),
    {"verbosity", CHAT, P_REFUSED, .neutral = "medium"},
    REFUSED("suffix", TEXT),
    REFUSED("grammar", BOTH),
    REFUSED("json_schema", BOTH),
    REFUSED("min_tokens", BOTH),
    {"typical_p", BOTH, P_REFUSED, .neutral_number = 1},
    {"tfs_z", BOTH, P_REFUSED, .neutral_number = 1},
    REFUSED("mirostat", BOTH),
    REFUSED("dynatemp_range", BOTH),
    REFUSED("dry_multiplier", BOTH),
    REFUSED("xtc_probability", BOTH),
    REFUSED("n_keep", BOTH),
    REFUSED("n_discard", BOTH),
    REFUSED("n_probs", BOTH),
    REFUSED("t_max_predict_ms", BOTH),
    REFUSED("lora", BOTH),
    {"id_slot", BOTH, P_IGNORED, .type = T_NUMBER},
    REFUSED("timings_per_token", BOTH),
    REFUSED("return_progress", BOTH),
};

static bool has_type(const cJSON *value, unsigned type)
{
    return type == T_ANY || (type & T_STRING && cJSON_IsString(value)) ||
           (type & T_BOOL && cJSON_IsBool(value)) || (type & T_NUMBER && cJSON_IsNumber(value)) ||
           (type & T_OBJECT && cJSON_IsObject(value)) || (type & T_ARRAY && cJSON_IsArray(value));
}

static bool asks_for_nothing(const param *p, const cJSON *value)
{
    if (cJSON_IsFalse(value)) return true;
    if (cJSON_IsNumber(value)) return value->valuedouble == 0 || value->valuedouble == p->neutral_number;
    if (cJSON_IsString(value)) {
        return !*value->valuestring || (p->neutral && !strcmp(value->valuestring, p->neutral));
    }
    return (cJSON_IsArray(value) || cJSON_IsObject(value)) && !value->child;
}

static bool apply_number(const param *p, const cJSON *value, rq_api_request *out, rq_api_error *error)
{
    bool whole = p->kind != P_FLOAT;
    double v = value->valuedouble;
    if (!cJSON_IsNumber(value) || (whole && v != floor(v))) {
        return rq_api_fail(error, 400, p->name, "'%s' must be a %s", p->name,
                           whole ? "whole number" : "number");
    }
    if (!(v >= p->min && v <= p->max)) {
        return rq_api_fail(error, 400, p->name, "'%s' must lie between %.15g and %.15g, not %.15g", p->name,
                           p->min, p->max, v);
    }
    char *target = (char *)out + p->offset;
    if (p->kind == P_INT) {
        *(int32_t *)(void *)target = (int32_t)v;
    } else if (p->kind == P_INT64) {
        *(int64_t *)(void *)target = (int64_t)v;
    } else {
        *(float *)(void *)target = (float)v;
    }
    return true;
}

static bool apply(const param *p, const cJSON *value, rq_text_reader *reader)
{
    static const char *const type_names[] = {[T_STRING] = "a string",
                                             [T_BOOL] = "true or false",
                                             [T_NUMBER] = "a number",
                                             [T_OBJECT] = "an object",
                                             [T_ARRAY] = "an array"};
    rq_api_error *error = reader->error;
    switch (p->kind) {
    case P_BOOL:
        if (!cJSON_IsBool(value)) {
            return rq_api_fail(error, 400, p->name, "'%s' must be true or false", p->name);
        }
        *(bool *)((char *)reader->out + p->offset) = cJSON_IsTrue(value);
        return true;
    case P_INT:
    case P_INT64:
    case P_FLOAT:
        return apply_number(p, value, reader->out, error);
    case P_READ:
        return p->read(reader, p->name, value);
    case P_IGNORED:
        if (has_type(value, p->type)) return true;
        return rq_api_fail(error, 400, p->name, "'%s' must be %s", p->name, type_names[p->type]);
    case P_REFUSED:
        break;
    }
    if (asks_for_nothing(p, value)) return true;
    return rq_api_fail(error, 400, p->name, "'%s' is not offered by this server; leave it out", p->name);
}

/* ---- what belongs together ----------------------------------------------------------------------------- */

static bool finish_length(rq_api_request *out, const rq_parse_limits *limits, rq_api_error *error)
{
    const struct {
        const char *name;
        int32_t value;
    } given[] = {{"max_completion_tokens", out->want_max_completion_tokens},
                 {"max_tokens", out->want_max_tokens},
                 {"n_predict", out->want_n_predict}};
    out->generation.max_tokens = limits->max_tokens;
    for (size_t i = 3; i-- > 0;) { /* the first of the list has the last word */
        if (given[i].value == INT32_MIN) continue;
        if (given[i].value == 0) {
            return rq_api_fail(error, 400, given[i].name, "'%s' must be at least 1, or -1 for no limit",
                               given[i].name);
        }
        out->generation.max_tokens = given[i].value < 0 ? 0 : (uint32_t)given[i].value;
    }
    return true;
}

static bool finish_generation(rq_api_request *out, const rq_parse_limits *limits, rq_api_error *error)
{
    if (!finish_length(out, limits, error)) return false;
    if (out->api == RQ_API_CHAT) {
        if (out->want_top_logprobs >= 0 && !out->want_logprobs) {
            return rq_api_fail(error, 400, "top_logprobs", "'top_logprobs' needs 'logprobs' to be true");
        }
        if (out->want_logprobs)
            out->generation.n_logprobs = out->want_top_logprobs < 0 ? 0 : out->want_top_logprobs;
    }
    if (out->echo && out->generation.n_logprobs >= 0) {
        return rq_api_fail(error, 400, "echo",
                           "'echo' together with 'logprobs' is not offered by this server");
    }
    if (out->n_prompts * out->n > RQ_MAX_CHOICES) {
        return rq_api_fail(error, 400, "n",
                           "%zu prompts times n = %u is more than the %d answers one request may ask for",
                           out->n_prompts, (unsigned)out->n, RQ_MAX_CHOICES);
    }
    return true;
}

static const char *required_name(rq_api api)
{
    switch (api) {
    case RQ_API_CHAT:
    case RQ_API_TEMPLATE:
        return "messages";
    case RQ_API_COMPLETION:
        return "prompt";
    case RQ_API_TOKENIZE:
        return "content";
    case RQ_API_DETOKENIZE:
        break;
    }
    return "tokens";
}

static bool read_members(rq_text_reader *reader)
{
    rq_api_request *out = reader->out;
    for (const cJSON *item = out->root->child; item; item = item->next) {
        for (size_t i = 0; i < sizeof params / sizeof *params; i++) {
            if (!(params[i].apis & 1u << out->api) || strcmp(params[i].name, item->string) != 0) continue;
            if (!cJSON_IsNull(item) && !apply(&params[i], item, reader)) return false;
            break;
        }
    }
    if (!out->n_messages && !out->n_prompts) {
        const char *name = required_name(out->api);
        return rq_api_fail(reader->error, 400, name, "'%s' is missing", name);
    }
    return true;
}

static bool parse_tree(const char *body, size_t bytes, const rq_parse_limits *limits, rq_api_request *out,
                       rq_api_error *error)
{
    const rq_json_limits json = {.max_depth = 32, .max_values = limits->max_values};
    rq_error err = {0};
    if (rq_json_check(body, bytes, &json, &err) != RQ_OK)
        return rq_api_fail(error, 400, NULL, "%s", err.text);
    out->root = cJSON_ParseWithLength(body, bytes);
    if (!out->root) return rq_api_fail(error, 503, NULL, "there is not enough memory for this request");
    if (!cJSON_IsObject(out->root))
        return rq_api_fail(error, 400, NULL, "the request body must be a JSON object");
    rq_status status = rq_json_unique_keys(out->root, &err);
    if (status != RQ_OK) return rq_api_fail(error, status == RQ_ERR_MEMORY ? 503 : 400, NULL, "%s", err.text);
    return true;
}

bool rq_api_parse(rq_api api, const char *body, size_t bytes, const rq_parse_limits *limits,
                  rq_api_request *out, rq_api_error *error)
{
    *out = (rq_api_request){.api = api,
                            .generation = rq_request_default(),
                            .seed = -1,
                            .n = 1,
                            .opening = RQ_OPEN,
                            .keep_thoughts = limits->keep_thoughts,
                            .cache_prompt = true,
                            .want_max_tokens = INT32_MIN,
                            .want_max_completion_tokens = INT32_MIN,
                            .want_n_predict = INT32_MIN,
                            .want_top_logprobs = -1,
                            .parse_special = true};
    out->generation.sampling = limits->sampling;
    out->generation.n_logprobs = -1;
    rq_text_reader reader = {.out = out, .limits = limits, .error = error};
    bool generates = api == RQ_API_CHAT || api == RQ_API_COMPLETION;
    if (parse_tree(body, bytes, limits, out, error) && read_members(&reader) &&
        (!generates || finish_generation(out, limits, error))) {
        return true;
    }
    rq_api_request_free(out);
    return false;
}

void rq_api_request_free(rq_api_request *request)
{
    cJSON_Delete(request->root);
    rq_free(request->messages);
    for (size_t i = 0; i < request->n_prompts; i++) rq_free(request->prompts[i].ids);
    rq_free(request->prompts);
    rq_free(request->stops);
    rq_free(request->biases);
    for (size_t i = 0; i < request->n_joined; i++) rq_free(request->joined[i]);
    rq_free(request->joined);
    *request = (rq_api_request){0};
}

void rq_json_use_rq_memory(void)
{
    cJSON_Hooks hooks = {.malloc_fn = rq_malloc, .free_fn = rq_free};
    cJSON_InitHooks(&hooks);
}
