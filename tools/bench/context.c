/* context.c - see context.h. */
#include "tools/bench/context.h"

#include "backends/base/buf.h"
#include "backends/base/mem.h"
#include "engine/plan.h"
#include "tools/synth/file.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What the published models are called here; the other presets are for tests. */
static const char *const published[] = {"llama-3.1-8b",    "qwen3-30b-a3b",     "qwen3.6-27b",
                                        "qwen3.6-35b-a3b", "qwen3.5-397b-a17b", "gemma-4-26b-a4b",
                                        "gemma-4-31b"};
static const char *const formats[] = {"f16", "q8_0", "wht4", "wht3", "wht2"};
enum { N_PUBLISHED = sizeof published / sizeof *published, N_FORMATS = sizeof formats / sizeof *formats };
enum { TAKEN_MIB = 512, HOST_GIB = 512, CACHE_RAM_MIB = 1024, MAX_ROWS_BYTES = 1 << 20 };

typedef struct table {
    const rq_engine_params *params;
    const rq_numbers *cards;
    bench_format format;
    rq_buf rows; /* of the second table */
} table;

/* A plan's numbers; all 0 where nothing fits. */
typedef struct fit {
    double context, trained, token_bytes, weight_bytes, state_bytes, window_bytes, expert_layers;
    bool fits, beside; /* beside: the experts are on the processor */
} fit;

static double number(const cJSON *object, const char *name)
{
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, name);
    return cJSON_IsNumber(value) ? value->valuedouble : 0;
}

static fit read_plan(const cJSON *plan)
{
    fit f = {.fits = true,
             .context = number(plan, "context"),
             .trained = number(plan, "trained_context"),
             .token_bytes = number(plan, "cache_bytes_per_token"),
             .window_bytes = number(plan, "window_bytes"),
             .expert_layers = number(plan, "cpu_expert_layers")};
    const cJSON *device;
    cJSON_ArrayForEach(device, cJSON_GetObjectItemCaseSensitive(plan, "devices"))
    {
        f.weight_bytes += number(device, "weight_bytes");
        f.state_bytes += number(device, "state_bytes");
    }
    return f;
}

/* One plan; *plan (NULL where nothing fits) belongs to the caller. */
static rq_status plan_once(const table *t, const rq_model *model, const char *cache, uint32_t gb, bool beside,
                           cJSON **plan, fit *out, rq_error *err)
{
    rq_engine_params p = *t->params;
    char *text = NULL;
    *plan = NULL;
    *out = (fit){.beside = beside};
    p.type_k = p.type_v = cache;
    p.cache_ram_mib = CACHE_RAM_MIB;
    uint64_t memory = ((uint64_t)gb * 1024 - TAKEN_MIB) << 20;
    if (strcmp(p.backend, "cpu") == 0) {
        p.host_memory = memory;
    } else {
        p.gpu_layers = "all";
        p.cpu_experts = beside;
        p.host_memory = (uint64_t)HOST_GIB << 30;
        p.device_memory = memory;
    }
    rq_status status = rq_plan_text(model, &p, true, &text, err);
    if (status == RQ_ERR_CAPACITY || status == RQ_ERR_MEMORY)
        return RQ_OK; /* it does not fit: a row like others */
    if (status != RQ_OK) return status;
    *plan = cJSON_Parse(text);
    rq_string_free(text);
    if (*plan == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a plan");
    *out = read_plan(*plan);
    out->beside = beside;
    return RQ_OK;
}

/* Everything on the card, or, if that does not fit, all experts beside it. */
static rq_status plan_best(const table *t, const rq_model *model, bool mixture, const char *cache,
                           uint32_t gb, cJSON **plan, fit *out, rq_error *err)
{
    rq_status status = plan_once(t, model, cache, gb, false, plan, out, err);
    bool card = strcmp(t->params->backend, "cpu") != 0;
    if (status != RQ_OK || !mixture || !card || (out->fits && out->expert_layers == 0)) return status;
    cJSON_Delete(*plan);
    return plan_once(t, model, cache, gb, true, plan, out, err);
}

/* 12345678 as 12,345,678. */
static const char *grouped(double value, char text[32])
{
    char digits[24];
    size_t n = (size_t)snprintf(digits, sizeof digits, "%.0f", value), at = 0;
    for (size_t i = 0; i < n; i++) {
        if (i && (n - i) % 3 == 0) text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = '\0';
    return text;
}

static rq_status print_plan(const table *t, const char *name, const char *cache, uint32_t gb, const fit *f,
                            const cJSON *plan, rq_error *err)
{
    if (t->format == BENCH_CSV) {
        printf("\"%s\",\"%s\",%u,%.0f,%.0f,%d,%.0f,%.0f\n", name, cache, gb, f->context, f->trained,
               f->beside, f->token_bytes, f->weight_bytes);
    } else if (t->format != BENCH_MD) {
        char *text = plan ? cJSON_PrintUnformatted(plan) : NULL;
        if (plan && !text) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a plan");
        printf("{\"preset\": \"%s\", \"cache\": \"%s\", \"gb\": %u, \"experts_beside\": %s, \"plan\": %s}\n",
               name, cache, gb, f->beside ? "true" : "false", text ? text : "null");
        cJSON_free(text);
    }
    return RQ_OK;
}

/* All plans of a model: its line of the first table at once, its lines of the second kept in t->rows. */
static rq_status add_model(table *t, const char *name, const rq_model *model, rq_error *err)
{
    rq_model_info info;
    rq_model_describe(model, &info);
    fit last = {0};
    double bytes[N_FORMATS] = {0};
    char text[32];
    for (size_t k = 0; k < N_FORMATS; k++) {
        rq_buf_printf(&t->rows, "| %s | %s |", name, formats[k]);
        for (size_t c = 0; c < t->cards->n; c++) {
            cJSON *plan = NULL;
            fit f;
            uint32_t gb = t->cards->values[c];
            rq_status status = plan_best(t, model, info.n_expert > 0, formats[k], gb, &plan, &f, err);
            if (status == RQ_OK) status = print_plan(t, name, formats[k], gb, &f, plan, err);
            cJSON_Delete(plan);
            if (status != RQ_OK) return status;
            if (f.fits) {
                last = f;
                bytes[k] = f.token_bytes;
                rq_buf_printf(&t->rows, " %s%s%s |", grouped(f.context, text),
                              f.context >= f.trained ? " (all)" : "", f.beside ? "*" : "");
            } else {
                rq_buf_puts(&t->rows, " - |");
            }
        }
        rq_buf_puts(&t->rows, "\n");
    }
    if (t->rows.failed) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a table");
    if (t->format != BENCH_MD) return RQ_OK;
    printf("| %s | %.1f |", name, last.weight_bytes / 1073741824);
    for (size_t k = 0; k < N_FORMATS; k++) printf(" %s |", bytes[k] > 0 ? grouped(bytes[k], text) : "?");
    printf(" %.0f MiB | %.1f |\n", last.window_bytes / 1048576, last.state_bytes / 1048576);
    fflush(stdout);
    return RQ_OK;
}

/* The preset as a file of holes, loaded; the file is gone when this returns. */
static rq_status load_preset(const char *name, rq_model **model, rq_error *err)
{
    const synth_preset *preset = synth_preset_find(name);
    synth_mixture mixture;
    if (preset == NULL)
        return rq_fail(
            err, RQ_ERR_ARGUMENT,
            "there is no preset \"%.60s\"; rqvk-synth --help lists them, and \"model\" is the one of -m",
            name);
    if (!synth_mixture_find("q4_k_m", false, &mixture))
        return rq_fail(err, RQ_ERR_UNSUPPORTED, "rqvk-synth makes no Q4_K_M");
    const char *folder = getenv("TMPDIR");
    rq_buf path = {.max = 4096};
    rq_buf_printf(&path, "%s/rqvk-bench-XXXXXX", folder && *folder ? folder : "/tmp");
    if (path.failed) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the name of a file");
    int fd = mkstemp(path.data);
    rq_status status =
        fd >= 0 ? RQ_OK : rq_fail(err, RQ_ERR_IO, "no file can be made in %s", folder ? folder : "/tmp");
    if (status == RQ_OK) {
        close(fd);
        status = synth_write(path.data, preset, &mixture, 1, true, NULL, NULL, err);
        if (status == RQ_OK) status = rq_model_load(path.data, model, err);
        unlink(path.data);
    }
    rq_buf_free(&path);
    return status;
}

static rq_status add_named(table *t, const rq_engine_args *args, const char *name, rq_error *err)
{
    rq_model *model = NULL;
    rq_status status = strcmp(name, "model") != 0 ? load_preset(name, &model, err)
                                                  : rq_engine_args_open(args, &model, NULL, err);
    if (status == RQ_OK) status = add_model(t, name, model, err);
    rq_model_free(model);
    return status;
}

static rq_status add_all(table *t, const rq_engine_args *args, const char *names, rq_error *err)
{
    rq_status status = RQ_OK;
    if (strcmp(names, "all") == 0) {
        for (size_t i = 0; i < N_PUBLISHED && status == RQ_OK; i++)
            status = add_named(t, args, published[i], err);
        return status;
    }
    for (const char *at = names; status == RQ_OK;) {
        char name[64];
        size_t n = strcspn(at, ",");
        snprintf(name, sizeof name, "%.*s", (int)(n < sizeof name ? n : sizeof name - 1), at);
        status = add_named(t, args, name, err);
        if (at[n] == '\0') break;
        at += n + 1;
    }
    return status;
}

rq_status rq_bench_contexts(const rq_engine_args *args, const char *names, const rq_numbers *cards,
                            bench_format format, rq_error *err)
{
    rq_engine_params params = args->params;
    if (!strcmp(params.backend, "auto")) params.backend = "vulkan"; /* some card: its memory is given */
    table t = {.params = &params, .cards = cards, .format = format, .rows = {.max = MAX_ROWS_BYTES}};
    if (format == BENCH_CSV)
        puts("preset,cache,gb,context,trained_context,experts_beside,cache_bytes_per_token,weight_bytes");
    if (format == BENCH_MD) {
        fputs("Bytes of cache per token\n\n| model | weights GiB |", stdout);
        for (size_t k = 0; k < N_FORMATS; k++) printf(" %s |", formats[k]);
        fputs(" + window | + state MiB |\n|---|---|", stdout);
        for (size_t k = 0; k < N_FORMATS; k++) fputs("---|", stdout);
        puts("---|---|");
    }
    rq_status status = add_all(&t, args, names, err);
    if (status == RQ_OK && format == BENCH_MD) {
        fputs("\nTokens of context that fit\n\n| model | cache |", stdout);
        for (size_t c = 0; c < cards->n; c++) printf(" %u GB |", cards->values[c]);
        fputs("\n|---|---|", stdout);
        for (size_t c = 0; c < cards->n; c++) fputs("---|", stdout);
        printf("\n%s", t.rows.data ? t.rows.data : "");
    }
    rq_buf_free(&t.rows);
    return status;
}
