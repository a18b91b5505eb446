/* terminal.h - the person in front of rqvk-cli: lines typed, text shown, Ctrl-C.
 *
 * SIGINT is blocked and read from a signalfd, so that it is an event like any other and needs no global
 * flag. */
#ifndef RQ_CLI_TERMINAL_H
#define RQ_CLI_TERMINAL_H

#include "backends/base/buf.h"
#include "backends/base/status.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct rq_terminal rq_terminal;

/* To be called before any other thread exists. NULL with `err` filled on failure. */
rq_terminal *rq_terminal_open(rq_error *err);
void rq_terminal_close(rq_terminal *terminal);

bool rq_terminal_reads_person(const rq_terminal *terminal); /* standard input is a terminal */
bool rq_terminal_is_watched(const rq_terminal *terminal);   /* standard error is a terminal */

/* Between the two, Ctrl-C ends the program at once: for loading, which cannot be stopped otherwise. */
void rq_terminal_guard(rq_terminal *terminal);
void rq_terminal_unguard(rq_terminal *terminal);

/* True once after Ctrl-C was pressed. */
bool rq_terminal_interrupted(rq_terminal *terminal);

typedef enum rq_line { RQ_LINE_TEXT, RQ_LINE_INTERRUPTED, RQ_LINE_END } rq_line;
/* Reads one line without its newline; with a terminal there is editing, a history and the prompt. The
 * text lives until the next call. */
rq_line rq_terminal_read(rq_terminal *terminal, const char *prompt, const char **text);

/* Writes to standard output, at once. On a terminal every character that could command it is replaced by
 * a visible one (rq_visible_text). False when standard output does not take it. */
bool rq_terminal_write(rq_terminal *terminal, const char *text, size_t bytes);
/* Ends the line if something was written to it. */
bool rq_terminal_end_line(rq_terminal *terminal);

/* Appends the text with control characters other than newline and tab replaced by their pictures (U+2400 and
 * following), and C1 controls, directional overrides and bytes that are no UTF-8 by U+FFFD. */
void rq_visible_text(rq_buf *out, const char *text, size_t bytes);

#endif
