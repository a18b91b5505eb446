/* text.c - see text.h. */
#include "tools/ppl/text.h"

#include "backends/base/file.h"
#include "backends/base/mem.h"

#include <string.h>

enum { MAX_TEXT_BYTES = 256 << 20 };

/* Where the line after the one that holds `mark` begins, or NULL. */
static const char *after_line(const char *text, size_t bytes, const char *mark)
{
    const char *at = memmem(text, bytes, mark, strlen(mark));
    return at ? memchr(at, '\n', bytes - (size_t)(at - text)) : NULL;
}

/* The work inside a file of Project Gutenberg, or all of another file. */
static void find_work(const char **text, size_t *bytes)
{
    enum { LONGEST_PREFACE = 1 << 16 };
    size_t preface = *bytes < LONGEST_PREFACE ? *bytes : LONGEST_PREFACE;
    const char *start = after_line(*text, preface, "*** START OF");
    if (!start) start = after_line(*text, preface, "***START OF");
    if (!start) return;
    size_t left = *bytes - (size_t)(start - *text);
    const char *end = memmem(start, left, "*** END OF", 10);
    if (!end) end = memmem(start, left, "***END OF", 9);
    *text = start;
    *bytes = end ? (size_t)(end - start) : left;
}

rq_status rq_text_read(const char *path, char **text, size_t *bytes, rq_error *err)
{
    rq_map map;
    rq_status s = rq_map_open(path, &map, err);
    if (s) return s;
    char *copy = NULL;
    const char *work = (const char *)map.data;
    size_t length = map.bytes;
    find_work(&work, &length);
    if (map.bytes > MAX_TEXT_BYTES)
        s = rq_fail(err, RQ_ERR_FORMAT, "%s is larger than the %d MiB of text that are read", path,
                    MAX_TEXT_BYTES >> 20);
    else if (!(copy = rq_strndup(work, length)))
        s = rq_fail(err, RQ_ERR_MEMORY, "out of memory for the text in %s", path);
    else if (rq_map_lost(&map))
        s = rq_fail(err, RQ_ERR_IO, "%s became shorter while it was read", path);
    if (s) {
        rq_free(copy);
    } else {
        *text = copy;
        *bytes = length;
    }
    rq_map_close(&map);
    return s;
}

rq_status rq_text_tokens(const rq_model *model, const char *path, rq_tokens *out, rq_error *err)
{
    char *text = NULL;
    size_t bytes = 0;
    rq_status s = rq_text_read(path, &text, &bytes, err);
    if (!s) s = rq_tokenize(model, text, bytes, 0, out, err);
    rq_free(text);
    return s;
}
