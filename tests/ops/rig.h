/* rig.h - a short tape run twice on the same data: by a backend's device and by the reference. */
#ifndef TEST_OPS_RIG_H
#define TEST_OPS_RIG_H

#include "backends/backend.h"
#include "backends/ops.h"

#include <stdbool.h>
#include <stdint.h>

enum { CASE_MAX_WEIGHTS = 8, CASE_STORED_BLOCKS = 128 };

/* One tape of the table. */
typedef struct op_case {
    rq_op_kind kind; /* of the operation the row is about: the tape's last one, after fusing */
    rq_type type;    /* of its weight or cache; F32 when it has none */
    const char *what;
    void (*build)(rq_tape *t, const struct op_case *c);
    uint32_t n, m, heads, kv_heads, dim; /* extents; the builder says which */
    uint32_t n_expert, n_used, skew;     /* skew: how ids are drawn, see fill_ids in rig.c */
    uint32_t n_rot, window, position;    /* position of the first run's token */
    rq_pairing pairing;
    rq_act act;
    float softcap;
    rq_kv_form form_k, form_v; /* of coded pages; both SAME: there are none */
    uint32_t sinks, recent;    /* pages, where there are coded ones */
    uint32_t start;            /* position of the second run, 0: near the end of its first page */
    rq_rotation_kind rotation; /* of weight 0 where the case is about one */
    bool inverse, scratch;     /* of the rotation; wide steps: pages read in both forms are scratch pages */
    bool gate;                 /* a gated product that only recurrent models have */
    bool flag;                 /* the builder says what */
    bool rows;                 /* its extent is rows of the head, not tokens */
} op_case;

static inline bool case_is_coded(const op_case *c)
{
    return c->form_k != RQ_KV_SAME || c->form_v != RQ_KV_SAME;
}

/* Sums of a comparison. */
typedef struct op_error {
    double error, reference; /* sums of squares */
    double largest;          /* |y - ref| */
    uint64_t n;
    bool bits; /* everything has the bits of the reference */
} op_error;

/* Shapes of weights, by index; ne[0] 0 ends. A builder declares them through case_weight. */
rq_ref case_weight(rq_tape *t, uint32_t index, rq_type type, uint32_t ne0, uint32_t ne1, uint32_t ne2);
/* An f32 activation [n, T] or [d, heads, T] that the test fills. */
rq_ref case_rows(rq_tape *t, uint32_t n);
rq_ref case_heads(rq_tape *t, uint32_t d, uint32_t heads);

/* Random numbers, and the weights of one case, which are encoded once. */
typedef struct case_data {
    float draws[4096];
    uint16_t half_draws[4096];
    char *store; /* CASE_STORED_BLOCKS blocks of store_type */
    rq_type store_type;
    void *weights[CASE_MAX_WEIGHTS];
    float *page; /* draws enough for a page of the largest head, by element, then token */
} case_data;
void case_data_init(case_data *data);
void case_data_clear(case_data *data); /* before the next case */
void case_data_free(case_data *data);

/* Runs the case in `bucket` with n_tokens real tokens. first_row, when not NULL, receives the bytes of the
 * first token's row of every result, one after another (at most first_row_bytes). Asserts on failures of any
 * call. */
op_error case_run(rq_device *device, const op_case *c, uint32_t bucket, uint32_t n_tokens, case_data *data,
                  void *first_row, uint64_t first_row_bytes);

/* Name of what serves the case, or NULL with a sentence in `why` when the device does not support it. */
const char *case_served_by(rq_device *device, const op_case *c, uint32_t bucket, rq_error *why);

#endif
