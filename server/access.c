/* access.c - see access.h. */
#include "server/access.h"

#include <string.h>
#include <strings.h>

static bool same_key(const char *given, const char *key)
{
    size_t n = strlen(given), m = strlen(key);
    volatile unsigned char difference = n != m;
    for (size_t i = 0; i < n; i++) {
        difference |= (unsigned char)(given[i] ^ (m ? key[i % m] : 1));
    }
    return difference == 0;
}

bool rq_key_matches(const char *given, char *const *keys, size_t n_keys)
{
    bool found = false;
    for (size_t i = 0; i < n_keys; i++) {
        bool same = same_key(given, keys[i]);
        found = found || same;
    }
    return found;
}

const char *rq_bearer_key(const char *authorization)
{
    if (!authorization || strncasecmp(authorization, "Bearer ", 7) != 0) return NULL;
    const char *key = authorization + 7;
    while (*key == ' ') key++;
    return key;
}

/* The name in "name", "name:8080", "[::1]" or "[::1]:8080". */
static void host_name(const char *header, const char **name, size_t *bytes)
{
    if (*header == '[') {
        *name = header + 1;
        *bytes = strcspn(header + 1, "]");
        return;
    }
    *name = header;
    const char *colon = strchr(header, ':');
    bool bare_ipv6 = colon && strchr(colon + 1, ':');
    *bytes = bare_ipv6 || !colon ? strlen(header) : (size_t)(colon - header);
}

static bool equals(const char *name, size_t bytes, const char *text)
{
    return strlen(text) == bytes && !strncasecmp(name, text, bytes);
}

static bool loopback(const char *name, size_t bytes)
{
    if (equals(name, bytes, "localhost") || equals(name, bytes, "::1")) return true;
    /* 127.a.b.c in digits only: "127.evil.example" is a domain like any other */
    return bytes > 4 && !strncmp(name, "127.", 4) && strspn(name, "0123456789.") >= bytes;
}

bool rq_is_loopback(const char *host)
{
    const char *name;
    size_t bytes;
    host_name(host, &name, &bytes);
    return loopback(name, bytes);
}

/* Whether the comma-separated list has the item, letter case aside. */
static bool listed(const char *list, const char *item, size_t bytes)
{
    while (list && *list) {
        list += strspn(list, ", ");
        size_t length = strcspn(list, ", ");
        if (length == bytes && !strncasecmp(list, item, bytes)) return true;
        list += length;
    }
    return false;
}

bool rq_host_allowed(const char *header, const char *own, const char *allowed)
{
    const char *name;
    size_t bytes;
    host_name(header, &name, &bytes);
    return loopback(name, bytes) || equals(name, bytes, own) || listed(allowed, name, bytes);
}

bool rq_origin_allowed(const char *origin, const char *allowed)
{
    return allowed && (!strcmp(allowed, "*") || listed(allowed, origin, strlen(origin)));
}

bool rq_origin_is_own(const char *origin, const char *host_header)
{
    if (!host_header) return false;
    const char *rest = strstr(origin, "://");
    return rest && !strcasecmp(rest + 3, host_header);
}
