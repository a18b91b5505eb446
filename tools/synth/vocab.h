/* vocab.h - a small but working tokenizer for synthetic models. */
#ifndef RQ_SYNTH_VOCAB_H
#define RQ_SYNTH_VOCAB_H

#include "engine/gguf/writer.h"
#include "tools/synth/preset.h"

/* The fewest tokens a vocabulary can have: all bytes and the special tokens. */
uint32_t synth_vocab_least(synth_family family);

/* Puts the tokenizer keys and the chat template: byte-level BPE with the 256 bytes, merges that spell common
 * English words, the special tokens of the family (Llama 3 or Qwen, at their real ids where n_vocab allows,
 * else at the end; Gemma's turns near the end), and <unusedN> for the rest. n_vocab >= synth_vocab_least(). */
rq_status synth_vocab_put(rq_gguf_writer *w, synth_family family, uint32_t n_vocab, rq_error *err);

#endif
