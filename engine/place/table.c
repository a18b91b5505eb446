/* table.c - a decision as a table, and as JSON. */
#include "engine/plan.h"

#include "backends/base/buf.h"
#include "backends/base/mem.h"
#include "engine/cache/size.h"
#include "engine/place/decide.h"

#include <string.h>

static double mib(uint64_t bytes)
{
    return (double)bytes / 1048576.0;
}

typedef struct per_token {
    uint64_t exact, kept;
} per_token;

static per_token bytes_per_token(const rq_decision *d)
{
    per_token t = {0};
    for (uint32_t g = 0; g < d->place.n_groups; g++) {
        const rq_cache_group *group = &d->place.groups[g];
        if (group->window != 0) continue;
        uint64_t exact = rq_page_layout_of(group).page_bytes;
        t.exact += exact / RQ_PAGE_TOKENS;
        t.kept += (rq_group_is_coded(group) ? rq_coded_layout_of(group).page_bytes : exact) / RQ_PAGE_TOKENS;
    }
    return t;
}

/* Everything on the device, what the processor reads in the file included. */
static uint64_t total_of(const rq_decision *d, uint32_t i)
{
    return d->need.device[i] + (i == d->devices.n_cards ? d->need.file_bytes : 0);
}

static uint64_t weights_of(const rq_decision *d, uint32_t i)
{
    return d->need.weights[i] + (i == d->devices.n_cards ? d->need.file_bytes : 0);
}

/* ---- for people ------------------------------------------------------------------------------------------ */

static void put_device(rq_buf *out, const rq_decision *d, uint32_t i)
{
    char layers[200];
    if (i < d->place.n_devices) rq_place_describe(&d->place, i, layers, sizeof layers);
    rq_buf_printf(out, "%-10s %10.1f %10.1f %10.1f %10.1f %10.1f %10.1f %10.1f %10.1f  %s\n",
                  i < d->place.n_devices ? d->devices.name[i] : "processor", mib(weights_of(d, i)),
                  mib(d->need.cache[i]), mib(d->need.state[i]), mib(d->need.activations[i]),
                  mib(d->need.scratch[i]), mib(d->need.other[i]), mib(total_of(d, i)),
                  mib(d->devices.budget[i]), i < d->place.n_devices ? layers : "steps and copies");
}

/* Pages of a window, for each session and in all, of the form that is kept. */
static void put_windows(rq_buf *out, const rq_decision *d, bool json)
{
    const char *between = "";
    for (uint32_t g = 0; g < d->place.n_groups; g++) {
        const rq_cache_group *group = &d->place.groups[g];
        if (group->window == 0) continue;
        bool coded = rq_group_is_coded(group);
        uint32_t share = rq_cache_share(group, coded ? RQ_PAGE_CODED : RQ_PAGE_EXACT,
                                        rq_cache_pages_for(d->numbers.n_ctx));
        uint32_t pages = coded ? d->pools.coded_pages[g] : d->pools.exact_pages[g];
        uint64_t bytes = coded ? rq_coded_layout_of(group).page_bytes : rq_page_layout_of(group).page_bytes;
        if (json)
            rq_buf_printf(out,
                          "%s{\"window\": %u, \"layers\": %u, \"pages_per_session\": %u, \"pages\": %u, "
                          "\"page_bytes\": %llu, \"type_k\": \"%s\", \"type_v\": \"%s\"}",
                          between, group->window, group->n_layers, share, pages, (unsigned long long)bytes,
                          d->kv.window_k.name, d->kv.window_v.name);
        else
            rq_buf_printf(out,
                          "window   of %u tokens, %u layers: %u pages per session, %u pages of %llu bytes in "
                          "all, %s/%s\n",
                          group->window, group->n_layers, share, pages, (unsigned long long)bytes,
                          d->kv.window_k.name, d->kv.window_v.name);
        between = ", ";
    }
}

static void put_table(rq_buf *out, const rq_decision *d)
{
    const rq_model *m = d->model;
    per_token t = bytes_per_token(d);
    rq_buf_printf(out, "model    %s, %u layers, trained for %u tokens of context\n", m->description,
                  m->hp.n_layers, m->hp.n_ctx_train);
    for (uint32_t i = 0; i < d->place.n_devices; i++)
        rq_buf_printf(out, "device   %s: %s, %s\n", d->devices.name[i], d->devices.info[i].name,
                      d->devices.info[i].features);
    rq_buf_printf(out, "context  %u tokens for each of %u sessions, steps of up to %u tokens\n",
                  d->numbers.n_ctx, d->numbers.n_sessions, d->numbers.n_batch);
    rq_buf_printf(
        out,
        "cache    %s/%s, %.6g/%.6g bits: %llu bytes per token, %llu while it is read exact; %llu tokens\n",
        d->kv.k.name, d->kv.v.name, d->kv.k.bits, d->kv.v.bits, (unsigned long long)t.kept,
        (unsigned long long)t.exact, (unsigned long long)d->pools.cache_tokens);
    put_windows(out, d, false);
    rq_buf_printf(out, "\n%-10s %10s %10s %10s %10s %10s %10s %10s %10s  %s\n", "MiB", "weights", "cache",
                  "state", "activation", "scratch", "other", "total", "free", "runs");
    for (uint32_t i = 0; i < d->place.n_devices || i <= d->devices.n_cards; i++)
        if (d->need.device[i] != 0 || i < d->place.n_devices) put_device(out, d, i);
    if (d->need.file_bytes != 0)
        rq_buf_printf(out, "\n%.1f MiB of weights are read where they are in the mapped file.\n",
                      mib(d->need.file_bytes));
    if (d->numbers.snapshot_bytes != 0)
        rq_buf_printf(
            out,
            "\n%.1f MiB of other memory of the processor are for copies of recurrent state (--cache-ram).\n",
            mib(d->numbers.snapshot_bytes));
    rq_buf_printf(out, "\nfor every token: %u round trips between devices, %u copies, %llu bytes\n",
                  d->info.n_round_trips, d->info.n_copies, (unsigned long long)d->info.copy_bytes);
}

/* ---- for programs ---------------------------------------------------------------------------------------- */

static void put_string(rq_buf *out, const char *text)
{
    rq_buf_puts(out, "\"");
    for (const unsigned char *c = (const unsigned char *)text; *c != 0; c++) {
        if (*c == '"' || *c == '\\')
            rq_buf_printf(out, "\\%c", *c);
        else if (*c < 32 || *c == 127)
            rq_buf_printf(out, "\\u%04x", *c);
        else
            rq_buf_append(out, c, 1);
    }
    rq_buf_puts(out, "\"");
}

static void put_text(rq_buf *out, const char *key, const char *text)
{
    rq_buf_printf(out, "\"%s\": ", key);
    put_string(out, text);
    rq_buf_puts(out, ", ");
}

static void put_number(rq_buf *out, const char *key, uint64_t n)
{
    rq_buf_printf(out, "\"%s\": %llu, ", key, (unsigned long long)n);
}

static void put_json_device(rq_buf *out, const rq_decision *d, uint32_t i)
{
    char layers[200] = "";
    bool used = i < d->place.n_devices;
    if (used) rq_place_describe(&d->place, i, layers, sizeof layers);
    rq_buf_puts(out, i == 0 ? "\n    {" : ",\n    {");
    put_text(out, "name", used ? d->devices.name[i] : "processor");
    put_text(out, "device", used ? d->devices.info[i].name : "");
    put_text(out, "runs", layers);
    put_number(out, "weight_bytes", weights_of(d, i));
    put_number(out, "cache_bytes", d->need.cache[i]);
    put_number(out, "state_bytes", d->need.state[i]);
    put_number(out, "activation_bytes", d->need.activations[i]);
    put_number(out, "scratch_bytes", d->need.scratch[i]);
    put_number(out, "other_bytes", d->need.other[i]);
    put_number(out, "total_bytes", total_of(d, i));
    rq_buf_printf(out, "\"free_bytes\": %llu}", (unsigned long long)d->devices.budget[i]);
}

static void put_json(rq_buf *out, const rq_decision *d)
{
    const rq_model *m = d->model;
    per_token t = bytes_per_token(d);
    rq_buf_puts(out, "{");
    put_text(out, "model", m->description);
    put_number(out, "layers", m->hp.n_layers);
    put_number(out, "trained_context", m->hp.n_ctx_train);
    put_number(out, "context", d->numbers.n_ctx);
    put_number(out, "sessions", d->numbers.n_sessions);
    put_number(out, "batch", d->numbers.n_batch);
    put_text(out, "type_k", d->kv.k.name);
    put_text(out, "type_v", d->kv.v.name);
    put_number(out, "cache_bytes_per_token", t.kept);
    put_number(out, "exact_bytes_per_token", t.exact);
    put_number(out, "snapshot_bytes", d->numbers.snapshot_bytes);
    put_number(out, "cache_tokens", d->pools.cache_tokens);
    put_number(out, "gpu_layers", d->place.choice.gpu_layers);
    put_number(out, "cpu_expert_layers", d->place.choice.cpu_experts);
    put_number(out, "segments_per_token", d->info.n_segments);
    put_number(out, "round_trips_per_token", d->info.n_round_trips);
    put_number(out, "copies_per_token", d->info.n_copies);
    put_number(out, "copied_bytes_per_token", d->info.copy_bytes);
    put_number(out, "mapped_weight_bytes", d->need.file_bytes);
    put_number(out, "window_bytes", d->pools.window_bytes);
    rq_buf_puts(out, "\"windows\": [");
    put_windows(out, d, true);
    rq_buf_puts(out, "],\n  \"devices\": [");
    for (uint32_t i = 0; i < d->place.n_devices || i <= d->devices.n_cards; i++)
        if (d->need.device[i] != 0 || i < d->place.n_devices) put_json_device(out, d, i);
    rq_buf_puts(out, "],\n  \"memory\": [");
    for (uint32_t i = 0; i < d->list.n; i++) {
        const rq_exec_line *line = &d->list.lines[i];
        rq_buf_puts(out, i == 0 ? "\n    {" : ",\n    {");
        put_text(out, "device", line->device == RQ_EXEC_HOST ? "heap" : d->devices.name[line->device]);
        put_text(out, "what", line->label);
        rq_buf_printf(out, "\"bytes\": %llu, \"in_place\": %s}", (unsigned long long)line->planned_bytes,
                      line->in_place ? "true" : "false");
    }
    rq_buf_puts(out, "]}\n");
}

rq_status rq_plan_text(const rq_model *model, const rq_engine_params *params, bool json, char **text,
                       rq_error *err)
{
    rq_decision *d = rq_calloc(1, sizeof *d);
    if (d == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for planning");
    rq_status status = rq_decide(model, params, true, d, err);
    rq_buf out = {.max = 1 << 20};
    if (status == RQ_OK && json) put_json(&out, d);
    if (status == RQ_OK && !json) put_table(&out, d);
    if (status == RQ_OK && out.failed) status = rq_fail(err, RQ_ERR_MEMORY, "out of memory for the plan");
    rq_decision_free(d);
    rq_free(d);
    if (status == RQ_OK)
        *text = out.data;
    else
        rq_buf_free(&out);
    return status;
}
