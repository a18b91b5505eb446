/* plan.h - what an engine would do with a model, without doing it: for --plan. Nothing is loaded, so that files whose
 * weights are holes (rqvk-synth --sparse) can be planned on any machine. */
#ifndef RQ_PLAN_TEXT_H
#define RQ_PLAN_TEXT_H

#include "engine/rqvk.h"

/* The decisions of rq_engine_create for these parameters as a table, or as JSON; free with rq_string_free. Fails with
 * the sentence rq_engine_create would fail with when nothing fits. */
rq_status rq_plan_text(const rq_model *model, const rq_engine_params *params, bool json, char **text,
                       rq_error *err);

#endif
