/* trial.c - see trial.h. The construction follows recall_context of tools/train/data.py. */
#include "tools/needle/trial.h"

#include "backends/base/buf.h"
#include "backends/base/mem.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum { MAX_SENTENCES = 1 << 16, MAX_FACTS = 4, MAX_TOLD = 192, MAX_PROMPT_BYTES = 1 << 24 };

static rq_status count_tokens(const rq_model *model, const char *text, size_t bytes, uint32_t *n,
                              rq_error *err)
{
    rq_tokens ids = {0};
    rq_status s = rq_tokenize(model, text, bytes, 0, &ids, err);
    if (!s) *n = (uint32_t)ids.n;
    rq_tokens_free(&ids);
    return s;
}

/* ---- haystack -------------------------------------------------------------------------------------------- */

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r') || c == 0;
}

/* Every run of white space becomes one space; NULs count as white space. */
static char *folded(const char *text, size_t bytes, size_t *out_bytes)
{
    char *out = rq_malloc(bytes + 2);
    if (!out) return NULL;
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (!is_space(text[i]))
            out[n++] = text[i];
        else if (n == 0 || out[n - 1] != ' ')
            out[n++] = ' ';
    }
    out[n] = 0;
    *out_bytes = n;
    return out;
}

static rq_status add_sentence(const rq_model *model, rq_needle_haystack *h, const char *at, size_t bytes,
                              rq_error *err)
{
    if (bytes <= 20 || bytes >= 300 || h->n == MAX_SENTENCES) return RQ_OK;
    char spaced[301] = " ";
    memcpy(spaced + 1, at, bytes);
    uint32_t n = 0;
    rq_status s = count_tokens(model, spaced, bytes + 1, &n, err);
    if (s || n == 0) return s;
    if (!rq_grow((void **)&h->sentences, &h->cap, h->n + 1, sizeof *h->sentences))
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the sentences of the text");
    h->sentences[h->n++] = (struct rq_needle_sentence){at, (uint32_t)bytes, n};
    return RQ_OK;
}

rq_status rq_needle_haystack_make(const rq_model *model, const char *text, size_t bytes,
                                  rq_needle_haystack *out, rq_error *err)
{
    rq_needle_haystack h = {0};
    size_t n = 0, start = 0;
    h.text = folded(text, bytes, &n);
    if (!h.text) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for %zu bytes of text", bytes);
    rq_status s = count_tokens(model, " and", 4, &h.n_pad, err);
    for (size_t i = 0; i < n && !s; i++) {
        if (!strchr(".!?;:", h.text[i]) || h.text[i + 1] != ' ') continue;
        s = add_sentence(model, &h, h.text + start, i + 1 - start, err);
        start = i + 2;
    }
    if (!s && start < n) s = add_sentence(model, &h, h.text + start, n - start, err);
    if (!s && h.n < 16)
        s = rq_fail(err, RQ_ERR_FORMAT, "the text has only %zu sentences of usual length", h.n);
    if (s)
        rq_needle_haystack_free(&h);
    else
        *out = h;
    return s;
}

void rq_needle_haystack_free(rq_needle_haystack *haystack)
{
    rq_free(haystack->text);
    rq_free(haystack->sentences);
    *haystack = (rq_needle_haystack){0};
}

/* ---- form --------------------------------------------------------------------------------------------------- */

static rq_status render(const rq_model *model, bool chat, const char *content, size_t bytes, rq_tokens *out,
                        rq_error *err)
{
    if (chat) {
        const rq_message message = {.role = "user", .content = content, .content_bytes = bytes};
        return rq_chat_tokenize(model, &message, 1, RQ_OPEN, out, NULL, err);
    }
    rq_status s = rq_tokenize(model, content, bytes, RQ_MODEL_BOS, out, err);
    return s ? s : rq_tokenize(model, "\n", 1, 0, out, err);
}

rq_status rq_needle_form_of(const rq_model *model, rq_needle_form *out, rq_error *err)
{
    rq_model_info info;
    rq_model_describe(model, &info);
    rq_needle_form f = {.chat = strcmp(info.chat_format, "none") != 0};
    rq_tokens a = {0}, b = {0};
    uint32_t content = 0;
    rq_status s = render(model, f.chat, " and", 4, &a, err);
    if (!s) s = render(model, f.chat, " or", 3, &b, err);
    if (!s) s = count_tokens(model, " and", 4, &content, err);
    while (!s && f.n_before < a.n && f.n_before < b.n && a.ids[f.n_before] == b.ids[f.n_before]) f.n_before++;
    if (!s) f.n_overhead = (uint32_t)a.n > content ? (uint32_t)a.n - content : 0;
    rq_tokens_free(&a);
    rq_tokens_free(&b);
    if (!s) *out = f;
    return s;
}

/* ---- facts -------------------------------------------------------------------------------------------------- */

typedef struct fact {
    char name[RQ_NEEDLE_NAME_BYTES], value[8];
    const char *thing;
    char told[MAX_TOLD], asked[MAX_TOLD];
    uint32_t n_told; /* tokens, a space in front */
} fact;

/* `wording` with its marks replaced and a capital letter in front; cut where it does not fit. */
static void fill(const char *wording, const fact *f, char *out, size_t capacity)
{
    size_t n = 0;
    for (const char *w = wording; *w && n + 1 < capacity;) {
        const char *piece = NULL;
        if (w[0] == '{') piece = w[1] == 't' ? f->thing : w[1] == 'n' ? f->name : f->value;
        if (!piece) {
            out[n++] = *w++;
            continue;
        }
        size_t bytes = strlen(piece), room = capacity - 1 - n;
        if (bytes > room) bytes = room;
        memcpy(out + n, piece, bytes);
        n += bytes;
        w += 3;
    }
    out[n] = 0;
    if (out[0] >= 'a' && out[0] <= 'z') out[0] = (char)(out[0] - 'a' + 'A');
}

static const char *any(rq_needle_random *r, const char *const *list)
{
    uint32_t n = 0;
    while (list[n]) n++;
    return list[rq_needle_below(r, n)];
}

static rq_status make_facts(const rq_model *model, rq_needle_random *r, fact facts[MAX_FACTS], uint32_t n,
                            rq_error *err)
{
    rq_status s = RQ_OK;
    for (uint32_t i = 0; i < n && !s; i++) {
        fact *f = &facts[i];
        bool taken;
        do {
            rq_needle_name(r, f->name);
            taken = false;
            for (uint32_t j = 0; j < i; j++) taken |= strcmp(facts[j].name, f->name) == 0;
        } while (taken);
        f->thing = any(r, rq_needle_things);
        snprintf(f->value, sizeof f->value, "%u", 10000 + rq_needle_below(r, 90000));
        f->told[0] = ' ';
        fill(any(r, rq_needle_facts), f, f->told + 1, sizeof f->told - 1);
        fill(any(r, rq_needle_asks), f, f->asked, sizeof f->asked);
        s = count_tokens(model, f->told, strlen(f->told), &f->n_told, err);
    }
    return s;
}

/* ---- trial -------------------------------------------------------------------------------------------------- */

/* Consecutive sentences from a random one on, as many as fit into `room` tokens. */
static uint32_t choose_filler(const rq_needle_haystack *h, rq_needle_random *r, uint32_t room, size_t *first)
{
    *first = rq_needle_below(r, (uint32_t)h->n);
    uint32_t n = 0;
    for (uint32_t used = 0; n < h->n; n++) {
        used += h->sentences[(*first + n) % h->n].n_tokens;
        if (used > room) break;
    }
    return n;
}

typedef struct writer {
    rq_buf text;
    uint32_t at; /* token position of what is written next */
    const rq_needle_haystack *haystack;
} writer;

static void write_fact(writer *w, const fact *f, uint32_t *position)
{
    for (int i = 0; w->at % 8 != 5 && i < 8 && w->haystack->n_pad == 1; i++) {
        rq_buf_puts(&w->text, " and");
        w->at++;
    }
    if (position) *position = w->at;
    rq_buf_puts(&w->text, f->told);
    w->at += f->n_told;
}

rq_status rq_needle_trial_make(const rq_model *model, const rq_needle_haystack *haystack,
                               const rq_needle_form *form, uint64_t seed, uint64_t index, uint32_t length,
                               double depth, rq_needle_trial *out, rq_error *err)
{
    rq_needle_random random = rq_needle_random_start(seed, index);
    fact facts[MAX_FACTS] = {0};
    uint32_t n_facts = 1 + rq_needle_below(&random, MAX_FACTS), n_answer = 0, n_question = 0;
    rq_status s = make_facts(model, &random, facts, n_facts, err);
    if (s) return s;
    rq_needle_trial t = {.thing = facts[0].thing};
    memcpy(t.name, facts[0].name, sizeof t.name);
    memcpy(t.value, facts[0].value, sizeof t.value);
    fill(rq_needle_answer, &facts[0], t.answer, sizeof t.answer);
    char question[MAX_TOLD + 4];
    snprintf(question, sizeof question, "\n\n%s", facts[0].asked);
    s = count_tokens(model, t.answer, strlen(t.answer), &n_answer, err);
    if (!s) s = count_tokens(model, question, strlen(question), &n_question, err);
    /* eight tokens for each fact to move it, two to spare where pieces meet */
    uint32_t fixed = form->n_overhead + n_question + n_answer + 4;
    for (uint32_t i = 0; i < n_facts; i++) fixed += facts[i].n_told + 8;
    if (!s && fixed > length)
        s = rq_fail(err, RQ_ERR_ARGUMENT, "a context of %u tokens has no room for %u facts and a question",
                    length, n_facts);
    if (s) return s;

    size_t first;
    uint32_t n_pieces = choose_filler(haystack, &random, length - fixed, &first), where[MAX_FACTS];
    where[0] = (uint32_t)(depth * (n_pieces + 1));
    if (where[0] > n_pieces) where[0] = n_pieces;
    for (uint32_t i = 1; i < n_facts; i++) where[i] = rq_needle_below(&random, n_pieces + 1);

    writer w = {.text = {.max = MAX_PROMPT_BYTES}, .at = form->n_before, .haystack = haystack};
    for (uint32_t piece = 0; piece <= n_pieces; piece++) {
        for (uint32_t i = 0; i < n_facts; i++)
            if (where[i] == piece) write_fact(&w, &facts[i], i == 0 ? &t.fact_position : NULL);
        if (piece == n_pieces) break;
        const struct rq_needle_sentence *sentence = &haystack->sentences[(first + piece) % haystack->n];
        rq_buf_puts(&w.text, " ");
        rq_buf_append(&w.text, sentence->at, sentence->bytes);
        w.at += sentence->n_tokens;
    }
    rq_buf_puts(&w.text, question);
    if (w.text.failed) s = rq_fail(err, RQ_ERR_MEMORY, "out of memory for a prompt");
    if (!s) s = render(model, form->chat, w.text.data, w.text.len, &t.prompt, err);
    rq_buf_free(&w.text);
    if (s)
        rq_tokens_free(&t.prompt);
    else
        *out = t;
    return s;
}

rq_needle_outcome rq_needle_judge(const rq_needle_trial *trial, const char *answer)
{
    while (isspace((unsigned char)*answer)) answer++;
    size_t bytes = strlen(answer), value = strlen(trial->value);
    while (bytes && isspace((unsigned char)answer[bytes - 1])) bytes--;
    if (bytes == strlen(trial->answer) && memcmp(answer, trial->answer, bytes) == 0)
        return RQ_NEEDLE_SENTENCE;
    for (const char *at = answer; (at = strstr(at, trial->value)) != NULL; at++)
        if ((at == answer || !isdigit((unsigned char)at[-1])) && !isdigit((unsigned char)at[value]))
            return RQ_NEEDLE_VALUE;
    return RQ_NEEDLE_WRONG;
}
