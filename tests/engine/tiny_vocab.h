/* tiny_vocab.h - a small byte-level tokenizer for tests: ids 0..255 print the byte of their number, then come
 * a few merged tokens and the control tokens of the chat formats. */
#ifndef TINY_VOCAB_H
#define TINY_VOCAB_H

#include "engine/tokenizer/tokenizer.h"

enum {
    TINY_AB = 256, /* "ab" */
    TINY_NL_NL,    /* "\n\n" */
    TINY_BOS,      /* <|begin_of_text|> */
    TINY_IM_START,
    TINY_IM_END, /* ends a generation */
    TINY_HEADER,
    TINY_HEADER_END,
    TINY_EOT, /* ends a generation */
    TINY_START_OF_TURN,
    TINY_END_OF_TURN,
    TINY_TURN,
    TINY_TURN_END,
    TINY_CHANNEL,
    TINY_CHANNEL_END,
    TINY_THINK, /* <think> */
    TINY_THINK_END,
    TINY_ASKS_THINKING, /* <|think|> */
    TINY_COUNT
};

/* `type` is the token type the chat formats' tokens get. Fails the running test when it cannot be made. */
rq_tokenizer *tiny_tokenizer(rq_token_type type);
/* The same, reporting failure. */
rq_status tiny_tokenizer_create(rq_token_type type, rq_tokenizer **out, rq_error *err);

#endif
