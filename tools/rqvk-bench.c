/* rqvk-bench - prompt and generation speed at chosen depths and numbers of sequences, and the speed of single
 * operations. */
#include "backends/base/mem.h"
#include "engine/plan.h"
#include "tools/bench/context.h"
#include "tools/bench/drafts.h"
#include "tools/bench/results.h"
#include "tools/common/args.h"
#include "tools/common/numbers.h"
#include "tools/common/progress.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX_SEQUENCES = 64 };

typedef struct bench {
    const rq_engine_args *args;
    rq_numbers prompt, gen, depth, sequences, batch;
    uint32_t repetitions;
    bool warmup;
    const char *format_name;
    bench_format format;
    const char *compare; /* backends, separated by commas; NULL: the one of the engine's options */
} bench;

/* One sequence's share of a test. Each runs on a thread of its own, so that the scheduler sees them together.
 */
typedef struct lane {
    rq_session *session;
    const rq_token *tokens;
    uint32_t n, chunk; /* chunk 1: generation, 0: prompt */
    rq_logits_rows rows;
    rq_status status;
    rq_error err;
} lane;

/* Asking for logits makes the head run; nobody looks at them. As in llama-bench, every generated token has some,
 * of a prompt only the last one. */
static void ignore_logits(void *user, size_t position, const float *logits) {}

static void *run_lane(void *user)
{
    lane *l = user;
    l->status =
        l->n ? rq_evaluate(l->session, l->tokens, l->n, l->chunk, l->rows, ignore_logits, NULL, &l->err)
             : RQ_OK;
    return NULL;
}

/* Runs all lanes at once. Lanes that have a thread are joined before this returns. */
static rq_status run_lanes(lane *lanes, uint32_t n, rq_error *err)
{
    pthread_t threads[MAX_SEQUENCES];
    uint32_t started = 0;
    rq_status s = RQ_OK;
    for (; started + 1 < n && !s; started++)
        if (pthread_create(&threads[started], NULL, run_lane, &lanes[started + 1]))
            s = rq_fail(err, RQ_ERR_IO, "cannot start a thread");
    if (s) started--;
    if (!s) run_lane(&lanes[0]);
    for (uint32_t i = 0; i < started; i++) pthread_join(threads[i], NULL);
    for (uint32_t i = 0; i < n && !s; i++)
        if (lanes[i].status) {
            s = lanes[i].status;
            if (err) *err = lanes[i].err;
        }
    return s;
}

static rq_status phase(lane *lanes, uint32_t n_lanes, const rq_token *tokens, uint32_t n, uint32_t chunk,
                       rq_error *err)
{
    if (n == 0) return RQ_OK;
    for (uint32_t i = 0; i < n_lanes; i++) {
        lanes[i].tokens = tokens;
        lanes[i].n = n;
        lanes[i].chunk = chunk;
        lanes[i].rows = chunk == 1 ? RQ_LOGITS_ALL : RQ_LOGITS_LAST;
    }
    return run_lanes(lanes, n_lanes, err);
}

/* One repetition: fill to the depth, then time the prompt and the generation. */
static rq_status repetition(lane *lanes, uint32_t n_lanes, const rq_token *tokens, const bench_row *row,
                            uint64_t *ns, rq_error *err)
{
    rq_status s = RQ_OK;
    for (uint32_t i = 0; i < n_lanes && !s; i++)
        if (rq_session_length(lanes[i].session) >= row->n_depth)
            s = rq_session_truncate(lanes[i].session, row->n_depth, err);
        else {
            lane one = {.session = lanes[i].session,
                        .tokens = tokens,
                        .n = row->n_depth - (uint32_t)rq_session_length(lanes[i].session)};
            s = run_lanes(&one, 1, err);
        }
    uint64_t start = rq_tool_now_ns();
    if (!s) s = phase(lanes, n_lanes, tokens, row->n_prompt, 0, err);
    if (!s) s = phase(lanes, n_lanes, tokens, row->n_gen, 1, err);
    *ns = rq_tool_now_ns() - start;
    return s;
}

/* With a backend's name instead of the engine's options, when there is one. *reference: tokens per second of the first
 * backend of a comparison, 0 before it ran. */
static rq_status run_test(const bench *b, const rq_model *model, const char *backend, bench_row *row,
                          bool first, double *reference, rq_error *err)
{
    rq_model_info info;
    rq_model_describe(model, &info);
    uint32_t most = row->n_depth;
    if (row->n_prompt > most) most = row->n_prompt;
    if (row->n_gen > most) most = row->n_gen;
    rq_token *tokens = rq_malloc((size_t)most * sizeof *tokens);
    if (!tokens) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for %u tokens", most);
    uint32_t x = 1; /* any ids will do: a fixed linear congruential sequence */
    for (uint32_t i = 0; i < most; i++) {
        x = x * 1664525u + 1013904223u;
        tokens[i] = (rq_token)((x >> 8) % info.n_vocab);
    }

    rq_engine_params params = b->args->params;
    if (backend) params.backend = backend;
    params.n_sessions = row->n_sequences;
    params.n_batch = row->n_batch;
    params.n_ctx = row->n_depth + row->n_prompt + row->n_gen + 1;
    rq_engine *engine = NULL;
    lane lanes[MAX_SEQUENCES] = {0};
    rq_status s = rq_engine_create(model, &params, &engine, err);
    for (uint32_t i = 0; i < row->n_sequences && !s; i++)
        s = rq_session_create(engine, &lanes[i].session, err);
    rq_engine_info engine_info;
    if (!s) {
        rq_engine_describe(engine, &engine_info);
        row->cpu_info = engine_info.device;
        row->backends = engine_info.backend;
        row->type_k = engine_info.type_k;
        row->type_v = engine_info.type_v;
        row->n_batch = engine_info.n_batch;
        row->n_threads = engine_info.n_threads;
        time_t now = time(NULL);
        struct tm utc;
        gmtime_r(&now, &utc);
        strftime(row->test_time, sizeof row->test_time, "%Y-%m-%dT%H:%M:%SZ", &utc);
    }
    rq_progress progress = rq_progress_start(stderr, "bench", "runs", b->repetitions);
    rq_engine_stats before = {0}, after = {0};
    for (uint32_t i = 0; i < b->repetitions + b->warmup && !s; i++) {
        uint64_t ns;
        if (i == b->warmup) rq_engine_get_stats(engine, &before);
        s = repetition(lanes, row->n_sequences, tokens, row, &ns, err);
        bool counts = i >= b->warmup;
        if (!s && counts) row->samples_ns[row->n_samples++] = ns ? ns : 1;
        rq_progress_set(&progress, row->n_samples);
    }
    rq_progress_end(&progress);
    if (!s) {
        rq_engine_get_stats(engine, &after);
        uint64_t host_ns = (after.step_ns - before.step_ns) - (after.device_ns - before.device_ns);
        if (after.steps > before.steps)
            row->host_us = (double)host_ns / 1e3 / (double)(after.steps - before.steps);
        double speed = bench_tokens_per_second(row);
        if (*reference == 0) *reference = speed;
        row->ratio = b->compare ? speed / *reference : 0;
        bench_print_row(stdout, b->format, row, first);
    }
    for (uint32_t i = 0; i < row->n_sequences; i++) rq_session_free(lanes[i].session);
    rq_engine_free(engine);
    rq_free(tokens);
    return s;
}

static rq_status run_tests(const bench *b, rq_error *err)
{
    rq_model *model = NULL;
    rq_status s = rq_engine_args_open(b->args, &model, NULL, err);
    if (s) return s;
    rq_model_info info;
    rq_model_describe(model, &info);
    bench_print_head(stdout, b->format, b->compare != NULL);
    bool first = true;
    size_t n_tests = b->prompt.n + b->gen.n, n_rows = b->batch.n * b->sequences.n * b->depth.n * n_tests;
    for (size_t i = 0; i < n_rows && !s; i++) {
        size_t t = i % n_tests, d = i / n_tests % b->depth.n, q = i / n_tests / b->depth.n % b->sequences.n;
        size_t c = i / n_tests / b->depth.n / b->sequences.n;
        bench_row row = {.model_filename = info.path,
                         .model_type = info.description,
                         .model_size = info.file_bytes,
                         .model_n_params = info.n_params,
                         .n_batch = b->batch.values[c],
                         .n_depth = b->depth.values[d],
                         .n_sequences = b->sequences.values[q]};
        if (t < b->prompt.n)
            row.n_prompt = b->prompt.values[t];
        else
            row.n_gen = b->gen.values[t - b->prompt.n];
        if (row.n_prompt + row.n_gen == 0) continue;
        double reference = 0;
        const char *at = b->compare ? b->compare : "";
        do { /* once without a comparison */
            char backend[64];
            size_t n = strcspn(at, ",");
            snprintf(backend, sizeof backend, "%.*s", (int)n, at);
            bench_row copy = row;
            s = run_test(b, model, b->compare ? backend : NULL, &copy, first, &reference, err);
            first = false;
            at += n + (at[n] == ',');
        } while (*at && !s);
    }
    bench_print_tail(stdout, b->format);
    rq_model_free(model);
    return s;
}

static void print_op(void *user, const rq_op_row *r)
{
    bench_format format = *(bench_format *)user;
    if (format == BENCH_MD)
        printf("| %-18s | %-8s | %-32s | %-8s | %-10s | %12.1f | %12.0f | %6.1f%% | %8u |\n", r->op, r->type,
               r->shape, r->backend, r->implementation, r->ns / 1e3, r->bytes, 100 * r->bandwidth_share,
               r->launches);
    else if (format == BENCH_CSV)
        printf("\"%s\",\"%s\",\"%s\",\"%s\",\"%s\",%.0f,%.0f,%.4f,%u\n", r->op, r->type, r->shape, r->backend,
               r->implementation, r->ns, r->bytes, r->bandwidth_share, r->launches);
    else
        printf("{\"op\": \"%s\", \"type\": \"%s\", \"shape\": \"%s\", \"backend\": \"%s\", "
               "\"implementation\": \"%s\", "
               "\"ns\": %.0f, \"bytes\": %.0f, \"bandwidth_share\": %.4f, \"launches\": %u}\n",
               r->op, r->type, r->shape, r->backend, r->implementation, r->ns, r->bytes, r->bandwidth_share,
               r->launches);
    fflush(stdout);
}

/* One line for each layer that is not launched as the one before it. */
typedef struct layer_launches {
    bench_format format;
    uint32_t layer, n, total;       /* n: of this layer */
    uint32_t first, last, n_before; /* the run of equal layers before it, and how many each of them has */
    char text[1024], before[1024];
    bool any;
} layer_launches;

static void print_layers(const layer_launches *l)
{
    if (!l->any) return;
    char layers[32] = "around";
    if (l->first != UINT32_MAX)
        snprintf(layers, sizeof layers, l->first == l->last ? "%u" : "%u-%u", l->first, l->last);
    if (l->format == BENCH_MD)
        printf("| %-9s | %8u | %s |\n", layers, l->n_before, l->before);
    else if (l->format == BENCH_CSV)
        printf("\"%s\",%u,\"%s\"\n", layers, l->n_before, l->before);
    else
        printf("{\"layers\": \"%s\", \"launches\": %u, \"ops\": \"%s\"}\n", layers, l->n_before, l->before);
}

/* The layer in hand is complete: it goes with the ones before it, or these are printed. */
static void end_layer(layer_launches *l)
{
    if (!l->text[0]) return;
    const bool same = l->any && l->n == l->n_before && strcmp(l->text, l->before) == 0;
    if (!same || l->layer == UINT32_MAX || l->first == UINT32_MAX) {
        print_layers(l);
        l->first = l->layer;
        l->n_before = l->n;
        memcpy(l->before, l->text, sizeof l->before);
    }
    l->any = true;
    l->last = l->layer;
    l->n = 0;
    l->text[0] = 0;
}

static void count_row(void *user, const rq_launch_row *r)
{
    layer_launches *l = user;
    if (r->layer != l->layer) end_layer(l);
    l->layer = r->layer;
    l->n += r->launches;
    l->total += r->launches;
    size_t at = strlen(l->text);
    if (r->launches > 1)
        snprintf(l->text + at, sizeof l->text - at, "%s%s x%u", at ? ", " : "", r->op, r->launches);
    else if (r->launches)
        snprintf(l->text + at, sizeof l->text - at, "%s%s", at ? ", " : "", r->op);
}

static rq_status run_launches(const bench *b, rq_error *err)
{
    rq_model *model = NULL;
    rq_status s = rq_engine_args_open(b->args, &model, NULL, err);
    if (s) return s;
    rq_engine_params p = b->args->params;
    if (!strcmp(p.backend, "auto")) p.backend = "cuda";
    layer_launches l = {.format = b->format, .layer = UINT32_MAX};
    if (b->format == BENCH_MD)
        puts("| layers    | launches | of                                       |\n| --------- | -------: | "
             "--- |");
    else if (b->format == BENCH_CSV)
        puts("layers,launches,ops");
    s = rq_count_launches(model, &p, count_row, &l, err);
    if (!s) {
        end_layer(&l);
        print_layers(&l);
        if (b->format == BENCH_MD) printf("\n%u launches for a generated token\n", l.total);
    }
    rq_model_free(model);
    return s;
}

static rq_status run_ops(const bench *b, const char *filter, rq_error *err)
{
    bench_format format = b->format;
    if (format == BENCH_MD)
        puts("| op                 | type     | shape                            | backend  | served by  |   "
             "        us |"
             "        bytes |  of copy | launches |\n"
             "| ------------------ | -------- | -------------------------------- | -------- | ---------- | "
             "-----------: |"
             " -----------: | ------: | -------: |");
    else if (format == BENCH_CSV)
        puts("op,type,shape,backend,implementation,ns,bytes,bandwidth_share,launches");
    const char *backend = strcmp(b->args->params.backend, "auto") ? b->args->params.backend : "cpu";
    return rq_bench_ops(backend, b->args->params.n_threads, filter, print_op, &format, err);
}

static rq_status run_drafts(const bench *b, const char *path, rq_error *err)
{
    rq_model *model = NULL;
    rq_status s = rq_engine_args_open(b->args, &model, NULL, err);
    for (uint32_t i = 0; i < b->sequences.n && s == RQ_OK; i++)
        s = rq_bench_drafts(model, &b->args->params, path, b->sequences.values[i], b->repetitions,
                            b->gen.values[0], b->format != BENCH_MD, err);
    rq_model_free(model);
    return s;
}

int main(int argc, char **argv)
{
    rq_engine_args engine_args = rq_engine_args_default();
    bench b = {.args = &engine_args,
               .prompt = {.values = {512}, .n = 1, .min = 0, .max = 1 << 24},
               .gen = {.values = {128}, .n = 1, .min = 0, .max = 1 << 24},
               .depth = {.values = {0}, .n = 1, .min = 0, .max = 1 << 24},
               .sequences = {.values = {1}, .n = 1, .min = 1, .max = MAX_SEQUENCES},
               .batch = {.values = {512}, .n = 1, .min = 1, .max = 2048},
               .repetitions = 5,
               .warmup = true,
               .format_name = "md"};
    bool ops = false, launches = false;
    const char *drafts = NULL, *contexts = NULL;
    rq_numbers cards = {.values = {16, 24, 32}, .n = 3, .min = 1, .max = 4096};
    const char *filter = NULL;
    rq_options options = {0};
    rq_options_engine(&options, &engine_args);
    /* here the batch size is a list, like everything that is varied */
    rq_option *n_batch = rq_options_find(&options, &engine_args.params.n_batch);
    *n_batch = (rq_option){.names = n_batch->names,
                           .env = n_batch->env,
                           .kind = RQ_OPT_CALL,
                           .call = rq_numbers_parse,
                           .target = &b.batch,
                           .value = "N,...",
                           .shown = "512",
                           .help = "most tokens in one step, powers of two"};
    rq_options_heading(&options, "Tests");
    rq_options_add(&options, (rq_option){.names = "-p,--n-prompt",
                                         .kind = RQ_OPT_CALL,
                                         .call = rq_numbers_parse,
                                         .target = &b.prompt,
                                         .value = "N,...",
                                         .shown = "512",
                                         .help = "prompt sizes"});
    rq_options_add(&options, (rq_option){.names = "-n,--n-gen",
                                         .kind = RQ_OPT_CALL,
                                         .call = rq_numbers_parse,
                                         .target = &b.gen,
                                         .value = "N,...",
                                         .shown = "128",
                                         .help = "numbers of generated tokens"});
    rq_options_add(&options, (rq_option){.names = "-d,--n-depth",
                                         .kind = RQ_OPT_CALL,
                                         .call = rq_numbers_parse,
                                         .target = &b.depth,
                                         .value = "N,...",
                                         .shown = "0",
                                         .help = "tokens already in the cache"});
    rq_options_add(&options, (rq_option){.names = "-np,--parallel",
                                         .kind = RQ_OPT_CALL,
                                         .call = rq_numbers_parse,
                                         .target = &b.sequences,
                                         .value = "N,...",
                                         .shown = "1",
                                         .help = "sequences that run at the same time"});
    rq_options_add(&options, (rq_option){.names = "-r,--repetitions",
                                         .kind = RQ_OPT_U32,
                                         .target = &b.repetitions,
                                         .min = 1,
                                         .max = BENCH_MAX_SAMPLES,
                                         .help = "times each test is measured"});
    rq_options_add(&options, (rq_option){.names = "--warmup",
                                         .kind = RQ_OPT_FLAG,
                                         .target = &b.warmup,
                                         .help = "run each test once before measuring"});
    rq_options_add(&options,
                   (rq_option){.names = "--compare",
                               .kind = RQ_OPT_STRING,
                               .target = &b.compare,
                               .value = "BACKENDS",
                               .shown = "",
                               .help = "run every test on each of these backends (cpu,vulkan) and give "
                                       "their speed as a share of the first one's"});
    rq_options_add(&options, (rq_option){.names = "-o,--output",
                                         .kind = RQ_OPT_STRING,
                                         .target = &b.format_name,
                                         .choices = "md,csv,json,jsonl",
                                         .value = "FORMAT",
                                         .help = "output format"});
    rq_options_add(&options, (rq_option){.names = "--ops",
                                         .kind = RQ_OPT_FLAG,
                                         .target = &ops,
                                         .help = "time single operations instead (no model needed)"});
    rq_options_add(&options, (rq_option){.names = "--launches",
                                         .kind = RQ_OPT_FLAG,
                                         .target = &launches,
                                         .help = "count the kernels a generated token launches instead, "
                                                 "layer by layer; needs no card"});
    rq_options_add(&options, (rq_option){.names = "--filter",
                                         .kind = RQ_OPT_STRING,
                                         .target = &filter,
                                         .help = "with --ops: only rows whose name contains this"});
    rq_options_add(&options,
                   (rq_option){.names = "--drafts",
                               .kind = RQ_OPT_STRING,
                               .target = &drafts,
                               .value = "FILE",
                               .shown = "",
                               .help = "measure drafts of each depth instead, on pieces of this text"});
    rq_options_add(&options,
                   (rq_option){.names = "--context-table",
                               .kind = RQ_OPT_STRING,
                               .target = &contexts,
                               .value = "PRESETS",
                               .shown = "",
                               .help =
                                   "say instead how much context fits on a card, by cache format: for all "
                                   "presets of rqvk-synth that are published models (all), for some of them "
                                   "(separated by commas), or for the file of -m (model)"});
    rq_options_add(&options, (rq_option){.names = "--cards",
                                         .kind = RQ_OPT_CALL,
                                         .call = rq_numbers_parse,
                                         .target = &cards,
                                         .value = "GB,...",
                                         .shown = "16,24,32",
                                         .help = "with --context-table: the memory of the cards"});
    const rq_program_text text = {.program = "rqvk-bench",
                                  .usage =
                                      "[-m MODEL] [-p N,...] [-n N,...] [-d N,...] [-np N,...] [options]",
                                  .about = "Measures prompt and generation speed."};
    int code = rq_args_run(&text, &options, argc, argv, NULL, NULL);
    if (code >= 0) return code;
    if (engine_args.list_devices) return rq_print_devices();
    if (rq_engine_args_plan(&engine_args, text.program, &code)) return code;
    static const char *const formats[] = {"md", "csv", "json", "jsonl"};
    for (int i = 0; i < 4; i++)
        if (!strcmp(b.format_name, formats[i])) b.format = (bench_format)i;

    rq_error err = {0};
    rq_status s = contexts   ? rq_bench_contexts(&engine_args, contexts, &cards, b.format, &err)
                  : drafts   ? run_drafts(&b, drafts, &err)
                  : launches ? run_launches(&b, &err)
                  : ops      ? run_ops(&b, filter, &err)
                             : run_tests(&b, &err);
    return s ? rq_complain("rqvk-bench", &err) : 0;
}
