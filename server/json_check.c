/* json_check.c - see json_check.h. */
#include "server/json_check.h"

#include "backends/base/mem.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* ---- UTF-8 (Unicode 15, table 3-7) --------------------------------------------------------------------- */

size_t rq_json_utf8_length(const char *text, size_t bytes)
{
    const unsigned char *s = (const unsigned char *)text;
    if (bytes == 0) return 0;
    if (s[0] < 0x80) return 1;
    size_t length = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4 || length > bytes) return 0;
    unsigned char low = 0x80, high = 0xBF;
    if (s[0] == 0xE0) low = 0xA0;
    if (s[0] == 0xED) high = 0x9F;
    if (s[0] == 0xF0) low = 0x90;
    if (s[0] == 0xF4) high = 0x8F;
    if (s[1] < low || s[1] > high) return 0;
    for (size_t i = 2; i < length; i++) {
        if (s[i] < 0x80 || s[i] > 0xBF) return 0;
    }
    return length;
}

bool rq_json_utf8_valid(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes;) {
        size_t length = rq_json_utf8_length(text + i, bytes - i);
        if (!length) return false;
        i += length;
    }
    return true;
}

/* ---- grammar ------------------------------------------------------------------------------------------- */

typedef struct scanner {
    const char *text;
    size_t bytes, at, values;
    const rq_json_limits *limits;
    rq_error *err;
} scanner;

static bool bad(scanner *s, const char *what)
{
    rq_fail(s->err, RQ_ERR_FORMAT, "the request body is not acceptable JSON: %s at byte %zu", what, s->at);
    return false;
}

static void skip_space(scanner *s)
{
    while (s->at < s->bytes && strchr(" \t\r\n", s->text[s->at]) && s->text[s->at]) s->at++;
}

static int peek(const scanner *s)
{
    return s->at < s->bytes ? (unsigned char)s->text[s->at] : -1;
}

static bool hex4(scanner *s, unsigned *out)
{
    unsigned v = 0;
    for (int i = 0; i < 4; i++, s->at++) {
        int c = peek(s);
        unsigned digit;
        if (c >= '0' && c <= '9')
            digit = (unsigned)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (unsigned)(c - 'a') + 10;
        else if (c >= 'A' && c <= 'F')
            digit = (unsigned)(c - 'A') + 10;
        else
            return bad(s, "a \\u escape without four hexadecimal digits");
        v = v * 16 + digit;
    }
    *out = v;
    return true;
}

static bool scan_escape(scanner *s)
{
    s->at++; /* the backslash */
    int c = peek(s);
    if (c < 0 || !strchr("\"\\/bfnrtu", c) || c == 0) return bad(s, "an unknown escape");
    s->at++;
    if (c != 'u') return true;
    unsigned first = 0, second = 0;
    if (!hex4(s, &first)) return false;
    if (first == 0) return bad(s, "a NUL character in a string");
    if (first >= 0xDC00 && first <= 0xDFFF) return bad(s, "half of a surrogate pair");
    if (first < 0xD800 || first > 0xDBFF) return true;
    if (peek(s) != '\\' || s->at + 1 >= s->bytes || s->text[s->at + 1] != 'u') {
        return bad(s, "half of a surrogate pair");
    }
    s->at += 2;
    if (!hex4(s, &second)) return false;
    if (second < 0xDC00 || second > 0xDFFF) return bad(s, "half of a surrogate pair");
    return true;
}

static bool scan_string(scanner *s)
{
    s->at++;
    for (;;) {
        int c = peek(s);
        if (c < 0) return bad(s, "a string without end");
        if (c == '"') {
            s->at++;
            return true;
        }
        if (c == '\\') {
            if (!scan_escape(s)) return false;
        } else if (c < 0x20) {
            return bad(s, "a control character in a string");
        } else {
            size_t length = rq_json_utf8_length(s->text + s->at, s->bytes - s->at);
            if (!length) return bad(s, "invalid UTF-8");
            s->at += length;
        }
    }
}

static size_t scan_digits(scanner *s)
{
    size_t n = 0;
    while (peek(s) >= '0' && peek(s) <= '9') s->at++, n++;
    return n;
}

static bool scan_number(scanner *s)
{
    size_t start = s->at;
    bool integer = true;
    if (peek(s) == '-') s->at++;
    bool zero = peek(s) == '0';
    size_t digits = scan_digits(s);
    if (!digits || (zero && digits > 1)) return bad(s, "a malformed number");
    if (peek(s) == '.') {
        integer = false;
        s->at++;
        if (!scan_digits(s)) return bad(s, "a malformed number");
    }
    if (peek(s) == 'e' || peek(s) == 'E') {
        integer = false;
        s->at++;
        if (peek(s) == '+' || peek(s) == '-') s->at++;
        if (!scan_digits(s)) return bad(s, "a malformed number");
    }
    char copy[64];
    size_t length = s->at - start;
    if (length >= sizeof copy) return bad(s, "a number of more than 63 characters");
    memcpy(copy, s->text + start, length);
    copy[length] = '\0';
    if (integer) {
        if (digits > 16 || llabs(strtoll(copy, NULL, 10)) > INT64_C(9007199254740992)) {
            return bad(s, "an integer above 2^53");
        }
    } else if (!isfinite(strtod(copy, NULL))) {
        return bad(s, "a number too large");
    }
    return true;
}

static bool scan_word(scanner *s, const char *word)
{
    size_t n = strlen(word);
    if (s->bytes - s->at < n || memcmp(s->text + s->at, word, n) != 0)
        return bad(s, "something that is not a value");
    s->at += n;
    return true;
}

static bool scan_value(scanner *s, unsigned depth);

static bool scan_members(scanner *s, unsigned depth, bool object)
{
    int closing = object ? '}' : ']';
    if (depth >= s->limits->max_depth) return bad(s, "too many arrays or objects inside each other");
    s->at++;
    skip_space(s);
    if (peek(s) == closing) {
        s->at++;
        return true;
    }
    for (;;) {
        skip_space(s);
        if (object) {
            if (peek(s) != '"') return bad(s, "an object key that is not a string");
            if (!scan_string(s)) return false;
            skip_space(s);
            if (peek(s) != ':') return bad(s, "a missing ':'");
            s->at++;
        }
        if (!scan_value(s, depth + 1)) return false;
        skip_space(s);
        int c = peek(s);
        if (c != ',' && c != closing) return bad(s, object ? "a missing ',' or '}'" : "a missing ',' or ']'");
        s->at++;
        if (c == closing) return true;
    }
}

static bool scan_value(scanner *s, unsigned depth)
{
    skip_space(s);
    if (s->values++ >= s->limits->max_values) return bad(s, "too many values");
    int c = peek(s);
    if (c == '{' || c == '[') return scan_members(s, depth, c == '{');
    if (c == '"') return scan_string(s);
    if (c == '-' || (c >= '0' && c <= '9')) return scan_number(s);
    if (c == 't') return scan_word(s, "true");
    if (c == 'f') return scan_word(s, "false");
    if (c == 'n') return scan_word(s, "null");
    return bad(s, c < 0 ? "the end comes too early" : "something that is not a value");
}

rq_status rq_json_check(const char *text, size_t bytes, const rq_json_limits *limits, rq_error *err)
{
    scanner s = {.text = text, .bytes = bytes, .limits = limits, .err = err};
    if (!scan_value(&s, 0)) return RQ_ERR_FORMAT;
    skip_space(&s);
    if (s.at != bytes) {
        bad(&s, "more text after the end");
        return RQ_ERR_FORMAT;
    }
    return RQ_OK;
}

/* ---- repeated keys ------------------------------------------------------------------------------------- */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static rq_status unique_in_object(const cJSON *object, rq_error *err)
{
    size_t n = 0;
    for (const cJSON *item = object->child; item; item = item->next) n++;
    if (n < 2) return RQ_OK;
    const char **keys = rq_malloc(n * sizeof *keys);
    if (!keys) return rq_fail(err, RQ_ERR_MEMORY, "there is not enough memory for this request");
    size_t i = 0;
    for (const cJSON *item = object->child; item; item = item->next) keys[i++] = item->string;
    qsort(keys, n, sizeof *keys, by_text);
    rq_status status = RQ_OK;
    for (i = 1; i < n && status == RQ_OK; i++) {
        if (!strcmp(keys[i - 1], keys[i])) {
            status = rq_fail(err, RQ_ERR_FORMAT, "the key \"%.60s\" appears twice in one object", keys[i]);
        }
    }
    rq_free(keys);
    return status;
}

rq_status rq_json_unique_keys(const cJSON *root, rq_error *err)
{
    if (cJSON_IsObject(root)) {
        rq_status status = unique_in_object(root, err);
        if (status != RQ_OK) return status;
    }
    for (const cJSON *item = root->child; item; item = item->next) {
        if (!item->child) continue;
        rq_status status = rq_json_unique_keys(item, err);
        if (status != RQ_OK) return status;
    }
    return RQ_OK;
}
