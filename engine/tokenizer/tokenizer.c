/* What can be asked about a tokenizer and its tokens. */
#include "engine/tokenizer/internal.h"

#include <string.h>

rq_tokenizer_notes rq_tokenizer_get_notes(const rq_tokenizer *tok)
{
    return tok->notes;
}

size_t rq_tokenizer_n_tokens(const rq_tokenizer *tok)
{
    return tok->n_tokens;
}

bool rq_tokenizer_add_bos(const rq_tokenizer *tok)
{
    return tok->add_bos && tok->special[RQ_SPECIAL_BOS] >= 0;
}

bool rq_tokenizer_add_eos(const rq_tokenizer *tok)
{
    return tok->add_eos && tok->special[RQ_SPECIAL_EOS] >= 0;
}

rq_token rq_tokenizer_special(const rq_tokenizer *tok, rq_special which)
{
    return which < RQ_SPECIAL_COUNT ? tok->special[which] : -1;
}

static bool known(const rq_tokenizer *tok, rq_token id)
{
    return id >= 0 && (size_t)id < tok->n_tokens;
}

static const char *bytes_of(const rq_tokenizer *tok, const rq_span *spans, rq_token id, size_t *len)
{
    *len = known(tok, id) ? spans[id].len : 0;
    return *len ? (const char *)tok->symbols.pool + spans[id].offset : "";
}

const char *rq_token_piece(const rq_tokenizer *tok, rq_token id, size_t *len)
{
    return bytes_of(tok, tok->piece, id, len);
}

const char *rq_token_text(const rq_tokenizer *tok, rq_token id, size_t *len)
{
    return bytes_of(tok, tok->text, id, len);
}

rq_token_type rq_token_type_of(const rq_tokenizer *tok, rq_token id)
{
    return known(tok, id) ? (rq_token_type)tok->type[id] : RQ_TOKEN_UNDEFINED;
}

bool rq_token_is_eog(const rq_tokenizer *tok, rq_token id)
{
    return known(tok, id) && (tok->mark[id] & RQ_MARK_EOG);
}

const rq_token *rq_tokenizer_eog(const rq_tokenizer *tok, size_t *n)
{
    *n = tok->n_eog;
    return tok->eog;
}

rq_token rq_token_by_text(const rq_tokenizer *tok, const char *text, size_t len)
{
    for (size_t id = 0; len && id < tok->n_tokens; id++)
        if (tok->text[id].len == len && !memcmp(tok->symbols.pool + tok->text[id].offset, text, len))
            return (rq_token)id;
    return -1;
}
