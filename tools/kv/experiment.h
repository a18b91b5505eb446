/* experiment.h - formats on synthetic sets: what `rqvk-kv synth` prints. */
#ifndef RQ_KV_EXPERIMENT_H
#define RQ_KV_EXPERIMENT_H

#include "tools/kv/format.h"
#include "tools/kv/metrics.h"
#include "tools/kv/sets.h"

typedef struct kv_experiment {
    kv_set_kind set;
    uint32_t dim, n_keys, n_queries, n_heads;
    double spread; /* standard deviation of the logits over the keys */
    uint64_t
        seed; /* head h: the set from seed + h, rotations of K from seed + 400 + h, of V from seed + 800 + h */
} kv_experiment;

/* 1,024 keys, 64 queries, 12 heads of 128, spread 2, seed 100. */
kv_experiment kv_experiment_default(void);

typedef struct kv_result {
    char name[KV_FORMAT_NAME];
    double bits_k, bits_v;
    kv_quality quality;  /* means over heads */
    double k_nmse_error; /* standard error of k_nmse over heads; 0 for one head */
} kv_result;

/* One result per format of the list, in its order. `step` (may be NULL) is called after each head and format. */
rq_status kv_experiment_run(const kv_experiment *e, const kv_format_list *formats, kv_result *out,
                            void (*step)(void *user), void *user, rq_error *err);

#endif
