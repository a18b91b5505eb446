/* progress.c - see progress.h. */
#include "tools/common/progress.h"

#include <time.h>
#include <unistd.h>

uint64_t rq_tool_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

rq_progress rq_progress_start(FILE *out, const char *label, const char *unit, uint64_t total)
{
    uint64_t now = rq_tool_now_ns();
    return (rq_progress){.out = out,
                         .label = label,
                         .unit = unit,
                         .total = total,
                         .start_ns = now,
                         .shown_ns = now,
                         .terminal = isatty(fileno(out)) == 1};
}

static void amounts(const rq_progress *p, char *out, size_t capacity)
{
    double seconds = (double)(rq_tool_now_ns() - p->start_ns) / 1e9;
    double rate = seconds > 0 ? (double)p->done / seconds : 0;
    if (p->unit[0] == 'b' && p->unit[1] == 'y') {
        snprintf(out, capacity, "%.0f of %.0f MB, %.0f MB/s", (double)p->done / 1e6, (double)p->total / 1e6,
                 rate / 1e6);
    } else {
        snprintf(out, capacity, "%llu of %llu %s, %.1f/s", (unsigned long long)p->done,
                 (unsigned long long)p->total, p->unit, rate);
    }
}

static void draw_bar(rq_progress *p)
{
    enum { WIDTH = 24 };
    static const char full[] = "########################", empty[] = "........................";
    char text[160];
    amounts(p, text, sizeof text);
    int filled = p->total ? (int)((double)p->done / (double)p->total * WIDTH) : 0;
    if (filled > WIDTH) filled = WIDTH;
    fprintf(p->out, "\r%s [%.*s%.*s] %s\033[K", p->label, filled, full, WIDTH - filled, empty, text);
    fflush(p->out);
    p->drawn = true;
}

static void print_line(rq_progress *p)
{
    char text[160];
    amounts(p, text, sizeof text);
    fprintf(p->out, "%s: %s\n", p->label, text);
    fflush(p->out);
    p->drawn = true;
}

void rq_progress_set(rq_progress *p, uint64_t done)
{
    p->done = done;
    uint64_t now = rq_tool_now_ns();
    if (now - p->start_ns < 500000000u) return;
    if (p->terminal) {
        if (now - p->shown_ns < 100000000u) return;
        p->shown_ns = now;
        draw_bar(p);
        return;
    }
    uint64_t tenth = p->total ? (uint64_t)((double)done / (double)p->total * 10) : 0;
    if (tenth <= p->shown_tenth || now - p->shown_ns < 1000000000u || done >= p->total) return;
    p->shown_ns = now;
    p->shown_tenth = tenth;
    print_line(p);
}

void rq_progress_end(rq_progress *p)
{
    if (!p->drawn) return;
    if (p->terminal) {
        fprintf(p->out, "\r\033[K");
        fflush(p->out);
    } else {
        print_line(p);
    }
    p->drawn = false;
}
