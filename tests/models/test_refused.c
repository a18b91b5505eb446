/* Every family's file with a tensor or a key missing, misshapen, of a wrong type or too much is refused by name: each
 * tensor and each key of one valid file per family and variant in turn. What may be missing is listed. Data does not
 * matter for that: files are holes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/base/mem.h"
#include "engine/gguf/gguf.h"
#include "engine/gguf/writer.h"
#include "engine/rqvk.h"
#include "tools/synth/file.h"

enum { MAX_STRINGS = 1024 };

static char base_path[64], changed_path[64];

static void remove_files(void)
{
    unlink(base_path);
    unlink(changed_path);
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

/* ---- changes --------------------------------------------------------------------------------------------- */

typedef enum change_kind {
    NOTHING,
    NO_TENSOR,
    FIRST_EXTENT, /* one more */
    LAST_EXTENT,
    ONE_DIMENSION_MORE,
    OTHER_TYPE,
    ONE_TENSOR_MORE, /* `name` */
    NO_KEY,
    KEY_IS_TEXT,
    KEY_IS_HUGE
} change_kind;

typedef struct change {
    change_kind kind;
    uint64_t index; /* of the tensor or key */
    const char *name;
} change;

static void put_key(rq_gguf_writer *w, const rq_gguf_kv *kv, const change *c)
{
    char key[128], text[4096];
    snprintf(key, sizeof key, "%.*s", (int)kv->key.len, kv->key.data);
    if (c->kind == KEY_IS_TEXT) {
        rq_gguf_put_str(w, key, "text");
    } else if (c->kind == KEY_IS_HUGE) {
        rq_gguf_put_u32(w, key, UINT32_MAX - 1);
    } else if (kv->type == RQ_GGUF_STRING) {
        static rq_gguf_str strings[MAX_STRINGS];
        assert_true(kv->count <= MAX_STRINGS);
        for (uint64_t i = 0; i < kv->count; i++) assert_true(rq_gguf_elem_str(kv, i, &strings[i]));
        if (kv->is_array) {
            rq_gguf_put_strs(w, key, strings, kv->count);
        } else {
            assert_true(strings[0].len < sizeof text);
            snprintf(text, sizeof text, "%.*s", (int)strings[0].len, strings[0].data);
            rq_gguf_put_str(w, key, text);
        }
    } else if (kv->is_array) {
        rq_gguf_put_array(w, key, kv->type, kv->data, kv->count);
    } else {
        rq_gguf_put_scalar(w, key, kv->type, kv->data);
    }
}

/* The tensor's new shape; all are F32, which takes any, but for the one whose type changes. */
static rq_type changed(const rq_gguf_tensor *t, const change *c, uint64_t ne[4], uint32_t *n_dims)
{
    *n_dims = t->n_dims;
    memcpy(ne, t->ne, 4 * sizeof *ne);
    if (c->kind == FIRST_EXTENT) ne[0]++;
    if (c->kind == LAST_EXTENT) ne[*n_dims - 1]++;
    if (c->kind == ONE_DIMENSION_MORE) ne[(*n_dims)++] = 2;
    /* vectors are F32, but for one that is a matrix of one row */
    bool vector = t->n_dims == 1 && !ends_with(t->name, "ffn_gate_inp_shexp.weight");
    if (c->kind == OTHER_TYPE) return vector ? RQ_TYPE_F16 : RQ_TYPE_I32;
    return RQ_TYPE_F32;
}

static uint64_t changed_bytes(const rq_gguf_tensor *t, const change *c)
{
    uint64_t ne[4];
    uint32_t n_dims;
    rq_type type = changed(t, c, ne, &n_dims);
    return ne[0] * ne[1] * ne[2] * ne[3] * (type == RQ_TYPE_F16 ? 2 : 4);
}

static void put_tensor(rq_gguf_writer *w, const rq_gguf_tensor *t, const change *c)
{
    uint64_t ne[4];
    uint32_t n_dims;
    rq_type type = changed(t, c, ne, &n_dims);
    rq_gguf_declare(w, t->name, type, n_dims, ne);
}

/* Writes the file with the change, and loads it. */
static rq_status load_changed(const rq_gguf *g, change c, rq_error *err)
{
    static const change none = {.kind = NOTHING};
    rq_gguf_writer *w = NULL;
    assert_int_equal(rq_gguf_writer_create(changed_path, 32, &w, err), RQ_OK);
    bool of_keys = c.kind >= NO_KEY;
    for (uint64_t i = 0; i < rq_gguf_n_kv(g); i++) {
        bool this_one = of_keys && i == c.index;
        if (!this_one || c.kind != NO_KEY) put_key(w, rq_gguf_kv_at(g, i), this_one ? &c : &none);
    }
    for (uint64_t i = 0; i < rq_gguf_n_tensors(g); i++) {
        bool this_one = !of_keys && c.kind != NOTHING && c.kind != ONE_TENSOR_MORE && i == c.index;
        if (!this_one || c.kind != NO_TENSOR) put_tensor(w, rq_gguf_tensor_at(g, i), this_one ? &c : &none);
    }
    if (c.kind == ONE_TENSOR_MORE) rq_gguf_declare(w, c.name, RQ_TYPE_F32, 1, (const uint64_t[]){8});
    if (rq_gguf_writer_begin_data(w, err)) fail_msg("%s", err->text);
    for (uint64_t i = 0; i < rq_gguf_n_tensors(g); i++) {
        const rq_gguf_tensor *t = rq_gguf_tensor_at(g, i);
        bool this_one = !of_keys && c.kind != NOTHING && c.kind != ONE_TENSOR_MORE && i == c.index;
        if (this_one && c.kind == NO_TENSOR) continue;
        uint64_t bytes = this_one ? changed_bytes(t, &c) : 4 * t->n_elems;
        bool real = !this_one && t->n_dims == 1 && t->type == RQ_TYPE_F32; /* read when loading */
        if (real ? rq_gguf_writer_write(w, t->data, bytes, err) : rq_gguf_writer_skip(w, bytes, err))
            fail_msg("%s", err->text);
    }
    if (c.kind == ONE_TENSOR_MORE && rq_gguf_writer_skip(w, 32, err)) fail_msg("%s", err->text);
    if (rq_gguf_writer_finish(w, err)) fail_msg("%s", err->text);
    rq_gguf_writer_free(w);

    rq_model *model = NULL;
    int64_t alive = rq_mem_alive();
    rq_status s = rq_model_load(changed_path, &model, err);
    assert_true((s == RQ_OK) == (model != NULL));
    rq_model_free(model);
    assert_int_equal(rq_mem_alive(), alive);
    return s;
}

/* ---- what the files may do without ----------------------------------------------------------------------- */

/* A head that is not there is the embedding; llama's frequencies and qwen2's biases are in some files only; a block
 * behind the trunk may use the trunk's last norm. */
static bool may_be_missing(const char *base, const char *name)
{
    if (!strcmp(name, "output.weight") || ends_with(name, "shared_head_norm.weight")) return true;
    if (!strcmp(name, "rope_freqs.weight")) return strstr(base, "llama") != NULL;
    /* the only layer that sees everything and has values: its keys may serve */
    if (!strcmp(base, "hf-gemma4-ple") && !strcmp(name, "blk.2.attn_v.weight")) return true;
    return ends_with(name, ".bias") && strstr(base, "qwen2") != NULL;
}

/* Keys with a meaning when they are not there (facts of the format: GGUF's documentation and the readers). */
static bool key_may_be_missing(const char *key)
{
    static const char *const optional[] = {
        ".vocab_size",
        ".rope.freq_base",
        ".rope.freq_base_swa",
        ".rope.dimension_count",
        ".rope.dimension_count_swa",
        ".rope.scaling.factor",
        ".attention.head_count_kv",
        ".attention.key_length",
        ".attention.value_length",
        ".attention.key_length_swa",
        ".attention.value_length_swa",
        ".attention.shared_kv_layers",
        ".attention.sliding_window",
        ".attention.sliding_window_pattern",
        ".final_logit_softcapping",
        ".full_attention_interval",
        ".nextn_predict_layers",
        ".expert_feed_forward_length",
        ".feed_forward_length",
        ".expert_count",
    };
    for (size_t i = 0; i < sizeof optional / sizeof *optional; i++)
        if (ends_with(key, optional[i])) return true;
    return false;
}

/* ---- one file -------------------------------------------------------------------------------------------- */

static void tensors_in_turn(const rq_gguf *g, const char *base, uint32_t *n_refused)
{
    static const change_kind kinds[] = {NO_TENSOR, FIRST_EXTENT, LAST_EXTENT, ONE_DIMENSION_MORE, OTHER_TYPE};
    for (uint64_t i = 0; i < rq_gguf_n_tensors(g); i++) {
        const rq_gguf_tensor *t = rq_gguf_tensor_at(g, i);
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            rq_error err = {0};
            if (kinds[k] == LAST_EXTENT && t->n_dims == 1) continue;
            rq_status s = load_changed(g, (change){.kind = kinds[k], .index = i}, &err);
            if (kinds[k] == NO_TENSOR && may_be_missing(base, t->name)) {
                if (s) fail_msg("%s without %s: %s", base, t->name, err.text);
                continue;
            }
            /* in its place two tensors may stand, of which the first is asked for */
            char name[80];
            snprintf(name, sizeof name, "%s", t->name);
            char *fused = strstr(name, "ffn_gate_up_exps");
            if (kinds[k] == NO_TENSOR && fused) snprintf(fused, 32, "ffn_gate_exps.weight");
            if (s == RQ_OK || s == RQ_ERR_MEMORY || !strstr(err.text, name))
                fail_msg("%s, change %d of %s: status %d, \"%s\"", base, (int)kinds[k], t->name, (int)s,
                         err.text);
            ++*n_refused;
        }
    }
}

static void surplus(const rq_gguf *g, const char *base, uint32_t *n_refused)
{
    static const char *const names[] = {
        "stranger.weight",  "blk.0.stranger.weight", "blk.0.attn_norm.bias", "blk.77.attn_norm.weight",
        "output_norm.bias", "blk.0.ssm_d",           "v.patch_embd.weight",  "blk.0.attn_sinks.weight"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        rq_error err = {0};
        rq_status s = load_changed(g, (change){.kind = ONE_TENSOR_MORE, .name = names[i]}, &err);
        if (s == RQ_OK || !strstr(err.text, names[i]))
            fail_msg("%s with %s: status %d, \"%s\"", base, names[i], (int)s, err.text);
        ++*n_refused;
    }
}

/* Keys of the architecture. A wrong value may only show in the shape of a tensor. */
static void keys_in_turn(const rq_gguf *g, const char *base, uint32_t *n_refused)
{
    rq_gguf_str arch;
    rq_error err = {0};
    assert_int_equal(rq_gguf_get_str(g, "general.architecture", &arch, &err), RQ_OK);
    for (uint64_t i = 0; i < rq_gguf_n_kv(g); i++) {
        const rq_gguf_kv *kv = rq_gguf_kv_at(g, i);
        if (kv->key.len <= arch.len || memcmp(kv->key.data, arch.data, arch.len) ||
            kv->key.data[arch.len] != '.')
            continue;
        char key[128], dotted[40];
        snprintf(key, sizeof key, "%.*s", (int)kv->key.len, kv->key.data);
        snprintf(dotted, sizeof dotted, "%.*s.", (int)arch.len, arch.data);
        for (int k = NO_KEY; k <= KEY_IS_HUGE; k++) {
            rq_status s = load_changed(g, (change){.kind = (change_kind)k, .index = i}, &err);
            bool unread = ends_with(key, ".vocab_size");
            bool optional = k == NO_KEY && key_may_be_missing(key);
            bool any_number =
                k == KEY_IS_HUGE && (kv->type == RQ_GGUF_F32 || ends_with(key, ".sliding_window"));
            bool named = strstr(err.text, key) != NULL || strstr(err.text, key + arch.len + 1) != NULL;
            /* what it stands for when it is not there, or so large, may fit nothing else */
            bool by_another = (optional || k == KEY_IS_HUGE) &&
                              (strstr(err.text, "tensor ") != NULL || strstr(err.text, dotted) != NULL);
            if (s == RQ_OK ? !(unread || optional || any_number) : !(named || by_another) || !err.text[0])
                fail_msg("%s, key %s changed (%d): status %d, \"%s\"", base, key, k - NO_KEY, (int)s,
                         err.text);
            *n_refused += s != RQ_OK;
        }
    }
}

static void every_change_is_refused(const char *path, const char *base)
{
    rq_gguf *g = NULL;
    rq_error err = {0};
    uint32_t n_tensors = 0, n_surplus = 0, n_keys = 0;
    if (rq_gguf_open(path, &g, &err)) fail_msg("%s", err.text);
    if (load_changed(g, (change){.kind = NOTHING}, &err)) fail_msg("%s as it is: %s", base, err.text);
    tensors_in_turn(g, base, &n_tensors);
    surplus(g, base, &n_surplus);
    keys_in_turn(g, base, &n_keys);
    printf("%-16s %llu tensors: %u changes refused, %u surplus ones, %u of keys\n", base,
           (unsigned long long)rq_gguf_n_tensors(g), n_tensors, n_surplus, n_keys);
    assert_true(n_tensors >= 3 * rq_gguf_n_tensors(g));
    assert_true(n_keys >= 20);
    rq_gguf_close(g);
}

/* ---- families -------------------------------------------------------------------------------------------- */

static void synthetic_files(void **state)
{
    static const struct {
        const char *preset;
        uint32_t n_mtp;
    } files[] = {{"tiny-llama", 0},  {"tiny-qwen2", 0},     {"tiny-qwen3", 0},  {"tiny-qwen3moe", 0},
                 {"tiny-qwen35", 1}, {"tiny-qwen35moe", 1}, {"tiny-gemma4", 0}, {"tiny-gemma4moe", 0}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        synth_mixture mixture;
        synth_preset preset = *synth_preset_find(files[i].preset);
        rq_error err = {0};
        preset.n_mtp = files[i].n_mtp;
        assert_true(synth_mixture_find("f16", false, &mixture));
        if (synth_write(base_path, &preset, &mixture, 1, true, NULL, NULL, &err)) fail_msg("%s", err.text);
        every_change_is_refused(base_path, files[i].preset);
    }
}

/* The ones that rqvk-synth does not make. */
static void other_files(void **state)
{
    static const char *const files[] = {"hf-gemma3", "hf-gemma4-ple"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/oracle-hf/%s.gguf", RQVK_TEST_DATA, files[i]);
        every_change_is_refused(path, files[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(synthetic_files),
        cmocka_unit_test(other_files),
    };
    /* some 3,000 files, each waited for until it is on the disk: better where there is no disk */
    const char *folder = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : getenv("TMPDIR");
    snprintf(base_path, sizeof base_path, "%.24s/rqvk-base-%ld.gguf", folder ? folder : P_tmpdir,
             (long)getpid());
    snprintf(changed_path, sizeof changed_path, "%.24s/rqvk-changed-%ld.gguf", folder ? folder : P_tmpdir,
             (long)getpid());
    atexit(remove_files);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
