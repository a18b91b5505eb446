/* rqvk.c - the public face: models and text. The engine is in engine.c, sessions in sched/session.c. */
#include "engine/rqvk.h"

#include "backends/base/mem.h"
#include "engine/chat/chat.h"
#include "engine/models/model.h"

#include <string.h>

static const rq_chat_format *chat_format_of(const rq_model *m)
{
    return rq_chat_choose(m->tok, m->chat_template, m->chat_template_bytes);
}

void rq_model_describe(const rq_model *m, rq_model_info *out)
{
    *out = (rq_model_info){
        .path = m->path,
        .name = m->name,
        .architecture = m->arch,
        .description = m->description,
        .chat_format = rq_chat_format_name(chat_format_of(m)),
        .n_params = m->n_params,
        .file_bytes = rq_gguf_file_bytes(m->gguf),
        .n_ctx_train = m->hp.n_ctx_train,
        .n_layers = m->hp.n_layers,
        .n_embd = m->hp.n_embd,
        .n_vocab = m->hp.n_vocab,
        .n_expert = m->hp.n_expert,
        .n_expert_used = m->hp.n_expert_used,
    };
}

void rq_tokens_free(rq_tokens *tokens)
{
    if (tokens == NULL) return;
    rq_free(tokens->ids);
    *tokens = (rq_tokens){0};
}

rq_status rq_tokenize(const rq_model *m, const char *text, size_t bytes, unsigned flags, rq_tokens *out,
                      rq_error *err)
{
    unsigned how = flags & RQ_PARSE_SPECIAL ? RQ_TOKENIZE_PARSE_SPECIAL : 0;
    if (flags & RQ_ADD_BOS || (flags & RQ_MODEL_BOS && rq_tokenizer_add_bos(m->tok)))
        how |= RQ_TOKENIZE_FORCE_BOS;
    return rq_tokenizer_encode(m->tok, text, bytes, how, out, err);
}

const char *rq_token_bytes(const rq_model *m, rq_token id, size_t *bytes)
{
    return rq_token_piece(m->tok, id, bytes);
}

rq_status rq_detokenize(const rq_model *m, const rq_token *ids, size_t n, bool special, char **out,
                        rq_error *err)
{
    rq_buf text = {.max = SIZE_MAX / 4};
    rq_detok detok;
    rq_detok_init(&detok, m->tok, RQ_DETOK_START | (special ? RQ_DETOK_SPECIAL : 0));
    for (size_t i = 0; i < n; i++) rq_detok_add(&detok, ids[i], &text);
    rq_detok_flush(&detok, &text);
    rq_buf_append(&text, "", 0); /* an empty text is a string too */
    if (text.failed) {
        rq_buf_free(&text);
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the text of %zu tokens", n);
    }
    *out = text.data;
    return RQ_OK;
}

void rq_string_free(char *text)
{
    rq_free(text);
}

rq_status rq_chat_tokenize(const rq_model *m, const rq_message *messages, size_t n_messages, rq_opening open,
                           rq_tokens *out, size_t *boundaries, rq_error *err)
{
    return rq_chat_render(chat_format_of(m), m->tok, messages, n_messages, open, out, boundaries, err);
}

rq_thought_marks rq_chat_thoughts(const rq_model *m, rq_opening open)
{
    return rq_chat_marks(chat_format_of(m), m->tok, open);
}
