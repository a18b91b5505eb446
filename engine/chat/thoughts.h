/* thoughts.h - what a model thought, in the texts of its earlier answers: chat formats leave it out, or set it apart. */
#ifndef RQ_THOUGHTS_H
#define RQ_THOUGHTS_H

#include "backends/base/buf.h"

typedef struct rq_text {
    const char *data;
    size_t bytes;
} rq_text;

/* Takes off what str.strip (and so Jinja's trim) takes off in Python. */
rq_text rq_text_strip(rq_text text);
/* Line feeds alone. */
rq_text rq_text_strip_lines(rq_text text);

/* Qwen 3 and later: "<think>\nTHOUGHTS\n</think>\n\nANSWER", of which the opening may be missing (it was in the
 * prompt). Without "</think>" the whole is the answer. As the templates of those models split it: the thoughts end at the
 * first "</think>", the answer begins behind the last. */
void rq_thoughts_split(rq_text text, rq_text *thoughts, rq_text *answer);

/* Gemma 4: appends the text without what lies between "<|channel>" and the "<channel|>" behind it. */
void rq_thoughts_cut_channels(rq_text text, rq_buf *out);

#endif
