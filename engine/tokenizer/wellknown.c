/* Files name few of their special ids, so the others are recognised by their text. The texts and what they
 * mean are the convention of llama.cpp (llama-vocab.cpp); here a text counts only where the file says the
 * token is special (control or user-defined): "</s>" as an ordinary token of a vocabulary full of HTML must
 * not end a generation. */
#include "engine/tokenizer/internal.h"

#include "backends/base/mem.h"

#include <string.h>

enum {
    EOT = 1,
    EOM = 2,
    FIM_PRE = 4,
    FIM_SUF = 8,
    FIM_MID = 16,
    FIM_PAD = 32,
    FIM_REP = 64,
    FIM_SEP = 128,
    EOG = 256
};

static const struct rq_known {
    const char *text;
    unsigned role;
} known[] = {
    /* the first of these that exists is the end of a turn */
    {"<|eot_id|>", EOT | EOG},
    {"<|im_end|>", EOT | EOG},
    {"<|end|>", EOT | EOG},
    {"<end_of_turn>", EOT | EOG},
    {"<|endoftext|>", EOT | EOG},
    {"<|end_of_text|>", EOT | EOG},
    {"<EOT>", EOT | EOG},
    {"_<EOT>", EOT | EOG},
    {"[EOT]", EOT | EOG},
    {"<\xEF\xBD\x9C"
     "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
     EOT | EOG}, /* DeepSeek */
    {"<end_of_utterance>", EOT | EOG},
    {"<|eom_id|>", EOM | EOG},
    {"<|return|>", EOG},
    {"<|call|>", EOG},
    {"<|flush|>", EOG},
    {"<|calls|>", EOG},
    {"</s>", EOG},
    {"[EOS]", EOG},
    {"<eos>", EOG},
    {"<turn|>", EOG},
    {"<|tool_response>", EOG},
    {"<|fim_prefix|>", FIM_PRE},
    {"<fim-prefix>", FIM_PRE},
    {"<fim_prefix>", FIM_PRE},
    {"<\xEF\xBD\x9C"
     "fim\xE2\x96\x81"
     "begin\xEF\xBD\x9C>",
     FIM_PRE},
    {"<PRE>", FIM_PRE},
    {"\xE2\x96\x81<PRE>", FIM_PRE},
    {"<|code_prefix|>", FIM_PRE},
    {"<|fim_suffix|>", FIM_SUF},
    {"<fim-suffix>", FIM_SUF},
    {"<fim_suffix>", FIM_SUF},
    {"<\xEF\xBD\x9C"
     "fim\xE2\x96\x81hole\xEF\xBD\x9C>",
     FIM_SUF},
    {"<SUF>", FIM_SUF},
    {"\xE2\x96\x81<SUF>", FIM_SUF},
    {"<|code_suffix|>", FIM_SUF},
    {"<|fim_middle|>", FIM_MID},
    {"<fim-middle>", FIM_MID},
    {"<fim_middle>", FIM_MID},
    {"<\xEF\xBD\x9C"
     "fim\xE2\x96\x81"
     "end\xEF\xBD\x9C>",
     FIM_MID},
    {"<MID>", FIM_MID},
    {"\xE2\x96\x81<MID>", FIM_MID},
    {"<|code_middle|>", FIM_MID},
    {"<|fim_pad|>", FIM_PAD},
    {"<fim-pad>", FIM_PAD},
    {"<fim_pad>", FIM_PAD},
    {"<PAD>", FIM_PAD},
    {"[PAD]", FIM_PAD},
    {"<|fim_repo|>", FIM_REP},
    {"<|repo_name|>", FIM_REP},
    {"<fim-repo>", FIM_REP},
    {"<REPO>", FIM_REP},
    {"<reponame>", FIM_REP},
    {"<|file_sep|>", FIM_SEP},
};
enum { N_KNOWN = sizeof known / sizeof *known };

static const struct {
    unsigned role;
    rq_special special;
} roles[] = {{EOT, RQ_SPECIAL_EOT},         {EOM, RQ_SPECIAL_EOM},         {FIM_PRE, RQ_SPECIAL_FIM_PRE},
             {FIM_SUF, RQ_SPECIAL_FIM_SUF}, {FIM_MID, RQ_SPECIAL_FIM_MID}, {FIM_PAD, RQ_SPECIAL_FIM_PAD},
             {FIM_REP, RQ_SPECIAL_FIM_REP}, {FIM_SEP, RQ_SPECIAL_FIM_SEP}};

static bool is_text(const rq_tokenizer *tok, size_t id, const char *text)
{
    rq_span span = tok->text[id];
    return strlen(text) == span.len && !memcmp(tok->symbols.pool + span.offset, text, span.len);
}

/* An end-of-generation token with this text, -1: none. */
static rq_token eog_with_text(const rq_tokenizer *tok, const rq_token *found, const char *text)
{
    for (size_t k = 0; k < N_KNOWN; k++)
        if (found[k] >= 0 && (tok->mark[found[k]] & RQ_MARK_EOG) && !strcmp(known[k].text, text))
            return found[k];
    return -1;
}

static void mark_eog(rq_tokenizer *tok, rq_token id)
{
    if (id >= 0) tok->mark[id] |= RQ_MARK_EOG;
}

rq_status rq_wellknown_apply(rq_tokenizer *tok, bool typed, rq_error *err)
{
    rq_token found[N_KNOWN];
    memset(found, -1, sizeof found);
    for (size_t id = 0; id < tok->n_tokens; id++) {
        uint32_t len = tok->text[id].len;
        bool special = tok->type[id] == RQ_TOKEN_CONTROL || tok->type[id] == RQ_TOKEN_USER_DEFINED;
        if (len < 3 || len > 40 || (typed && !special)) continue;
        const uint8_t *text = tok->symbols.pool + tok->text[id].offset;
        if (text[0] != '<' && text[0] != '[' && text[0] != '_' && text[0] != 0xE2) continue;
        for (size_t k = 0; k < N_KNOWN; k++)
            if (found[k] < 0 && is_text(tok, id, known[k].text)) found[k] = (rq_token)id;
        /* gpt-oss prints these; they frame its channels */
        if (special && (is_text(tok, id, "<|channel|>") || is_text(tok, id, "<|message|>") ||
                        is_text(tok, id, "<|start|>") || is_text(tok, id, "<|constrain|>")))
            tok->type[id] = RQ_TOKEN_USER_DEFINED;
    }
    for (size_t r = 0; r < sizeof roles / sizeof *roles; r++) {
        rq_token *slot = &tok->special[roles[r].special];
        for (size_t k = 0; k < N_KNOWN && *slot < 0; k++) {
            if (!(known[k].role & roles[r].role) || found[k] < 0) continue;
            *slot = found[k];
            tok->type[found[k]] = RQ_TOKEN_CONTROL;
        }
    }
    for (size_t k = 0; k < N_KNOWN; k++) {
        if (!(known[k].role & EOG) || found[k] < 0) continue;
        mark_eog(tok, found[k]);
        tok->type[found[k]] = RQ_TOKEN_CONTROL;
    }
    mark_eog(tok, tok->special[RQ_SPECIAL_FIM_PAD]);
    mark_eog(tok, tok->special[RQ_SPECIAL_FIM_REP]);
    mark_eog(tok, tok->special[RQ_SPECIAL_FIM_SEP]);
    mark_eog(tok, tok->special[RQ_SPECIAL_EOS]);
    mark_eog(tok, tok->special[RQ_SPECIAL_EOT]);
    mark_eog(tok, tok->special[RQ_SPECIAL_EOM]);

    /* gpt-oss and Solar: <|end|> ends a channel, not the answer */
    rq_token end = eog_with_text(tok, found, "<|end|>");
    bool call = eog_with_text(tok, found, "<|call|>") >= 0 || eog_with_text(tok, found, "<|calls|>") >= 0;
    if (end >= 0 && call &&
        (eog_with_text(tok, found, "<|return|>") >= 0 || eog_with_text(tok, found, "<|flush|>") >= 0)) {
        tok->mark[end] &= (uint8_t)~RQ_MARK_EOG;
        tok->type[end] = RQ_TOKEN_USER_DEFINED;
    }
    /* Gemma 4: </s> is HTML */
    rq_token strike = eog_with_text(tok, found, "</s>");
    if (strike >= 0 && eog_with_text(tok, found, "<|tool_response>") >= 0) {
        tok->mark[strike] &= (uint8_t)~RQ_MARK_EOG;
        tok->type[strike] = RQ_TOKEN_NORMAL;
    }

    for (size_t id = 0; id < tok->n_tokens; id++) tok->n_eog += tok->mark[id] & RQ_MARK_EOG;
    tok->eog = rq_calloc(tok->n_eog, sizeof *tok->eog);
    if (!tok->eog) return rq_no_memory(err);
    for (size_t id = 0, n = 0; id < tok->n_tokens; id++)
        if (tok->mark[id] & RQ_MARK_EOG) tok->eog[n++] = (rq_token)id;
    return RQ_OK;
}

/* Phi-3's special tokens swallow white space behind them; its files do not say so (convention of llama.cpp).
 */
void rq_wellknown_strip(rq_tokenizer *tok, rq_vocab_text name)
{
    bool phi3 = false;
    for (size_t i = 0; i + 4 <= name.len && !phi3; i++) {
        const char *p = name.data + i;
        phi3 = (p[0] | 32) == 'p' && (p[1] | 32) == 'h' && (p[2] | 32) == 'i' &&
               (p[3] == '3' || (p[3] == '-' && i + 5 <= name.len && p[4] == '3'));
    }
    for (size_t id = 0; phi3 && id < tok->n_tokens; id++) {
        uint8_t type = tok->type[id];
        bool special = type == RQ_TOKEN_CONTROL || type == RQ_TOKEN_UNKNOWN || type == RQ_TOKEN_USER_DEFINED;
        if (special && !is_text(tok, id, "<unk>") && !is_text(tok, id, "<s>") &&
            !is_text(tok, id, "<|endoftext|>"))
            tok->mark[id] |= RQ_MARK_RSTRIP;
    }
}
