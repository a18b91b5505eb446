/* http.h - the adapter to libmicrohttpd: connections and their limits, bodies, routing, access, replies.
 *
 * One thread per connection. A generation keeps its thread for as long as it lasts, in plain blocking
 * code: the thread waits for the engine's next event, looks whether its client is still there, and sends.
 * The number of connections is limited, so the number of threads is; an idle engine thread and a few
 * dozen waiting ones cost nothing against the work they wait for. */
#ifndef RQ_HTTP_H
#define RQ_HTTP_H

#include "backends/base/buf.h"
#include "server/job.h"
#include "server/server.h"

#include <microhttpd.h>

typedef struct rq_http rq_http;
typedef struct rq_exchange rq_exchange;
typedef struct rq_peer rq_peer;

typedef enum MHD_Result rq_handler(rq_exchange *exchange);

typedef struct rq_route {
    const char *method, *path; /* a path that ends in "/" is a prefix */
    rq_handler *handler;
    bool open;     /* needs no API key */
    bool any_time; /* answers also while the model loads */
} rq_route;

/* One request and what became of it. */
struct rq_exchange {
    rq_http *http;
    rq_server *server;
    struct MHD_Connection *connection;
    rq_peer *peer;
    const rq_route *route;
    char *url; /* decoded path */
    rq_buf body;
    uint64_t body_seen, body_counted;
    bool refused;
    rq_api_error refusal; /* sent once the body has been read away */
    char cors[256];       /* the origin to allow, or "" */
    rq_job job;           /* generation requests only; job.server NULL when there is none */
    rq_buf out;           /* of a stream: text ready to be sent from out_at on */
    size_t out_at;
    bool out_ended, vanished;
    uint64_t out_ns;
    uint64_t start_ns;
    unsigned status;
    char id[24];
    uint64_t log_prompt, log_generated;
};

/* Listens on `fd` (taken over, also on failure). */
rq_status rq_http_start(rq_server *server, int fd, rq_http **out, rq_error *err);
/* Accepts no further connection. */
void rq_http_quiesce(rq_http *http);
/* To be called about every second: closes connections that take too long to send their request. */
void rq_http_watch(rq_http *http);
/* Ends all connections; their requests must be ending (phase CANCELLING). */
void rq_http_stop(rq_http *http);

/* Answers with `body`, which is taken over. */
enum MHD_Result rq_reply(rq_exchange *exchange, unsigned status, const char *content_type, rq_buf *body);
enum MHD_Result rq_reply_error(rq_exchange *exchange, const rq_api_error *error);
/* Headers that every answer carries. */
void rq_add_headers(rq_exchange *exchange, struct MHD_Response *response, const char *content_type);

/* True when the client has closed its side of the connection. */
bool rq_client_gone(rq_exchange *exchange);
/* Between the two, the connection may be silent for longer than the client time-out. */
void rq_pause_timeout(rq_exchange *exchange);
void rq_resume_timeout(rq_exchange *exchange);

const rq_route *rq_find_route(const char *method, const char *path, const char **other_methods);

#endif
