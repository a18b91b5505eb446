/* main.c - rqvk-serve: start, run, end.
 *
 * The main thread blocks the signals it cares about before any other thread exists, starts listening, has the
 * model loaded by a second thread (so that /health can answer and Ctrl-C works meanwhile), and then waits for
 * signals, looking after slow connections once a second. */
#include "server/http.h"
#include "server/options.h"

#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void log_line(void *user, const char *line)
{
    (void)user;
    fprintf(stderr, "%s\n", line);
}

/* ---- listening ----------------------------------------------------------------------------------------- */

static int listen_on(const struct addrinfo *address)
{
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, address->ai_addr, address->ai_addrlen) == 0 && listen(fd, 128) == 0) return fd;
    int saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

/* On success *fd listens, and *port is the port it got. */
static rq_status open_socket(const rq_server_config *config, int *fd, uint32_t *port, rq_error *err)
{
    char service[16];
    snprintf(service, sizeof service, "%u", (unsigned)config->port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV},
                    *list = NULL;
    int code = getaddrinfo(config->host, service, &hints, &list);
    if (code != 0) {
        return rq_fail(err, RQ_ERR_IO, "%s is no address of this machine: %s", config->host,
                       gai_strerror(code));
    }
    *fd = -1;
    for (const struct addrinfo *a = list; a && *fd < 0; a = a->ai_next) *fd = listen_on(a);
    int saved = errno;
    freeaddrinfo(list);
    if (*fd < 0) {
        return rq_fail(err, RQ_ERR_IO, "cannot listen on %s port %u: %s", config->host,
                       (unsigned)config->port, strerror(saved));
    }
    struct sockaddr_storage bound;
    socklen_t length = sizeof bound;
    char text[16] = "0";
    if (getsockname(*fd, (struct sockaddr *)&bound, &length) == 0) {
        getnameinfo((struct sockaddr *)&bound, length, NULL, 0, text, sizeof text, NI_NUMERICSERV);
    }
    *port = (uint32_t)strtoul(text, NULL, 10);
    return RQ_OK;
}

/* ---- loading ------------------------------------------------------------------------------------------- */

typedef struct loader {
    rq_server *server;
    uint32_t port;
    atomic_bool failed;
    rq_error err;
} loader;

static rq_status load(rq_server *server, rq_error *err)
{
    rq_server_config *config = &server->config;
    rq_status status = rq_engine_args_open(&config->engine, &server->model, &server->engine, err);
    if (status != RQ_OK) return status;
    rq_model_describe(server->model, &server->model_info);
    rq_engine_describe(server->engine, &server->engine_info);
    server->ctx_limit = server->engine_info.n_ctx;
    if (config->ctx_per_request && config->ctx_per_request < server->ctx_limit) {
        server->ctx_limit = config->ctx_per_request;
    }
    snprintf(server->model_id, sizeof server->model_id, "%s",
             config->alias ? config->alias : server->model_info.name);
    server->created = time(NULL);
    return rq_pool_open(&server->pool, server->engine, server->engine_info.n_sessions, config->max_queue,
                        err);
}

static void *run_loader(void *user)
{
    loader *l = user;
    rq_server *server = l->server;
    if (load(server, &l->err) != RQ_OK) {
        atomic_store(&l->failed, true);
        kill(getpid(), SIGUSR1); /* wakes the main thread */
        return NULL;
    }
    atomic_store(&server->phase, RQ_READY); /* the main thread joins this one before it goes on */
    const char *host = server->config.host;
    bool ipv6 = strchr(host, ':') != NULL;
    fprintf(stderr, "model %s, %s; %u requests at once, %u tokens each, %s chat format\n", server->model_id,
            server->model_info.description, (unsigned)server->engine_info.n_sessions,
            (unsigned)server->ctx_limit, server->model_info.chat_format);
    fprintf(stderr, "listening on http://%s%s%s:%u\n", ipv6 ? "[" : "", host, ipv6 ? "]" : "",
            (unsigned)l->port);
    return NULL;
}

static void unload(rq_server *server)
{
    rq_pool_close(&server->pool);
    rq_engine_free(server->engine);
    rq_model_free(server->model);
    rq_server_free_keys(server);
}

/* ---- signals ------------------------------------------------------------------------------------------- */

static void block_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static int wait_for_signal(const sigset_t *set, long timeout_ms)
{
    struct timespec timeout = {.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000};
    int sig = sigtimedwait(set, NULL, &timeout);
    return sig > 0 ? sig : 0;
}

static void leave_now(const char *why)
{
    fprintf(stderr, "%s\n", why);
    _exit(0);
}

/* Waits until the count is zero, but no longer than `seconds`. */
static void wait_until_zero(atomic_int *count, uint32_t seconds, const sigset_t *set)
{
    uint64_t until = rq_server_now_ns() + (uint64_t)seconds * 1000000000u;
    while (atomic_load(count) > 0 && rq_server_now_ns() < until) {
        int sig = wait_for_signal(set, 50);
        if (sig == SIGINT || sig == SIGTERM) leave_now("ended by a second signal");
    }
}

/* Lets running requests end, then makes them end. */
static void drain(rq_server *server, rq_http *http, const sigset_t *set)
{
    atomic_store(&server->phase, RQ_DRAINING);
    rq_http_quiesce(http);
    int running = atomic_load(&server->metrics.generating);
    if (running) {
        fprintf(stderr, "ending: %d requests have up to %u s; a second signal ends at once\n", running,
                (unsigned)server->config.stop_timeout_s);
    }
    wait_until_zero(&server->metrics.generating, server->config.stop_timeout_s, set);
    atomic_store(&server->phase, RQ_CANCELLING);
    /* The engine stops within a step; then the last words of each answer need a moment to be sent. */
    wait_until_zero(&server->metrics.exchanges, 3, set);
}

static int serve(rq_server *server, const sigset_t *set, int fd, uint32_t port)
{
    rq_http *http = NULL;
    loader l = {.server = server, .port = port};
    if (rq_http_start(server, fd, &http, &l.err) != RQ_OK) return rq_complain("rqvk-serve", &l.err);
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_loader, &l) != 0) {
        rq_http_stop(http);
        rq_fail(&l.err, RQ_ERR_MEMORY, "a thread could not be started");
        return rq_complain("rqvk-serve", &l.err);
    }
    int sig = 0;
    while (sig != SIGINT && sig != SIGTERM && !atomic_load(&l.failed)) {
        sig = wait_for_signal(set, 1000);
        rq_http_watch(http);
    }
    bool failed = atomic_load(&l.failed);
    if (!failed && atomic_load(&server->phase) == RQ_LOADING) leave_now("ended while loading the model");
    pthread_join(thread, NULL);
    if (!failed) drain(server, http, set);
    rq_http_stop(http);
    if (failed) return rq_complain("rqvk-serve", &l.err);
    fprintf(stderr, "ended\n");
    return 0;
}

int main(int argc, char **argv)
{
    static const rq_program_text text = {
        .program = "rqvk-serve",
        .usage = "[-m MODEL] [options]",
        .about =
            "Serves a model over HTTP with OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models.",
    };
    rq_server server = {.config = rq_server_config_default()};
    rq_options options = {0};
    rq_server_options(&options, &server.config);
    server.config.engine.params.log = log_line;
    int code = rq_args_run(&text, &options, argc, argv, NULL, NULL);
    if (code >= 0) return code;
    if (server.config.engine.list_devices) return rq_print_devices();
    rq_json_use_rq_memory();

    rq_error err = {0};
    if (rq_server_settle(&server, &err) != RQ_OK) {
        rq_server_free_keys(&server);
        rq_complain(text.program, &err);
        return 2;
    }
    if (rq_engine_args_plan(&server.config.engine, text.program, &code)) {
        rq_server_free_keys(&server);
        return code;
    }
    int fd = -1;
    uint32_t port = 0;
    if (rq_engine_args_check(&server.config.engine, &err) != RQ_OK ||
        open_socket(&server.config, &fd, &port, &err) != RQ_OK) {
        rq_server_free_keys(&server);
        return rq_complain(text.program, &err);
    }
    sigset_t set;
    block_signals(&set);
    code = serve(&server, &set, fd, port);
    unload(&server);
    return code;
}
