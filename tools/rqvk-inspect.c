/* rqvk-inspect - prints what is in a GGUF file and what it will need. */
#include "tools/common/args.h"
#include "tools/inspect/escape.h"
#include "tools/inspect/memory.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char PROGRAM[] = "rqvk-inspect";

enum { SHOWN_ELEMENTS = 6, SHOWN_CHARACTERS = 200 };

/* ---- shared by both forms ------------------------------------------------------------------------------ */

typedef struct type_total {
    uint64_t n, elems, bytes;
} type_total;

static void count_types(const rq_gguf *g, type_total totals[RQ_TYPE_LIMIT])
{
    memset(totals, 0, RQ_TYPE_LIMIT * sizeof *totals);
    for (uint64_t i = 0; i < rq_gguf_n_tensors(g); i++) {
        const rq_gguf_tensor *t = rq_gguf_tensor_at(g, i);
        totals[t->type].n++;
        totals[t->type].elems += t->n_elems;
        totals[t->type].bytes += t->nbytes;
    }
}

/* Prints a number as it would be written in JSON; what JSON cannot say becomes a string. */
static void print_number(FILE *out, const rq_gguf_kv *kv, uint64_t i)
{
    int64_t integer = 0;
    double real = 0;
    if (kv->type == RQ_GGUF_BOOL && rq_gguf_elem_i64(kv, i, &integer))
        fputs(integer ? "true" : "false", out);
    else if (rq_gguf_elem_i64(kv, i, &integer))
        fprintf(out, "%" PRId64, integer);
    else if (rq_gguf_elem_f64(kv, i, &real) && !isfinite(real))
        fputs(isnan(real) ? "\"nan\"" : real < 0 ? "\"-inf\"" : "\"inf\"", out);
    else if (kv->type == RQ_GGUF_U64) /* above 2^63 - 1; a double holds at least its upper 53 bits */
        fprintf(out, "%.0f", real);
    else
        fprintf(out, "%.*g", kv->type == RQ_GGUF_F32 ? 9 : 17, real);
}

static void print_float_short(FILE *out, const rq_gguf_kv *kv, uint64_t i)
{
    double real = 0;
    if (kv->type == RQ_GGUF_F32 && rq_gguf_elem_f64(kv, i, &real) && isfinite(real))
        fprintf(out, "%.7g", real);
    else
        print_number(out, kv, i);
}

/* ---- for people ---------------------------------------------------------------------------------------- */

static void print_size(FILE *out, uint64_t bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    int u = 0;
    for (; value >= 1024 && u < 6; u++) value /= 1024;
    fprintf(out, u ? "%.2f %s" : "%.0f %s", value, units[u]);
}

static void print_element(FILE *out, const rq_gguf_kv *kv, uint64_t i, bool full)
{
    rq_gguf_str s;
    if (kv->type != RQ_GGUF_STRING) {
        print_float_short(out, kv, i);
    } else if (rq_gguf_elem_str(kv, i, &s)) {
        if (kv->is_array) fputc('"', out);
        inspect_print_text(out, s.data, s.len, full ? UINT64_MAX : kv->is_array ? 40 : SHOWN_CHARACTERS);
        if (kv->is_array) fputc('"', out);
    }
}

static void print_metadata(FILE *out, const rq_gguf *g, bool full)
{
    fputs("\nMetadata\n", out);
    for (uint64_t i = 0; i < rq_gguf_n_kv(g); i++) {
        const rq_gguf_kv *kv = rq_gguf_kv_at(g, i);
        fputs("  ", out);
        inspect_print_text(out, kv->key.data, kv->key.len, full ? UINT64_MAX : 100);
        fprintf(out, "  (%s", rq_gguf_type_name(kv->type));
        if (kv->is_array) fprintf(out, " x %" PRIu64, kv->count);
        fputs(")  ", out);
        uint64_t shown = full || kv->count < SHOWN_ELEMENTS ? kv->count : SHOWN_ELEMENTS;
        for (uint64_t k = 0; k < shown; k++) {
            if (k) fputs(", ", out);
            print_element(out, kv, k, full);
        }
        fputs(shown < kv->count ? ", ...\n" : "\n", out);
    }
}

static void print_tensors(FILE *out, const rq_gguf *g)
{
    bool split = rq_gguf_n_shards(g) > 1;
    fprintf(out, "\nTensors\n  %-40s %-8s %14s%s  shape\n", "name", "type", "bytes", split ? "  part" : "");
    for (uint64_t i = 0; i < rq_gguf_n_tensors(g); i++) {
        const rq_gguf_tensor *t = rq_gguf_tensor_at(g, i);
        size_t len = strlen(t->name);
        fputs("  ", out);
        inspect_print_text(out, t->name, len, UINT64_MAX);
        fprintf(out, "%*s %-8s %14" PRIu64, len < 40 ? (int)(40 - len) : 0, "", rq_type_get(t->type)->name,
                t->nbytes);
        if (split) fprintf(out, "  %4u", t->shard + 1u);
        fputs("  ", out);
        for (int d = 0; d < t->n_dims; d++) fprintf(out, d ? " x %" PRIu64 : "%" PRIu64, t->ne[d]);
        fputs(t->n_dims ? "\n" : "scalar\n", out);
    }
}

static void print_totals(FILE *out, const type_total totals[RQ_TYPE_LIMIT])
{
    fprintf(out, "\nTypes\n  %-8s %8s %16s %16s\n", "type", "tensors", "elements", "bytes");
    for (uint32_t id = 0; id < RQ_TYPE_LIMIT; id++)
        if (totals[id].n)
            fprintf(out, "  %-8s %8" PRIu64 " %16" PRIu64 " %16" PRIu64 "\n", rq_type_get(id)->name,
                    totals[id].n, totals[id].elems, totals[id].bytes);
}

static void print_line(FILE *out, const char *label, uint64_t bytes)
{
    fprintf(out, "  %-34s %16" PRIu64 " bytes  ", label, bytes);
    print_size(out, bytes);
    fputc('\n', out);
}

static void print_memory(FILE *out, const inspect_memory *m, const rq_error *why)
{
    char label[64];
    fputs("\nMemory\n", out);
    print_line(out, "weights", m->weight_bytes);
    if (!m->kv_known) {
        fprintf(out, "  KV cache: not known: %s\n", why->text);
        return;
    }
    print_line(out, "KV cache (f16), per token", 2 * m->kv_elems_per_token);
    if (m->window_elems_per_token) {
        snprintf(label, sizeof label, "  and per token of the last %" PRIu32, m->window);
        print_line(out, label, 2 * m->window_elems_per_token);
    }
    if (m->context) {
        uint64_t kept = m->window && m->window < m->context ? m->window : m->context;
        snprintf(label, sizeof label, "KV cache (f16), %" PRIu32 " tokens", m->context);
        print_line(out, label, 2 * (m->kv_elems_per_token * m->context + m->window_elems_per_token * kept));
    }
}

static void print_all(FILE *out, const rq_gguf *g, bool full)
{
    type_total totals[RQ_TYPE_LIMIT];
    inspect_memory memory;
    rq_error why = {0};
    const char *label = rq_gguf_label(g);
    count_types(g, totals);
    inspect_memory_of(g, &memory, &why);
    inspect_print_text(out, label, strlen(label), UINT64_MAX);
    fprintf(out, "\nGGUF version %" PRIu32 ", %" PRIu32 " file%s, ", rq_gguf_version(g), rq_gguf_n_shards(g),
            rq_gguf_n_shards(g) > 1 ? "s" : "");
    print_size(out, rq_gguf_file_bytes(g));
    fprintf(out, "; %" PRIu64 " metadata pairs, %" PRIu64 " tensors, %" PRIu64 " parameters", rq_gguf_n_kv(g),
            rq_gguf_n_tensors(g), memory.parameters);
    if (memory.parameters)
        fprintf(out, " of %.2f bits", (double)memory.weight_bytes * 8 / (double)memory.parameters);
    fputc('\n', out);
    print_metadata(out, g, full);
    print_tensors(out, g);
    print_totals(out, totals);
    print_memory(out, &memory, &why);
}

/* ---- for programs -------------------------------------------------------------------------------------- */

static void json_text(FILE *out, const char *data, uint64_t len)
{
    fputc('"', out);
    inspect_print_json(out, data, len);
    fputc('"', out);
}

static void json_value(FILE *out, const rq_gguf_kv *kv, uint64_t i)
{
    rq_gguf_str s;
    if (rq_gguf_elem_str(kv, i, &s))
        json_text(out, s.data, s.len);
    else
        print_number(out, kv, i);
}

static void json_metadata(FILE *out, const rq_gguf *g, bool full)
{
    fputs("  \"metadata\": [", out);
    for (uint64_t i = 0; i < rq_gguf_n_kv(g); i++) {
        const rq_gguf_kv *kv = rq_gguf_kv_at(g, i);
        fputs(i ? ",\n    {\"key\": " : "\n    {\"key\": ", out);
        json_text(out, kv->key.data, kv->key.len);
        fprintf(out, ", \"type\": \"%s\", ", rq_gguf_type_name(kv->type));
        if (!kv->is_array) {
            fputs("\"value\": ", out);
            json_value(out, kv, 0);
        } else {
            uint64_t shown = full || kv->count < SHOWN_ELEMENTS ? kv->count : SHOWN_ELEMENTS;
            fprintf(out, "\"count\": %" PRIu64 ", \"%s\": [", kv->count,
                    shown < kv->count ? "first" : "values");
            for (uint64_t k = 0; k < shown; k++) {
                if (k) fputs(", ", out);
                json_value(out, kv, k);
            }
            fputc(']', out);
        }
        fputc('}', out);
    }
    fputs("],\n", out);
}

static void json_tensors(FILE *out, const rq_gguf *g)
{
    fputs("  \"tensors\": [", out);
    for (uint64_t i = 0; i < rq_gguf_n_tensors(g); i++) {
        const rq_gguf_tensor *t = rq_gguf_tensor_at(g, i);
        fputs(i ? ",\n    {\"name\": " : "\n    {\"name\": ", out);
        json_text(out, t->name, strlen(t->name));
        fprintf(out, ", \"type\": \"%s\", \"shape\": [", rq_type_get(t->type)->name);
        for (int d = 0; d < t->n_dims; d++) fprintf(out, d ? ", %" PRIu64 : "%" PRIu64, t->ne[d]);
        fprintf(out, "], \"bytes\": %" PRIu64 ", \"part\": %u}", t->nbytes, t->shard + 1u);
    }
    fputs("],\n", out);
}

static void json_all(FILE *out, const rq_gguf *g, bool full)
{
    type_total totals[RQ_TYPE_LIMIT];
    inspect_memory m;
    rq_error why = {0};
    const char *label = rq_gguf_label(g), *comma = "";
    count_types(g, totals);
    inspect_memory_of(g, &m, &why);
    fputs("{\n  \"file\": ", out);
    json_text(out, label, strlen(label));
    fprintf(out, ",\n  \"version\": %" PRIu32 ", \"parts\": %" PRIu32 ", \"file_bytes\": %" PRIu64 ",\n",
            rq_gguf_version(g), rq_gguf_n_shards(g), rq_gguf_file_bytes(g));
    json_metadata(out, g, full);
    json_tensors(out, g);
    fputs("  \"types\": {", out);
    for (uint32_t id = 0; id < RQ_TYPE_LIMIT; id++) {
        if (!totals[id].n) continue;
        fprintf(out,
                "%s\"%s\": {\"tensors\": %" PRIu64 ", \"elements\": %" PRIu64 ", \"bytes\": %" PRIu64 "}",
                comma, rq_type_get(id)->name, totals[id].n, totals[id].elems, totals[id].bytes);
        comma = ", ";
    }
    fprintf(out, "},\n  \"parameters\": %" PRIu64 ", \"weight_bytes\": %" PRIu64, m.parameters,
            m.weight_bytes);
    if (m.kv_known)
        fprintf(out,
                ",\n  \"context_length\": %" PRIu32 ", \"kv_f16_bytes_per_token\": %" PRIu64
                ", \"kv_f16_window_bytes_per_token\": %" PRIu64 ", \"window\": %" PRIu32,
                m.context, 2 * m.kv_elems_per_token, 2 * m.window_elems_per_token, m.window);
    fputs("\n}\n", out);
}

int main(int argc, char **argv)
{
    bool full = false, json = false;
    const char *path = NULL, *model = NULL;
    size_t n_paths = 1;
    rq_options options = {0};
    rq_options_add(&options, (rq_option){.names = "-m,--model",
                                         .kind = RQ_OPT_STRING,
                                         .target = &model,
                                         .value = "FILE",
                                         .help = "the file, for those used to -m"});
    rq_options_add(&options, (rq_option){.names = "--full",
                                         .kind = RQ_OPT_FLAG,
                                         .target = &full,
                                         .help = "print long arrays and strings completely"});
    rq_options_add(&options, (rq_option){.names = "--json",
                                         .kind = RQ_OPT_FLAG,
                                         .target = &json,
                                         .help = "print JSON instead of text"});
    const rq_program_text text = {
        .program = PROGRAM,
        .usage = "MODEL.gguf [options]",
        .about = "Prints the metadata and tensors of a model file and the memory it needs."};
    int code = rq_args_run(&text, &options, argc, argv, &path, &n_paths);
    if (code >= 0) return code;
    rq_error err = {0};
    if (n_paths) model = path;
    if (!model) {
        rq_fail(&err, RQ_ERR_ARGUMENT, "name the file to look into: %s", text.usage);
        rq_complain(PROGRAM, &err);
        return 2;
    }
    rq_gguf *g = NULL;
    if (rq_gguf_open(model, &g, &err)) return rq_complain(PROGRAM, &err);
    if (json)
        json_all(stdout, g, full);
    else
        print_all(stdout, g, full);
    code = 0;
    if (rq_gguf_lost(g)) {
        rq_gguf_fail_lost(g, &err);
        code = rq_complain(PROGRAM, &err);
    } else if (fflush(stdout) || ferror(stdout)) {
        code = 1; /* a closed pipe, mostly */
    }
    rq_gguf_close(g);
    return code;
}
