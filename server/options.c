/* options.c - see options.h. */
#include "server/options.h"

#include "backends/base/buf.h"
#include "backends/base/mem.h"
#include "server/access.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

rq_server_config rq_server_config_default(void)
{
    return (rq_server_config){.engine = rq_engine_args_default(),
                              .sampling = rq_sampling_args_default(),
                              .n_predict = -1,
                              .reasoning_format = "auto",
                              .host = "127.0.0.1",
                              .port = 8080,
                              .n_parallel = 4,
                              .max_queue = 64,
                              .max_connections = 128,
                              .timeout_s = 60,
                              .stop_timeout_s = 10,
                              .ping_s = 10,
                              .max_body_bytes = 8 << 20,
                              .log_requests = true};
}

static void options_network(rq_options *options, rq_server_config *c)
{
    const rq_option list[] = {
        {.names = "--host",
         .kind = RQ_OPT_STRING,
         .target = &c->host,
         .value = "ADDRESS",
         .env = "LLAMA_ARG_HOST",
         .help = "address to listen on; any other than this machine's own needs an API key"},
        {.names = "--port",
         .kind = RQ_OPT_U32,
         .target = &c->port,
         .max = 65535,
         .help = "port to listen on; 0: any free one"},
        {.names = "--api-key",
         .kind = RQ_OPT_STRING,
         .target = &c->api_key,
         .value = "KEY",
         .env = "RQVK_API_KEY,LLAMA_API_KEY",
         .secret = true,
         .shown = "no key asked for",
         .help =
             "key that clients must send, or several separated by commas; all addresses but /health and the "
             "page at / ask for it"},
        {.names = "--api-key-file",
         .kind = RQ_OPT_STRING,
         .target = &c->api_key_file,
         .value = "FILE",
         .help = "file with one key per line"},
        {.names = "--no-auth",
         .kind = RQ_OPT_FLAG,
         .target = &c->no_auth,
         .help = "listen on an address that others can reach without asking for a key"},
        {.names = "--cors-origin",
         .kind = RQ_OPT_STRING,
         .target = &c->cors_origin,
         .value = "ORIGINS",
         .shown = "none",
         .help = "web origins whose pages may use the server, separated by commas, or *"},
        {.names = "--allowed-hosts",
         .kind = RQ_OPT_STRING,
         .target = &c->allowed_hosts,
         .value = "NAMES",
         .help = "further host names to answer to when listening on this machine's own address"},
    };
    rq_options_heading(options, "Network");
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) rq_options_add(options, list[i]);
}

static void options_limits(rq_options *options, rq_server_config *c)
{
    const rq_option list[] = {
        {.names = "-np,--parallel",
         .kind = RQ_OPT_U32,
         .target = &c->n_parallel,
         .min = 1,
         .max = 256,
         .env = "LLAMA_ARG_N_PARALLEL",
         .help = "answers written at the same time; they share each step"},
        rq_option_predict(&c->n_predict, "-1, until the context is full",
                          "most tokens of an answer when the request does not say"),
        {.names = "--reasoning-format",
         .kind = RQ_OPT_STRING,
         .target = &c->reasoning_format,
         .choices = "auto,deepseek,none",
         .env = "LLAMA_ARG_THINK",
         .help =
             "what becomes of thoughts in answers when the request does not say: auto and deepseek set them "
             "apart as reasoning_content, none leaves them in the content"},
        {.names = "--ctx-per-request",
         .kind = RQ_OPT_U32,
         .target = &c->ctx_per_request,
         .max = 1 << 24,
         .shown = "the whole context",
         .help = "most tokens one request may use, prompt and answer together"},
        {.names = "--max-queue",
         .kind = RQ_OPT_U32,
         .target = &c->max_queue,
         .max = 65536,
         .help = "requests that may wait for their turn; further ones are answered 503"},
        {.names = "--max-connections",
         .kind = RQ_OPT_U32,
         .target = &c->max_connections,
         .min = 1,
         .max = 4096,
         .help = "connections open at the same time"},
        {.names = "--max-body",
         .kind = RQ_OPT_U64,
         .target = &c->max_body_bytes,
         .min = 1024,
         .max = 1 << 30,
         .value = "BYTES",
         .help = "largest request body"},
        {.names = "--timeout",
         .kind = RQ_OPT_U32,
         .target = &c->timeout_s,
         .min = 1,
         .max = 86400,
         .value = "SECONDS",
         .help = "time a client has to send its request, or may go without reading its answer"},
        {.names = "--request-timeout",
         .kind = RQ_OPT_U32,
         .target = &c->request_timeout_s,
         .max = 1 << 24,
         .value = "SECONDS",
         .shown = "no limit",
         .help = "time a request may take, waiting included"},
        {.names = "--stop-timeout",
         .kind = RQ_OPT_U32,
         .target = &c->stop_timeout_s,
         .max = 86400,
         .value = "SECONDS",
         .help = "time running requests get to end after SIGINT or SIGTERM"},
        {.names = "--ping",
         .kind = RQ_OPT_U32,
         .target = &c->ping_s,
         .min = 1,
         .max = 3600,
         .value = "SECONDS",
         .help = "a silent stream carries a comment this often, so that nobody in between gives it up"},
        {.names = "-a,--alias",
         .kind = RQ_OPT_STRING,
         .target = &c->alias,
         .value = "NAME",
         .shown = "the model's own name",
         .help = "name of the model in answers and in /v1/models"},
        {.names = "--log-requests",
         .kind = RQ_OPT_FLAG,
         .target = &c->log_requests,
         .help = "print a line for every request; --no-log-requests switches it off"},
    };
    rq_options_heading(options, "Serving");
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) rq_options_add(options, list[i]);
}

void rq_server_options(rq_options *options, rq_server_config *config)
{
    rq_options_engine(options, &config->engine);
    rq_options_drafts(options, &config->engine);
    options_network(options, config);
    options_limits(options, config);
    rq_options_sampling(options, &config->sampling);
}

/* ---- keys ---------------------------------------------------------------------------------------------- */

static bool add_key(rq_server *server, const char *text, size_t bytes)
{
    while (bytes && strchr(" \t\r", text[bytes - 1])) bytes--;
    if (!bytes) return true;
    char **keys = rq_realloc_array(server->keys, server->n_keys + 1, sizeof *keys);
    if (!keys) return false;
    server->keys = keys;
    keys[server->n_keys] = rq_strndup(text, bytes);
    if (!keys[server->n_keys]) return false;
    server->n_keys++;
    return true;
}

static bool add_keys(rq_server *server, const char *text, const char *separators)
{
    while (*text) {
        size_t n = strcspn(text, separators);
        if (!add_key(server, text, n)) return false;
        text += n + (text[n] != '\0');
    }
    return true;
}

static rq_status read_key_file(rq_server *server, const char *path, rq_error *err)
{
    FILE *file = fopen(path, "re");
    if (!file) return rq_fail(err, RQ_ERR_IO, "%s: the key file cannot be read: %s", path, strerror(errno));
    rq_buf text = {.max = 1 << 20};
    char piece[4096];
    for (size_t n; (n = fread(piece, 1, sizeof piece, file)) > 0;) rq_buf_append(&text, piece, n);
    bool bad = ferror(file) || text.failed;
    fclose(file);
    size_t before = server->n_keys;
    if (!bad && text.data) bad = !add_keys(server, text.data, "\n");
    rq_buf_free(&text);
    if (bad) return rq_fail(err, RQ_ERR_IO, "%s: the key file cannot be read", path);
    if (server->n_keys == before) return rq_fail(err, RQ_ERR_ARGUMENT, "%s: the key file holds no key", path);
    return RQ_OK;
}

void rq_server_free_keys(rq_server *server)
{
    for (size_t i = 0; i < server->n_keys; i++) rq_free(server->keys[i]);
    rq_free(server->keys);
    server->keys = NULL;
    server->n_keys = 0;
}

rq_status rq_server_settle(rq_server *server, rq_error *err)
{
    rq_server_config *c = &server->config;
    if (c->api_key) {
        if (!add_keys(server, c->api_key, ","))
            return rq_fail(err, RQ_ERR_MEMORY, "there is not enough memory");
        if (!server->n_keys) return rq_fail(err, RQ_ERR_ARGUMENT, "--api-key is empty");
    }
    if (c->api_key_file) {
        rq_status status = read_key_file(server, c->api_key_file, err);
        if (status != RQ_OK) return status;
    }
    if (!server->n_keys && !c->no_auth && !rq_is_loopback(c->host)) {
        return rq_fail(
            err, RQ_ERR_ARGUMENT,
            "%s can be reached by others: set a key with --api-key or RQVK_API_KEY, or say --no-auth if "
            "everybody may use the server",
            c->host);
    }
    rq_status status = rq_predict_check(c->n_predict, err);
    if (status != RQ_OK) return status;
    if (c->ctx_per_request && c->ctx_per_request < 2) {
        return rq_fail(err, RQ_ERR_ARGUMENT, "--ctx-per-request must be at least 2");
    }
    c->engine.params.n_sessions = c->n_parallel;
    c->engine.params.n_queue = c->n_parallel;
    return RQ_OK;
}
