#include "tools/synth/vocab.h"

#include "backends/base/buf.h"
#include "backends/base/mem.h"

#include <stdio.h>
#include <string.h>

/* Token types of tokenizer.ggml.token_type. */
enum { NORMAL = 1, CONTROL = 3, USER_DEFINED = 4 };

/* Words (with their leading space) that become tokens, in the order in which their merges are learnt. */
static const char *const words[] = {
    " the",       " of",     " and",      " to",       " a",      " in",    " is",     " that",  " it",
    " for",       " was",    " on",       " are",      " as",     " with",  " be",     " at",    " this",
    " have",      " from",   " or",       " by",       " one",    " not",   " but",    " what",  " all",
    " were",      " we",     " when",     " your",     " can",    " said",  " there",  " use",   " an",
    " each",      " which",  " do",       " how",      " their",  " if",    " will",   " up",    " other",
    " about",     " out",    " many",     " then",     " them",   " these", " so",     " some",  " her",
    " would",     " make",   " like",     " him",      " into",   " time",  " has",    " look",  " two",
    " more",      " write",  " go",       " see",      " number", " no",    " way",    " could", " people",
    " my",        " than",   " first",    " water",    " been",   " call",  " who",    " its",   " now",
    " find",      " long",   " down",     " day",      " did",    " get",   " come",   " made",  " may",
    " part",      " over",   " new",      " sound",    " take",   " only",  " little", " work",  " know",
    " place",     " you",    " he",       " she",      " they",   " me",    " his",    " our",   "ing",
    "ed",         "er",      "est",       "ly",        "tion",    "ment",   "Hello",   "The",    "What",
    "How",        " world",  "user",      "assistant", "system",  " model", " file",   " token", " memory",
    " attention", " answer", " question", " please",
};

typedef struct special {
    const char *text;
    int type;
} special;

static const special qwen_specials[] = {
    {"<|endoftext|>", CONTROL},        {"<|im_start|>", CONTROL},         {"<|im_end|>", CONTROL},
    {"<|object_ref_start|>", CONTROL}, {"<|object_ref_end|>", CONTROL},   {"<|box_start|>", CONTROL},
    {"<|box_end|>", CONTROL},          {"<|quad_start|>", CONTROL},       {"<|quad_end|>", CONTROL},
    {"<|vision_start|>", CONTROL},     {"<|vision_end|>", CONTROL},       {"<|vision_pad|>", CONTROL},
    {"<|image_pad|>", CONTROL},        {"<|video_pad|>", CONTROL},        {"<tool_call>", USER_DEFINED},
    {"</tool_call>", USER_DEFINED},    {"<|fim_prefix|>", CONTROL},       {"<|fim_middle|>", CONTROL},
    {"<|fim_suffix|>", CONTROL},       {"<|fim_pad|>", CONTROL},          {"<|repo_name|>", CONTROL},
    {"<|file_sep|>", CONTROL},         {"<tool_response>", USER_DEFINED}, {"</tool_response>", USER_DEFINED},
    {"<think>", USER_DEFINED},         {"</think>", USER_DEFINED},
};

static const special llama_specials[] = {
    {"<|begin_of_text|>", CONTROL},
    {"<|end_of_text|>", CONTROL},
    {"<|reserved_special_token_0|>", CONTROL},
    {"<|reserved_special_token_1|>", CONTROL},
    {"<|finetune_right_pad_id|>", CONTROL},
    {"<|reserved_special_token_2|>", CONTROL},
    {"<|start_header_id|>", CONTROL},
    {"<|end_header_id|>", CONTROL},
    {"<|eom_id|>", CONTROL},
    {"<|eot_id|>", CONTROL},
    {"<|python_tag|>", CONTROL},
};

static const special gemma_specials[] = {
    {"<pad>", CONTROL},           {"<eos>", CONTROL},
    {"<bos>", CONTROL},           {"<unk>", CONTROL},
    {"<|turn>", CONTROL},         {"<turn|>", CONTROL},
    {"<|channel>", USER_DEFINED}, {"<channel|>", USER_DEFINED},
    {"<|think|>", CONTROL},       {"<|tool_response>", CONTROL},
};

static const char chatml_template[] =
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

static const char llama3_template[] =
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + "
    "'<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}";

static const char gemma_template[] = "{{- bos_token }}"
                                     "{%- for message in messages %}"
                                     "{{- '<|turn>' + ('model' if message.role == 'assistant' else "
                                     "message.role) + '\\n' + message.content | trim + "
                                     "'<turn|>\\n' }}"
                                     "{%- endfor %}"
                                     "{%- if add_generation_prompt %}{{- '<|turn>model\\n' }}{%- endif %}";

typedef struct tokenizer_kind {
    const char *pre, *template_text;
    const special *specials;
    uint32_t n_specials, real_first; /* id of specials[0] in the published vocabulary */
    uint32_t bos, eos, eot, pad;     /* numbers of specials */
    bool add_bos;
} tokenizer_kind;

static const tokenizer_kind qwen_kind = {
    "qwen2", chatml_template, qwen_specials, sizeof qwen_specials / sizeof *qwen_specials, 151643, 0, 2, 2, 0,
    false};
static const tokenizer_kind llama_kind = {"llama-bpe",
                                          llama3_template,
                                          llama_specials,
                                          sizeof llama_specials / sizeof *llama_specials,
                                          128000,
                                          0,
                                          9,
                                          9,
                                          4,
                                          true};

/* The list is Qwen 3's, at the ids of the larger vocabulary. */
static const tokenizer_kind qwen35_kind = {"qwen35",
                                           chatml_template,
                                           qwen_specials,
                                           sizeof qwen_specials / sizeof *qwen_specials,
                                           248044,
                                           0,
                                           2,
                                           2,
                                           11,
                                           false};
/* Byte-level like the others, which the published one is not: only its turns are Gemma's. */
static const tokenizer_kind gemma_kind = {"qwen2",
                                          gemma_template,
                                          gemma_specials,
                                          sizeof gemma_specials / sizeof *gemma_specials,
                                          262000,
                                          2,
                                          1,
                                          5,
                                          0,
                                          true};

static const tokenizer_kind *kind_of(synth_family family)
{
    switch (family) {
    case SYNTH_LLAMA:
        return &llama_kind;
    case SYNTH_QWEN35:
        return &qwen35_kind;
    case SYNTH_GEMMA4:
        return &gemma_kind;
    case SYNTH_QWEN2:
    case SYNTH_QWEN3:
    case SYNTH_QWEN3MOE:
        break;
    }
    return &qwen_kind;
}

uint32_t synth_vocab_least(synth_family family)
{
    return 256 + kind_of(family)->n_specials;
}

/* ---- a vocabulary -------------------------------------------------------------------------------------- */

#define MAX_LEARNT 700 /* more merges than the words need */
#define MAX_TOKEN  48  /* bytes of a learnt token */

typedef struct merge {
    char left[MAX_TOKEN], right[MAX_TOKEN];
} merge;

typedef struct vocabulary {
    char bytes[256][4]; /* each byte as its visible character, UTF-8 */
    merge *merges;      /* [MAX_LEARNT] */
    char (*learnt)[MAX_TOKEN];
    uint32_t n_learnt, max_learnt;
} vocabulary;

/* The visible stand-in of a byte in byte-level BPE: printable Latin-1 stands for itself, the other bytes are
 * U+0100, U+0101, ... in order. */
static void spell_bytes(vocabulary *v)
{
    uint32_t next = 256;
    for (uint32_t b = 0; b < 256; b++) {
        bool visible = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        uint32_t c = visible ? b : next++;
        if (c < 0x80) {
            v->bytes[b][0] = (char)c;
        } else {
            v->bytes[b][0] = (char)(0xc0 | c >> 6);
            v->bytes[b][1] = (char)(0x80 | (c & 0x3f));
        }
    }
}

static bool is_learnt(const vocabulary *v, const char *text)
{
    for (uint32_t i = 0; i < v->n_learnt; i++)
        if (!strcmp(v->learnt[i], text)) return true;
    return false;
}

static void join(char pieces[][MAX_TOKEN], uint32_t *n, uint32_t at)
{
    size_t len = strlen(pieces[at]), more = strlen(pieces[at + 1]);
    if (len + more >= MAX_TOKEN) more = MAX_TOKEN - 1 - len; /* cannot be: joined tokens were learnt */
    memcpy(pieces[at] + len, pieces[at + 1], more);
    pieces[at][len + more] = 0;
    memmove(pieces[at + 1], pieces[at + 2], (size_t)(*n - at - 2) * MAX_TOKEN);
    --*n;
}

/* Splits the word with the merges so far, then learns new ones until it is a single token. */
static void learn(vocabulary *v, const char *word)
{
    char pieces[24][MAX_TOKEN];
    uint32_t n = 0;
    for (const char *c = word; *c && n < 24; c++)
        snprintf(pieces[n++], MAX_TOKEN, "%s", v->bytes[(uint8_t)*c]);
    for (uint32_t m = 0; m < v->n_learnt; m++) /* every merge is newer than those that made its parts */
        for (uint32_t i = 0; i + 1 < n; i++)
            if (!strcmp(pieces[i], v->merges[m].left) && !strcmp(pieces[i + 1], v->merges[m].right))
                join(pieces, &n, i);
    while (n > 1 && v->n_learnt < v->max_learnt) {
        char text[2 * MAX_TOKEN];
        snprintf(text, sizeof text, "%s%s", pieces[0], pieces[1]);
        if (strlen(text) >= MAX_TOKEN || is_learnt(v, text)) return; /* a token has one spelling */
        memcpy(v->merges[v->n_learnt].left, pieces[0], MAX_TOKEN);
        memcpy(v->merges[v->n_learnt].right, pieces[1], MAX_TOKEN);
        snprintf(v->learnt[v->n_learnt++], MAX_TOKEN, "%s", text);
        join(pieces, &n, 0);
    }
}

/* ---- the keys ------------------------------------------------------------------------------------------ */

static rq_gguf_str str(const char *text)
{
    return (rq_gguf_str){.data = text, .len = strlen(text)};
}

static void put_ids(rq_gguf_writer *w, const tokenizer_kind *k, uint32_t first_special)
{
    rq_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", first_special + k->bos);
    rq_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", first_special + k->eos);
    rq_gguf_put_u32(w, "tokenizer.ggml.eot_token_id", first_special + k->eot);
    rq_gguf_put_u32(w, "tokenizer.ggml.padding_token_id", first_special + k->pad);
    rq_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", k->add_bos);
    rq_gguf_put_str(w, "tokenizer.chat_template", k->template_text);
}

/* tokens[0..n_vocab) and types[0..n_vocab); `fill` holds the text of the fillers. */
static bool list_tokens(const vocabulary *v, const tokenizer_kind *k, uint32_t n_vocab,
                        uint32_t first_special, rq_gguf_str *tokens, int32_t *types, rq_buf *fillers)
{
    uint32_t last_special = first_special + k->n_specials;
    for (uint32_t i = 256 + v->n_learnt; i < n_vocab; i++)
        if (i < first_special || i >= last_special) rq_buf_printf(fillers, "<unused%u>", i);
    if (fillers->failed) return false;
    const char *filler = fillers->data;
    for (uint32_t i = 0; i < n_vocab; i++) {
        types[i] = NORMAL;
        if (i >= first_special && i < last_special) {
            tokens[i] = str(k->specials[i - first_special].text);
            types[i] = k->specials[i - first_special].type;
        } else if (i < 256) {
            tokens[i] = str(v->bytes[i]);
        } else if (i < 256 + v->n_learnt) {
            tokens[i] = str(v->learnt[i - 256]);
        } else {
            uint64_t len = (uint64_t)(strchr(filler, '>') + 1 - filler);
            tokens[i] = (rq_gguf_str){.data = filler, .len = len};
            filler += len;
        }
    }
    return true;
}

static void put_merges(rq_gguf_writer *w, const vocabulary *v, char (*lines)[2 * MAX_TOKEN],
                       rq_gguf_str *strs)
{
    for (uint32_t i = 0; i < v->n_learnt; i++) {
        snprintf(lines[i], sizeof lines[i], "%s %s", v->merges[i].left, v->merges[i].right);
        strs[i] = str(lines[i]);
    }
    rq_gguf_put_strs(w, "tokenizer.ggml.merges", strs, v->n_learnt);
}

rq_status synth_vocab_put(rq_gguf_writer *w, synth_family family, uint32_t n_vocab, rq_error *err)
{
    const tokenizer_kind *k = kind_of(family);
    if (n_vocab < synth_vocab_least(family))
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "a vocabulary of %u tokens is too small: the bytes and special tokens are %u", n_vocab,
                       synth_vocab_least(family));
    uint32_t first_special = n_vocab - k->n_specials;
    if (first_special > k->real_first) first_special = k->real_first;
    vocabulary v = {.max_learnt = first_special - 256};
    if (v.max_learnt > MAX_LEARNT) v.max_learnt = MAX_LEARNT;
    v.merges = rq_calloc(MAX_LEARNT, sizeof *v.merges);
    v.learnt = rq_calloc(MAX_LEARNT, sizeof *v.learnt);
    char(*lines)[2 * MAX_TOKEN] = rq_calloc(MAX_LEARNT, sizeof *lines);
    rq_gguf_str *tokens = rq_calloc(n_vocab > MAX_LEARNT ? n_vocab : MAX_LEARNT, sizeof *tokens);
    int32_t *types = rq_calloc(n_vocab, sizeof *types);
    rq_buf fillers = {.max = (size_t)n_vocab * 20 + 64};
    bool ok = v.merges && v.learnt && lines && tokens && types;
    if (ok) {
        spell_bytes(&v);
        for (size_t i = 0; i < sizeof words / sizeof *words; i++) learn(&v, words[i]);
        ok = list_tokens(&v, k, n_vocab, first_special, tokens, types, &fillers);
    }
    if (ok) {
        rq_gguf_put_str(w, "tokenizer.ggml.model", "gpt2");
        rq_gguf_put_str(w, "tokenizer.ggml.pre", k->pre);
        rq_gguf_put_strs(w, "tokenizer.ggml.tokens", tokens, n_vocab);
        rq_gguf_put_array(w, "tokenizer.ggml.token_type", RQ_GGUF_I32, types, n_vocab);
        put_merges(w, &v, lines, tokens);
        put_ids(w, k, first_special);
    }
    rq_buf_free(&fillers);
    rq_free(types);
    rq_free(tokens);
    rq_free(lines);
    rq_free(v.learnt);
    rq_free(v.merges);
    return ok ? RQ_OK : rq_fail(err, RQ_ERR_MEMORY, "not enough memory for the vocabulary");
}
