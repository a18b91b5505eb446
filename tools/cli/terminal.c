/* terminal.c - see terminal.h. */
#include "tools/cli/terminal.h"

#include "backends/base/mem.h"

#include <errno.h>
#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <utf8proc.h>
#include <wchar.h>

struct rq_terminal {
    pthread_t guard;
    bool guarded;
    bool in_terminal, out_terminal, err_terminal;
    int signal_fd;
    bool interrupted; /* while reading a line */
    bool mid_line;    /* text was written and did not end in a newline */
    const char *prompt;
    EditLine *editor;
    History *history;
    char *line; /* of getline, without a terminal */
    size_t line_capacity;
    rq_buf visible;
    rq_buf text;
};

/* ---- text out ------------------------------------------------------------------------------------------ */

/* Characters that reorder what is shown: U+202A..202E and U+2066..2069 (Unicode's UAX 9). */
static bool reorders(utf8proc_int32_t c)
{
    return (c >= 0x202A && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069);
}

void rq_visible_text(rq_buf *out, const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t n =
            utf8proc_iterate((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(bytes - i), &c);
        if (n < 1) {
            rq_buf_puts(out, "\xEF\xBF\xBD");
            i++;
            continue;
        }
        if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7F) {
            int picture = c == 0x7F ? 0x2421 : 0x2400 + c;
            rq_buf_printf(out, "%c%c%c", 0xE2, 0x80 | (picture >> 6 & 63), 0x80 | (picture & 63));
        } else if ((c >= 0x80 && c < 0xA0) || reorders(c)) {
            rq_buf_puts(out, "\xEF\xBF\xBD");
        } else {
            rq_buf_append(out, text + i, (size_t)n);
        }
        i += (size_t)n;
    }
}

bool rq_terminal_write(rq_terminal *terminal, const char *text, size_t bytes)
{
    if (!bytes) return true;
    if (terminal->out_terminal) {
        rq_buf_clear(&terminal->visible);
        rq_visible_text(&terminal->visible, text, bytes);
        if (terminal->visible.failed) return false;
        text = terminal->visible.data;
        bytes = terminal->visible.len;
    }
    terminal->mid_line = text[bytes - 1] != '\n';
    return fwrite(text, 1, bytes, stdout) == bytes && fflush(stdout) == 0;
}

bool rq_terminal_end_line(rq_terminal *terminal)
{
    if (!terminal->mid_line) return true;
    terminal->mid_line = false;
    return putchar('\n') != EOF && fflush(stdout) == 0;
}

/* ---- Ctrl-C -------------------------------------------------------------------------------------------- */

bool rq_terminal_interrupted(rq_terminal *terminal)
{
    struct signalfd_siginfo info;
    bool any = false;
    while (read(terminal->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) any = true;
    return any;
}

/* Ctrl-C while nobody looks at the signalfd ends the program. */
static void *guard(void *user)
{
    (void)user;
    sigset_t set;
    int number;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR1);
    if (sigwait(&set, &number) == 0 && number == SIGINT) _exit(130);
    return NULL;
}

void rq_terminal_guard(rq_terminal *terminal)
{
    if (!terminal->guarded) terminal->guarded = pthread_create(&terminal->guard, NULL, guard, NULL) == 0;
}

void rq_terminal_unguard(rq_terminal *terminal)
{
    if (!terminal->guarded) return;
    pthread_kill(terminal->guard, SIGUSR1);
    pthread_join(terminal->guard, NULL);
    terminal->guarded = false;
}

/* ---- lines in ------------------------------------------------------------------------------------------ */

/* Waits for a byte of standard input: 1, or 0 at its end, or -1 after Ctrl-C. */
static int read_byte(rq_terminal *terminal, char *byte)
{
    struct pollfd p[2] = {{.fd = STDIN_FILENO, .events = POLLIN},
                          {.fd = terminal->signal_fd, .events = POLLIN}};
    for (;;) {
        if (poll(p, 2, -1) < 0 && errno != EINTR) return 0;
        if (p[1].revents && rq_terminal_interrupted(terminal)) return -1;
        if (!p[0].revents) continue;
        ssize_t n = read(STDIN_FILENO, byte, 1);
        if (n < 0 && errno == EINTR) continue;
        return n == 1;
    }
}

/* The editor's way to a character: also ends the line on Ctrl-C. */
static int read_character(EditLine *editor, wchar_t *out)
{
    rq_terminal *terminal = NULL;
    el_get(editor, EL_CLIENTDATA, &terminal);
    mbstate_t state = {0};
    for (;;) {
        char byte;
        int got = read_byte(terminal, &byte);
        if (got <= 0) {
            terminal->interrupted = got < 0;
            return got < 0 ? -1 : 0;
        }
        size_t n = mbrtowc(out, &byte, 1, &state);
        if (n == (size_t)-2) continue; /* the character needs more bytes */
        if (n == (size_t)-1) *out = L'?';
        return 1;
    }
}

static char *show_prompt(EditLine *editor)
{
    rq_terminal *terminal = NULL;
    el_get(editor, EL_CLIENTDATA, &terminal);
    return (char *)terminal->prompt; /* libedit only reads it */
}

static bool open_editor(rq_terminal *terminal)
{
    terminal->editor = el_init("rqvk-cli", stdin, stdout, stderr);
    terminal->history = history_init();
    if (!terminal->editor || !terminal->history) return false;
    HistEvent event;
    history(terminal->history, &event, H_SETSIZE, 1000);
    history(terminal->history, &event, H_SETUNIQUE, 1);
    el_set(terminal->editor, EL_CLIENTDATA, terminal);
    el_set(terminal->editor, EL_PROMPT, show_prompt);
    el_set(terminal->editor, EL_EDITOR, "emacs");
    el_set(terminal->editor, EL_SIGNAL, 0);
    el_set(terminal->editor, EL_HIST, history, terminal->history);
    el_set(terminal->editor, EL_GETCFN, read_character);
    el_set(terminal->editor, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_source(terminal->editor, NULL); /* the person's own ~/.editrc */
    return true;
}

static rq_line read_plain(rq_terminal *terminal, const char **text)
{
    ssize_t n = getline(&terminal->line, &terminal->line_capacity, stdin);
    if (n < 0) return RQ_LINE_END;
    if (n > 0 && terminal->line[n - 1] == '\n') terminal->line[n - 1] = '\0';
    *text = terminal->line;
    return RQ_LINE_TEXT;
}

rq_line rq_terminal_read(rq_terminal *terminal, const char *prompt, const char **text)
{
    if (!terminal->editor) return read_plain(terminal, text);
    terminal->prompt = prompt;
    terminal->interrupted = false;
    int n = 0;
    const char *line = el_gets(terminal->editor, &n);
    if (terminal->interrupted) {
        printf("^C\n");
        fflush(stdout);
        return RQ_LINE_INTERRUPTED;
    }
    if (!line || n <= 0) {
        printf("\n");
        fflush(stdout);
        return RQ_LINE_END;
    }
    rq_buf_clear(&terminal->text);
    rq_buf_append(&terminal->text, line, (size_t)(n - (line[n - 1] == '\n')));
    if (terminal->text.failed) return RQ_LINE_END;
    HistEvent event;
    if (terminal->text.len) history(terminal->history, &event, H_ENTER, terminal->text.data);
    *text = terminal->text.data;
    return RQ_LINE_TEXT;
}

/* ---- life ---------------------------------------------------------------------------------------------- */

rq_terminal *rq_terminal_open(rq_error *err)
{
    rq_terminal *terminal = rq_calloc(1, sizeof *terminal);
    if (!terminal) {
        rq_fail(err, RQ_ERR_MEMORY, "there is not enough memory to start");
        return NULL;
    }
    *terminal = (rq_terminal){.in_terminal = isatty(STDIN_FILENO) == 1,
                              .out_terminal = isatty(STDOUT_FILENO) == 1,
                              .err_terminal = isatty(STDERR_FILENO) == 1,
                              .visible = {.max = 16 << 20},
                              .text = {.max = 16 << 20}};
    /* Characters typed are UTF-8, whatever else the locale says. */
    if (!setlocale(LC_CTYPE, "") || strcmp(nl_langinfo(CODESET), "UTF-8") != 0)
        setlocale(LC_CTYPE, "C.UTF-8");
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigset_t with_guard = set;
    sigaddset(&with_guard, SIGUSR1); /* ends the guard */
    pthread_sigmask(SIG_BLOCK, &with_guard, NULL);
    terminal->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (terminal->signal_fd < 0 ||
        (terminal->in_terminal && terminal->out_terminal && !open_editor(terminal))) {
        rq_fail(err, RQ_ERR_IO, "the terminal could not be set up: %s", strerror(errno));
        rq_terminal_close(terminal);
        return NULL;
    }
    return terminal;
}

void rq_terminal_close(rq_terminal *terminal)
{
    if (!terminal) return;
    rq_terminal_unguard(terminal);
    if (terminal->editor) el_end(terminal->editor);
    if (terminal->history) history_end(terminal->history);
    if (terminal->signal_fd >= 0) close(terminal->signal_fd);
    free(terminal->line); /* getline's own allocation */
    rq_buf_free(&terminal->visible);
    rq_buf_free(&terminal->text);
    rq_free(terminal);
}

bool rq_terminal_reads_person(const rq_terminal *terminal)
{
    return terminal->in_terminal;
}

bool rq_terminal_is_watched(const rq_terminal *terminal)
{
    return terminal->err_terminal;
}
