#include "tools/kv/capture_dir.h"

#include "backends/base/buf.h"
#include "backends/base/mem.h"
#include "tools/kv/table.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_MANIFEST_BYTES = 1 << 20 };

static char *join(const char *folder, const char *name)
{
    rq_buf path = {.max = 1 << 16};
    rq_buf_printf(&path, "%s/%s", folder, name);
    if (!path.failed) return path.data;
    rq_buf_free(&path);
    return NULL;
}

char *kv_capture_path(const char *folder, uint32_t layer)
{
    char name[40];
    (void)snprintf(name, sizeof name, "layer-%03u.safetensors", layer);
    return join(folder, name);
}

void kv_manifest_free(kv_manifest *m)
{
    rq_free(m->layers);
    memset(m, 0, sizeof *m);
}

/* ---- writing -------------------------------------------------------------------------------------------- */

static void write_text(FILE *out, const char *name, const char *value)
{
    fprintf(out, " \"%s\": ", name);
    kv_json_string(out, value);
    fputs(",\n", out);
}

rq_status kv_manifest_write(const kv_manifest *m, const char *folder, rq_error *err)
{
    char *path = join(folder, "manifest.json");
    if (!path) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a path");
    FILE *out = fopen(path, "w");
    rq_status s = out ? RQ_OK : rq_fail(err, RQ_ERR_IO, "cannot write %s: %s", path, strerror(errno));
    if (out) {
        fprintf(out, "{\"format\": \"rqvk-kv-capture\", \"version\": %d,\n", KV_CAPTURE_VERSION);
        write_text(out, "model", m->model);
        write_text(out, "architecture", m->architecture);
        write_text(out, "text", m->text);
        write_text(out, "created", m->created);
        write_text(out, "commit", m->commit);
        fprintf(out,
                " \"model_hash\": \"%016" PRIx64 "\", \"rope_hash\": \"%016" PRIx64 "\",\n \"tokens\": %u,\n"
                " \"rope\": {\"n_rot\": %u, \"pairs\": \"%s\"},\n \"layers\": [",
                m->model_hash, m->rope_hash, m->n_tokens, m->n_rot, m->rot_halves ? "halves" : "adjacent");
        for (uint32_t i = 0; i < m->n_layers; i++) {
            const kv_capture_layer *l = &m->layers[i];
            fprintf(
                out,
                "%s\n  {\"layer\": %u, \"n_heads\": %u, \"n_heads_kv\": %u, \"dim_k\": %u, \"dim_v\": %u, "
                "\"window\": %u, \"scale\": %.9g, \"softcap\": %.9g}",
                i ? "," : "", l->layer, l->n_heads, l->n_heads_kv, l->dim_k, l->dim_v, l->window, l->scale,
                l->softcap);
        }
        fputs("]}\n", out);
        bool failed = ferror(out);
        if (fclose(out) || failed) s = rq_fail(err, RQ_ERR_IO, "cannot write %s: %s", path, strerror(errno));
    }
    rq_free(path);
    return s;
}

/* ---- reading -------------------------------------------------------------------------------------------- */

static bool number_u32(const cJSON *object, const char *name, uint32_t low, uint32_t high, uint32_t *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= low && item->valuedouble <= high)) return false;
    *out = (uint32_t)item->valuedouble;
    return (double)*out == item->valuedouble;
}

static bool number_f64(const cJSON *object, const char *name, double low, double high, double *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= low && item->valuedouble <= high)) return false;
    *out = item->valuedouble;
    return true;
}

static bool number_hex(const cJSON *object, const char *name, uint64_t *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!cJSON_IsString(item) || strlen(item->valuestring) != 16 ||
        strspn(item->valuestring, "0123456789abcdef") != 16)
        return false;
    *out = strtoull(item->valuestring, NULL, 16);
    return true;
}

static void copy_text(const cJSON *object, const char *name, char *out, size_t bytes)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    (void)snprintf(out, bytes, "%s", cJSON_IsString(item) ? item->valuestring : "");
}

static bool read_layer(const cJSON *item, kv_capture_layer *l)
{
    return number_u32(item, "layer", 0, KV_MAX_CAPTURE_LAYERS - 1, &l->layer) &&
           number_u32(item, "n_heads", 1, 4096, &l->n_heads) &&
           number_u32(item, "n_heads_kv", 1, 4096, &l->n_heads_kv) && l->n_heads % l->n_heads_kv == 0 &&
           number_u32(item, "dim_k", 1, 4096, &l->dim_k) && number_u32(item, "dim_v", 1, 4096, &l->dim_v) &&
           number_u32(item, "window", 0, UINT32_MAX, &l->window) &&
           number_f64(item, "scale", 1e-9, 1e9, &l->scale) &&
           number_f64(item, "softcap", 0, 1e9, &l->softcap);
}

static rq_status read_layers(const cJSON *list, const char *label, kv_manifest *m, rq_error *err)
{
    int n = cJSON_IsArray(list) ? cJSON_GetArraySize(list) : 0;
    if (n < 1 || n > KV_MAX_CAPTURE_LAYERS)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: a capture has 1 to %d layers", label, KV_MAX_CAPTURE_LAYERS);
    m->layers = rq_calloc((size_t)n, sizeof *m->layers);
    if (!m->layers) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a manifest");
    for (const cJSON *item = list->child; item; item = item->next) {
        kv_capture_layer *l = &m->layers[m->n_layers];
        if (!read_layer(item, l) || (m->n_layers && l->layer <= l[-1].layer))
            return rq_fail(err, RQ_ERR_FORMAT, "%s: entry %u of its layers makes no sense", label,
                           m->n_layers);
        m->n_layers++;
    }
    return RQ_OK;
}

static rq_status read_root(const cJSON *root, const char *label, kv_manifest *m, rq_error *err)
{
    const cJSON *format = cJSON_GetObjectItemCaseSensitive(root, "format");
    const cJSON *rope = cJSON_GetObjectItemCaseSensitive(root, "rope");
    const cJSON *pairs = cJSON_GetObjectItemCaseSensitive(rope, "pairs");
    uint32_t version = 0;
    if (!cJSON_IsString(format) || strcmp(format->valuestring, "rqvk-kv-capture") != 0)
        return rq_fail(err, RQ_ERR_FORMAT, "%s is not the manifest of a capture", label);
    if (!number_u32(root, "version", 1, KV_CAPTURE_VERSION, &version))
        return rq_fail(err, RQ_ERR_UNSUPPORTED, "%s has another version than %d, which this program reads",
                       label, KV_CAPTURE_VERSION);
    if (!number_hex(root, "model_hash", &m->model_hash) || !number_hex(root, "rope_hash", &m->rope_hash))
        return rq_fail(err, RQ_ERR_FORMAT, "%s does not say which model it is of", label);
    if (!number_u32(root, "tokens", 1, KV_MAX_CAPTURE_TOKENS, &m->n_tokens))
        return rq_fail(err, RQ_ERR_FORMAT, "%s: a capture has 1 to %d tokens", label, KV_MAX_CAPTURE_TOKENS);
    if (!number_u32(rope, "n_rot", 0, 4096, &m->n_rot) || !cJSON_IsString(pairs))
        return rq_fail(err, RQ_ERR_FORMAT, "%s does not say what the rotary embedding turns", label);
    m->rot_halves = strcmp(pairs->valuestring, "halves") == 0;
    copy_text(root, "model", m->model, sizeof m->model);
    copy_text(root, "architecture", m->architecture, sizeof m->architecture);
    copy_text(root, "text", m->text, sizeof m->text);
    copy_text(root, "created", m->created, sizeof m->created);
    copy_text(root, "commit", m->commit, sizeof m->commit);
    return read_layers(cJSON_GetObjectItemCaseSensitive(root, "layers"), label, m, err);
}

rq_status kv_manifest_parse(const char *text, size_t bytes, const char *label, kv_manifest *out,
                            rq_error *err)
{
    kv_manifest m = {0};
    memset(out, 0, sizeof *out);
    if (bytes > MAX_MANIFEST_BYTES)
        return rq_fail(err, RQ_ERR_FORMAT, "%s is too long for a manifest", label);
    cJSON *root = kv_json_parse(text, bytes);
    if (!root) return rq_fail(err, RQ_ERR_FORMAT, "%s is no JSON text", label);
    rq_status s = read_root(root, label, &m, err);
    cJSON_Delete(root);
    if (s)
        kv_manifest_free(&m);
    else
        *out = m;
    return s;
}

rq_status kv_manifest_read(const char *folder, kv_manifest *out, rq_error *err)
{
    memset(out, 0, sizeof *out);
    char *path = join(folder, "manifest.json");
    if (!path) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a path");
    rq_map map;
    rq_status s = rq_map_open(path, &map, err);
    if (!s) {
        s = kv_manifest_parse((const char *)map.data, map.bytes, path, out, err);
        rq_map_close(&map);
    }
    rq_free(path);
    return s;
}

/* ---- layers --------------------------------------------------------------------------------------------- */

static rq_status check_tensor(const char *path, const kv_tensors *t, const char *name, uint64_t n,
                              uint64_t heads, uint64_t dim, rq_error *err)
{
    const kv_tensor *found = kv_tensors_find(t, name);
    if (!found || found->dtype == KV_I32 || found->n_dims != 3 || found->shape[0] != n ||
        found->shape[1] != heads || found->shape[2] != dim)
        return rq_fail(err, RQ_ERR_FORMAT, "%s: tensor %s is not what the manifest says", path, name);
    return RQ_OK;
}

rq_status kv_capture_open(const char *folder, const kv_manifest *m, const kv_capture_layer *layer,
                          kv_tensors *out, rq_error *err)
{
    char *path = kv_capture_path(folder, layer->layer);
    if (!path) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for a path");
    rq_status s = kv_tensors_open(path, out, err);
    if (!s) {
        s = check_tensor(path, out, "q", m->n_tokens, layer->n_heads, layer->dim_k, err);
        if (!s) s = check_tensor(path, out, "k", m->n_tokens, layer->n_heads_kv, layer->dim_k, err);
        if (!s) s = check_tensor(path, out, "v", m->n_tokens, layer->n_heads_kv, layer->dim_v, err);
        if (s) kv_tensors_close(out);
    }
    rq_free(path);
    return s;
}

void kv_capture_head(const kv_tensors *tensors, const char *name, uint32_t head, uint64_t first, uint64_t n,
                     float *out)
{
    const kv_tensor *t = kv_tensors_find(tensors, name);
    uint64_t heads = t->shape[1], dim = t->shape[2];
    for (uint64_t i = 0; i < n; i++)
        kv_tensor_floats(tensors, t, ((first + i) * heads + head) * dim, dim, out + i * dim);
}
