/* stops.c - one Knuth-Morris-Pratt automaton per stop string. */
#include "engine/text/stops.h"

#include <stdint.h>
#include <string.h>

/* Well-formed UTF-8 (Unicode 15, table 3-7)? */
static bool is_utf8(const unsigned char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        unsigned char c = s[i++], low = 0x80, high = 0xbf;
        size_t more;
        if (c < 0x80) continue;
        if (c >= 0xc2 && c <= 0xdf) {
            more = 1;
        } else if (c >= 0xe0 && c <= 0xef) {
            more = 2;
            if (c == 0xe0) low = 0xa0;
            if (c == 0xed) high = 0x9f;
        } else if (c >= 0xf0 && c <= 0xf4) {
            more = 3;
            if (c == 0xf0) low = 0x90;
            if (c == 0xf4) high = 0x8f;
        } else {
            return false;
        }
        for (; more > 0; more--, low = 0x80, high = 0xbf)
            if (i == n || s[i] < low || s[i++] > high) return false;
    }
    return true;
}

rq_status rq_stops_init(rq_stops *st, const char *const *strings, size_t n, rq_error *err)
{
    if (n > RQ_MAX_STOPS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%zu stop strings are more than the %d allowed", n,
                       RQ_MAX_STOPS);
    memset(st, 0, sizeof *st);
    for (size_t i = 0; i < n; i++) {
        size_t len = strings[i] != NULL ? strnlen(strings[i], RQ_MAX_STOP_BYTES + 1) : 0;
        if (len == 0) return rq_fail(err, RQ_ERR_ARGUMENT, "a stop string must not be empty");
        if (len > RQ_MAX_STOP_BYTES)
            return rq_fail(err, RQ_ERR_ARGUMENT, "a stop string is longer than the %d bytes allowed",
                           RQ_MAX_STOP_BYTES);
        if (!is_utf8((const unsigned char *)strings[i], len))
            return rq_fail(err, RQ_ERR_ARGUMENT, "a stop string is not valid UTF-8");
        memcpy(st->text[i], strings[i], len);
        st->bytes[i] = len;
        size_t k = 0;
        for (size_t j = 1; j < len; j++) {
            while (k > 0 && st->text[i][k] != st->text[i][j]) k = st->border[i][k - 1];
            if (st->text[i][k] == st->text[i][j]) k++;
            st->border[i][j] = (uint16_t)k;
        }
    }
    st->n = n;
    return RQ_OK;
}

/* Gives out the first n bytes of (held, then text[0 .. used)) and holds back the rest, which is short. */
static void give(rq_stops *st, const char *text, size_t used, size_t n, rq_buf *out)
{
    size_t from_held = n < st->n_held ? n : st->n_held;
    size_t from_text = n - from_held;
    rq_buf_append(out, st->held, from_held);
    rq_buf_append(out, text, from_text);
    st->n_held -= from_held;
    memmove(st->held, st->held + from_held, st->n_held);
    memcpy(st->held + st->n_held, text + from_text, used - from_text);
    st->n_held += used - from_text;
}

bool rq_stops_add(rq_stops *st, const char *text, size_t bytes, rq_buf *out)
{
    if (st->found) return true;
    for (size_t at = 0; at < bytes; at++) {
        size_t complete = 0;
        for (size_t i = 0; i < st->n; i++) {
            size_t k = st->matched[i];
            while (k > 0 && st->text[i][k] != text[at]) k = st->border[i][k - 1];
            if (st->text[i][k] == text[at]) k++;
            st->matched[i] = k;
            if (k == st->bytes[i] && k > complete) complete = k;
        }
        if (complete > 0) {
            give(st, text, at + 1, st->n_held + at + 1 - complete, out);
            st->n_held = 0;
            st->found = true;
            return true;
        }
    }
    size_t keep = 0;
    for (size_t i = 0; i < st->n; i++)
        if (st->matched[i] > keep) keep = st->matched[i];
    give(st, text, bytes, st->n_held + bytes - keep, out);
    return false;
}

void rq_stops_flush(rq_stops *st, rq_buf *out)
{
    if (!st->found) rq_buf_append(out, st->held, st->n_held);
    st->n_held = 0;
}
