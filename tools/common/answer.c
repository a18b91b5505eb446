/* answer.c - see answer.h. */
#include "tools/common/answer.h"

#include <string.h>

enum { MAX_PART_BYTES = 64 << 20 };

typedef struct sink {
    rq_answer_part *part;
    void *user;
    bool ok;
} sink;

static void open_thoughts(rq_answer *a)
{
    a->place = a->marks.label[0] != '\0' ? RQ_ANSWER_LABEL : RQ_ANSWER_THINKS;
    a->n_label = a->n_lines = 0;
    a->thought = false;
}

void rq_answer_start(rq_answer *a, rq_thought_marks marks)
{
    *a = (rq_answer){.marks = marks, .out = {.max = MAX_PART_BYTES}};
    if (marks.open == NULL) {
        a->place = RQ_ANSWER_SAYS;
        a->said = true;
    } else if (marks.opened) {
        open_thoughts(a);
    }
}

void rq_answer_free(rq_answer *a)
{
    rq_buf_free(&a->out);
}

bool rq_answer_thinks(const rq_answer *a)
{
    return a->place == RQ_ANSWER_LABEL || a->place == RQ_ANSWER_THINKS;
}

/* Hands on what was gathered of the part in hand. */
static void deliver(rq_answer *a, sink *to)
{
    to->ok = to->ok && !a->out.failed;
    if (a->out.len > 0) to->part(to->user, rq_answer_thinks(a), a->out.data, a->out.len);
    rq_buf_clear(&a->out);
}

static void gather(rq_answer *a, sink *to, const char *text, size_t bytes)
{
    if (to->part != NULL) rq_buf_append(&a->out, text, bytes);
}

static void gather_thought(rq_answer *a, sink *to, char c)
{
    if (c == '\n') {
        a->n_lines += a->thought;
        return;
    }
    a->thought = true;
    for (; a->n_lines > 0; a->n_lines--) gather(a, to, "\n", 1);
    gather(a, to, &c, 1);
}

/* The text goes on otherwise than the label, or ends. */
static void no_label(rq_answer *a, sink *to)
{
    a->place = RQ_ANSWER_THINKS;
    for (size_t i = 0; i < a->n_label; i++) gather_thought(a, to, a->marks.label[i]);
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* A byte that is part of no mark. */
static void take(rq_answer *a, sink *to, char c)
{
    switch (a->place) {
    case RQ_ANSWER_START:
        if (is_space(c) && a->n_space < sizeof a->space) {
            a->space[a->n_space++] = c;
            return;
        }
        a->place = RQ_ANSWER_SAYS;
        a->said = true;
        gather(a, to, a->space, a->n_space);
        gather(a, to, &c, 1);
        return;
    case RQ_ANSWER_LABEL:
        if (c == a->marks.label[a->n_label]) {
            a->n_label++;
            if (a->marks.label[a->n_label] == '\0') a->place = RQ_ANSWER_THINKS;
            return;
        }
        no_label(a, to);
        gather_thought(a, to, c);
        return;
    case RQ_ANSWER_THINKS:
        gather_thought(a, to, c);
        return;
    case RQ_ANSWER_SAYS:
        if (!a->said && c == '\n') return;
        a->said = true;
        gather(a, to, &c, 1);
        return;
    }
}

/* The mark that would change the place; NULL: none. */
static const char *awaited(const rq_answer *a)
{
    if (a->marks.open == NULL) return NULL;
    if (rq_answer_thinks(a)) return a->marks.close;
    return a->place == RQ_ANSWER_START || a->marks.anywhere ? a->marks.open : NULL;
}

static void pass_mark(rq_answer *a, sink *to)
{
    if (a->place == RQ_ANSWER_LABEL) no_label(a, to);
    if (to->part != NULL) deliver(a, to);
    a->n_mark = a->n_space = 0;
    if (rq_answer_thinks(a))
        a->place = RQ_ANSWER_SAYS;
    else
        open_thoughts(a);
}

/* Does mark[from .. from + n) begin the mark? */
static bool repeats(const char *mark, size_t from, size_t n)
{
    return memcmp(mark + from, mark, n) == 0;
}

/* One byte: it goes on with the mark, or what looked like one is text up to where it may begin anew. */
static void advance(rq_answer *a, sink *to, char c)
{
    const char *mark = awaited(a);
    while (mark != NULL && a->n_mark > 0 && mark[a->n_mark] != c) {
        size_t drop = 1;
        while (drop < a->n_mark && !repeats(mark, drop, a->n_mark - drop)) drop++;
        a->n_mark -= drop;
        for (size_t i = 0; i < drop; i++) take(a, to, mark[i]);
        if (awaited(a) != mark) { /* the answer has begun, and no thoughts can follow */
            for (size_t i = 0; i < a->n_mark; i++) take(a, to, mark[drop + i]);
            a->n_mark = 0;
            mark = NULL;
        }
    }
    if (mark == NULL || mark[a->n_mark] != c) {
        take(a, to, c);
    } else if (mark[++a->n_mark] == '\0') {
        pass_mark(a, to);
    }
}

bool rq_answer_add(rq_answer *a, const char *text, size_t bytes, rq_answer_part *part, void *user)
{
    sink to = {part, user, true};
    size_t i = 0;
    while (i < bytes && awaited(a) != NULL) advance(a, &to, text[i++]);
    while (i < bytes && !a->said) take(a, &to, text[i++]); /* line feeds behind thoughts */
    gather(a, &to, text + i, bytes - i);
    if (part != NULL) deliver(a, &to);
    return to.ok;
}

bool rq_answer_end(rq_answer *a, rq_answer_part *part, void *user)
{
    sink to = {part, user, true};
    const char *mark = awaited(a);
    size_t n = a->n_mark;
    a->n_mark = 0;
    for (size_t i = 0; i < n; i++) take(a, &to, mark[i]);
    if (a->place == RQ_ANSWER_LABEL) no_label(a, &to);
    if (a->place == RQ_ANSWER_START) {
        gather(a, &to, a->space, a->n_space);
        a->place = RQ_ANSWER_SAYS;
    }
    if (part != NULL) deliver(a, &to);
    return to.ok;
}
