/* routes.c - the addresses the server answers at. */
#include "server/api.h"

#include <string.h>

static const rq_route routes[] = {
    {"POST", "/v1/chat/completions", rq_api_chat, false, false},
    {"POST", "/chat/completions", rq_api_chat, false, false},
    {"POST", "/v1/completions", rq_api_completions, false, false},
    {"GET", "/v1/models", rq_api_models, false, false},
    {"GET", "/models", rq_api_models, false, false},
    {"GET", "/v1/models/", rq_api_model, false, false},
    {"POST", "/tokenize", rq_api_tokenize, false, false},
    {"POST", "/detokenize", rq_api_detokenize, false, false},
    {"POST", "/apply-template", rq_api_template, false, false},
    {"GET", "/metrics", rq_api_metrics, false, false},
    {"GET", "/health", rq_api_health, true, true},
    {"GET", "/v1/health", rq_api_health, true, true},
    {"GET", "/", rq_api_page, true, true},
};

const rq_route *rq_find_route(const char *method, const char *path, const char **other_methods)
{
    if (!strcmp(method, "HEAD")) method = "GET";
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        const rq_route *route = &routes[i];
        size_t n = strlen(route->path);
        bool prefix = n > 1 && route->path[n - 1] == '/';
        bool same = prefix ? strncmp(path, route->path, n) == 0 && path[n] : strcmp(path, route->path) == 0;
        if (!same) continue;
        if (!strcmp(method, route->method)) return route;
        *other_methods = route->method;
    }
    return NULL;
}
