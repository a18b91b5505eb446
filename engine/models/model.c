/* model.c - loads a model file and describes it. */
#include "engine/models/model.h"

#include "backends/base/mem.h"

#include <stdio.h>
#include <string.h>

const rq_family *rq_family_find(rq_gguf_str arch)
{
    for (const rq_family *const *f = rq_families(); *f; f++)
        if (rq_gguf_str_eq(arch, (*f)->arch)) return *f;
    return NULL;
}

void rq_pass_build(void *user, rq_tape_kind kind, rq_tape *tape)
{
    const rq_pass *pass = user;
    const rq_family *family = pass->model->family;
    if (kind == RQ_TAPE_TRUNK)
        family->build_trunk(pass, tape);
    else if (kind == RQ_TAPE_HEAD)
        family->build_head(pass, tape);
    else if (family->build_mtp)
        family->build_mtp(pass, tape, kind == RQ_TAPE_DRAFT);
}

void rq_model_build(void *user, rq_tape_kind kind, rq_tape *tape)
{
    const rq_model *m = user;
    rq_pass pass = {.model = m, .weights = m->weights};
    rq_pass_build(&pass, kind, tape);
}

static rq_status choose_family(rq_model *m, rq_error *err)
{
    rq_gguf_str arch;
    rq_status s = rq_gguf_get_str(m->gguf, "general.architecture", &arch, err);
    if (s) return s;
    m->family = rq_family_find(arch);
    if (!m->family) {
        char known[256] = "";
        for (const rq_family *const *f = rq_families(); *f; f++) {
            size_t n = strlen(known);
            snprintf(known + n, sizeof known - n, "%s%s", n ? ", " : "", (*f)->arch);
        }
        return rq_fail(err, RQ_ERR_UNSUPPORTED,
                       "%s: architecture \"%.*s\" is not one this build can run (%s)", rq_gguf_label(m->gguf),
                       (int)(arch.len < 60 ? arch.len : 60), arch.data, known);
    }
    snprintf(m->arch, sizeof m->arch, "%s", m->family->arch);
    return RQ_OK;
}

/* The type most of the file's bytes have; mixtures are known by it. */
static const char *main_type(const rq_model *m)
{
    uint64_t bytes[RQ_TYPE_LIMIT] = {0};
    uint32_t best = RQ_TYPE_F32;
    for (uint64_t i = 0; i < rq_gguf_n_tensors(m->gguf); i++) {
        const rq_gguf_tensor *t = rq_gguf_tensor_at(m->gguf, i);
        bytes[t->type] += t->nbytes;
        if (bytes[t->type] > bytes[best]) best = t->type;
    }
    return rq_type_get(best)->name;
}

static rq_status describe(rq_model *m, const char *path, rq_error *err)
{
    rq_gguf_str name = {0};
    rq_status s = rq_gguf_opt_str(m->gguf, "general.name", "", &name, err);
    if (s) return s;
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    m->path = rq_strdup(path);
    m->name = name.len ? rq_strndup(name.data, name.len < 200 ? name.len : 200) : rq_strdup(base);
    char text[160];
    double params = (double)m->n_params;
    if (params >= 1e9)
        snprintf(text, sizeof text, "%s %.1fB %s", m->arch, params / 1e9, main_type(m));
    else
        snprintf(text, sizeof text, "%s %.1fM %s", m->arch, params / 1e6, main_type(m));
    m->description = rq_strdup(text);
    if (!m->path || !m->name || !m->description)
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory while loading %s", base);

    rq_gguf_str chat;
    if (rq_gguf_find(m->gguf, "tokenizer.chat_template") &&
        !rq_gguf_get_str(m->gguf, "tokenizer.chat_template", &chat, NULL)) {
        m->chat_template = rq_strndup(chat.data, chat.len);
        m->chat_template_bytes = chat.len;
        if (!m->chat_template) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the chat template");
    }
    return RQ_OK;
}

rq_status rq_model_load(const char *path, rq_model **out, rq_error *err)
{
    rq_model *m = rq_calloc(1, sizeof *m);
    if (!m) return rq_fail(err, RQ_ERR_MEMORY, "out of memory while loading %s", path);
    rq_status s = rq_gguf_open(path, &m->gguf, err);
    if (!s) s = choose_family(m, err);
    if (!s) s = rq_tokenizer_from_gguf(m->gguf, &m->tok, err);
    if (!s) s = rq_hparams_read(m, err);
    if (!s) s = rq_tensors_bind(m, err);
    if (!s) s = rq_rope_prepare(m, err);
    if (!s) s = describe(m, path, err);
    if (!s && rq_gguf_lost(m->gguf)) s = rq_gguf_fail_lost(m->gguf, err);
    if (s) {
        rq_model_free(m);
        return s;
    }
    *out = m;
    return RQ_OK;
}

void rq_model_free(rq_model *m)
{
    if (!m) return;
    rq_tokenizer_free(m->tok);
    rq_gguf_close(m->gguf);
    rq_free(m->layers);
    rq_free(m->weights);
    rq_free(m->inv_freq_data);
    for (size_t i = 0; i < m->n_tables; i++) rq_free(m->tables[i]);
    rq_free(m->tables);
    rq_free(m->path);
    rq_free(m->name);
    rq_free(m->description);
    rq_free(m->chat_template);
    rq_free(m);
}
