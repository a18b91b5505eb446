/* foreign_hook.h - codecs of other systems (tools/kv/foreign.h) inside the engine, through its hook. */
#ifndef RQ_FOREIGN_HOOK_H
#define RQ_FOREIGN_HOOK_H

#include "engine/kv.h"

typedef struct rq_foreign_hook rq_foreign_hook;

/* Codecs for every head size of the model; NULL for a side that has none. */
rq_status rq_foreign_hook_make(const rq_model *model, const char *name_k, const char *name_v,
                               rq_foreign_hook **out, rq_error *err);
void rq_foreign_hook_free(rq_foreign_hook *hook);

/* For rq_engine_params.kv_hooks; lives as long as the hook, which must outlive the engine. */
const rq_kv_hooks *rq_foreign_hook_of(const rq_foreign_hook *hook);

/* Bits per element of a side that has a codec, mean over the layers. */
double rq_foreign_hook_bits(const rq_foreign_hook *hook, bool is_v);

#endif
