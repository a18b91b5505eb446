/* chat.c - the table of chat formats and the renderer that reads it. */
#include "engine/chat/chat.h"
#include "engine/chat/thoughts.h"

#include <string.h>

typedef enum piece_kind {
    PIECE_END,
    PIECE_CONTROL, /* one token of the vocabulary, found by its text */
    PIECE_TEXT,
    PIECE_ROLE,
    PIECE_CONTENT,
    PIECE_THOUGHTS
} piece_kind;

/* What becomes of thoughts in earlier answers. */
typedef enum history {
    HISTORY_AS_GIVEN,
    HISTORY_THINK,        /* <think>: set apart behind the last question, left out before it */
    HISTORY_THINK_OFTEN,  /* the same, but behind the last question only where there are any, or at the end */
    HISTORY_CUT_CHANNELS, /* left out */
} history;

typedef struct piece {
    piece_kind kind;
    const char *text;
} piece;

enum { MAX_PIECES = 14, N_LISTS = 5 };

struct rq_chat_format {
    const char *name;
    const char *mark;     /* a template with this text in it is of this format */
    bool starts_with_bos; /* else only when the file asks for a BOS */
    bool strip;           /* strip white space around contents */
    bool system_first;  /* a system message begins the message behind it; then users and answers alternate */
    bool template_only; /* never chosen by the vocabulary alone */
    history history;
    const char *answers; /* what the role "assistant" is called, NULL: so */
    /* Neighbouring texts are encoded as one. */
    piece message[MAX_PIECES];
    piece assistant
        [MAX_PIECES]; /* opens the answer, as the template does when nothing is said about thinking */
    piece thinking[MAX_PIECES]; /* the same when thinking is asked for, */
    piece plain[MAX_PIECES];    /* and when it is not wanted; empty: as `assistant`, if the other is there */
    piece answered[MAX_PIECES]; /* an answer with its thoughts set apart */
    const char *think;          /* control token at the start of a system turn that asks for thinking */
    /* Around thoughts in answers (rq_thought_marks); both tokens are in the vocabulary, or there are no thoughts. */
    const char *thoughts_open, *thoughts_close, *label;
};

/* A message between two control tokens: its role on the first line, then its content. */
#define TURN(open, close)                                                                                    \
    {                                                                                                        \
        {PIECE_CONTROL, open}, {PIECE_ROLE, NULL}, {PIECE_TEXT, "\n"}, {PIECE_CONTENT, NULL},                \
            {PIECE_CONTROL, close}, {PIECE_TEXT, "\n"},                                                      \
    }

/* An answer of Qwen 3 and later behind the last question. */
#define THOUGHT_TURN                                                                                         \
    {                                                                                                        \
        {PIECE_CONTROL, "<|im_start|>"}, {PIECE_ROLE, NULL}, {PIECE_TEXT, "\n"}, {PIECE_CONTROL, "<think>"}, \
            {PIECE_TEXT, "\n"}, {PIECE_THOUGHTS, NULL}, {PIECE_TEXT, "\n"}, {PIECE_CONTROL, "</think>"},     \
            {PIECE_TEXT, "\n\n"}, {PIECE_CONTENT, NULL}, {PIECE_CONTROL, "<|im_end|>"}, {PIECE_TEXT, "\n"},  \
    }
#define THINK_MARKS .thoughts_open = "<think>", .thoughts_close = "</think>"
#define THINK_NOT                                                                                            \
    {                                                                                                        \
        {PIECE_CONTROL, "<|im_start|>"}, {PIECE_TEXT, "assistant\n"}, {PIECE_CONTROL, "<think>"},            \
            {PIECE_TEXT, "\n\n"}, {PIECE_CONTROL, "</think>"}, {PIECE_TEXT, "\n\n"},                         \
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
        .name = "qwen35",
        .mark = "{{- '<think>\\n' }}", /* as templates write it: an answer that begins with thoughts */
        .template_only = true,
        .strip = true,
        .history = HISTORY_THINK,
        THINK_MARKS,
        .message = TURN("<|im_start|>", "<|im_end|>"),
        .assistant = {{PIECE_CONTROL, "<|im_start|>"},
                      {PIECE_TEXT, "assistant\n"},
                      {PIECE_CONTROL, "<think>"},
                      {PIECE_TEXT, "\n"}},
        .plain = THINK_NOT,
        .answered = THOUGHT_TURN,
    },
    {
        .name = "qwen3",
        .mark = "'<think>\\n\\n</think>\\n\\n'", /* an answer without thoughts */
        .template_only = true,
        .history = HISTORY_THINK_OFTEN,
        THINK_MARKS,
        .message = TURN("<|im_start|>", "<|im_end|>"),
        .assistant = {{PIECE_CONTROL, "<|im_start|>"}, {PIECE_TEXT, "assistant\n"}},
        .plain = THINK_NOT,
        .answered = THOUGHT_TURN,
    },
    {
        .name = "chatml",
        .mark = "<|im_start|>",
        THINK_MARKS,
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
        .history = HISTORY_CUT_CHANNELS,
        .think = "<|think|>",
        .thoughts_open = "<|channel>",
        .thoughts_close = "<channel|>",
        .label = "thought",
        .answers = "model",
        .message = TURN("<|turn>", "<turn|>"),
        .thinking = {{PIECE_CONTROL, "<|turn>"}, {PIECE_TEXT, "model\n"}},
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
        .history = HISTORY_CUT_CHANNELS,
        .think = "<|think|>",
        .thoughts_open = "<|channel>",
        .thoughts_close = "<channel|>",
        .label = "thought",
        .answers = "model",
        .message = TURN("<|turn>", "<turn|>"),
        .thinking = {{PIECE_CONTROL, "<|turn>"}, {PIECE_TEXT, "model\n"}},
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

static const piece *list_of(const rq_chat_format *f, int i)
{
    const piece *const lists[N_LISTS] = {f->message, f->assistant, f->thinking, f->plain, f->answered};
    return lists[i];
}

static bool vocabulary_fits(const rq_chat_format *f, const rq_tokenizer *tok)
{
    bool fits = true;
    for (int i = 0; i < N_LISTS; i++) fits = fits && has_pieces(list_of(f, i), tok);
    return fits;
}

const rq_chat_format *rq_chat_choose(const rq_tokenizer *tok, const char *text, size_t bytes)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        const rq_chat_format *f = &formats[i];
        if (text != NULL ? memmem(text, bytes, f->mark, strlen(f->mark)) == NULL : f->template_only) continue;
        if (vocabulary_fits(f, tok)) return f;
    }
    return NULL;
}

const char *rq_chat_format_name(const rq_chat_format *format)
{
    return format != NULL ? format->name : "none";
}

/* ---- rendering ------------------------------------------------------------------------------------------ */

typedef struct renderer {
    const rq_chat_format *format;
    const rq_tokenizer *tok;
    rq_buf text;  /* gathered since the last control token */
    rq_buf first; /* what the next message begins with */
    rq_buf kept;  /* an earlier answer without its thoughts */
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
    size_t next[N_LISTS * MAX_PIECES];
    const piece *pieces[N_LISTS * MAX_PIECES];
    size_t n = 0;
    for (int list = 0; list < N_LISTS; list++)
        for (const piece *p = list_of(r->format, list); p->kind != PIECE_END; p++) {
            if (p->kind != PIECE_CONTROL) continue;
            bool found_in_text = rq_token_type_of(r->tok, control_token(r->tok, p->text)) != RQ_TOKEN_CONTROL;
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

/* `content` and `thoughts` stand where the pieces say. */
static rq_status render(renderer *r, const piece *pieces, const char *role, rq_text content, rq_text thoughts)
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
            bool answer = r->format->answers != NULL && strcmp(role, "assistant") == 0;
            rq_buf_puts(&r->text, answer ? r->format->answers : role);
        } else if (p->kind == PIECE_THOUGHTS) {
            rq_buf_append(&r->text, thoughts.data, thoughts.bytes);
        } else {
            rq_buf_append(&r->text, r->first.data, r->first.len);
            rq_buf_clear(&r->first);
            rq_buf_append(&r->text, content.data, content.bytes);
        }
    }
    return status == RQ_OK ? flush_text(r) : status;
}

static rq_text content_of(const renderer *r, const rq_message *m)
{
    rq_text content = {m->content != NULL ? m->content : "", m->content != NULL ? m->content_bytes : 0};
    return r->format->strip ? rq_text_strip(content) : content;
}

static const rq_text EMPTY = {"", 0};

/* A message; `behind`: of those behind the last question; `last`: of all. */
static rq_status render_message(renderer *r, const rq_message *m, bool behind, bool last)
{
    const rq_chat_format *f = r->format;
    rq_text content = content_of(r, m), thoughts = EMPTY;
    if (f->history == HISTORY_AS_GIVEN || strcmp(m->role, "assistant") != 0)
        return render(r, f->message, m->role, content, EMPTY);
    if (f->history == HISTORY_CUT_CHANNELS) {
        rq_buf_clear(&r->kept);
        rq_thoughts_cut_channels(content, &r->kept);
        if (r->kept.failed) return rq_fail(r->err, RQ_ERR_MEMORY, "out of memory for a conversation");
        const rq_text kept = {r->kept.data != NULL ? r->kept.data : "", r->kept.len};
        return render(r, f->message, m->role, rq_text_strip(kept), EMPTY);
    }
    if (m->thoughts == NULL)
        rq_thoughts_split(content, &thoughts, &content);
    else
        thoughts = (rq_text){m->thoughts, m->thoughts_bytes};
    bool apart = behind && (f->history == HISTORY_THINK || last || thoughts.bytes > 0);
    thoughts = f->strip ? rq_text_strip(thoughts) : rq_text_strip_lines(thoughts);
    while (apart && content.bytes > 0 && content.data[0] == '\n') content.data++, content.bytes--;
    return render(r, apart ? f->answered : f->message, m->role, content, thoughts);
}

/* The system turn that asks for thinking: the first message's, or one of its own. */
static rq_status render_think(renderer *r, const rq_message *m)
{
    const piece turn[] = {
        {PIECE_CONTROL, "<|turn>"}, {PIECE_TEXT, "system\n"}, {PIECE_CONTROL, r->format->think},
        {PIECE_TEXT, "\n"},         {PIECE_CONTENT, NULL},    {PIECE_CONTROL, "<turn|>"},
        {PIECE_TEXT, "\n"},         {PIECE_END, NULL}};
    if (!has_pieces(turn, r->tok))
        return rq_fail(r->err, RQ_ERR_UNSUPPORTED,
                       "this file's vocabulary has no %s token, with which its chat format asks for thinking",
                       r->format->think);
    return render(r, turn, "system", m != NULL ? content_of(r, m) : EMPTY, EMPTY);
}

/* How the answer opens; NULL when the format cannot say what is wanted. */
static const piece *opening(const rq_chat_format *f, rq_opening wanted)
{
    bool knows = f->thinking[0].kind != PIECE_END || f->plain[0].kind != PIECE_END;
    if (wanted == RQ_OPEN_THINKING && !knows) return NULL;
    if (wanted == RQ_OPEN_THINKING && f->thinking[0].kind != PIECE_END) return f->thinking;
    if (wanted == RQ_OPEN_PLAIN && f->plain[0].kind != PIECE_END) return f->plain;
    return f->assistant;
}

rq_thought_marks rq_chat_marks(const rq_chat_format *f, const rq_tokenizer *tok, rq_opening open)
{
    if (f == NULL || f->thoughts_open == NULL) return (rq_thought_marks){0};
    const piece marks[] = {
        {PIECE_CONTROL, f->thoughts_open}, {PIECE_CONTROL, f->thoughts_close}, {PIECE_END, NULL}};
    if (!has_pieces(marks, tok)) return (rq_thought_marks){0};
    const piece *answer = open != RQ_CLOSED ? opening(f, open) : NULL;
    const char *last = ""; /* control token of the prompt */
    for (; answer != NULL && answer->kind != PIECE_END; answer++)
        if (answer->kind == PIECE_CONTROL) last = answer->text;
    return (rq_thought_marks){.open = f->thoughts_open,
                              .close = f->thoughts_close,
                              .label = f->label != NULL ? f->label : "",
                              .opened = strcmp(last, f->thoughts_open) == 0,
                              .anywhere = f->history == HISTORY_CUT_CHANNELS,
                              .forgotten = f->history != HISTORY_AS_GIVEN};
}

/* Keeps a system message for the one behind it, unstripped as the template of Gemma 3 does. */
static rq_status hold(renderer *r, const rq_message *m)
{
    if (m->content != NULL) rq_buf_append(&r->first, m->content, m->content_bytes);
    rq_buf_puts(&r->first, "\n\n");
    return r->first.failed ? rq_fail(r->err, RQ_ERR_MEMORY, "out of memory for a conversation") : RQ_OK;
}

/* Formats without a system turn: at most one system message, in front; then the user begins, and every second message
 * is a question. */
static rq_status check_turns(const rq_message *messages, size_t n, rq_error *err)
{
    size_t first = n > 0 && strcmp(messages[0].role, "system") == 0;
    for (size_t i = first; i < n; i++) {
        if (strcmp(messages[i].role, "system") == 0)
            return rq_fail(err, RQ_ERR_ARGUMENT,
                           "message %zu is a system message; this chat format takes one, and only in front",
                           i + 1);
        if ((strcmp(messages[i].role, "user") == 0) != ((i - first) % 2 == 0))
            return rq_fail(err, RQ_ERR_ARGUMENT,
                           "message %zu has the role %s, but in this chat format user and assistant take "
                           "turns, the user first",
                           i + 1, messages[i].role);
    }
    return RQ_OK;
}

static bool role_is_fine(const char *role)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    size_t n = role != NULL ? strnlen(role, RQ_MAX_ROLE_BYTES + 1) : 0;
    return n >= 1 && n <= RQ_MAX_ROLE_BYTES && strspn(role, allowed) == n;
}

static void boundaries_at(size_t *boundaries, size_t i, size_t n)
{
    if (boundaries != NULL) boundaries[i] = n;
}

rq_status rq_chat_render(const rq_chat_format *format, const rq_tokenizer *tok, const rq_message *messages,
                         size_t n_messages, rq_opening open, rq_tokens *out, size_t *boundaries,
                         rq_error *err)
{
    if (format == NULL)
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "this file has no chat format that this build knows (chatml, qwen3, qwen35, llama3, "
                       "gemma, gemma4); use plain completion");
    const piece *answer = opening(format, open);
    if (answer == NULL)
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "thinking cannot be asked for: this file's chat format (%s) has nothing for it",
                       format->name);
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
                  .kept = {.max = RQ_TOKENIZE_MAX_BYTES},
                  .out = out,
                  .err = err};
    size_t n_before = out->n;
    rq_status status = RQ_OK;
    rq_token bos = rq_tokenizer_special(tok, RQ_SPECIAL_BOS);
    if (bos >= 0 && (format->starts_with_bos || rq_tokenizer_add_bos(tok)) && !rq_tokens_push(out, bos))
        status = rq_fail(err, RQ_ERR_MEMORY, "out of memory for a conversation");
    size_t asked = 0, i = 0; /* behind the last question */
    for (size_t k = 0; k < n_messages; k++)
        if (strcmp(messages[k].role, "user") == 0) asked = k + 1;
    if (status == RQ_OK && open == RQ_OPEN_THINKING && format->think != NULL) {
        bool system = n_messages > 0 && strcmp(messages[0].role, "system") == 0;
        status = render_think(&r, system ? &messages[0] : NULL);
        if (system) boundaries_at(boundaries, i++, out->n);
    }
    if (status == RQ_OK && format->system_first) status = check_turns(messages, n_messages, err);
    for (; i < n_messages && status == RQ_OK; i++) {
        bool waits = format->system_first && strcmp(messages[i].role, "system") == 0;
        status = waits ? hold(&r, &messages[i])
                       : render_message(&r, &messages[i], i >= asked && asked > 0, i + 1 == n_messages);
        boundaries_at(boundaries, i, out->n);
    }
    if (status == RQ_OK && open != RQ_CLOSED && r.first.len > 0)
        status =
            rq_fail(err, RQ_ERR_ARGUMENT,
                    "the last message is a system message, which this chat format puts at the start of the "
                    "message behind it: end with a message of the user");
    if (status == RQ_OK && open != RQ_CLOSED) status = render(&r, answer, "", EMPTY, EMPTY);
    rq_buf_free(&r.kept);
    rq_buf_free(&r.text);
    rq_buf_free(&r.first);
    if (status != RQ_OK) out->n = n_before;
    return status;
}
