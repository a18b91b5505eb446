/* answer.h - an answer that arrives in pieces, divided into what was thought and what is said.
 *
 *     rq_answer answer;
 *     rq_answer_start(&answer, rq_chat_thoughts(model, opening));
 *     for each piece: ok = rq_answer_add(&answer, text, bytes, on_part, user);
 *     ok = rq_answer_end(&answer, on_part, user);
 *     rq_answer_free(&answer);
 *
 * Marks go, wherever pieces are cut, and so do line feeds at both ends of thoughts and between thoughts and what is said
 * first: chat formats put them there. All else is handed on unchanged, in order, and as soon as it cannot be part of a
 * mark. Thoughts that never end are thoughts to the last. Time is proportional to the bytes. */
#ifndef RQ_ANSWER_H
#define RQ_ANSWER_H

#include "backends/base/buf.h"
#include "engine/rqvk.h"

typedef enum rq_answer_place {
    RQ_ANSWER_START,  /* nothing but white space so far */
    RQ_ANSWER_LABEL,  /* thoughts begin: their label may follow */
    RQ_ANSWER_THINKS, /* inside of thoughts */
    RQ_ANSWER_SAYS
} rq_answer_place;

typedef struct rq_answer {
    rq_thought_marks marks;
    rq_answer_place place;
    bool thought;   /* something other than line feeds, since thoughts began */
    bool said;      /* the same of what is said; always where no thoughts came first */
    size_t n_mark;  /* bytes that the text seen so far ends with and the mark looked for begins with */
    size_t n_label; /* the same of the label */
    size_t n_lines; /* line feeds of thoughts that are handed on only if more follows */
    char space[32]; /* white space at the start, which goes if thoughts follow */
    size_t n_space;
    rq_buf out; /* of one part */
} rq_answer;

/* A part of the answer; whole characters if the pieces were. */
typedef void rq_answer_part(void *user, bool thought, const char *text, size_t bytes);

void rq_answer_start(rq_answer *answer, rq_thought_marks marks);
void rq_answer_free(rq_answer *answer);

/* False: out of memory, and some of the text is lost. `part` may be NULL, if only the place is of interest. */
bool rq_answer_add(rq_answer *answer, const char *text, size_t bytes, rq_answer_part *part, void *user);
/* Hands on what was held back. */
bool rq_answer_end(rq_answer *answer, rq_answer_part *part, void *user);

/* Is what comes next part of thoughts? */
bool rq_answer_thinks(const rq_answer *answer);

#endif
