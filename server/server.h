/* server.h - what the files of the server share: settings, state and counters. */
#ifndef RQ_SERVER_H
#define RQ_SERVER_H

#include "engine/rqvk.h"
#include "server/pool.h"
#include "tools/common/args.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct rq_server_config {
    rq_engine_args engine;
    rq_sampling_args sampling;    /* for requests that say nothing */
    int32_t n_predict;            /* likewise; -1: until the context is full */
    const char *reasoning_format; /* likewise: "auto", "deepseek" or "none" */
    const char *host, *alias, *api_key, *api_key_file, *cors_origin, *allowed_hosts;
    bool no_auth;
    uint32_t port, n_parallel, max_queue, max_connections, ctx_per_request;
    uint32_t timeout_s, request_timeout_s, stop_timeout_s, ping_s;
    uint64_t max_body_bytes;
    bool log_requests;
} rq_server_config;

/* LOADING -> READY -> DRAINING (no new work) -> CANCELLING (running work ends now). */
typedef enum rq_phase { RQ_LOADING, RQ_READY, RQ_DRAINING, RQ_CANCELLING } rq_phase;

enum { RQ_METRIC_CODES = 14 };
typedef struct rq_metrics {
    atomic_ullong responses[RQ_METRIC_CODES]; /* by status, see metrics.c */
    atomic_ullong vanished;                   /* requests whose client went away */
    atomic_ullong timed_out;                  /* requests ended by --request-timeout */
    atomic_ullong queue_refused;
    atomic_int generating; /* requests that hold or wait for a session */
    atomic_int connections;
    atomic_int exchanges;     /* requests whose answer has not been sent completely */
    atomic_ullong body_bytes; /* held in request bodies now */
} rq_metrics;

typedef struct rq_server {
    rq_server_config config;
    atomic_int phase; /* rq_phase */
    /* Below: written before phase becomes READY, constant afterwards. */
    rq_model *model;
    rq_engine *engine;
    rq_model_info model_info;
    rq_engine_info engine_info; /* as of the start */
    uint32_t ctx_limit;         /* most tokens of one request, prompt and answer */
    char model_id[256];
    int64_t created; /* seconds since 1970 */
    rq_pool pool;
    rq_metrics metrics;
    char **keys; /* accepted API keys; none: no key asked for */
    size_t n_keys;
} rq_server;

/* Monotonic clock. */
uint64_t rq_server_now_ns(void);

/* True when the device or the file is gone; `why` (may be NULL) receives the sentence. */
bool rq_server_failed(const rq_server *server, rq_error *why);

struct rq_buf;
void rq_metrics_count(rq_metrics *metrics, unsigned http_status);
void rq_metrics_write(const rq_server *server, struct rq_buf *out);

#endif
