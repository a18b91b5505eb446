/* rqvk-kv capture: what attention sees of a text, kept in a folder. */
#include "backends/base/mem.h"
#include "tools/common/args.h"
#include "tools/kv/capture_dir.h"
#include "tools/kv/commands.h"
#include "tools/kv/listen.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef struct file {
    kv_tensor tensors[3]; /* in the order of rq_kv_which */
    char *path;
    int fd;
} file;

typedef struct capture {
    const char *folder, *text;
    uint32_t layers[KV_MAX_CAPTURE_LAYERS], n_layers;
    kv_manifest manifest;
    file *files; /* one for each layer of the manifest */
} capture;

/* "0,3,7-9" replaces the list. */
static rq_status parse_layers(void *target, const char *value, rq_error *err)
{
    capture *c = target;
    c->n_layers = 0;
    for (const char *p = value;; p++) {
        char *end;
        errno = 0;
        unsigned long first = strtoul(p, &end, 10), last = first;
        bool good = end != p && *p != '-';
        if (good && *end == '-') {
            p = end + 1;
            last = strtoul(p, &end, 10);
            good = end != p && *p != '-';
        }
        if (!good || errno || last < first || last >= KV_MAX_CAPTURE_LAYERS)
            return rq_fail(err, RQ_ERR_ARGUMENT, "\"%s\" is not a list of layers like 0,3,7-9", value);
        for (unsigned long l = first; l <= last; l++) {
            if (c->n_layers && c->layers[c->n_layers - 1] >= l)
                return rq_fail(err, RQ_ERR_ARGUMENT, "the layers in \"%s\" are not in ascending order",
                               value);
            c->layers[c->n_layers++] = (uint32_t)l;
        }
        if (!*end) return RQ_OK;
        if (*end != ',')
            return rq_fail(err, RQ_ERR_ARGUMENT, "\"%s\" is not a list of layers like 0,3,7-9", value);
        p = end;
    }
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static rq_status describe(capture *c, const kv_listen_plan *plan, rq_error *err)
{
    kv_manifest *m = &c->manifest;
    rq_model_info info;
    rq_kv_identity identity;
    rq_kv_profile *profile = NULL;
    rq_model_describe(plan->model, &info);
    rq_kv_identify(plan->model, &identity);
    rq_status s = rq_kv_profile_new(plan->model, 0, &profile, err); /* for the rotary pairs */
    if (s) return s;
    m->rot_halves = profile->rot_halves;
    for (uint32_t i = 0; i < profile->n_layers && m->n_rot == 0; i++) m->n_rot = profile->layers[i].n_rot;
    rq_kv_profile_free(profile);
    (void)snprintf(m->model, sizeof m->model, "%s", base_name(info.path));
    (void)snprintf(m->architecture, sizeof m->architecture, "%s", info.architecture);
    (void)snprintf(m->text, sizeof m->text, "%s", base_name(c->text));
    (void)snprintf(m->commit, sizeof m->commit, "%s", RQVK_COMMIT);
    time_t now = time(NULL);
    struct tm utc;
    if (gmtime_r(&now, &utc)) (void)strftime(m->created, sizeof m->created, "%Y-%m-%dT%H:%M:%SZ", &utc);
    m->model_hash = identity.model;
    m->rope_hash = identity.rope;
    m->n_tokens = plan->window;
    uint32_t n = c->n_layers ? c->n_layers : info.n_layers;
    m->layers = rq_calloc(n, sizeof *m->layers);
    c->files = rq_calloc(n, sizeof *c->files);
    if (!m->layers || !c->files) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a list of layers");
    for (uint32_t i = 0; i < n; i++) {
        rq_kv_layer l;
        uint32_t layer = c->n_layers ? c->layers[i] : i;
        s = rq_kv_layer_of(plan->model, layer, &l, err);
        if (s && !c->n_layers) continue; /* all that keep keys and values */
        if (s) return s;
        m->layers[m->n_layers++] = (kv_capture_layer){layer,   l.n_heads, l.n_heads_kv,    l.dim_k,
                                                      l.dim_v, l.window,  (double)l.scale, (double)l.softcap};
    }
    return RQ_OK;
}

/* A capture that is there already is one no more from here on: its files are about to be written over. */
static rq_status remove_manifest(const capture *c, rq_error *err)
{
    char path[4096];
    if (snprintf(path, sizeof path, "%s/manifest.json", c->folder) >= (int)sizeof path)
        return rq_fail(err, RQ_ERR_ARGUMENT, "the folder's name is too long");
    if (unlink(path) && errno != ENOENT)
        return rq_fail(err, RQ_ERR_IO, "cannot remove %s: %s", path, strerror(errno));
    return RQ_OK;
}

static rq_status create_files(capture *c, rq_error *err)
{
    for (uint32_t i = 0; i < c->manifest.n_layers; i++) {
        const kv_capture_layer *l = &c->manifest.layers[i];
        file *f = &c->files[i];
        const uint64_t n = c->manifest.n_tokens;
        f->tensors[RQ_KV_Q] = (kv_tensor){"q", KV_F32, 3, {n, l->n_heads, l->dim_k, 1}, 0, 0};
        f->tensors[RQ_KV_K] = (kv_tensor){"k", KV_F32, 3, {n, l->n_heads_kv, l->dim_k, 1}, 0, 0};
        f->tensors[RQ_KV_V] = (kv_tensor){"v", KV_F32, 3, {n, l->n_heads_kv, l->dim_v, 1}, 0, 0};
        char *path = kv_capture_path(c->folder, l->layer);
        if (!path) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a path");
        rq_status s = kv_tensors_create(path, f->tensors, 3, &f->fd, err);
        if (s) {
            rq_free(path);
            return s;
        }
        f->path = path; /* from here on the file is open */
    }
    return RQ_OK;
}

static rq_status write_tokens(const capture *c, const rq_token *tokens, rq_error *err)
{
    char path[4096];
    int fd;
    kv_tensor t = {"tokens", KV_I32, 1, {c->manifest.n_tokens, 1, 1, 1}, 0, 0};
    if (snprintf(path, sizeof path, "%s/tokens.safetensors", c->folder) >= (int)sizeof path)
        return rq_fail(err, RQ_ERR_ARGUMENT, "the folder's name is too long");
    rq_status s = kv_tensors_create(path, &t, 1, &fd, err);
    if (s) return s;
    s = kv_tensor_write(fd, path, &t, 0, tokens, t.n, err);
    if (close(fd) && !s) s = rq_fail(err, RQ_ERR_IO, "cannot write %s: %s", path, strerror(errno));
    return s;
}

static rq_status ready(void *user, const kv_listen_plan *plan, rq_error *err)
{
    capture *c = user;
    if (plan->window > KV_MAX_CAPTURE_TOKENS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "a capture holds at most %d tokens", KV_MAX_CAPTURE_TOKENS);
    if (mkdir(c->folder, 0755) && errno != EEXIST)
        return rq_fail(err, RQ_ERR_IO, "cannot make the folder %s: %s", c->folder, strerror(errno));
    rq_status s = describe(c, plan, err);
    if (!s) s = remove_manifest(c, err);
    if (!s) s = create_files(c, err);
    if (!s) s = write_tokens(c, plan->tokens, err);
    return s;
}

static rq_status receive(void *user, const rq_kv_captured *rows, rq_error *err)
{
    capture *c = user;
    uint32_t i = 0;
    while (i < c->manifest.n_layers && c->manifest.layers[i].layer != rows->layer) i++;
    if (i == c->manifest.n_layers) return RQ_OK;
    const file *f = &c->files[i];
    uint64_t width = (uint64_t)rows->n_heads * rows->dim;
    return kv_tensor_write(f->fd, f->path, &f->tensors[rows->which], rows->position * width, rows->rows,
                           rows->n * width, err);
}

/* Closes all files; what a failed capture leaves behind is removed, so that nobody takes it for a whole one. */
static rq_status finish(capture *c, rq_status s, rq_error *err)
{
    for (uint32_t i = 0; c->files && i < c->manifest.n_layers; i++) {
        file *f = &c->files[i];
        if (!f->path) continue;
        if (close(f->fd) && !s) s = rq_fail(err, RQ_ERR_IO, "cannot write %s: %s", f->path, strerror(errno));
        if (s) unlink(f->path);
        rq_free(f->path);
    }
    if (!s) s = kv_manifest_write(&c->manifest, c->folder, err);
    rq_free(c->files);
    kv_manifest_free(&c->manifest);
    return s;
}

static void add_options(rq_options *options, capture *c, uint32_t *n_tokens)
{
    rq_options_heading(options, "Capture");
    rq_options_add(options, (rq_option){.names = "-f,--file",
                                        .kind = RQ_OPT_STRING,
                                        .target = &c->text,
                                        .value = "TEXT",
                                        .help = "the text to run through the model"});
    rq_options_add(options, (rq_option){.names = "-o,--output",
                                        .kind = RQ_OPT_STRING,
                                        .target = &c->folder,
                                        .value = "FOLDER",
                                        .help = "where the files go; made if it is not there"});
    rq_options_add(options, (rq_option){.names = "--layers",
                                        .kind = RQ_OPT_CALL,
                                        .call = parse_layers,
                                        .target = c,
                                        .value = "LIST",
                                        .shown = "all",
                                        .help = "layers to take, such as 0,3,7-9"});
    rq_options_add(options, (rq_option){.names = "--tokens",
                                        .kind = RQ_OPT_U32,
                                        .target = n_tokens,
                                        .min = 0,
                                        .max = KV_MAX_CAPTURE_TOKENS,
                                        .shown = "the text, up to the trained context",
                                        .help = "tokens to take"});
}

int kv_capture_main(int argc, char **argv)
{
    static const rq_program_text text = {
        .program = "rqvk-kv capture",
        .usage = "-m MODEL -f TEXT -o FOLDER [--layers LIST] [--tokens N] [options]",
        .about = "Keeps queries, keys and values of a text, after the rotary embedding, for rqvk-kv replay.",
        .footer = "\nThe folder gets a manifest.json and a safetensors file for each layer, f32: 4 bytes "
                  "times tokens\n"
                  "times all query, key and value elements of the layer."};
    rq_engine_args engine = rq_engine_args_default();
    capture *c = rq_calloc(1, sizeof *c);
    rq_error err = {0};
    if (!c) {
        rq_fail(&err, RQ_ERR_MEMORY, "out of memory");
        return rq_complain(text.program, &err);
    }
    uint32_t n_tokens = 0;
    rq_options options = {0};
    rq_options_engine(&options, &engine);
    add_options(&options, c, &n_tokens);
    int code = rq_args_run(&text, &options, argc, argv, NULL, NULL);
    if (code < 0 && engine.list_devices) code = rq_print_devices();
    if (code < 0) {
        rq_status s = RQ_OK;
        if (!c->text || !c->folder)
            s = rq_fail(&err, RQ_ERR_ARGUMENT, "-f TEXT and -o FOLDER are needed (see --help)");
        kv_listen l = {.engine = &engine,
                       .text_path = c->text,
                       .window = n_tokens,
                       .one_window = true,
                       .layers = c->layers,
                       .n_layers = c->n_layers};
        if (!s) s = finish(c, kv_listen_run(&l, ready, receive, c, &err), &err);
        if (!s) fprintf(stderr, "captured into %s\n", c->folder);
        code = s ? rq_complain(text.program, &err) : 0;
    }
    rq_free(c);
    return code;
}
