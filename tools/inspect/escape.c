#include "tools/inspect/escape.h"

#include <inttypes.h>
#include <stdbool.h>

/* Decodes one character of s[0..n), n > 0. Returns its length, or 0 when the bytes are not UTF-8 (RFC 3629:
 * shortest form, no surrogates, at most U+10FFFF). */
static uint32_t decode(const unsigned char *s, uint64_t n, uint32_t *out)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    uint32_t len = s[0] < 0x80                   ? 1
                   : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
                   : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
                   : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                                 : 0;
    if (!len || len > n) return 0;
    uint32_t c = len == 1 ? s[0] : s[0] & (0x7fu >> len);
    for (uint32_t i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3f);
    }
    if (c < least[len] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 0;
    *out = c;
    return len;
}

/* Characters with an effect on more than their own cell. */
static bool is_harmful(uint32_t c)
{
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0xad || c == 0x61c || c == 0x180e ||
           (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) ||
           c == 0xfeff || (c >= 0xfff9 && c <= 0xfffb) || (c >= 0xe0000 && c <= 0xe0fff);
}

void inspect_print_text(FILE *out, const char *data, uint64_t len, uint64_t limit)
{
    const unsigned char *s = (const unsigned char *)data;
    uint64_t at = 0;
    for (uint64_t shown = 0; at < len && shown < limit; shown++) {
        uint32_t c, n = decode(s + at, len - at, &c);
        if (!n) {
            fprintf(out, "\\x%02x", s[at]);
            n = 1;
        } else if (c == '\n') {
            fputs("\\n", out);
        } else if (c == '\t') {
            fputs("\\t", out);
        } else if (c == '\\') {
            fputs("\\\\", out);
        } else if (is_harmful(c)) {
            fprintf(out, "\\u{%" PRIx32 "}", c);
        } else {
            fwrite(s + at, 1, n, out);
        }
        at += n;
    }
    if (at < len) fputs("...", out);
}

void inspect_print_json(FILE *out, const char *data, uint64_t len)
{
    const unsigned char *s = (const unsigned char *)data;
    for (uint64_t at = 0; at < len;) {
        uint32_t c, n = decode(s + at, len - at, &c);
        if (!n) {
            fputs("\xef\xbf\xbd", out);
            n = 1;
        } else if (c == '"' || c == '\\') {
            fprintf(out, "\\%c", (int)c);
        } else if (is_harmful(c) && c < 0x10000) {
            fprintf(out, "\\u%04" PRIx32, c);
        } else if (is_harmful(c)) { /* a surrogate pair */
            fprintf(out, "\\u%04" PRIx32 "\\u%04" PRIx32, 0xd7c0 + (c >> 10), 0xdc00 + (c & 0x3ff));
        } else {
            fwrite(s + at, 1, n, out);
        }
        at += n;
    }
}
