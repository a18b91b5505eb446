#include "engine/tokenizer/internal.h"

#include <string.h>

/* Well-formed sequences: the Unicode Standard, table 3-7 (no surrogates, no overlong forms). */
unsigned rq_utf8_length(const uint8_t *p, size_t n)
{
    if (!n) return 0;
    uint8_t a = p[0];
    if (a < 0x80) return 1;
    if (a < 0xC2 || a > 0xF4 || n < 2) return 0;
    uint8_t low = 0x80, high = 0xBF;
    if (a == 0xE0) low = 0xA0;
    if (a == 0xED) high = 0x9F;
    if (a == 0xF0) low = 0x90;
    if (a == 0xF4) high = 0x8F;
    if (p[1] < low || p[1] > high) return 0;
    unsigned len = a < 0xE0 ? 2 : a < 0xF0 ? 3 : 4;
    if (n < len) return 0;
    for (unsigned i = 2; i < len; i++)
        if ((p[i] & 0xC0) != 0x80) return 0;
    return len;
}

size_t rq_utf8_valid(const uint8_t *p, size_t n)
{
    size_t i = 0;
    while (i < n) {
        if (n - i >= 8) { /* most text is ASCII */
            uint64_t eight;
            memcpy(&eight, p + i, 8);
            if (!(eight & 0x8080808080808080u)) {
                i += 8;
                continue;
            }
        }
        unsigned len = rq_utf8_length(p + i, n - i);
        if (!len) break;
        i += len;
    }
    return i;
}

/* The byte-level alphabet of GPT-2: printable Latin-1 bytes stand for themselves, the other 68 bytes are the
 * characters from U+0100 on, in increasing order. */
static bool stands_for_itself(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

unsigned rq_byte_level_decode(const uint8_t *p, size_t n, uint8_t *byte)
{
    unsigned len = rq_utf8_length(p, n);
    if (len == 1 && stands_for_itself(p[0])) {
        *byte = p[0];
        return 1;
    }
    if (len != 2) return 0;
    unsigned c = (p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu);
    if (c < 0x100) {
        *byte = (uint8_t)c;
        return stands_for_itself(c) ? 2 : 0;
    }
    c -= 0x100; /* 0..67: the bytes 0x00-0x20, 0x7F-0xA0, 0xAD */
    if (c > 67) return 0;
    *byte = (uint8_t)(c < 33 ? c : c < 67 ? c - 33 + 0x7F : 0xAD);
    return 2;
}
