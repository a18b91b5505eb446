/* decide.h - everything an engine works out before it makes anything: devices, formats, placement, context, sizes. */
#ifndef RQ_PLACE_DECIDE_H
#define RQ_PLACE_DECIDE_H

#include "engine/place/place.h"

typedef struct rq_decision {
    const rq_model *model;
    rq_place_devices devices;
    rq_kv_plan kv;
    rq_place_wishes wishes;
    rq_place place;
    rq_place_numbers numbers; /* complete */
    rq_draft_wishes draft;
    rq_place_pools pools;
    uint32_t n_piece, n_queue;
    uint64_t available_bytes; /* of the processor; 0: unknown */
    uint64_t weight_bytes;    /* of the whole file */
    bool listed;              /* the next three are known: there are cards, or it was asked for */
    rq_exec_list list;
    rq_executor_info info;
    rq_place_need need;
} rq_decision;

/* Fills *out, which must not move from then on; refuses what cannot work. Reads no weight. `list`: lists the memory
 * in any case, else only where there are cards. Says nothing but what choosing formats and devices says. Free it
 * after a failure too. */
rq_status rq_decide(const rq_model *model, const rq_engine_params *params, bool list, rq_decision *out,
                    rq_error *err);
void rq_decision_free(rq_decision *decision);

#endif
