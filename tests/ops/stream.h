/* stream.h - sequences through two recurrent layers (short convolution, norms, delta rule), on any device, by steps of
 * any shape; for tests of what a state remembers. */
#ifndef TEST_OPS_STREAM_H
#define TEST_OPS_STREAM_H

#include "backends/exec/exec.h"

typedef struct stream_shape {
    uint32_t dim_k, dim_v, heads, key_heads;
    bool tiled;
    uint32_t n_pending; /* of the state group */
    uint32_t n_seqs, max_tokens, max_pages;
} stream_shape;

/* Kinds of tokens, by id / STREAM_OF_A_KIND. */
enum {
    STREAM_USUAL,   /* decay of about 0.7 to 0.99, a share of about a half */
    STREAM_FORGETS, /* almost all of the state */
    STREAM_KEEPS,   /* it: no decay, a share of almost 1 */
    STREAM_IDLE,    /* no decay, a share of almost 0 */
    STREAM_KINDS,
    STREAM_OF_A_KIND = 64,
    STREAM_WEIGHTS = 4
};

typedef struct stream {
    stream_shape shape;
    rq_state_group group;
    rq_executor *ex;
    rq_weight weights[STREAM_WEIGHTS];
    uint32_t row; /* floats of a result */
} stream;

/* Fails the test where anything does. */
void stream_open(stream *s, rq_device *device, const stream_shape *shape);
void stream_close(stream *s);

typedef struct stream_run {
    uint32_t seq, start, count;
    const int32_t *ids;
    uint32_t n_accepted, n_pending;
} stream_run;

/* One step of these runs; the results of all tokens go to `rows`, [tokens][s->row], unless it is NULL. */
void stream_step(stream *s, const stream_run *runs, uint32_t n, float *rows);

/* Opens the implementation of the processor or the backend of that name ("avx2", "vulkan", "simt"); NULL, with a word
 * printed, where this machine or build has none. form: of its prompts. Close with
 * device->backend->close. */
rq_device *stream_device(const char *name, rq_delta_form form);

#endif
