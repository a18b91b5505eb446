/* access.h - who may ask: API keys, host names, web origins. Pure functions. */
#ifndef RQ_ACCESS_H
#define RQ_ACCESS_H

#include <stdbool.h>
#include <stddef.h>

/* True when `given` equals one of the keys. Takes the same time whichever byte differs first. */
bool rq_key_matches(const char *given, char *const *keys, size_t n_keys);

/* The key of an "Authorization: Bearer KEY" value, or NULL. */
const char *rq_bearer_key(const char *authorization);

/* True for localhost, 127.x.x.x and ::1, with or without brackets. */
bool rq_is_loopback(const char *host);

/* Whether a Host header may reach a server that listens on loopback: a loopback name, `own` (the name
 * given with --host) or one of the comma-separated `allowed`. Keeps web pages from reaching the server
 * through a domain of theirs that resolves to 127.0.0.1. */
bool rq_host_allowed(const char *header, const char *own, const char *allowed);

/* Whether a web page of `origin` may read answers: the comma-separated `allowed` names it or is "*". */
bool rq_origin_allowed(const char *origin, const char *allowed);
/* Whether `origin` is the server itself as the browser addressed it. */
bool rq_origin_is_own(const char *origin, const char *host_header);

#endif
