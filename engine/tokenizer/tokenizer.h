/* tokenizer.h - text to token ids and back.
 *
 * A tokenizer is built once from the vocabulary of a model file, is immutable afterwards and may be used by
 * any number of threads at once. Tokens are byte strings, not text: a token may hold part of a UTF-8
 * character. */
#ifndef RQ_TOKENIZER_H
#define RQ_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backends/base/buf.h"
#include "backends/base/status.h"
#include "engine/rqvk.h" /* rq_token, rq_tokens */

typedef struct rq_tokenizer rq_tokenizer;

/* ---- building ------------------------------------------------------------------------------------------ */

/* Bytes that belong to somebody else; data == NULL means "the file does not say". */
typedef struct rq_vocab_text {
    const char *data;
    size_t len;
} rq_vocab_text;

/* The numbers are those of `tokenizer.ggml.token_type`. */
typedef enum rq_token_type {
    RQ_TOKEN_UNDEFINED = 0,
    RQ_TOKEN_NORMAL = 1,
    RQ_TOKEN_UNKNOWN = 2,
    RQ_TOKEN_CONTROL = 3,
    RQ_TOKEN_USER_DEFINED = 4,
    RQ_TOKEN_UNUSED = 5,
    RQ_TOKEN_BYTE = 6
} rq_token_type;

/* Special ids a file may name. */
typedef enum rq_special {
    RQ_SPECIAL_BOS,
    RQ_SPECIAL_EOS,
    RQ_SPECIAL_EOT,
    RQ_SPECIAL_EOM,
    RQ_SPECIAL_UNK,
    RQ_SPECIAL_PAD,
    RQ_SPECIAL_FIM_PRE,
    RQ_SPECIAL_FIM_SUF,
    RQ_SPECIAL_FIM_MID,
    RQ_SPECIAL_FIM_PAD,
    RQ_SPECIAL_FIM_REP,
    RQ_SPECIAL_FIM_SEP,
    RQ_SPECIAL_COUNT
} rq_special;

/* Everything a tokenizer is made from. Nothing is kept: the tokenizer copies what it needs. Fill a source
 * with rq_vocab_source_init first; what stays untouched counts as absent. */
typedef struct rq_vocab_source {
    rq_vocab_text model; /* tokenizer.ggml.model: "gpt2", "llama" or "gemma4" */
    rq_vocab_text pre;   /* tokenizer.ggml.pre */
    rq_vocab_text
        name; /* general.name; decides whether special tokens swallow following whitespace (Phi-3) */
    const rq_vocab_text *tokens;
    size_t n_tokens;
    const int32_t *types; /* NULL or n_types == n_tokens of them */
    size_t n_types;
    const float *scores; /* NULL or n_scores == n_tokens of them; needed by "llama" */
    size_t n_scores;
    const rq_vocab_text *merges; /* "left right"; needed by "gpt2" and "gemma4" */
    size_t n_merges;
    int64_t special[RQ_SPECIAL_COUNT];      /* -1: absent */
    int add_bos, add_eos, add_space_prefix; /* -1: absent, 0, 1 */
} rq_vocab_source;

void rq_vocab_source_init(rq_vocab_source *source);

/* Builds a tokenizer. On failure *out is untouched. Malformed vocabularies (arrays of unequal length, ids out
 * of range, no tokens) are RQ_ERR_FORMAT, tokenizer models and pre-tokenizers this program does not know are
 * RQ_ERR_UNSUPPORTED; the sentence names them. Memory and time are proportional to the source. */
rq_status rq_tokenizer_create(const rq_vocab_source *source, rq_tokenizer **out, rq_error *err);
void rq_tokenizer_free(rq_tokenizer *tok);

/* The same from an open model file (engine/gguf/gguf.h). */
struct rq_gguf;
rq_status rq_tokenizer_from_gguf(const struct rq_gguf *gguf, rq_tokenizer **out, rq_error *err);

/* What building noticed and passed over; for rqvk-inspect and the log. */
typedef struct rq_tokenizer_notes {
    const char *algorithm;     /* "byte-level BPE", "SentencePiece BPE", "Gemma 4 BPE" */
    const char *pre;           /* name of the pattern row in use, "" when there is none */
    size_t n_merges;           /* merges in use */
    size_t n_bad_merges;       /* merges without two parts, or given twice: ignored */
    size_t n_unknown_merges;   /* merges whose result is no token: kept, they change how text is cut */
    size_t n_duplicate_tokens; /* a text given twice: the lower id is produced, both can be printed */
    size_t n_empty_tokens;     /* never produced */
    size_t n_missing_bytes;    /* bytes no token stands for: they become the unknown token, or U+FFFD */
    bool jit;                  /* the pattern runs as machine code */
} rq_tokenizer_notes;

rq_tokenizer_notes rq_tokenizer_get_notes(const rq_tokenizer *tok);

/* ---- text to ids --------------------------------------------------------------------------------------- */

/* Appends one id to a list (rq_tokens of engine/rqvk.h); false, nothing changed: out of memory. */
bool rq_tokens_push(rq_tokens *tokens, rq_token id);

enum {
    /* Texts of control tokens become those tokens. Without it a text can never produce a control token, so
     * text from users is harmless. User-defined tokens are always recognised. */
    RQ_TOKENIZE_PARSE_SPECIAL = 1,
    /* BOS in front and EOS behind where the model file asks for them. */
    RQ_TOKENIZE_ADD_SPECIAL = 2,
    /* BOS in front whatever the file says, when the model has one. */
    RQ_TOKENIZE_FORCE_BOS = 4
};

/* Longest text of one call; more is RQ_ERR_CAPACITY. Working memory is at most about 64 times the text. */
#define RQ_TOKENIZE_MAX_BYTES ((size_t)32 << 20)

/* Appends the ids of `text` (any bytes, NUL included) to `out`. On failure `out` holds what it held before.
 * Bytes that are not valid UTF-8 are cut out before the pattern runs: each maximal run of them is a piece of
 * its own, spelled with byte tokens (and their merges), so every byte survives the round trip where the
 * vocabulary has all 256 bytes (see n_missing_bytes). */
rq_status rq_tokenizer_encode(const rq_tokenizer *tok, const char *text, size_t len, unsigned flags,
                              rq_tokens *out, rq_error *err);

/* ---- what a token is ----------------------------------------------------------------------------------- */

size_t rq_tokenizer_n_tokens(const rq_tokenizer *tok);
bool rq_tokenizer_add_bos(const rq_tokenizer *tok); /* what RQ_TOKENIZE_ADD_SPECIAL does */
bool rq_tokenizer_add_eos(const rq_tokenizer *tok);
/* Id of a special token, -1 when the model has none. EOT, EOM and the FIM ids are also found by their text.
 */
rq_token rq_tokenizer_special(const rq_tokenizer *tok, rq_special which);

/* The bytes a token prints (special tokens: their text; unused ones: none); *len is their number. Any id is
 * allowed: one outside the vocabulary prints nothing. Valid as long as the tokenizer; not NUL-terminated. */
const char *rq_token_piece(const rq_tokenizer *tok, rq_token id, size_t *len);
/* The text as it stands in the vocabulary (byte-level vocabularies spell a space as U+0120). */
const char *rq_token_text(const rq_tokenizer *tok, rq_token id, size_t *len);
rq_token_type rq_token_type_of(const rq_tokenizer *tok, rq_token id); /* undefined when out of range */
/* Does this token end a generation? */
bool rq_token_is_eog(const rq_tokenizer *tok, rq_token id);
/* The ids for which that holds, ascending; owned by the tokenizer. */
const rq_token *rq_tokenizer_eog(const rq_tokenizer *tok, size_t *n);
/* Id of the token with exactly this vocabulary text, -1 when there is none. Control tokens included. */
rq_token rq_token_by_text(const rq_tokenizer *tok, const char *text, size_t len);

/* ---- ids to text, as a stream -------------------------------------------------------------------------- */

enum {
    RQ_DETOK_SPECIAL = 1, /* print control and unknown tokens too */
    /* The ids start a text (they do not continue a prompt): where the tokenizer puts a space in front of a
     * text, that one space is taken away again. */
    RQ_DETOK_START = 2
};

/* Turns ids into valid UTF-8, never emitting part of a character. No memory of its own: nothing to free. */
typedef struct rq_detok {
    const rq_tokenizer *tok;
    unsigned flags;
    bool strip_space;
    unsigned char held[4]; /* an incomplete character */
    unsigned n_held;
} rq_detok;

void rq_detok_init(rq_detok *detok, const rq_tokenizer *tok, unsigned flags);
/* Appends what became complete to `out`; bytes that cannot be part of a character become U+FFFD. Returns
 * false (and `out->failed` is set) when `out` cannot grow. */
bool rq_detok_add(rq_detok *detok, rq_token id, rq_buf *out);
/* End of the text: an incomplete character becomes U+FFFD. The state is then as after rq_detok_init. */
bool rq_detok_flush(rq_detok *detok, rq_buf *out);

#endif
