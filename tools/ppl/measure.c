/* measure.c - see measure.h. */
#include "tools/ppl/measure.h"

#include "tools/common/output.h"
#include "tools/ppl/lanes.h"

void rq_options_measure(rq_options *options, rq_measure_args *args, const char *formats_help)
{
    rq_options_engine(options, &args->engine);
    rq_options_drop(options, &args->engine.params.type_k);
    rq_options_drop(options, &args->engine.params.type_v);
    rq_options_drop(options, &args->engine.params.cache_tokens);
    rq_options_heading(options, "Measurement");
    rq_options_add(options, (rq_option){.names = "-f,--file",
                                        .kind = RQ_OPT_STRING,
                                        .target = &args->text,
                                        .value = "FILE",
                                        .shown = "",
                                        .help = "the text; nothing of it should have been trained on"});
    rq_options_add(options, (rq_option){.names = "--formats",
                                        .kind = RQ_OPT_STRING,
                                        .target = &args->formats,
                                        .value = "LIST",
                                        .help = formats_help});
}

static void add_file(rq_options *options, const char *name, const char **target, const char *help)
{
    rq_options_add(options, (rq_option){.names = name,
                                        .kind = RQ_OPT_STRING,
                                        .target = target,
                                        .value = "FILE",
                                        .shown = "",
                                        .help = help});
}

void rq_options_results(rq_options *options, rq_measure_args *args, rq_results_help help)
{
    rq_options_add(options, (rq_option){.names = "--lanes",
                                        .kind = RQ_OPT_U32,
                                        .target = &args->lanes,
                                        .max = RQ_MAX_LANES,
                                        .shown = "one per thread for models up to 64 MiB, else one",
                                        .help = help.lanes});
    add_file(options, "--csv", &args->csv, help.csv);
    add_file(options, "--json", &args->json, "write the figures as JSON");
    add_file(options, "--svg", &args->svg, help.svg);
}

static rq_status check(const rq_measure_args *args, rq_error *err)
{
    if (!args->text)
        return rq_fail(err, RQ_ERR_ARGUMENT, "no text given: name a file with -f FILE (see --help)");
    rq_status status = rq_output_check(args->csv, err);
    if (!status) status = rq_output_check(args->json, err);
    if (!status) status = rq_output_check(args->svg, err);
    return status;
}

int rq_measure_main(const rq_program_text *text, const rq_options *options, rq_measure_args *args, int argc,
                    char **argv, rq_status (*run)(void *user, const rq_model *model, rq_error *err),
                    void *user)
{
    int code = rq_args_run(text, options, argc, argv, NULL, NULL);
    if (code >= 0) return code;
    if (args->engine.list_devices) return rq_print_devices();
    rq_error err = {0};
    rq_model *model = NULL;
    rq_status s = check(args, &err);
    if (!s) s = rq_engine_args_open(&args->engine, &model, NULL, &err);
    if (!s) s = run(user, model, &err);
    rq_model_free(model);
    return s ? rq_complain(text->program, &err) : 0;
}
