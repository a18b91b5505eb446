/* metrics.c - counters, and their Prometheus text (exposition format 0.0.4). */
#include "backends/base/buf.h"
#include "server/server.h"

#include <stdio.h>
#include <time.h>

static const unsigned codes[RQ_METRIC_CODES - 1] = {200, 204, 400, 401, 403, 404, 405,
                                                    413, 431, 499, 500, 501, 503};

uint64_t rq_server_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

bool rq_server_failed(const rq_server *server, rq_error *why)
{
    if (!server->engine) return false;
    rq_engine_info info;
    rq_engine_describe(server->engine, &info);
    if (info.failed && why) snprintf(why->text, sizeof why->text, "%s", info.failure);
    return info.failed;
}

void rq_metrics_count(rq_metrics *metrics, unsigned http_status)
{
    size_t i = 0;
    while (i < RQ_METRIC_CODES - 1 && codes[i] != http_status) i++;
    atomic_fetch_add(&metrics->responses[i], 1);
}

typedef struct metric {
    const char *name, *type, *help;
    double value;
} metric;

static void write_metrics(rq_buf *out, const metric *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const metric *m = &list[i];
        rq_buf_printf(out, "# HELP rqvk_%s %s\n# TYPE rqvk_%s %s\nrqvk_%s %.15g\n", m->name, m->help, m->name,
                      m->type, m->name, m->value);
    }
}

void rq_metrics_write(const rq_server *server, rq_buf *out)
{
    rq_metrics *metrics = &((rq_server *)server)->metrics;
    rq_engine_stats s;
    rq_engine_get_stats(server->engine, &s);
    const metric list[] = {
        {"steps_total", "counter", "Steps the engine ran.", (double)s.steps},
        {"step_tokens_total", "counter", "Tokens that went through a step.", (double)s.step_tokens},
        {"step_seconds_total", "counter", "Time spent inside steps.", (double)s.step_ns / 1e9},
        {"prompt_tokens_total", "counter", "Prompt tokens evaluated.", (double)s.prompt_tokens},
        {"reused_tokens_total", "counter", "Prompt tokens that were still in the cache.",
         (double)s.reused_tokens},
        {"generated_tokens_total", "counter", "Tokens generated.", (double)s.generated_tokens},
        {"drafted_tokens_total", "counter", "Tokens guessed ahead and checked.", (double)s.drafted_tokens},
        {"accepted_tokens_total", "counter", "Guesses that were right.", (double)s.accepted_tokens},
        {"states_kept_total", "counter", "Copies of recurrent state taken, for later requests to go on from.",
         (double)s.states_kept},
        {"states_resumed_total", "counter", "Requests that went on from such a copy.",
         (double)s.states_resumed},
        {"states_dropped_total", "counter", "Such copies given up to make room.", (double)s.states_dropped},
        {"states_bytes", "gauge", "Memory in use for such copies (at most --cache-ram).",
         (double)s.state_bytes},
        {"sessions", "gauge", "Sessions of the engine.", s.sessions},
        {"sessions_running", "gauge", "Sessions with a running request.", s.running},
        {"cache_tokens_used", "gauge", "Tokens in the cache, in whole pages.", (double)s.cache_tokens_used},
        {"cache_not_finite_total", "counter",
         "Keys and values that were no finite numbers when they were compressed: kept as 0.",
         (double)s.cache_not_finite},
        {"cache_tokens", "gauge", "Tokens the cache can hold.", (double)server->engine_info.cache_tokens},
        {"cache_bytes", "gauge", "Size of the cache.", (double)server->engine_info.cache_bytes},
        {"requests_active", "gauge", "Generation requests at work or waiting.",
         atomic_load(&metrics->generating)},
        {"requests_waiting", "gauge", "Generation requests waiting for a session.",
         (double)rq_pool_waiting(&((rq_server *)server)->pool)},
        {"requests_refused_total", "counter", "Requests refused because the queue was full.",
         (double)atomic_load(&metrics->queue_refused)},
        {"requests_vanished_total", "counter", "Requests whose client went away before the end.",
         (double)atomic_load(&metrics->vanished)},
        {"requests_timed_out_total", "counter", "Requests ended by --request-timeout.",
         (double)atomic_load(&metrics->timed_out)},
        {"connections", "gauge", "Open connections.", atomic_load(&metrics->connections)},
        {"failed", "gauge", "1 when the device or the model file is gone.", rq_server_failed(server, NULL)},
    };
    write_metrics(out, list, sizeof list / sizeof *list);
    rq_buf_puts(out, "# HELP rqvk_http_responses_total Answers by status code.\n"
                     "# TYPE rqvk_http_responses_total counter\n");
    for (size_t i = 0; i < RQ_METRIC_CODES; i++) {
        unsigned long long n = atomic_load(&metrics->responses[i]);
        if (!n) continue;
        if (i < RQ_METRIC_CODES - 1)
            rq_buf_printf(out, "rqvk_http_responses_total{code=\"%u\"} %llu\n", codes[i], n);
        else
            rq_buf_printf(out, "rqvk_http_responses_total{code=\"other\"} %llu\n", n);
    }
}
