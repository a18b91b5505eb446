#include "engine/tokenizer/internal.h"

#include <string.h>

void rq_detok_init(rq_detok *d, const rq_tokenizer *tok, unsigned flags)
{
    *d = (rq_detok){.tok = tok, .flags = flags};
    d->strip_space = (flags & RQ_DETOK_START) && tok->add_space_prefix;
}

/* Could these n bytes (1..3, not well-formed by themselves) be the beginning of a character? */
static bool may_begin(const uint8_t *p, size_t n)
{
    static const uint8_t fill[2] = {0x80, 0xBF}; /* some continuation makes it well-formed, if any does */
    for (int k = 0; k < 2; k++) {
        uint8_t tried[4];
        memset(tried, fill[k], sizeof tried);
        memcpy(tried, p, n);
        if (rq_utf8_length(tried, 4) > n) return true;
    }
    return false;
}

/* Appends bytes as valid UTF-8. Replaces each maximal part of a broken character by one U+FFFD (the Unicode
 * Standard, chapter 3, "U+FFFD substitution of maximal subparts"); returns how many bytes at the end may
 * still become a character. */
static size_t append_valid(const uint8_t *p, size_t n, rq_buf *out, bool *ok)
{
    size_t i = 0;
    while (i < n) {
        size_t good = rq_utf8_valid(p + i, n - i);
        if (good) *ok = rq_buf_append(out, p + i, good) && *ok;
        i += good;
        if (i == n) return 0;
        size_t part = 1;
        while (i + part < n && part < 3 && may_begin(p + i, part + 1)) part++;
        if (i + part == n && may_begin(p + i, part)) return part;
        *ok = rq_buf_append(out, "\xEF\xBF\xBD", 3) && *ok;
        i += part;
    }
    return 0;
}

bool rq_detok_add(rq_detok *d, rq_token id, rq_buf *out)
{
    size_t len;
    rq_token_type type = rq_token_type_of(d->tok, id);
    bool special = type == RQ_TOKEN_CONTROL || type == RQ_TOKEN_UNKNOWN;
    if (special && !(d->flags & RQ_DETOK_SPECIAL)) return !out->failed;
    const uint8_t *piece = (const uint8_t *)rq_token_piece(d->tok, id, &len);
    if (d->strip_space && len) {
        /* The space was put in front of the first text, so a special token before it changes nothing. */
        if (!special) {
            d->strip_space = false;
            if (piece[0] == ' ') {
                piece++;
                len--;
            }
        }
    }
    bool ok = !out->failed;
    /* Finish the character that is being held with as few of the new bytes as it takes. */
    while (d->n_held && len) {
        uint8_t joined[4];
        memcpy(joined, d->held, d->n_held);
        joined[d->n_held] = piece[0];
        size_t n = d->n_held + 1u;
        if (rq_utf8_length(joined, n) == n) {
            ok = rq_buf_append(out, joined, n) && ok;
            d->n_held = 0;
        } else if (n < 4 && may_begin(joined, n)) {
            d->held[d->n_held++] = piece[0];
        } else { /* what is held stays broken; this byte starts something new */
            ok = rq_buf_append(out, "\xEF\xBF\xBD", 3) && ok;
            d->n_held = 0;
            break;
        }
        piece++;
        len--;
    }
    if (len) {
        size_t rest = append_valid(piece, len, out, &ok);
        memcpy(d->held, piece + len - rest, rest);
        d->n_held = (unsigned)rest;
    }
    return ok;
}

bool rq_detok_flush(rq_detok *d, rq_buf *out)
{
    bool ok = !out->failed;
    if (d->n_held) ok = rq_buf_append(out, "\xEF\xBF\xBD", 3);
    rq_detok_init(d, d->tok, d->flags);
    return ok;
}
