#include "engine/chat/thoughts.h"

#include <stdint.h>
#include <string.h>

/* ---- white space, as Python's str.strip (and so Jinja's trim) sees it ------------------------------------ */

/* Bytes of the white space character at s, 0 when there is none. */
static size_t space_at(const unsigned char *s, size_t n)
{
    if (n >= 1 && (s[0] == ' ' || (s[0] >= 0x09 && s[0] <= 0x0d) || (s[0] >= 0x1c && s[0] <= 0x1f))) return 1;
    if (n >= 2 && s[0] == 0xc2 && (s[1] == 0x85 || s[1] == 0xa0)) return 2;
    if (n < 3) return 0;
    if (s[0] == 0xe1 && s[1] == 0x9a && s[2] == 0x80) return 3; /* U+1680 */
    if (s[0] == 0xe2 && s[1] == 0x80 && (s[2] <= 0x8a || s[2] == 0xa8 || s[2] == 0xa9 || s[2] == 0xaf))
        return 3;
    if (s[0] == 0xe2 && s[1] == 0x81 && s[2] == 0x9f) return 3; /* U+205F */
    if (s[0] == 0xe3 && s[1] == 0x80 && s[2] == 0x80) return 3; /* U+3000 */
    return 0;
}

rq_text rq_text_strip(rq_text text)
{
    const unsigned char *s = (const unsigned char *)text.data;
    size_t first = 0, end = text.bytes, k;
    while ((k = space_at(s + first, end - first)) > 0) first += k;
    for (;;) { /* a character of k bytes that ends at `end` */
        for (k = 1; k <= 3 && k <= end - first; k++)
            if (space_at(s + end - k, k) == k) break;
        if (k > 3 || k > end - first) break;
        end -= k;
    }
    return (rq_text){text.data + first, end - first};
}

rq_text rq_text_strip_lines(rq_text text)
{
    while (text.bytes > 0 && text.data[0] == '\n') text.data++, text.bytes--;
    while (text.bytes > 0 && text.data[text.bytes - 1] == '\n') text.bytes--;
    return text;
}

/* ---- thoughts ------------------------------------------------------------------------------------------- */

/* Where `what` begins first (or last) in the text, SIZE_MAX when it does not occur. */
static size_t find(rq_text text, const char *what, bool last)
{
    size_t n = strlen(what), found = SIZE_MAX;
    for (size_t from = 0; from < text.bytes;) {
        const char *hit = memmem(text.data + from, text.bytes - from, what, n);
        if (hit == NULL) break;
        found = (size_t)(hit - text.data);
        if (!last) break;
        from = found + n;
    }
    return found;
}

void rq_thoughts_split(rq_text text, rq_text *thoughts, rq_text *answer)
{
    static const char open[] = "<think>", close[] = "</think>";
    size_t first = find(text, close, false), last = find(text, close, true);
    *thoughts = (rq_text){text.data, 0};
    *answer = text;
    if (first == SIZE_MAX) return;
    *thoughts = (rq_text){text.data, first};
    size_t opened = find(*thoughts, open, true);
    if (opened != SIZE_MAX) {
        opened += sizeof open - 1;
        *thoughts = (rq_text){text.data + opened, first - opened};
    }
    *thoughts = rq_text_strip_lines(*thoughts);
    last += sizeof close - 1;
    *answer = (rq_text){text.data + last, text.bytes - last};
    while (answer->bytes > 0 && answer->data[0] == '\n') answer->data++, answer->bytes--;
}

void rq_thoughts_cut_channels(rq_text text, rq_buf *out)
{
    static const char open[] = "<|channel>", close[] = "<channel|>";
    while (text.bytes > 0) {
        size_t end = find(text, close, false), next = end == SIZE_MAX ? text.bytes : end + sizeof close - 1;
        rq_text part = {text.data, end == SIZE_MAX ? text.bytes : end};
        size_t opened = find(part, open, false);
        rq_buf_append(out, part.data, opened == SIZE_MAX ? part.bytes : opened);
        text = (rq_text){text.data + next, text.bytes - next};
    }
}
