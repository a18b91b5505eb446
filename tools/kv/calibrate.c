/* rqvk-kv calibrate: a model's profile from a text. */
#include "backends/base/mem.h"
#include "tools/common/args.h"
#include "tools/kv/calibration.h"
#include "tools/kv/commands.h"
#include "tools/kv/listen.h"

#include <stdio.h>
#include <string.h>

typedef struct calibrate {
    const char *text, *output;
    uint32_t window, n_tokens;
    bool so8, klt, windows, json, csv;
    kv_calibration *calibration;
    rq_kv_profile *profile;
    char *default_output;
    kv_listen listen;
    uint32_t *layers; /* what it listens to */
} calibrate;

/* Layers that keep keys and values, those with a window if asked for; everything else is left empty. */
static rq_status choose_layers(const calibrate *c, const rq_model *model, uint32_t n,
                               kv_calibration_layer *out, rq_error *err)
{
    uint32_t n_chosen = 0, n_windows = 0;
    for (uint32_t i = 0; i < n; i++) {
        rq_kv_layer l;
        if (rq_kv_owner(model, i) != i) continue; /* recurrent, or it attends to another's */
        rq_status s = rq_kv_layer_of(model, i, &l, err);
        if (s) return s;
        n_windows += l.window != 0;
        if (l.window && !c->windows) continue;
        out[i] = (kv_calibration_layer){l.n_heads_kv, l.dim_k, l.dim_v};
        n_chosen++;
    }
    if (n_chosen) return RQ_OK;
    return n_windows ? rq_fail(err, RQ_ERR_UNSUPPORTED,
                               "all layers of this model see a window, and their profile needs --swa")
                     : rq_fail(err, RQ_ERR_UNSUPPORTED, "no layer of this model keeps keys and values");
}

/* Which rows to listen to: of the layers that were chosen, and of those that attend to them. */
static void choose_rows(calibrate *c, const rq_model *model, uint32_t n, const kv_calibration_layer *layers,
                        kv_listen *listen)
{
    listen->n_layers = 0;
    listen->layers = c->layers;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t owner = rq_kv_owner(model, i);
        if (owner < n && layers[owner].n_heads_kv != 0) c->layers[listen->n_layers++] = i;
    }
}

static rq_status ready(void *user, const kv_listen_plan *plan, rq_error *err)
{
    calibrate *c = user;
    rq_model_info info;
    rq_model_describe(plan->model, &info);
    rq_status s = rq_kv_profile_new(plan->model, plan->window, &c->profile, err);
    kv_calibration_layer *layers = rq_calloc(info.n_layers, sizeof *layers);
    c->layers = rq_calloc(info.n_layers, sizeof *c->layers);
    if (!s && (!layers || !c->layers)) s = rq_fail(err, RQ_ERR_MEMORY, "out of memory for a list of layers");
    if (!s) s = choose_layers(c, plan->model, info.n_layers, layers, err);
    if (!s) choose_rows(c, plan->model, info.n_layers, layers, &c->listen);
    if (!s)
        s = kv_calibration_make(layers, info.n_layers, plan->window, plan->n_tokens, c->so8, c->klt,
                                &c->calibration, err);
    for (uint32_t i = 0; !s && c->klt && i < info.n_layers; i++)
        for (uint32_t h = 0; !s && h < layers[i].n_heads_kv; h++)
            s = rq_kv_value_weight(plan->model, i, h, kv_calibration_value_weight(c->calibration, i, h), err);
    rq_free(layers);
    if (!s && !c->output) {
        c->output = c->default_output = rq_kv_profile_path(plan->model);
        if (!c->output) s = rq_fail(err, RQ_ERR_MEMORY, "out of memory for a path");
    }
    if (!s) {
        const char *slash = strrchr(c->text, '/');
        (void)snprintf(c->profile->note, sizeof c->profile->note,
                       "%u tokens of %.120s in windows of %u%s%s%s", plan->n_tokens,
                       slash ? slash + 1 : c->text, plan->window, c->so8 ? ", with rotations" : "",
                       c->klt ? ", with bases" : "", c->windows ? ", with layers that see a window" : "");
        fprintf(stderr, "calibrating with %s\n", c->profile->note);
    }
    return s;
}

static rq_status receive(void *user, const rq_kv_captured *rows, rq_error *err)
{
    calibrate *c = user;
    return kv_calibration_add(c->calibration, rows, err);
}

static rq_status run(calibrate *c, rq_error *err)
{
    rq_status s = kv_listen_run(&c->listen, ready, receive, c, err);
    if (!s) s = kv_calibration_finish(c->calibration, c->profile, err);
    if (!s) s = rq_kv_profile_write(c->profile, c->output, err);
    if (!s) {
        kv_table report;
        const kv_note notes[] = {{"commit", RQVK_COMMIT}, {"note", c->profile->note}};
        kv_calibration_report(c->calibration, c->profile, &report);
        s = kv_table_write(&report,
                           c->json  ? KV_TABLE_JSON
                           : c->csv ? KV_TABLE_CSV
                                    : KV_TABLE_MD,
                           "rqvk-kv calibrate", notes, 2, stdout, err);
        kv_table_free(&report);
        fprintf(stderr, "profile: %s\n", c->output);
    }
    kv_calibration_free(c->calibration);
    rq_kv_profile_free(c->profile);
    rq_string_free(c->default_output);
    rq_free(c->layers);
    return s;
}

static void add_options(rq_options *options, calibrate *c)
{
    rq_options_heading(options, "Calibration");
    rq_options_add(
        options,
        (rq_option){.names = "-f,--file",
                    .kind = RQ_OPT_STRING,
                    .target = &c->text,
                    .value = "TEXT",
                    .help = "the text to run through the model; it starts again if it is too short"});
    rq_options_add(options,
                   (rq_option){.names = "-o,--output",
                               .kind = RQ_OPT_STRING,
                               .target = &c->output,
                               .value = "PROFILE",
                               .shown = "the model's path and \".kvprofile\", where programs look for it",
                               .help = "the profile to write"});
    rq_options_add(options,
                   (rq_option){.names = "--window",
                               .kind = RQ_OPT_U32,
                               .target = &c->window,
                               .min = 0,
                               .max = 1 << 24,
                               .shown = "the trained context",
                               .help = "tokens of one sequence; longer contexts will refuse the profile"});
    rq_options_add(options, (rq_option){.names = "--tokens",
                                        .kind = RQ_OPT_U32,
                                        .target = &c->n_tokens,
                                        .min = 0,
                                        .max = 1 << 28,
                                        .shown = "the whole text, at least one window",
                                        .help = "tokens in all"});
    rq_options_add(options, (rq_option){.names = "--so8",
                                        .kind = RQ_OPT_FLAG,
                                        .target = &c->so8,
                                        .help = "also learn the rotations of so8 formats"});
    rq_options_add(options,
                   (rq_option){.names = "--klt",
                               .kind = RQ_OPT_FLAG,
                               .target = &c->klt,
                               .help = "also learn the bases of klt formats (4 bytes for each pair of\n"
                                       "elements of a head, in the profile)"});
    rq_options_add(options, (rq_option){.names = "--swa",
                                        .kind = RQ_OPT_FLAG,
                                        .target = &c->windows,
                                        .help = "also layers that see a window, for --kv-swa"});
    rq_options_add(options, (rq_option){.names = "--json",
                                        .kind = RQ_OPT_FLAG,
                                        .target = &c->json,
                                        .help = "report in JSON instead of a table"});
    rq_options_add(options, (rq_option){.names = "--csv",
                                        .kind = RQ_OPT_FLAG,
                                        .target = &c->csv,
                                        .help = "report in CSV instead of a table"});
}

int kv_calibrate_main(int argc, char **argv)
{
    calibrate c = {0};
    rq_engine_args engine = rq_engine_args_default();
    rq_options options = {0};
    rq_options_engine(&options, &engine);
    add_options(&options, &c);
    const rq_program_text text = {
        .program = "rqvk-kv calibrate",
        .usage = "-m MODEL -f TEXT [-o PROFILE] [--so8] [--klt] [--swa] [options]",
        .about = "Learns what keys and values of a model have in common, for better compression.",
        .footer =
            "\nThe report shows, by position, the energy of keys around their mean and its share of "
            "all their\n"
            "energy. Where the share grows with the position, one mean does not serve all positions.\n"
            "Recurrent layers keep no keys and values, and a block that drafts goes without a profile."};
    int code = rq_args_run(&text, &options, argc, argv, NULL, NULL);
    if (code >= 0) return code;
    if (engine.list_devices) return rq_print_devices();
    rq_error err = {0};
    c.listen = (kv_listen){
        .engine = &engine, .text_path = c.text, .window = c.window, .n_tokens = c.n_tokens, .repeat = true};
    rq_status s = c.text ? run(&c, &err) : rq_fail(&err, RQ_ERR_ARGUMENT, "-f TEXT is needed (see --help)");
    return s ? rq_complain(text.program, &err) : 0;
}
