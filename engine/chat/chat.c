/* chat.c - the table of chat formats and the renderer that reads it. */
#include "engine/chat/chat.h"

#include <string.h>

typedef enum piece_kind {
    PIECE_END,
    PIECE_CONTROL, /* one token of the vocabulary, found by its text */
    PIECE_TEXT,
    PIECE_ROLE,
    PIECE_CONTENT
} piece_kind;

typedef struct piece {
    piece_kind kind;
    const char *text;
} piece;

enum { MAX_PIECES = 8 };

struct rq_chat_format {
    const char *name;
    const char *mark;            /* a template with this text in it is of this format */
    bool starts_with_bos;        /* else only when the file asks for a BOS */
    bool strip;                  /* strip white space around contents */
    bool system_first;           /* a system message begins the message behind it */
    const char *answers;         /* what the role "assistant" is called, NULL: so */
    piece message[MAX_PIECES];   /* neighbouring texts are encoded as one */
    piece assistant[MAX_PIECES]; /* opens the answer */
};

/* A message between two control tokens: its role on the first line, then its content. */
#define TURN(open, close)                                                                                    \
    {                                                                                                        \
        {PIECE_CONTROL, open}, {PIECE_ROLE, NULL}, {PIECE_TEXT, "\n"}, {PIECE_CONTENT, NULL},                \
            {PIECE_CONTROL, close}, {PIECE_TEXT, "\n"},                                                      \
    }

static const rq_chat_format formats[] = {
    {
        .name = "llama3",
        .mark = "<|start_header_id|>",
        .starts_with_bos = true,
        .strip = true,
        .message = {{PIECE_CONTROL, "<|start_header_id|>"},
                    {PIECE_ROLE, NULL},
                    {PIECE_CONTROL, "<|end_header_id|>"},
                    {PIECE_TEXT, "\n\n"},
                    {PIECE_CONTENT, NULL},
                    {PIECE_CONTROL, "<|eot_id|>"}},
        .assistant = {{PIECE_CONTROL, "<|start_header_id|>"},
                      {PIECE_TEXT, "assistant"},
                      {PIECE_CONTROL, "<|end_header_id|>"},
                      {PIECE_TEXT, "\n\n"}},
    },
    {
        .name = "chatml",
        .mark = "<|im_start|>",
        .message = TURN("<|im_start|>", "<|im_end|>"),
        .assistant = {{PIECE_CONTROL, "<|im_start|>"}, {PIECE_TEXT, "assistant\n"}},
    },
    {
        .name = "gemma",
        .mark = "<start_of_turn>",
        .starts_with_bos = true,
        .strip = true,
        .system_first = true,
        .answers = "model",
        .message = TURN("<start_of_turn>", "<end_of_turn>"),
        .assistant = {{PIECE_CONTROL, "<start_of_turn>"}, {PIECE_TEXT, "model\n"}},
    },
    {
        .name = "gemma4",
        .mark = "<|channel>thought\\n<channel|>", /* as templates write it: an answer without thoughts */
        .starts_with_bos = true,
        .strip = true,
        .answers = "model",
        .message = TURN("<|turn>", "<turn|>"),
        .assistant = {{PIECE_CONTROL, "<|turn>"},
                      {PIECE_TEXT, "model\n"},
                      {PIECE_CONTROL, "<|channel>"},
                      {PIECE_TEXT, "thought\n"},
                      {PIECE_CONTROL, "<channel|>"}},
    },
    {
        .name = "gemma4",
        .mark = "<|turn>",
        .starts_with_bos = true,
        .strip = true,
        .answers = "model",
        .message = TURN("<|turn>", "<turn|>"),
        .assistant = {{PIECE_CONTROL, "<|turn>"}, {PIECE_TEXT, "model\n"}},
    },
};

static rq_token control_token(const rq_tokenizer *tok, const char *text)
{
    return rq_token_by_text(tok, text, strlen(text));
}

static bool has_pieces(const piece *p, const rq_tokenizer *tok)
{
    for (; p->kind != PIECE_END; p++) {
        if (p->kind != PIECE_CONTROL) continue;
        rq_token id = control_token(tok, p->text);
        if (id < 0) return false;
        rq_token_type type = rq_token_type_of(tok, id);
        if (type != RQ_TOKEN_CONTROL && type != RQ_TOKEN_USER_DEFINED) return false;
    }
    return true;
}

static bool vocabulary_fits(const rq_chat_format *f, const rq_tokenizer *tok)
{
    return has_pieces(f->message, tok) && has_pieces(f->assistant, tok);
}

const rq_chat_format *rq_chat_choose(const rq_tokenizer *tok, const char *text, size_t bytes)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        const rq_chat_format *f = &formats[i];
        if (text != NULL && memmem(text, bytes, f->mark, strlen(f->mark)) == NULL) continue;
        if (vocabulary_fits(f, tok)) return f;
    }
    return NULL;
}

const char *rq_chat_format_name(const rq_chat_format *format)
{
    return format != NULL ? format->name : "none";
}

/* ---- white space, as Python's str.strip (and so Jinja's trim) sees it ------------------------------------ */

/* Bytes of the white space character at s, 0 when there is none. */
static size_t space_at(const unsigned char *s, size_t n)
{
    if (n >= 1 && (s[0] == ' ' || (s[0] >= 0x09 && s[0] <= 0x0d) || (s[0] >= 0x1c && s[0] <= 0x1f))) return 1;
    if (n >= 2 && s[0] == 0xc2 && (s[1] == 0x85 || s[1] == 0xa0)) return 2;
    if (n < 3) return 0;
    if (s[0] == 0xe1 && s[1] == 0x9a && s[2] == 0x80) return 3; /* U+1680 */
    if (s[0] == 0xe2 && s[1] == 0x80 && (s[2] <= 0x8a || s[2] == 0xa8 || s[2] == 0xa9 || s[2] == 0xaf))
        return 3;
    if (s[0] == 0xe2 && s[1] == 0x81 && s[2] == 0x9f) return 3; /* U+205F */
    if (s[0] == 0xe3 && s[1] == 0x80 && s[2] == 0x80) return 3; /* U+3000 */
    return 0;
}

static void strip(const char **text, size_t *bytes)
{
    const unsigned char *s = (const unsigned char *)*text;
    size_t first = 0, end = *bytes, k;
    while ((k = space_at(s + first, end - first)) > 0) first += k;
    for (;;) { /* a character of k bytes that ends at `end` */
        for (k = 1; k <= 3 && k <= end - first; k++)
            if (space_at(s + end - k, k) == k) break;
        if (k > 3 || k > end - first) break;
        end -= k;
    }
    *text += first;
    *bytes = end - first;
}

/* ---- rendering ------------------------------------------------------------------------------------------ */

typedef struct renderer {
    const rq_chat_format *format;
    const rq_tokenizer *tok;
    rq_buf text;  /* gathered since the last control token */
    rq_buf first; /* what the next message begins with */
    rq_tokens *out;
    rq_error *err;
} renderer;

/* Where `what` begins in text[from .. bytes), SIZE_MAX when it does not occur. */
static size_t find(const char *text, size_t from, size_t bytes, const char *what)
{
    const char *hit = memmem(text + from, bytes - from, what, strlen(what));
    return hit != NULL ? (size_t)(hit - text) : SIZE_MAX;
}

/* Encodes text[0 .. bytes). Control tokens cannot come out of it, but some files mark the tokens of their chat
 * format as user-defined, and those are recognised in any text: such a text is cut behind its first byte. */
static rq_status encode(renderer *r, const char *text, size_t bytes)
{
    /* Where each piece's text is found next, SIZE_MAX: nowhere. Searched for again only when passed, so that the
     * whole costs a few passes over the text whatever it holds. */
    size_t next[2 * MAX_PIECES];
    const piece *pieces[2 * MAX_PIECES];
    size_t n = 0;
    for (int side = 0; side < 2; side++)
        for (const piece *p = side ? r->format->assistant : r->format->message; p->kind != PIECE_END; p++) {
            bool found_in_text = p->kind == PIECE_CONTROL &&
                                 rq_token_type_of(r->tok, control_token(r->tok, p->text)) != RQ_TOKEN_CONTROL;
            pieces[n] = p;
            next[n++] = found_in_text ? find(text, 0, bytes, p->text) : SIZE_MAX;
        }
    for (size_t done = 0;;) {
        size_t cut = bytes;
        for (size_t i = 0; i < n; i++) {
            if (next[i] < done) next[i] = find(text, done, bytes, pieces[i]->text);
            if (next[i] < cut) cut = next[i] + 1;
        }
        rq_status status = rq_tokenizer_encode(r->tok, text + done, cut - done, 0, r->out, r->err);
        if (status != RQ_OK || cut == bytes) return status;
        done = cut;
    }
}

static rq_status flush_text(renderer *r)
{
    if (r->text.failed) return rq_fail(r->err, RQ_ERR_MEMORY, "out of memory for a conversation");
    if (r->text.len == 0) return RQ_OK;
    rq_status status = encode(r, r->text.data, r->text.len);
    rq_buf_clear(&r->text);
    return status;
}

static rq_status render(renderer *r, const piece *pieces, const rq_message *m)
{
    rq_status status = RQ_OK;
    for (const piece *p = pieces; p->kind != PIECE_END && status == RQ_OK; p++) {
        if (p->kind == PIECE_CONTROL) {
            status = flush_text(r);
            if (status == RQ_OK && !rq_tokens_push(r->out, control_token(r->tok, p->text)))
                status = rq_fail(r->err, RQ_ERR_MEMORY, "out of memory for a conversation");
        } else if (p->kind == PIECE_TEXT) {
            rq_buf_puts(&r->text, p->text);
        } else if (p->kind == PIECE_ROLE) {
            bool answer = r->format->answers != NULL && strcmp(m->role, "assistant") == 0;
            rq_buf_puts(&r->text, answer ? r->format->answers : m->role);
        } else {
            const char *content = m->content != NULL ? m->content : "";
            size_t bytes = m->content != NULL ? m->content_bytes : 0;
            if (r->format->strip) strip(&content, &bytes);
            rq_buf_append(&r->text, r->first.data, r->first.len);
            rq_buf_clear(&r->first);
            rq_buf_append(&r->text, content, bytes);
        }
    }
    return status == RQ_OK ? flush_text(r) : status;
}

/* Keeps a system message for the one behind it. */
static rq_status hold(renderer *r, const rq_message *m)
{
    const char *content = m->content != NULL ? m->content : "";
    size_t bytes = m->content != NULL ? m->content_bytes : 0;
    if (r->format->strip) strip(&content, &bytes);
    rq_buf_append(&r->first, content, bytes);
    rq_buf_puts(&r->first, "\n\n");
    return r->first.failed ? rq_fail(r->err, RQ_ERR_MEMORY, "out of memory for a conversation") : RQ_OK;
}

static bool role_is_fine(const char *role)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    size_t n = role != NULL ? strnlen(role, RQ_MAX_ROLE_BYTES + 1) : 0;
    return n >= 1 && n <= RQ_MAX_ROLE_BYTES && strspn(role, allowed) == n;
}

rq_status rq_chat_render(const rq_chat_format *format, const rq_tokenizer *tok, const rq_message *messages,
                         size_t n_messages, bool open_assistant, rq_tokens *out, size_t *boundaries,
                         rq_error *err)
{
    if (format == NULL)
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "this file has no chat format that this build knows (chatml, llama3, gemma, gemma4); "
                       "use plain completion");
    for (size_t i = 0; i < n_messages; i++)
        if (!role_is_fine(messages[i].role))
            return rq_fail(err, RQ_ERR_ARGUMENT,
                           "the role of message %zu must be 1 to %d letters, digits, '_' or '-'", i + 1,
                           RQ_MAX_ROLE_BYTES);
    for (size_t i = 0; i < n_messages; i++)
        if (messages[i].content_bytes > RQ_TOKENIZE_MAX_BYTES - 2 * RQ_MAX_ROLE_BYTES)
            return rq_fail(err, RQ_ERR_CAPACITY, "message %zu has %zu bytes; at most %zu can be encoded",
                           i + 1, messages[i].content_bytes, RQ_TOKENIZE_MAX_BYTES - 2 * RQ_MAX_ROLE_BYTES);
    renderer r = {.format = format,
                  .tok = tok,
                  .text = {.max = RQ_TOKENIZE_MAX_BYTES},
                  .first = {.max = RQ_TOKENIZE_MAX_BYTES},
                  .out = out,
                  .err = err};
    size_t n_before = out->n;
    rq_status status = RQ_OK;
    rq_token bos = rq_tokenizer_special(tok, RQ_SPECIAL_BOS);
    if (bos >= 0 && (format->starts_with_bos || rq_tokenizer_add_bos(tok)) && !rq_tokens_push(out, bos))
        status = rq_fail(err, RQ_ERR_MEMORY, "out of memory for a conversation");
    for (size_t i = 0; i < n_messages && status == RQ_OK; i++) {
        bool waits = format->system_first && strcmp(messages[i].role, "system") == 0;
        status = waits ? hold(&r, &messages[i]) : render(&r, format->message, &messages[i]);
        if (boundaries != NULL) boundaries[i] = out->n;
    }
    if (status == RQ_OK && open_assistant && r.first.len > 0)
        status =
            rq_fail(err, RQ_ERR_ARGUMENT,
                    "the last message is a system message, which this chat format puts at the start of the "
                    "message behind it: end with a message of the user");
    static const rq_message nobody = {.role = ""}; /* the opening has no piece that reads it */
    if (status == RQ_OK && open_assistant) status = render(&r, format->assistant, &nobody);
    rq_buf_free(&r.text);
    rq_buf_free(&r.first);
    if (status != RQ_OK) out->n = n_before;
    return status;
}
