/* calibration.h - from queries, keys and values of a text to a profile (engine/kv.h).
 *
 * For each layer and KV head: mean_k and mean_v, and for each rotary pair (elements that are not turned stand alone)
 *     lambda = (E q^2 / E (k - mean_k)^2)^(1/4),
 * q over the query heads of the KV head: the scales that minimise the noise of scores after a rotation that spreads
 * it evenly. Only their ratios matter, so they are scaled to a geometric mean of 1 and kept within [1/16, 16].
 * On request, rotations of eights (flatten.h) and bases (klt.h). */
#ifndef RQ_KV_CALIBRATION_H
#define RQ_KV_CALIBRATION_H

#include "engine/kv.h"
#include "tools/kv/table.h"

enum { KV_BUCKETS = 8 };

typedef struct kv_calibration kv_calibration;

/* KV heads of a layer; n_heads_kv 0: nothing will come of this layer, and the profile is to say nothing about it. */
typedef struct kv_calibration_layer {
    uint32_t n_heads_kv, dim_k, dim_v;
} kv_calibration_layer;

/* n_layers 1 .. 512; `window`: positions are below it; `n_tokens`: how many will come; `so8`: learn rotations too
 * (keeps samples); `klt`: learn bases too (a product of d x d for each head of a token). */
rq_status kv_calibration_make(const kv_calibration_layer *layers, uint32_t n_layers, uint32_t window,
                              uint32_t n_tokens, bool so8, bool klt, kv_calibration **out, rq_error *err);
void kv_calibration_free(kv_calibration *c);

/* Where bases are learned: how errors in the values of a head count, rq_kv_value_weight. Without: all alike. */
double *kv_calibration_value_weight(kv_calibration *c, uint32_t layer, uint32_t head);

/* As rq_kv_hooks.capture. Queries count for the layer whose keys they meet. Rows with elements that are not finite are
 * left out. */
rq_status kv_calibration_add(kv_calibration *c, const rq_kv_captured *rows, rq_error *err);

/* Adds what was learned to a profile with the same layers. RQ_ERR_ARGUMENT when a layer has seen nothing. */
rq_status kv_calibration_finish(kv_calibration *c, rq_kv_profile *profile, rq_error *err);

/* After kv_calibration_finish: energy of keys around their mean by position, to see whether one mean serves all
 * positions. One row for each layer, KV head and bucket of positions; `t` is started by this function. */
void kv_calibration_report(const kv_calibration *c, const rq_kv_profile *profile, kv_table *t);

#endif
