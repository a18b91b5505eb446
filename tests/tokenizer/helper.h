/* helper.h - small vocabularies and comparisons for the tokenizer tests. */
#ifndef RQ_TEST_TOKENIZER_HELPER_H
#define RQ_TEST_TOKENIZER_HELPER_H

#include "engine/gguf/gguf.h"
#include "engine/tokenizer/tokenizer.h"

/* Every failing call ends the test with its sentence. */
rq_tokenizer *load_vocab(const char *name);     /* tests/data/vocab/NAME */
char *read_data(const char *name, size_t *len); /* NUL-terminated; rq_free */

/* A vocabulary under construction; everything in it is owned by it. */
typedef struct vocab {
    rq_vocab_source source;
    rq_vocab_text *tokens, *merges;
    int32_t *types;
    float *scores;
    size_t tokens_cap, types_cap, scores_cap, merges_cap, n_types, n_scores;
} vocab;

void vocab_start(vocab *v, const char *model, const char *pre);
int32_t vocab_token(vocab *v, const char *text, int32_t type, float score); /* NUL-terminated text */
void vocab_merge(vocab *v, const char *text);
/* The 256 characters of the byte-level alphabet, or the 256 <0xXX> tokens. */
void vocab_bytes(vocab *v);
rq_tokenizer *vocab_build(vocab *v);
/* Expects creation to fail with this status, and the sentence to contain `part`. */
void vocab_refused(vocab *v, rq_status status, const char *part);
void vocab_end(vocab *v);

/* Spells bytes in the byte-level alphabet; out holds 2 * len + 1 bytes. */
void spell(const uint8_t *bytes, size_t len, char *out);

rq_tokens encode(const rq_tokenizer *tok, const char *text, size_t len, unsigned flags);
void expect_ids(const rq_tokenizer *tok, const char *text, unsigned flags, const rq_token *ids, size_t n);
#define EXPECT_IDS(tok, text, flags, ...)                                                                    \
    expect_ids(tok, text, flags, (const rq_token[]){__VA_ARGS__},                                            \
               sizeof((rq_token[]){__VA_ARGS__}) / sizeof(rq_token))
/* The pieces of the ids of `text` join to the text. */
void expect_round_trip(const rq_tokenizer *tok, const char *text, size_t len);

uint32_t next_random(uint64_t *state);
double now_s(void);

#endif
