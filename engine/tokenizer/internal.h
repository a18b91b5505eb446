/* internal.h - what the files of the tokenizer room share. Nobody outside includes this. */
#ifndef RQ_TOKENIZER_INTERNAL_H
#define RQ_TOKENIZER_INTERNAL_H

#include "engine/tokenizer/queue.h"
#include "engine/tokenizer/symbols.h"
#include "engine/tokenizer/tokenizer.h"

typedef struct rq_splitter rq_splitter;
typedef struct rq_matcher rq_matcher;

typedef enum rq_algorithm {
    RQ_ALGO_BYTE_BPE, /* a pattern cuts words; their bytes are merged by rank */
    RQ_ALGO_SPM,      /* UTF-8 characters are merged by the score of the result */
    RQ_ALGO_GEMMA4    /* UTF-8 characters are merged by rank, words are lines */
} rq_algorithm;

enum { RQ_MARK_EOG = 1, RQ_MARK_RSTRIP = 2 };

struct rq_tokenizer {
    rq_algorithm algorithm;
    size_t n_tokens;
    rq_symbols symbols; /* 0 .. n_tokens - 1 are the tokens, the rest exist in merges only */
    rq_span *text;      /* [n_tokens] as in the vocabulary */
    rq_span *piece;     /* [n_tokens] what a token prints */
    uint8_t *type;      /* [n_tokens] rq_token_type */
    uint8_t *mark;      /* [n_tokens] RQ_MARK_* */
    uint32_t
        *score_rank;  /* [n_tokens] 0: the highest score; equal scores have equal ranks. RQ_ALGO_SPM only */
    uint32_t n_ranks; /* ranks are below this */
    rq_pairs merges;
    int32_t symbol_of_byte[256]; /* where merging starts (BYTE_BPE: bytes; others: ASCII); -1: none */
    int32_t token_of_byte[256];  /* byte fallback; -1: none */
    bool joins_space[256];       /* some symbol has this byte in front of a U+2581: see encode.c */
    uint32_t max_key_bytes;      /* longest text merging can produce (SPM) */
    rq_token special[RQ_SPECIAL_COUNT];
    bool add_bos, add_eos, add_space_prefix, whole_words_first;
    rq_splitter *splitter;   /* BYTE_BPE only */
    rq_matcher *all_special; /* control, unknown and user-defined tokens */
    rq_matcher *user_only;   /* user-defined tokens */
    rq_token *eog;
    size_t n_eog;
    rq_tokenizer_notes notes;
};

/* ---- patterns.c: the table of pre-tokenizers -------------------------------------------------------------
 */

enum { RQ_MAX_PASSES = 6 };

typedef struct rq_pattern {
    const char *name;
    /* Each pass cuts every piece of the pass before it: matches and what lies between them become pieces. */
    const char *pass[RQ_MAX_PASSES];
} rq_pattern;

typedef struct rq_pre {
    const char *name; /* value of tokenizer.ggml.pre */
    const rq_pattern *pattern;
    bool whole_words_first; /* a word that is a token needs no merging ("ignore_merges") */
    bool add_bos;           /* when the file does not say */
} rq_pre;

const rq_pre *rq_pre_find(rq_vocab_text name); /* NULL when unknown */
const rq_pre *rq_pre_at(size_t i);             /* the rows in order, NULL behind the last */
/* All names, comma separated, for error messages. */
void rq_pre_list(char *out, size_t out_bytes);

/* ---- split.c ---------------------------------------------------------------------------------------------
 */

/* *jit: on entry whether to try machine code, afterwards whether all of it is. The words are the same. */
rq_status rq_splitter_create(const rq_pattern *pattern, bool *jit, rq_splitter **out, rq_error *err);
void rq_splitter_free(rq_splitter *splitter);

typedef struct rq_split_state rq_split_state; /* scratch of one thread */
rq_split_state *rq_split_state_create(const rq_splitter *splitter);
void rq_split_state_free(rq_split_state *state);

/* Calls word() for each word of `text` (valid UTF-8) in order, until one call fails. */
typedef rq_status (*rq_word_fn)(void *user, const uint8_t *word, size_t len, rq_error *err);
rq_status rq_split(const rq_splitter *splitter, rq_split_state *state, const uint8_t *text, size_t len,
                   rq_word_fn word, void *user, rq_error *err);

/* ---- special.c: finding special tokens in text
 * ------------------------------------------------------------- */

/* A set of token texts. ids[i] has text texts[i]; no empty texts. */
rq_status rq_matcher_create(const rq_symbols *symbols, const rq_span *text, const rq_token *ids, size_t n,
                            rq_matcher **out, rq_error *err);
void rq_matcher_free(rq_matcher *matcher);

/* A special token in a text: it covers bytes begin .. end - 1, whitespace it swallows included. */
typedef struct rq_hit {
    uint32_t begin, end;
    rq_token id;
} rq_hit;

/* Finds the special tokens of a text: longer ones first, then lower ids, then from the left, none overlapping
 * what was taken before. The hits come in text order; free *hits with rq_free (NULL when there are none). */
rq_status rq_matcher_find(const rq_matcher *matcher, const uint8_t *mark, const uint8_t *text, size_t len,
                          rq_hit **hits, size_t *n_hits, rq_error *err);

/* ---- bpe.c, spm.c
 * ------------------------------------------------------------------------------------------ */

typedef struct rq_node {
    int32_t id; /* symbol; -2 - offset for a character or byte that is none */
    int32_t prev, next;
    uint32_t rank; /* of the pair with the next node, UINT32_MAX: none */
    int32_t result;
} rq_node;

typedef struct rq_spm_node {
    uint32_t offset, len;
    int32_t prev, next;
    uint32_t rank;
} rq_spm_node;

/* Scratch of one encode call, reused from word to word. */
typedef struct rq_encoder {
    const rq_tokenizer *tok;
    rq_tokens *out;
    rq_node *nodes;
    rq_spm_node *spm_nodes;
    rq_queue queue;
    uint8_t *text; /* escaped copy of a fragment */
    size_t nodes_cap, spm_nodes_cap, text_cap;
    rq_split_state *split;
} rq_encoder;

rq_status rq_bpe_word(rq_encoder *e, const uint8_t *word, size_t len, rq_error *err);
rq_status rq_bpe_characters(rq_encoder *e, const uint8_t *text, size_t len, rq_error *err);
rq_status rq_spm_text(rq_encoder *e, const uint8_t *text, size_t len, rq_error *err);
/* Emits the tokens that spell these bytes one by one. */
rq_status rq_emit_bytes(rq_encoder *e, const uint8_t *bytes, size_t len, rq_error *err);
rq_status rq_emit(rq_encoder *e, rq_token id, rq_error *err);
rq_status rq_no_memory(rq_error *err);

/* ---- wellknown.c
 * ------------------------------------------------------------------------------------------- */

/* Fills what the file left open of `special`, overrides types and lists the end-of-generation tokens.
 * `typed`: the file has token types. */
rq_status rq_wellknown_apply(rq_tokenizer *tok, bool typed, rq_error *err);
void rq_wellknown_strip(rq_tokenizer *tok, rq_vocab_text name);

/* ---- bytes.c
 * ------------------------------------------------------------------------------------------------ */

/* Length of the well-formed UTF-8 sequence at p (1..4, n bytes are there), 0 when there is none. */
unsigned rq_utf8_length(const uint8_t *p, size_t n);
/* Number of leading bytes that are well-formed UTF-8. */
size_t rq_utf8_valid(const uint8_t *p, size_t n);
/* Writes the byte that a character of the byte-level alphabet at p stands for; returns the length of the
 * character, 0 when it is not of that alphabet. */
unsigned rq_byte_level_decode(const uint8_t *p, size_t n, uint8_t *byte);

#endif
