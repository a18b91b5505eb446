/* chat.h - conversations to token ids.
 *
 * A chat format is a row of a table: which pieces make a message, which of them are control tokens. The file's
 * template (`tokenizer.chat_template`) decides the row by the control tokens it mentions; the row is used only
 * when the vocabulary has all of them.
 *
 *   chatml   <|im_start|>ROLE\nCONTENT<|im_end|>\n              Qwen 2, 2.5, 3 and many fine-tunes
 *   llama3   <|start_header_id|>ROLE<|end_header_id|>\n\nCONTENT<|eot_id|>   after one BOS; CONTENT is stripped
 *            of white space at both ends, as the Llama 3 template does
 *
 *   gemma    <start_of_turn>ROLE\nCONTENT<end_of_turn>\n      Gemma 2 and 3, after one BOS; CONTENT is stripped,
 *            the assistant is called "model"; there is no system turn: such a message, first of all, stands with an
 *            empty line behind it at the start of the next one, as in Gemma 3's template; user and assistant alternate
 *   gemma4   <|turn>ROLE\nCONTENT<turn|>\n, stripped, "model", after one BOS; an answer opens with the empty
 *            <|channel>thought\n<channel|> where the file's template has that; thinking is asked for by <|think|> at the
 *            start of a system turn; channels are cut out of earlier answers
 *   qwen3    chatml whose earlier answers lose their thoughts (<think> ... </think>), but those behind the last question
 *            keep them; no thinking: the answer opens with an empty pair
 *   qwen35   the same, stripped, and an answer opens with <think> unless thinking is not wanted
 *
 * What a caller sets apart as thoughts of an answer stands where the format puts what it finds itself; formats that do
 * not take thoughts out of answers leave it out.
 *
 * These are the plain formats: no default system prompt (Qwen 2.5's template adds one when there is none), no
 * date lines in the system message (Llama 3.1's and later templates add "Cutting Knowledge Date ..."), earlier
 * answers of chatml and gemma as they are given, with their thoughts, each a turn. Llama 3
 * and Llama 3.1 models both know the plain form.
 *
 * Whatever the content is, it never becomes one of the control tokens: texts are encoded apart from them. */
#ifndef RQ_CHAT_H
#define RQ_CHAT_H

#include "engine/rqvk.h"
#include "engine/tokenizer/tokenizer.h"

typedef struct rq_chat_format rq_chat_format;

/* The format of a file with this template (NULL, 0: the file has none, then the vocabulary alone decides), or
 * NULL when no row fits. */
const rq_chat_format *rq_chat_choose(const rq_tokenizer *tok, const char *template_text,
                                     size_t template_bytes);

/* "chatml", "qwen3", "qwen35", "llama3", "gemma", "gemma4"; "none" for NULL. */
const char *rq_chat_format_name(const rq_chat_format *format);

/* Longest role, in bytes; roles are letters, digits, '_' and '-'. */
enum { RQ_MAX_ROLE_BYTES = 32 };

/* As rq_chat_tokenize of the public face. A BOS comes first where the format has one or the file asks for one.
 * On error `out` keeps its content; boundaries[] may have been written. */
rq_status rq_chat_render(const rq_chat_format *format, const rq_tokenizer *tok, const rq_message *messages,
                         size_t n_messages, rq_opening open, rq_tokens *out, size_t *boundaries,
                         rq_error *err);

/* As rq_chat_thoughts of the public face; `format` may be NULL. */
rq_thought_marks rq_chat_marks(const rq_chat_format *format, const rq_tokenizer *tok, rq_opening open);

#endif
