/* wordings.c - see wordings.h. */
#include "tools/needle/wordings.h"

#include <string.h>

const char *const rq_needle_things[] = {"code",          "number",         "password",         "key",
                                        "secret number", "room number",    "access code",      "pin",
                                        "ticket number", "locker code",    "telephone number", "badge number",
                                        "token",         "account number", "gate code",        NULL};

const char *const rq_needle_facts[] = {"Do not forget that {n}'s {t} is {v}.",
                                       "The {t} assigned to {n} is {v}.",
                                       "You should know that {n} has the {t} {v}.",
                                       "According to the letter, the {t} of {n} is {v}.",
                                       "{n} keeps the {t} {v}.",
                                       "In the end {n} chose the {t} {v}.",
                                       "Here is the {t} of {n}: {v}.",
                                       NULL};

const char *const rq_needle_asks[] = {"Can you tell me the {t} of {n}?",
                                      "According to the text, what is {n}'s {t}?",
                                      "I need the {t} of {n}.",
                                      "What did the text say was the {t} of {n}?",
                                      "Name the {t} of {n}.",
                                      NULL};

const char rq_needle_answer[] = "The {t} of {n} is {v}.";

static const char *const onsets[] = {"b",  "br", "c",  "ch", "d",  "dr", "f", "fl", "g",  "gl", "gr", "h",
                                     "j",  "k",  "kl", "l",  "m",  "n",  "p", "pl", "qu", "r",  "s",  "sh",
                                     "sk", "sl", "st", "t",  "th", "tr", "v", "w",  "z",  NULL};
static const char *const vowels[] = {"a", "e", "i", "o", "u", "ai", "ea", "ee", "ia", "io", "oa", "ou", NULL};
static const char *const codas[] = {"",   "",   "",  "n",  "r", "l", "s",  "th", "m",
                                    "nd", "rk", "x", "ck", "t", "v", "nt", NULL};
static const char *const ends[] = {"a",    "o",    "us",  "in",  "el",  "ar",  "is",  "on",
                                   "ia",   "ett",  "win", "ley", "ton", "man", "der", "ric",
                                   "mund", "bert", "a",   "e",   "y",   NULL};

rq_needle_random rq_needle_random_start(uint64_t seed, uint64_t stream)
{
    rq_needle_random r = {seed * 0x9E3779B97F4A7C15u + stream * 0xD1B54A32D192ED03u + 1};
    return r;
}

/* splitmix64 (Steele, Lea and Flood 2014), and Lemire's multiplication without its rejection: n is far below 2^32. */
uint32_t rq_needle_below(rq_needle_random *r, uint32_t n)
{
    uint64_t z = r->state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return (uint32_t)((z >> 32) * n >> 32);
}

uint32_t rq_needle_crc32(const char *text)
{
    uint32_t crc = UINT32_MAX;
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        crc ^= *c;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

/* ---- names ------------------------------------------------------------------------------------------------- */

typedef struct name_text {
    char *text;
    size_t bytes;
} name_text;

static void add(name_text *n, const char *const *list, rq_needle_random *r)
{
    uint32_t count = 0;
    while (list[count]) count++;
    const char *piece = list[rq_needle_below(r, count)];
    size_t bytes = strlen(piece);
    if (n->bytes + bytes >= RQ_NEEDLE_NAME_BYTES) return;
    memcpy(n->text + n->bytes, piece, bytes);
    n->bytes += bytes;
}

static void capital(char *c)
{
    if (*c >= 'a' && *c <= 'z') *c = (char)(*c - 'a' + 'A');
}

static void any_name(rq_needle_random *r, char out[RQ_NEEDLE_NAME_BYTES])
{
    name_text n = {out, 0};
    add(&n, onsets, r);
    add(&n, vowels, r);
    add(&n, codas, r);
    if (rq_needle_below(r, 10) < 4) {
        add(&n, onsets, r);
        add(&n, vowels, r);
    }
    add(&n, ends, r);
    capital(out);
    if (rq_needle_below(r, 4) == 0) {
        out[n.bytes++] = ' ';
        size_t second = n.bytes;
        add(&n, onsets, r);
        add(&n, vowels, r);
        add(&n, ends, r);
        capital(out + second);
    }
    out[n.bytes] = 0;
}

void rq_needle_name(rq_needle_random *r, char out[RQ_NEEDLE_NAME_BYTES])
{
    do any_name(r, out);
    while (rq_needle_crc32(out) % 8 != 0);
}
