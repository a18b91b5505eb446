/* args_engine.c - the options that every program with a model shares. */
#include "engine/plan.h"
#include "tools/common/args.h"
#include "tools/common/builtin.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

rq_engine_args rq_engine_args_default(void)
{
    return (rq_engine_args){
        .params = {.backend = "auto", .type_k = "f16", .type_v = "f16", .kv_recent = 128, .n_batch = 512}};
}

static rq_status parse_fit(void *target, const char *value, rq_error *err)
{
    bool off = strcmp(value, "off") == 0;
    if (!off && strcmp(value, "on") != 0)
        return rq_fail(err, RQ_ERR_ARGUMENT, "--fit is on or off, not \"%.40s\"", value);
    *(bool *)target = off;
    return RQ_OK;
}

/* "16G", "512M", "1000000": binary multiples, with or without "iB" or "B" behind. */
static rq_status parse_bytes(void *target, const char *value, rq_error *err)
{
    char *end;
    double n = strtod(value, &end);
    static const char units[] = "KMGT";
    const char *unit = *end != 0 ? strchr(units, toupper((unsigned char)*end)) : NULL;
    if (unit != NULL) {
        for (const char *u = units; u <= unit; u++) n *= 1024;
        end++;
    }
    bool ends = *end == 0 || strcmp(end, "B") == 0 || (unit != NULL && strcmp(end, "iB") == 0);
    if (end == value || !ends || !(n >= 1 && n < 1e18))
        return rq_fail(err, RQ_ERR_ARGUMENT, "\"%.40s\" is no amount of memory; 16G or 512M would be", value);
    *(uint64_t *)target = (uint64_t)n;
    return RQ_OK;
}

static void options_placement(rq_options *options, rq_engine_args *args)
{
    rq_engine_params *p = &args->params;
    const rq_option list[] = {
        {.names = "-ngl,--gpu-layers,--n-gpu-layers",
         .kind = RQ_OPT_STRING,
         .target = &p->gpu_layers,
         .value = "N",
         .env = "LLAMA_ARG_N_GPU_LAYERS",
         .shown = "as many as fit",
         .help = "so many of the last layers run on the cards; all, or auto"},
        {.names = "-cmoe,--cpu-experts,--cpu-moe",
         .kind = RQ_OPT_FLAG,
         .target = &p->cpu_experts,
         .env = "LLAMA_ARG_CPU_MOE",
         .help = "mixtures: the experts stay on the processor"},
        {.names = "-ncmoe,--cpu-expert-layers,--n-cpu-moe",
         .kind = RQ_OPT_U32,
         .target = &p->cpu_expert_layers,
         .env = "LLAMA_ARG_N_CPU_MOE",
         .max = 1 << 20,
         .shown = "as many as needed",
         .help = "mixtures: the experts of the first N layers stay on the processor"},
        {.names = "-ts,--tensor-split",
         .kind = RQ_OPT_STRING,
         .target = &p->tensor_split,
         .value = "SHARES",
         .shown = "by free memory",
         .help = "how several devices share the layers: 3,1"},
        {.names = "--fit",
         .kind = RQ_OPT_CALL,
         .target = &p->no_fit,
         .call = parse_fit,
         .value = "on|off",
         .shown = "on",
         .help = "find a placement and a context that fit before anything is loaded; off: everything on the "
                 "cards and the trained context, whatever happens"},
        {.names = "--plan",
         .kind = RQ_OPT_FLAG,
         .target = &args->plan,
         .help = "print where everything would go and how much memory it would take, and leave"},
        {.names = "--plan-json", .kind = RQ_OPT_FLAG, .target = &args->plan_json, .help = "the same as JSON"},
        {.names = "--device-memory",
         .kind = RQ_OPT_CALL,
         .target = &p->device_memory,
         .call = parse_bytes,
         .value = "SIZE",
         .shown = "what is free",
         .help = "plan as if each card had this much memory: 16G"},
        {.names = "--host-memory",
         .kind = RQ_OPT_CALL,
         .target = &p->host_memory,
         .call = parse_bytes,
         .value = "SIZE",
         .shown = "what is free",
         .help = "the same for the processor"},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) rq_options_add(options, list[i]);
}

void rq_options_engine(rq_options *options, rq_engine_args *args)
{
    rq_engine_params *p = &args->params;
    rq_options_heading(options, "Model and engine");
    rq_options_add(options, (rq_option){.names = "-m,--model",
                                        .kind = RQ_OPT_STRING,
                                        .target = &args->model,
                                        .value = "FILE",
                                        .shown = "the built-in model",
                                        .help = "the GGUF file, or the first of a split set"});
    rq_options_add(options, (rq_option){.names = "--builtin",
                                        .kind = RQ_OPT_STRING,
                                        .target = &args->builtin,
                                        .value = "NAME",
                                        .shown = "qwen3",
                                        .help = "the built-in model to use without -m: qwen3"});
    rq_options_add(options, (rq_option){.names = "-c,--ctx-size",
                                        .kind = RQ_OPT_U32,
                                        .target = &p->n_ctx,
                                        .max = 1 << 24,
                                        .shown = "the context the model was trained for, or what fits",
                                        .help = "most tokens one conversation may hold"});
    rq_options_add(options, (rq_option){.names = "-t,--threads",
                                        .kind = RQ_OPT_U32,
                                        .target = &p->n_threads,
                                        .max = 1024,
                                        .shown = "all processors this process may use",
                                        .help = "threads that compute"});
    rq_options_add(options, (rq_option){.names = "-b,--batch-size",
                                        .kind = RQ_OPT_U32,
                                        .target = &p->n_batch,
                                        .min = 1,
                                        .max = 2048,
                                        .env = "LLAMA_ARG_BATCH",
                                        .help = "most tokens in one step, a power of two"});
    rq_options_add(options, (rq_option){.names = "--backend",
                                        .kind = RQ_OPT_STRING,
                                        .target = &p->backend,
                                        .value = "NAME",
                                        .help = "what computes: auto, cpu, or vulkan where it was built in"});
    rq_options_add(
        options, (rq_option){.names = "--device",
                             .kind = RQ_OPT_STRING,
                             .target = &p->device,
                             .value = "DEVICE",
                             .shown = "the first, cards before processors",
                             .help = "which device of the backend: its number in --list-devices, or part of "
                                     "its name; several, separated by commas, share the layers"});
    options_placement(options, args);
    rq_options_add(options, (rq_option){.names = "--vk-disable",
                                        .kind = RQ_OPT_STRING,
                                        .target = &p->vk_disable,
                                        .value = "FEATURES",
                                        .shown = "",
                                        .help = "Vulkan: abilities of the device not to use, separated by "
                                                "commas: float16, int8, integer-dot, subgroup, "
                                                "full-subgroups, coopmat"});
    rq_options_add(options,
                   (rq_option){.names = "-ctk,--cache-type-k",
                               .kind = RQ_OPT_STRING,
                               .target = &p->type_k,
                               .value = "FORMAT",
                               .help = "format of the cached keys: f16, f32, bf16; q8_0, q4_0; planar, "
                                       "rotor, iso, so8, wht, haar, none or klt followed by 2, 3 or 4 bits "
                                       "(wht3); or auto: what rqvk-kv replay found for this model"});
    rq_options_add(options, (rq_option){.names = "-ctv,--cache-type-v",
                                        .kind = RQ_OPT_STRING,
                                        .target = &p->type_v,
                                        .value = "FORMAT",
                                        .help = "format of the cached values, one of the same"});
    rq_options_add(options,
                   (rq_option){.names = "--kv-recent",
                               .kind = RQ_OPT_U32,
                               .target = &p->kv_recent,
                               .min = 1,
                               .max = 1 << 24,
                               .help = "compressed formats: so many last tokens are read uncompressed, in "
                                       "whole 64s"});
    rq_options_add(options, (rq_option){.names = "--kv-sinks",
                                        .kind = RQ_OPT_U32,
                                        .target = &p->kv_sinks,
                                        .max = 1 << 24,
                                        .help = "and so many first ones, in whole 64s"});
    rq_options_add(options, (rq_option){.names = "--kv-swa",
                                        .kind = RQ_OPT_STRING,
                                        .target = &p->kv_swa,
                                        .value = "FORMAT",
                                        .shown = "uncompressed",
                                        .help = "format of layers that see a window of the last tokens only; "
                                                "two with a comma: keys, values"});
    rq_options_add(options,
                   (rq_option){.names = "--kv-profile",
                               .kind = RQ_OPT_STRING,
                               .target = &p->kv_profile,
                               .value = "FILE",
                               .shown = "MODEL.kvprofile if there is one",
                               .help = "profile of the model's keys and values (rqvk-kv calibrate writes "
                                       "one); none: go without"});
    rq_options_add(
        options,
        (rq_option){.names = "--cache-ram",
                    .kind = RQ_OPT_U64,
                    .target = &p->cache_ram_mib,
                    .shown = "1024",
                    .help =
                        "MiB for copies of the state of recurrent models, from which later requests go on"});
    rq_options_add(options, (rq_option){.names = "--cache-tokens",
                                        .kind = RQ_OPT_U64,
                                        .target = &p->cache_tokens,
                                        .shown = "context times sessions",
                                        .help = "size of the cache all sessions share, in tokens"});
    rq_options_add(options, (rq_option){.names = "--list-devices",
                                        .kind = RQ_OPT_FLAG,
                                        .target = &args->list_devices,
                                        .help = "list what this build can compute on and leave"});
}

rq_option rq_option_predict(int32_t *target, const char *shown, const char *help)
{
    return (rq_option){.names = "-n,--predict,--n-predict",
                       .kind = RQ_OPT_I32,
                       .target = target,
                       .min = -1,
                       .max = 1 << 24,
                       .env = "LLAMA_ARG_N_PREDICT",
                       .shown = shown,
                       .help = help};
}

rq_status rq_predict_check(int32_t n_predict, rq_error *err)
{
    if (n_predict != 0) return RQ_OK;
    return rq_fail(err, RQ_ERR_ARGUMENT, "--predict must be at least 1, or -1 for no limit");
}

rq_sampling_args rq_sampling_args_default(void)
{
    return (rq_sampling_args){.sampling = rq_sampling_default(), .seed = -1};
}

void rq_options_sampling(rq_options *options, rq_sampling_args *args)
{
    rq_sampling *s = &args->sampling;
    rq_options_heading(options, "Sampling");
    const rq_option list[] = {
        {.names = "--temp,--temperature",
         .kind = RQ_OPT_F32,
         .target = &s->temperature,
         .max = 100,
         .help = "0 always takes the likeliest token, more is more varied"},
        {.names = "--top-k",
         .kind = RQ_OPT_I32,
         .target = &s->top_k,
         .help = "choose among the N likeliest tokens; 0: all"},
        {.names = "--top-p",
         .kind = RQ_OPT_F32,
         .target = &s->top_p,
         .max = 1,
         .help = "choose among the likeliest tokens that hold this share of probability; 1: off"},
        {.names = "--min-p",
         .kind = RQ_OPT_F32,
         .target = &s->min_p,
         .max = 1,
         .help = "drop tokens less likely than this share of the likeliest; 0: off"},
        {.names = "--repeat-penalty",
         .kind = RQ_OPT_F32,
         .target = &s->repeat_penalty,
         .min = 0.01,
         .max = 100,
         .help = "make repeated tokens less likely; 1: off"},
        {.names = "--repeat-last-n",
         .kind = RQ_OPT_I32,
         .target = &s->repeat_last_n,
         .min = -1,
         .max = 1 << 24,
         .help = "how far back repetition counts; -1: all"},
        {.names = "--presence-penalty",
         .kind = RQ_OPT_F32,
         .target = &s->presence_penalty,
         .min = -2,
         .max = 2,
         .help = "lower every token already written by this much"},
        {.names = "--frequency-penalty",
         .kind = RQ_OPT_F32,
         .target = &s->frequency_penalty,
         .min = -2,
         .max = 2,
         .help = "lower tokens by this much for each time they were written"},
        {.names = "-s,--seed",
         .kind = RQ_OPT_I64,
         .target = &args->seed,
         .min = -1,
         .max = 9007199254740992.0,
         .help = "same seed, same text; -1: a new one each time"},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) rq_options_add(options, list[i]);
}

uint64_t rq_random_seed(void)
{
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed) {
        struct timespec now; /* only on kernels without getrandom: a seed need not be secret */
        clock_gettime(CLOCK_REALTIME, &now);
        seed = (uint64_t)now.tv_sec * 1000000007u + (uint64_t)now.tv_nsec;
    }
    return seed >> 1;
}

void rq_sampling_args_finish(rq_sampling_args *args)
{
    args->sampling.seed = args->seed < 0 ? rq_random_seed() : (uint64_t)args->seed;
}

static void print_line(void *user, const char *text)
{
    fprintf(user, "%s\n", text);
}

int rq_print_devices(void)
{
    rq_list_devices(print_line, stdout);
    return 0;
}

static rq_status print_plan(const rq_engine_args *args, rq_error *err)
{
    rq_model *model = NULL;
    char *text = NULL;
    rq_status status = rq_engine_args_open(args, &model, NULL, err);
    if (status == RQ_OK) status = rq_plan_text(model, &args->params, args->plan_json, &text, err);
    if (status == RQ_OK) fputs(text, stdout);
    rq_string_free(text);
    rq_model_free(model);
    return status;
}

bool rq_engine_args_plan(const rq_engine_args *args, const char *program, int *code)
{
    if (!args->plan && !args->plan_json) return false;
    rq_error err = {0};
    *code = print_plan(args, &err) == RQ_OK ? 0 : rq_complain(program, &err);
    return true;
}

/* The file to load: that of -m, or the built-in one's, whose path goes into `path`. */
static rq_status find_model(const rq_engine_args *args, char path[RQ_BUILTIN_PATH_BYTES], const char **file,
                            rq_error *err)
{
    bool named = args->model && *args->model;
    if (named && args->builtin && *args->builtin) {
        return rq_fail(err, RQ_ERR_ARGUMENT, "-m %s and --builtin %s name two models: leave one out",
                       args->model, args->builtin);
    }
    *file = named ? args->model : path;
    return named ? RQ_OK : rq_builtin_path(args->builtin, path, err);
}

rq_status rq_engine_args_check(const rq_engine_args *args, rq_error *err)
{
    char path[RQ_BUILTIN_PATH_BYTES];
    const char *file = NULL;
    return find_model(args, path, &file, err);
}

rq_status rq_engine_args_open(const rq_engine_args *args, rq_model **model, rq_engine **engine, rq_error *err)
{
    char path[RQ_BUILTIN_PATH_BYTES];
    const char *file = NULL;
    rq_model *m = NULL;
    rq_status status = find_model(args, path, &file, err);
    if (status == RQ_OK) status = rq_model_load(file, &m, err);
    if (status != RQ_OK) return status;
    if (engine) {
        status = rq_engine_create(m, &args->params, engine, err);
        if (status != RQ_OK) {
            rq_model_free(m);
            return status;
        }
    }
    *model = m;
    return RQ_OK;
}
