/* request_text.c - see request_text.h. */
#include "server/request_text.h"

#include "backends/base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool no_memory(rq_text_reader *r)
{
    return rq_api_fail(r->error, 503, NULL, "there is not enough memory for this request");
}

static size_t count(const cJSON *array)
{
    size_t n = 0;
    for (const cJSON *item = array->child; item; item = item->next) n++;
    return n;
}

/* ---- messages ------------------------------------------------------------------------------------------ */

/* Puts the text parts of an array together; the result belongs to reader->out. */
static bool join_parts(rq_text_reader *r, const char *param, const cJSON *parts, const char **text,
                       size_t *bytes)
{
    size_t total = 0;
    for (const cJSON *part = parts->child; part; part = part->next) {
        const cJSON *type = cJSON_GetObjectItemCaseSensitive(part, "type");
        const cJSON *piece = cJSON_GetObjectItemCaseSensitive(part, "text");
        if (!cJSON_IsObject(part) || !cJSON_IsString(type)) {
            return rq_api_fail(r->error, 400, param, "each part of '%s' must be an object with a 'type'",
                               param);
        }
        if (strcmp(type->valuestring, "text") != 0) {
            return rq_api_fail(r->error, 400, param,
                               "'%s' has a part of type '%.40s', but this model reads text only", param,
                               type->valuestring);
        }
        if (!cJSON_IsString(piece)) {
            return rq_api_fail(r->error, 400, param, "a text part of '%s' must have a string 'text'", param);
        }
        total += strlen(piece->valuestring);
    }
    char *joined = rq_malloc(total + 1);
    if (!joined) return no_memory(r);
    size_t at = 0;
    for (const cJSON *part = parts->child; part; part = part->next) {
        const char *piece = cJSON_GetObjectItemCaseSensitive(part, "text")->valuestring;
        size_t length = strlen(piece);
        memcpy(joined + at, piece, length);
        at += length;
    }
    joined[at] = '\0';
    r->out->joined[r->out->n_joined++] = joined; /* one place per message was made */
    *text = joined;
    *bytes = at;
    return true;
}

static bool read_role(rq_text_reader *r, size_t index, const cJSON *message, const char **role)
{
    static const char *const known[] = {"system", "user", "assistant", "tool"};
    char param[64];
    snprintf(param, sizeof param, "messages[%zu].role", index);
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(message, "role");
    if (!cJSON_IsString(value)) return rq_api_fail(r->error, 400, param, "'%s' must be a string", param);
    if (!strcmp(value->valuestring, "developer")) {
        *role = "system"; /* OpenAI's newer name for it */
        return true;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(value->valuestring, known[i]) != 0) continue;
        *role = known[i];
        return true;
    }
    return rq_api_fail(r->error, 400, param,
                       "'%s' must be system, developer, user, assistant or tool, not '%.40s'", param,
                       value->valuestring);
}

/* What an earlier answer thought, as clients send back what they were given: `reasoning_content`, or `reasoning` as newer
 * vLLM calls it. */
static bool read_thoughts(rq_text_reader *r, size_t index, const cJSON *message, rq_message *out)
{
    static const char *const names[] = {"reasoning_content", "reasoning"};
    for (size_t i = 0; i < sizeof names / sizeof *names && out->thoughts == NULL; i++) {
        const cJSON *value = cJSON_GetObjectItemCaseSensitive(message, names[i]);
        if (!value || cJSON_IsNull(value)) continue;
        if (!cJSON_IsString(value)) {
            char param[64];
            snprintf(param, sizeof param, "messages[%zu].%s", index, names[i]);
            return rq_api_fail(r->error, 400, param, "'%s' must be a string", param);
        }
        out->thoughts = value->valuestring;
        out->thoughts_bytes = strlen(out->thoughts);
    }
    return true;
}

static bool read_message(rq_text_reader *r, size_t index, const cJSON *message)
{
    rq_message *out = &r->out->messages[index];
    char param[64];
    snprintf(param, sizeof param, "messages[%zu]", index);
    if (!cJSON_IsObject(message)) return rq_api_fail(r->error, 400, param, "'%s' must be an object", param);
    if (!read_role(r, index, message, &out->role)) return false;
    const cJSON *calls = cJSON_GetObjectItemCaseSensitive(message, "tool_calls");
    if (calls && !cJSON_IsNull(calls) && calls->child) {
        return rq_api_fail(r->error, 400, param,
                           "'%s' has tool_calls, but this server does not call tools yet", param);
    }
    if (!strcmp(out->role, "assistant") && !read_thoughts(r, index, message, out)) return false;
    const cJSON *content = cJSON_GetObjectItemCaseSensitive(message, "content");
    snprintf(param, sizeof param, "messages[%zu].content", index);
    if (cJSON_IsArray(content)) {
        return join_parts(r, param, content, &out->content, &out->content_bytes);
    }
    if (out->thoughts != NULL && (!content || cJSON_IsNull(content))) { /* cut off before it said anything */
        out->content = "";
        return true;
    }
    if (!cJSON_IsString(content)) {
        return rq_api_fail(r->error, 400, param, "'%s' must be a string or an array of parts", param);
    }
    out->content = content->valuestring;
    out->content_bytes = strlen(out->content);
    return true;
}

bool rq_read_messages(rq_text_reader *r, const char *name, const cJSON *value)
{
    if (!cJSON_IsArray(value)) return rq_api_fail(r->error, 400, name, "'%s' must be an array", name);
    size_t n = count(value);
    if (n < 1 || n > RQ_MAX_MESSAGES) {
        return rq_api_fail(r->error, 400, name, "'%s' must hold between 1 and %d messages, not %zu", name,
                           RQ_MAX_MESSAGES, n);
    }
    r->out->messages = rq_calloc(n, sizeof *r->out->messages);
    r->out->joined = rq_calloc(n, sizeof *r->out->joined);
    if (!r->out->messages || !r->out->joined) return no_memory(r);
    r->out->n_messages = n;
    size_t i = 0;
    for (const cJSON *message = value->child; message; message = message->next) {
        if (!read_message(r, i++, message)) return false;
    }
    return true;
}

/* ---- prompts ------------------------------------------------------------------------------------------- */

static bool read_ids(rq_text_reader *r, const char *name, const cJSON *array, rq_prompt *out)
{
    size_t n = count(array), i = 0;
    out->ids = rq_malloc(n * sizeof *out->ids);
    if (!out->ids) return no_memory(r);
    for (const cJSON *item = array->child; item; item = item->next) {
        double v = item->valuedouble;
        if (!cJSON_IsNumber(item) || v != floor(v) || v < 0 || v >= r->limits->n_vocab) {
            return rq_api_fail(r->error, 400, name,
                               "'%s' holds a token that is not a whole number between 0 and %u", name,
                               (unsigned)r->limits->n_vocab - 1);
        }
        out->ids[i++] = (rq_token)v;
    }
    out->n_ids = n;
    return true;
}

static bool take_prompts(rq_text_reader *r, size_t n)
{
    r->out->prompts = rq_calloc(n, sizeof *r->out->prompts);
    if (!r->out->prompts) return no_memory(r);
    r->out->n_prompts = n;
    return true;
}

static bool read_text(rq_text_reader *r, const char *name, const cJSON *value, rq_prompt *out)
{
    if (!cJSON_IsString(value)) {
        return rq_api_fail(r->error, 400, name,
                           "'%s' must be a string, an array of strings, or one or more arrays of token ids",
                           name);
    }
    out->text = value->valuestring;
    out->bytes = strlen(out->text);
    return true;
}

bool rq_read_prompt(rq_text_reader *r, const char *name, const cJSON *value)
{
    if (!cJSON_IsArray(value)) return take_prompts(r, 1) && read_text(r, name, value, &r->out->prompts[0]);
    if (!value->child) return rq_api_fail(r->error, 400, name, "'%s' is an empty array", name);
    if (cJSON_IsNumber(value->child))
        return take_prompts(r, 1) && read_ids(r, name, value, &r->out->prompts[0]);
    size_t n = count(value), i = 0;
    if (n > RQ_MAX_PROMPTS) {
        return rq_api_fail(r->error, 400, name, "'%s' may hold at most %d prompts, not %zu", name,
                           RQ_MAX_PROMPTS, n);
    }
    if (!take_prompts(r, n)) return false;
    for (const cJSON *item = value->child; item; item = item->next, i++) {
        rq_prompt *out = &r->out->prompts[i];
        if (!cJSON_IsArray(item)) {
            if (!read_text(r, name, item, out)) return false;
        } else if (!item->child) {
            return rq_api_fail(r->error, 400, name, "'%s' holds an empty array", name);
        } else if (!read_ids(r, name, item, out)) {
            return false;
        }
    }
    return true;
}

bool rq_read_content(rq_text_reader *r, const char *name, const cJSON *value)
{
    if (!cJSON_IsString(value)) return rq_api_fail(r->error, 400, name, "'%s' must be a string", name);
    return take_prompts(r, 1) && read_text(r, name, value, &r->out->prompts[0]);
}

bool rq_read_tokens(rq_text_reader *r, const char *name, const cJSON *value)
{
    if (!cJSON_IsArray(value)) return rq_api_fail(r->error, 400, name, "'%s' must be an array", name);
    return take_prompts(r, 1) && read_ids(r, name, value, &r->out->prompts[0]);
}

/* ---- stop strings and biases --------------------------------------------------------------------------- */

bool rq_read_stop(rq_text_reader *r, const char *name, const cJSON *value)
{
    bool one = cJSON_IsString(value);
    if (!one && !cJSON_IsArray(value)) {
        return rq_api_fail(r->error, 400, name, "'%s' must be a string or an array of strings", name);
    }
    size_t n = one ? 1 : count(value), i = 0;
    if (n > RQ_MAX_STOPS) {
        return rq_api_fail(r->error, 400, name, "'%s' may hold at most %d strings, not %zu", name,
                           RQ_MAX_STOPS, n);
    }
    r->out->stops = rq_calloc(n, sizeof *r->out->stops);
    if (!r->out->stops) return no_memory(r);
    for (const cJSON *item = one ? value : value->child; item; item = one ? NULL : item->next) {
        size_t bytes = cJSON_IsString(item) ? strlen(item->valuestring) : 0;
        if (bytes < 1 || bytes > RQ_MAX_STOP_BYTES) {
            return rq_api_fail(r->error, 400, name, "each entry of '%s' must be a string of 1 to %d bytes",
                               name, RQ_MAX_STOP_BYTES);
        }
        r->out->stops[i++] = item->valuestring;
    }
    r->out->generation.stop = r->out->stops;
    r->out->generation.n_stop = n;
    return true;
}

static bool add_bias(rq_text_reader *r, const char *name, double token, const cJSON *bias)
{
    if (!(token >= 0 && token < r->limits->n_vocab && token == floor(token))) {
        return rq_api_fail(r->error, 400, name,
                           "'%s' names a token that is not a whole number between 0 and %u", name,
                           (unsigned)r->limits->n_vocab - 1);
    }
    float value = -INFINITY; /* false: never this token */
    if (!cJSON_IsFalse(bias)) {
        if (!cJSON_IsNumber(bias) || !(bias->valuedouble >= -100 && bias->valuedouble <= 100)) {
            return rq_api_fail(r->error, 400, name, "each bias of '%s' must be a number between -100 and 100",
                               name);
        }
        value = (float)bias->valuedouble;
    }
    size_t *n = &r->out->generation.sampling.n_bias;
    r->out->biases[(*n)++] = (rq_logit_bias){.token = (rq_token)token, .bias = value};
    return true;
}

/* OpenAI's object {"15043": -100}, or llama.cpp's array [[15043, -100], [11, false]]. */
bool rq_read_logit_bias(rq_text_reader *r, const char *name, const cJSON *value)
{
    if (!cJSON_IsObject(value) && !cJSON_IsArray(value)) {
        return rq_api_fail(r->error, 400, name, "'%s' must be an object of token ids and biases", name);
    }
    size_t n = count(value);
    if (n > RQ_MAX_BIAS) {
        return rq_api_fail(r->error, 400, name, "'%s' may hold at most %d tokens, not %zu", name, RQ_MAX_BIAS,
                           n);
    }
    r->out->biases = rq_calloc(n, sizeof *r->out->biases);
    if (!r->out->biases) return no_memory(r);
    r->out->generation.sampling.bias = r->out->biases;
    for (const cJSON *item = value->child; item; item = item->next) {
        if (cJSON_IsObject(value)) {
            size_t digits = strspn(item->string, "0123456789");
            bool number = digits > 0 && digits <= 10 && !item->string[digits];
            if (!add_bias(r, name, number ? strtod(item->string, NULL) : -1, item)) return false;
            continue;
        }
        const cJSON *token = item->child;
        if (!cJSON_IsArray(item) || count(item) != 2 || !cJSON_IsNumber(token)) {
            return rq_api_fail(r->error, 400, name, "each entry of the array '%s' must be [token id, bias]",
                               name);
        }
        if (!add_bias(r, name, token->valuedouble, token->next)) return false;
    }
    return true;
}
