/* api_text.c - /tokenize, /detokenize, /apply-template, with llama.cpp's field names. */
#include "server/api.h"
#include "server/json_check.h"
#include "server/response.h"

#include <string.h>

enum { MAX_TEXT_ANSWER_BYTES = 256 << 20 };

static enum MHD_Result reply_engine_error(rq_exchange *exchange, rq_status status, const rq_error *err)
{
    rq_api_error error;
    rq_api_fail_engine(&error, status, err);
    return rq_reply_error(exchange, &error);
}

/* A token with its text, or with an array of its bytes when they are no text by themselves. */
static void write_piece(rq_buf *out, const rq_model *model, rq_token id)
{
    size_t bytes = 0;
    const char *text = rq_token_bytes(model, id, &bytes);
    rq_buf_printf(out, "{\"id\":%d,\"piece\":", (int)id);
    if (rq_json_utf8_valid(text, bytes)) {
        rq_json_string(out, text, bytes);
    } else {
        for (size_t i = 0; i < bytes; i++) rq_buf_printf(out, "%s%u", i ? "," : "[", (unsigned char)text[i]);
        rq_buf_puts(out, "]");
    }
    rq_buf_puts(out, "}");
}

enum MHD_Result rq_api_tokenize(rq_exchange *exchange)
{
    rq_api_request request;
    enum MHD_Result result;
    if (!rq_parse_body(exchange, RQ_API_TOKENIZE, &request, &result)) return result;
    rq_tokens tokens = {0};
    rq_error err = {0};
    unsigned flags =
        (request.parse_special ? RQ_PARSE_SPECIAL : 0) | (request.add_special ? RQ_MODEL_BOS : 0);
    rq_status status = rq_tokenize(exchange->server->model, request.prompts[0].text, request.prompts[0].bytes,
                                   flags, &tokens, &err);
    bool pieces = request.with_pieces;
    rq_api_request_free(&request);
    if (status != RQ_OK) return reply_engine_error(exchange, status, &err);
    rq_buf body = {.max = MAX_TEXT_ANSWER_BYTES};
    rq_buf_puts(&body, "{\"tokens\":[");
    for (size_t i = 0; i < tokens.n; i++) {
        if (i) rq_buf_puts(&body, ",");
        if (pieces)
            write_piece(&body, exchange->server->model, tokens.ids[i]);
        else
            rq_buf_printf(&body, "%d", (int)tokens.ids[i]);
    }
    rq_buf_puts(&body, "]}");
    rq_tokens_free(&tokens);
    return rq_reply(exchange, MHD_HTTP_OK, "application/json", &body);
}

/* {"NAME": text of the ids} */
static enum MHD_Result reply_text(rq_exchange *exchange, const char *name, const rq_token *ids, size_t n)
{
    char *text = NULL;
    rq_error err = {0};
    rq_status status = rq_detokenize(exchange->server->model, ids, n, true, &text, &err);
    if (status != RQ_OK) return reply_engine_error(exchange, status, &err);
    rq_buf body = {.max = MAX_TEXT_ANSWER_BYTES};
    rq_buf_printf(&body, "{\"%s\":", name);
    rq_json_string(&body, text, strlen(text));
    rq_buf_puts(&body, "}");
    rq_string_free(text);
    return rq_reply(exchange, MHD_HTTP_OK, "application/json", &body);
}

enum MHD_Result rq_api_detokenize(rq_exchange *exchange)
{
    rq_api_request request;
    enum MHD_Result result;
    if (!rq_parse_body(exchange, RQ_API_DETOKENIZE, &request, &result)) return result;
    result = reply_text(exchange, "content", request.prompts[0].ids, request.prompts[0].n_ids);
    rq_api_request_free(&request);
    return result;
}

enum MHD_Result rq_api_template(rq_exchange *exchange)
{
    rq_api_request request;
    rq_api_error error;
    enum MHD_Result result;
    if (!rq_parse_body(exchange, RQ_API_TEMPLATE, &request, &result)) return result;
    rq_prepared prepared;
    bool ok = rq_prepare_messages(exchange->server, &request, &prepared, &error);
    rq_api_request_free(&request);
    if (!ok) return rq_reply_error(exchange, &error);
    result = reply_text(exchange, "prompt", prepared.tokens.ids, prepared.tokens.n);
    rq_prepared_free(&prepared);
    return result;
}
