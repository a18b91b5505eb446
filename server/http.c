/* http.c - see http.h. */
#include "server/http.h"

#include "backends/base/mem.h"
#include "server/access.h"
#include "server/response.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

/* MAX_BODIES: bodies of the largest size that may be held at the same time. */
enum { CONNECTION_MEMORY = 64 << 10, THREAD_STACK = 1 << 20, MAX_BODIES = 8 };

/* One connection. Lives in a list from accept to close, so that rq_http_watch can look at it. */
struct rq_peer {
    rq_peer *previous, *next;
    int fd;
    bool receiving; /* waiting for a request, or in the middle of one */
    uint64_t since_ns;
};

struct rq_http {
    rq_server *server;
    struct MHD_Daemon *daemon;
    pthread_mutex_t lock; /* of the list and its entries */
    rq_peer *peers;
};

/* ---- connections --------------------------------------------------------------------------------------- */

static void on_connection(void *user, struct MHD_Connection *connection, void **socket_context,
                          enum MHD_ConnectionNotificationCode code)
{
    rq_http *http = user;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        rq_peer *peer = rq_calloc(1, sizeof *peer);
        if (!peer || !info) { /* such a connection is refused at its first request */
            rq_free(peer);
            return;
        }
        *peer = (rq_peer){.fd = info->connect_fd, .receiving = true, .since_ns = rq_server_now_ns()};
        /* Notices within about a minute when a client's machine has disappeared without a word. */
        const int on = 1, idle_s = 30, interval_s = 10, count = 3;
        setsockopt(peer->fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
        setsockopt(peer->fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
        setsockopt(peer->fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
        setsockopt(peer->fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
        pthread_mutex_lock(&http->lock);
        peer->next = http->peers;
        if (http->peers) http->peers->previous = peer;
        http->peers = peer;
        pthread_mutex_unlock(&http->lock);
        atomic_fetch_add(&http->server->metrics.connections, 1);
        *socket_context = peer;
        return;
    }
    rq_peer *peer = *socket_context;
    if (!peer) return;
    pthread_mutex_lock(&http->lock);
    if (peer->next) peer->next->previous = peer->previous;
    if (peer->previous)
        peer->previous->next = peer->next;
    else
        http->peers = peer->next;
    pthread_mutex_unlock(&http->lock);
    atomic_fetch_sub(&http->server->metrics.connections, 1);
    rq_free(peer);
    *socket_context = NULL;
}

static void set_receiving(rq_http *http, rq_peer *peer, bool receiving)
{
    pthread_mutex_lock(&http->lock);
    peer->receiving = receiving;
    peer->since_ns = rq_server_now_ns();
    pthread_mutex_unlock(&http->lock);
}

void rq_http_watch(rq_http *http)
{
    uint64_t now = rq_server_now_ns(), limit = (uint64_t)http->server->config.timeout_s * 1000000000u;
    pthread_mutex_lock(&http->lock);
    for (rq_peer *peer = http->peers; peer; peer = peer->next) {
        /* The connection's own thread sees the end and closes; here it is only cut. */
        if (peer->receiving && now - peer->since_ns > limit) shutdown(peer->fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&http->lock);
}

bool rq_client_gone(rq_exchange *exchange)
{
    struct pollfd p = {.fd = exchange->peer->fd, .events = POLLRDHUP};
    return poll(&p, 1, 0) > 0 && p.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL);
}

void rq_pause_timeout(rq_exchange *exchange)
{
    MHD_set_connection_option(exchange->connection, MHD_CONNECTION_OPTION_TIMEOUT, 0u);
}

void rq_resume_timeout(rq_exchange *exchange)
{
    MHD_set_connection_option(exchange->connection, MHD_CONNECTION_OPTION_TIMEOUT,
                              (unsigned)exchange->server->config.timeout_s);
}

/* ---- replies ------------------------------------------------------------------------------------------- */

void rq_add_headers(rq_exchange *exchange, struct MHD_Response *response, const char *content_type)
{
    if (content_type) MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, content_type);
    MHD_add_response_header(response, "X-Request-Id", exchange->id);
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    MHD_add_response_header(response, MHD_HTTP_HEADER_SERVER, "rqvk");
    if (exchange->cors[0]) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_ACCESS_CONTROL_ALLOW_ORIGIN, exchange->cors);
        MHD_add_response_header(response, MHD_HTTP_HEADER_VARY, "Origin");
    }
    if (atomic_load(&exchange->server->phase) >= RQ_DRAINING) {
        MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
    }
}

enum MHD_Result rq_reply(rq_exchange *exchange, unsigned status, const char *content_type, rq_buf *body)
{
    if (body->failed) {
        rq_buf_free(body);
        return MHD_NO;
    }
    struct MHD_Response *response =
        body->data ? MHD_create_response_from_buffer_with_free_callback(body->len, body->data, rq_free)
                   : MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    if (!response) {
        rq_buf_free(body);
        return MHD_NO;
    }
    *body = (rq_buf){.max = body->max};
    rq_add_headers(exchange, response, content_type);
    if (status == 503) MHD_add_response_header(response, MHD_HTTP_HEADER_RETRY_AFTER, "1");
    if (status == 401) MHD_add_response_header(response, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer");
    if (status == 413) MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
    exchange->status = status;
    enum MHD_Result result = MHD_queue_response(exchange->connection, status, response);
    MHD_destroy_response(response);
    return result;
}

enum MHD_Result rq_reply_error(rq_exchange *exchange, const rq_api_error *error)
{
    rq_buf body = {.max = 8192};
    rq_write_error(&body, error);
    return rq_reply(exchange, (unsigned)error->http_status, "application/json", &body);
}

static enum MHD_Result reply_preflight(rq_exchange *exchange)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    if (!response) return MHD_NO;
    rq_add_headers(exchange, response, NULL);
    const char *asked = MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND,
                                                    MHD_HTTP_HEADER_ACCESS_CONTROL_REQUEST_HEADERS);
    MHD_add_response_header(response, MHD_HTTP_HEADER_ACCESS_CONTROL_ALLOW_METHODS, "GET, POST");
    MHD_add_response_header(response, MHD_HTTP_HEADER_ACCESS_CONTROL_ALLOW_HEADERS,
                            asked && strlen(asked) < 1024 ? asked : "authorization, content-type, x-api-key");
    MHD_add_response_header(response, MHD_HTTP_HEADER_ACCESS_CONTROL_MAX_AGE, "600");
    exchange->status = MHD_HTTP_NO_CONTENT;
    enum MHD_Result result = MHD_queue_response(exchange->connection, MHD_HTTP_NO_CONTENT, response);
    MHD_destroy_response(response);
    return result;
}

/* ---- what is refused before the body is looked at ------------------------------------------------------ */

static const char *header(rq_exchange *exchange, const char *name)
{
    return MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, name);
}

typedef struct framing {
    unsigned lengths, encodings;
    bool bad;
} framing;

static enum MHD_Result count_framing(void *user, enum MHD_ValueKind kind, const char *key, const char *value)
{
    framing *f = user;
    (void)kind;
    if (!strcasecmp(key, MHD_HTTP_HEADER_CONTENT_LENGTH)) {
        f->lengths++;
        if (!value || !*value || strspn(value, "0123456789") != strlen(value)) f->bad = true;
    } else if (!strcasecmp(key, MHD_HTTP_HEADER_TRANSFER_ENCODING)) {
        f->encodings++;
        if (!value || strcasecmp(value, "chunked") != 0) f->bad = true;
    }
    return MHD_YES;
}

static bool check_framing(rq_exchange *exchange, rq_api_error *error)
{
    framing f = {0};
    MHD_get_connection_values(exchange->connection, MHD_HEADER_KIND, count_framing, &f);
    if (f.lengths + f.encodings > 1 || f.bad) {
        return rq_api_fail(error, 400, NULL,
                           "the request must have one Content-Length or one Transfer-Encoding: chunked");
    }
    const char *length = header(exchange, MHD_HTTP_HEADER_CONTENT_LENGTH);
    if (length && strtoull(length, NULL, 10) > exchange->server->config.max_body_bytes) {
        return rq_api_fail(error, 413, NULL,
                           "the request body is larger than the %llu bytes this server accepts",
                           (unsigned long long)exchange->server->config.max_body_bytes);
    }
    return true;
}

/* Same-origin, allowed and non-browser requests pass; exchange->cors is set for allowed origins. */
static bool check_origin(rq_exchange *exchange, const char *method, rq_api_error *error)
{
    const char *origin = header(exchange, MHD_HTTP_HEADER_ORIGIN),
               *host = header(exchange, MHD_HTTP_HEADER_HOST);
    if (!origin || rq_origin_is_own(origin, host)) return true;
    if (rq_origin_allowed(origin, exchange->server->config.cors_origin)) {
        snprintf(exchange->cors, sizeof exchange->cors, "%s", origin);
        return true;
    }
    bool harmless = !strcmp(method, "GET") || !strcmp(method, "HEAD");
    if (harmless || (exchange->server->n_keys && strcmp(method, "OPTIONS") != 0)) return true;
    return rq_api_fail(
        error, 403, NULL,
        "web pages of this origin may not use the server; start it with --cors-origin to allow them");
}

static bool check_access(rq_exchange *exchange, const char *method, rq_api_error *error)
{
    const rq_server *server = exchange->server;
    const char *host = header(exchange, MHD_HTTP_HEADER_HOST);
    if (host && rq_is_loopback(server->config.host) &&
        !rq_host_allowed(host, server->config.host, server->config.allowed_hosts)) {
        return rq_api_fail(
            error, 403, NULL,
            "the server does not answer to this host name; start it with --allowed-hosts to add it");
    }
    if (!check_origin(exchange, method, error)) return false;
    if (!server->n_keys || !strcmp(method, "OPTIONS") || (exchange->route && exchange->route->open))
        return true;
    const char *key = rq_bearer_key(header(exchange, MHD_HTTP_HEADER_AUTHORIZATION));
    if (!key) key = header(exchange, "X-Api-Key");
    if (key && rq_key_matches(key, server->keys, server->n_keys)) return true;
    rq_api_fail(error, 401, NULL,
                key ? "this API key is not accepted" : "an API key is needed: Authorization: Bearer KEY");
    error->type = "authentication_error";
    error->code = "invalid_api_key";
    return false;
}

static bool check_phase(rq_exchange *exchange, rq_api_error *error)
{
    int phase = atomic_load(&exchange->server->phase);
    if (exchange->route->any_time || phase == RQ_READY) return true;
    rq_api_fail(error, 503, NULL,
                phase == RQ_LOADING ? "the model is being loaded; try again in a moment"
                                    : "the server is shutting down");
    error->type = "unavailable_error";
    return false;
}

static bool check_route(rq_exchange *exchange, const char *method, rq_api_error *error)
{
    const char *others = NULL;
    exchange->route = rq_find_route(method, exchange->url, &others);
    if (exchange->route || !strcmp(method, "OPTIONS")) return true;
    if (others) return rq_api_fail(error, 405, NULL, "this address only answers to %s", others);
    rq_api_fail(error, 404, NULL, "there is nothing at this address; GET / lists what there is");
    error->code = "not_found";
    return false;
}

static bool check_request(rq_exchange *exchange, const char *method, rq_api_error *error)
{
    rq_api_error route_error;
    bool found = check_route(exchange, method, &route_error);
    /* Without a key nobody learns which addresses exist. */
    if (!check_framing(exchange, error) || !check_access(exchange, method, error)) return false;
    if (!found) {
        *error = route_error;
        return false;
    }
    return !exchange->route || check_phase(exchange, error);
}

/* ---- one request --------------------------------------------------------------------------------------- */

static rq_exchange *exchange_new(rq_http *http, struct MHD_Connection *connection, const char *url)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    if (!info || !info->socket_context) return NULL;
    rq_exchange *exchange = rq_calloc(1, sizeof *exchange);
    if (!exchange) return NULL;
    *exchange = (rq_exchange){.http = http,
                              .server = http->server,
                              .connection = connection,
                              .peer = info->socket_context,
                              .url = rq_strdup(url),
                              .start_ns = rq_server_now_ns()};
    exchange->body.max = http->server->config.max_body_bytes;
    snprintf(exchange->id, sizeof exchange->id, "req_%016llx", (unsigned long long)rq_random_seed());
    if (exchange->url) {
        atomic_fetch_add(&http->server->metrics.exchanges, 1);
        return exchange;
    }
    rq_free(exchange);
    return NULL;
}

static void exchange_free(rq_exchange *exchange)
{
    bool had_job = exchange->job.server != NULL;
    rq_job_close(&exchange->job);
    if (had_job) atomic_fetch_sub(&exchange->server->metrics.generating, 1);
    atomic_fetch_sub(&exchange->server->metrics.body_bytes, exchange->body_counted);
    atomic_fetch_sub(&exchange->server->metrics.exchanges, 1);
    rq_buf_free(&exchange->body);
    rq_buf_free(&exchange->out);
    rq_free(exchange->url);
    rq_free(exchange);
}

static void log_exchange(const rq_exchange *exchange)
{
    if (!exchange->server->config.log_requests || !exchange->route) return;
    char tokens[64] = "";
    if (exchange->log_prompt) {
        snprintf(tokens, sizeof tokens, ", %llu + %llu tokens", (unsigned long long)exchange->log_prompt,
                 (unsigned long long)exchange->log_generated);
    }
    fprintf(stderr, "%s %s %s %u%s, %.3f s\n", exchange->id, exchange->route->method, exchange->route->path,
            exchange->vanished ? 499 : exchange->status, tokens,
            (double)(rq_server_now_ns() - exchange->start_ns) / 1e9);
}

/* Keeps a piece of the body, or notes why not. Refused bodies are read away, so that the client can read the
 * answer instead of a broken connection; but not for ever. */
static bool take_body(rq_exchange *exchange, const char *data, size_t bytes)
{
    uint64_t max = exchange->server->config.max_body_bytes;
    exchange->body_seen += bytes;
    if (exchange->refused) return exchange->body_seen <= 4 * max;
    uint64_t all = atomic_fetch_add(&exchange->server->metrics.body_bytes, bytes) + bytes;
    exchange->body_counted += bytes;
    if (exchange->body_seen > max) {
        rq_api_fail(&exchange->refusal, 413, NULL,
                    "the request body is larger than the %llu bytes this server accepts",
                    (unsigned long long)max);
    } else if (all > MAX_BODIES * max || !rq_buf_append(&exchange->body, data, bytes)) {
        rq_api_fail(&exchange->refusal, 503, NULL, "the server is busy with other large requests; try again");
    } else {
        return true;
    }
    exchange->refused = true;
    rq_buf_free(&exchange->body);
    atomic_fetch_sub(&exchange->server->metrics.body_bytes, exchange->body_counted);
    exchange->body_counted = 0;
    return true;
}

static enum MHD_Result answer(rq_exchange *exchange)
{
    set_receiving(exchange->http, exchange->peer, false);
    if (exchange->refused) return rq_reply_error(exchange, &exchange->refusal);
    if (!exchange->route) return reply_preflight(exchange);
    return exchange->route->handler(exchange);
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_bytes, void **context)
{
    rq_http *http = user;
    (void)version;
    rq_exchange *exchange = *context;
    if (!exchange) {
        exchange = exchange_new(http, connection, url);
        if (!exchange) return MHD_NO;
        *context = exchange;
        if (check_request(exchange, method, &exchange->refusal)) return MHD_YES;
        exchange->refused = true;
        /* Now, where the client would wait for leave to send, or its body is too large to read away. */
        const char *length = header(exchange, MHD_HTTP_HEADER_CONTENT_LENGTH);
        bool huge = length && strtoull(length, NULL, 10) > 4 * http->server->config.max_body_bytes;
        if (huge || header(exchange, MHD_HTTP_HEADER_EXPECT)) return answer(exchange);
        return MHD_YES;
    }
    if (*upload_bytes) {
        bool ok = take_body(exchange, upload, *upload_bytes);
        *upload_bytes = 0;
        return ok ? MHD_YES : MHD_NO;
    }
    return answer(exchange);
}

static void on_completed(void *user, struct MHD_Connection *connection, void **context,
                         enum MHD_RequestTerminationCode code)
{
    (void)connection;
    rq_http *http = user;
    rq_exchange *exchange = *context;
    if (!exchange) return;
    *context = NULL;
    bool unfinished = exchange->job.server && !exchange->out_ended;
    if (code != MHD_REQUEST_TERMINATED_COMPLETED_OK && unfinished) exchange->vanished = true;
    if (exchange->vanished) atomic_fetch_add(&http->server->metrics.vanished, 1);
    if (exchange->status) rq_metrics_count(&http->server->metrics, exchange->status);
    log_exchange(exchange);
    set_receiving(http, exchange->peer, true);
    exchange_free(exchange);
}

/* ---- life ---------------------------------------------------------------------------------------------- */

rq_status rq_http_start(rq_server *server, int fd, rq_http **out, rq_error *err)
{
    rq_http *http = rq_calloc(1, sizeof *http);
    if (!http) {
        close(fd);
        return rq_fail(err, RQ_ERR_MEMORY, "there is not enough memory to start the server");
    }
    http->server = server;
    pthread_mutex_init(&http->lock, NULL);
    http->daemon = MHD_start_daemon(
        MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL | MHD_USE_ITC, 0, NULL,
        NULL, on_request, http, MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)server->config.max_connections, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)server->config.timeout_s, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY,
        MHD_OPTION_THREAD_STACK_SIZE, (size_t)THREAD_STACK, MHD_OPTION_STRICT_FOR_CLIENT, 1,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, http, MHD_OPTION_NOTIFY_COMPLETED, on_completed, http,
        MHD_OPTION_END);
    if (!http->daemon) {
        close(fd);
        pthread_mutex_destroy(&http->lock);
        rq_free(http);
        return rq_fail(err, RQ_ERR_IO, "the HTTP server could not be started: %s", strerror(errno));
    }
    *out = http;
    return RQ_OK;
}

void rq_http_quiesce(rq_http *http)
{
    int fd = MHD_quiesce_daemon(http->daemon);
    if (fd >= 0) close(fd);
}

void rq_http_stop(rq_http *http)
{
    if (!http) return;
    MHD_stop_daemon(http->daemon);
    pthread_mutex_destroy(&http->lock);
    rq_free(http);
}
