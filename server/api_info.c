/* api_info.c - /health, /v1/models, /metrics. */
#include "server/api.h"
#include "server/response.h"

#include <string.h>

enum { MAX_INFO_BYTES = 1 << 20 };

enum MHD_Result rq_api_health(rq_exchange *exchange)
{
    rq_server *server = exchange->server;
    rq_api_error error;
    rq_error why;
    int phase = atomic_load(&server->phase);
    if (phase == RQ_LOADING) {
        rq_api_fail(&error, 503, NULL, "the model is being loaded");
        error.type = "unavailable_error";
        return rq_reply_error(exchange, &error);
    }
    if (rq_server_failed(server, &why)) {
        rq_api_fail(&error, 503, NULL, "%s", why.text);
        return rq_reply_error(exchange, &error);
    }
    rq_buf body = {.max = MAX_INFO_BYTES};
    rq_buf_puts(&body, phase == RQ_READY ? "{\"status\":\"ok\"}" : "{\"status\":\"shutting down\"}");
    return rq_reply(exchange, phase == RQ_READY ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE,
                    "application/json", &body);
}

static void write_model(rq_buf *out, const rq_server *server)
{
    const rq_model_info *info = &server->model_info;
    rq_buf_puts(out, "{\"id\":");
    rq_json_string(out, server->model_id, strlen(server->model_id));
    rq_buf_printf(out,
                  ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"rqvk\",\"meta\":{\"description\":",
                  (long long)server->created);
    rq_json_string(out, info->description, strlen(info->description));
    rq_buf_puts(out, ",\"architecture\":");
    rq_json_string(out, info->architecture, strlen(info->architecture));
    rq_buf_printf(
        out,
        ",\"n_vocab\":%u,\"n_ctx_train\":%u,\"n_ctx\":%u,\"n_embd\":%u,\"n_params\":%llu,\"size\":%llu}}",
        (unsigned)info->n_vocab, (unsigned)info->n_ctx_train, (unsigned)server->ctx_limit,
        (unsigned)info->n_embd, (unsigned long long)info->n_params, (unsigned long long)info->file_bytes);
}

enum MHD_Result rq_api_models(rq_exchange *exchange)
{
    rq_buf body = {.max = MAX_INFO_BYTES};
    rq_buf_puts(&body, "{\"object\":\"list\",\"data\":[");
    write_model(&body, exchange->server);
    rq_buf_puts(&body, "]}");
    return rq_reply(exchange, MHD_HTTP_OK, "application/json", &body);
}

enum MHD_Result rq_api_model(rq_exchange *exchange)
{
    const char *id = exchange->url + strlen(exchange->route->path);
    if (strcmp(id, exchange->server->model_id) != 0) {
        rq_api_error error;
        rq_api_fail(&error, 404, "model",
                    "there is no model of this name; GET /v1/models lists what there is");
        error.code = "model_not_found";
        return rq_reply_error(exchange, &error);
    }
    rq_buf body = {.max = MAX_INFO_BYTES};
    write_model(&body, exchange->server);
    return rq_reply(exchange, MHD_HTTP_OK, "application/json", &body);
}

enum MHD_Result rq_api_metrics(rq_exchange *exchange)
{
    rq_buf body = {.max = MAX_INFO_BYTES};
    rq_metrics_write(exchange->server, &body);
    return rq_reply(exchange, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", &body);
}
