/* args_draft.c - options of drafts, for programs that generate. */
#include "tools/common/args.h"

void rq_options_drafts(rq_options *options, rq_engine_args *args)
{
    rq_engine_params *p = &args->params;
    if (!p->draft) p->draft = "auto";
    rq_options_add(options,
                   (rq_option){.names = "--draft",
                               .kind = RQ_OPT_STRING,
                               .target = &p->draft,
                               .choices = "auto,mtp,off",
                               .value = "HOW",
                               .help = "let the MTP block of the file guess tokens ahead, which the model "
                                       "checks together: mtp, off, or auto: where the file has one and "
                                       "while it measures faster; answers stay the same"});
    rq_options_add(options, (rq_option){.names = "--draft-depth,--draft-max,--draft-n",
                                        .kind = RQ_OPT_U32,
                                        .target = &p->draft_depth,
                                        .min = 1,
                                        .max = 6,
                                        .shown = "2",
                                        .env = "LLAMA_ARG_DRAFT_MAX",
                                        .help = "most tokens guessed ahead"});
    rq_options_add(options, (rq_option){.names = "--draft-min-p,--draft-p-min",
                                        .kind = RQ_OPT_F32,
                                        .target = &p->draft_min_p,
                                        .min = 0,
                                        .max = 1,
                                        .env = "LLAMA_ARG_DRAFT_P_MIN",
                                        .help = "stop where a guess has less than this probability"});
}
