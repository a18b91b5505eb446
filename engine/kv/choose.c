/* choose.c - from what the user asked for to the formats of keys and values and the cache groups. */
#include "backends/base/mem.h"
#include "engine/kv/plan.h"
#include "engine/say.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum { DEFAULT_RECENT = 128, MAX_EXACT_TOKENS = 1 << 24 };

static bool is_auto(const char *name)
{
    return name != NULL && strcasecmp(name, "auto") == 0;
}

/* ---- formats ------------------------------------------------------------------------------------------- */

/* The name that tables use: formats have other names too, and letter case does not count. */
static const char *table_name(const char *name, char room[RQ_KV_NAME_BYTES])
{
    rq_kv_format format;
    if (name == NULL || is_auto(name) || rq_kv_format_parse(name, &format, NULL) != RQ_OK) return name;
    rq_kv_format_name(&format, room);
    return room;
}

/* What the table of measurements says to `auto`: *type_k and *type_v are replaced. The row lives in *table. */
static rq_status resolve_auto(const rq_model *m, const rq_engine_params *p, rq_kv_table *table,
                              const char **type_k, const char **type_v, rq_error *err)
{
    if (!is_auto(*type_k) && !is_auto(*type_v)) return RQ_OK;
    char *path = rq_kv_table_path(m);
    if (path == NULL)
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the name of a table of cache formats");
    const rq_kv_table_row *row = NULL;
    rq_status status = RQ_OK;
    if (access(path, F_OK) != 0) {
        rq_say(p,
               "cache format auto: there is no table of measurements %.300s (rqvk-kv replay writes it): f16",
               path);
    } else {
        status = rq_kv_table_read(path, table, err);
        rq_kv_identity own;
        rq_kv_identify(m, &own);
        if (status == RQ_OK && table->model != own.model)
            status = rq_fail(err, RQ_ERR_ARGUMENT,
                             "%.300s was measured with another model: measure again, or name a cache format",
                             path);
        if (status == RQ_OK) {
            char k[RQ_KV_NAME_BYTES], v[RQ_KV_NAME_BYTES];
            row = rq_kv_table_choose(table, table_name(*type_k, k), table_name(*type_v, v));
            if (row != NULL)
                rq_say(p, "cache format auto: %.300s has %s/%s with %.3f bits, error %.3g of at most %.3g",
                       path, row->type_k, row->type_v, row->bits, row->error, table->bound);
            else
                rq_say(p, "cache format auto: %.300s has nothing with an error of at most %.3g: f16", path,
                       table->bound);
        }
    }
    rq_free(path);
    if (is_auto(*type_k)) *type_k = row != NULL ? row->type_k : "f16";
    if (is_auto(*type_v)) *type_v = row != NULL ? row->type_v : "f16";
    return status;
}

static rq_status choose_side(rq_kv_side *side, const char *name, uint32_t dim, bool is_v,
                             const rq_engine_params *p, rq_error *err)
{
    const char *which = is_v ? "values" : "keys";
    if (name != NULL && strcasecmp(name, "trip") == 0) {
        if (p->kv_hooks == NULL || p->kv_hooks->trip == NULL)
            return rq_fail(err, RQ_ERR_ARGUMENT,
                           "the cache format trip is for programs that bring a codec along");
        side->format = (rq_kv_format){.exact = RQ_TYPE_F16, .form = RQ_KV_TRIP};
        memcpy(side->name, "trip", 5);
        side->bits = rq_kv_exact_bits(RQ_TYPE_F16);
        return RQ_OK;
    }
    rq_status status = rq_kv_format_parse(name != NULL ? name : "f16", &side->format, err);
    if (status != RQ_OK) return status;
    rq_error why = {0};
    if (rq_kv_format_allows(&side->format, dim, &why) != RQ_OK) {
        rq_say(p, "cache: %s are kept as f16, not %s: %s", which, name != NULL ? name : "f16", why.text);
        side->format = (rq_kv_format){.exact = RQ_TYPE_F16, .form = RQ_KV_SAME};
    }
    rq_kv_format_name(&side->format, side->name);
    side->bits = side->format.form == RQ_KV_SAME ? rq_kv_exact_bits(side->format.exact)
                                                 : rq_kv_coded_bits(&side->format, dim, is_v);
    return RQ_OK;
}

static bool is_coded(const rq_kv_side *k, const rq_kv_side *v)
{
    return k->format.form != RQ_KV_SAME || v->format.form != RQ_KV_SAME;
}

/* Layers with a window: what was asked for them, a format or one for keys and one for values; else what is kept exactly
 * elsewhere, because a window ends before compression would pay. */
static rq_status choose_windows(rq_kv_plan *plan, const rq_model *m, const rq_engine_params *p, rq_error *err)
{
    const rq_cache_group *window = NULL;
    for (uint32_t g = 0; g < m->n_groups; g++)
        if (m->groups[g].window != 0) window = &m->groups[g];
    char text[2 * RQ_KV_NAME_BYTES], *name_v = NULL;
    rq_kv_format exact_k = {.exact = plan->k.format.exact, .form = RQ_KV_SAME}, exact_v = exact_k;
    exact_v.exact = plan->v.format.exact;
    plan->window_k = (rq_kv_side){.format = exact_k};
    plan->window_v = (rq_kv_side){.format = exact_v};
    rq_kv_format_name(&exact_k, plan->window_k.name);
    rq_kv_format_name(&exact_v, plan->window_v.name);
    plan->window_k.bits = rq_kv_exact_bits(exact_k.exact);
    plan->window_v.bits = rq_kv_exact_bits(exact_v.exact);
    if (p->kv_swa == NULL) return RQ_OK;
    if (window == NULL) {
        rq_say(p, "cache: no layer of this model sees a window only, so --kv-swa changes nothing");
        return RQ_OK;
    }
    if (snprintf(text, sizeof text, "%s", p->kv_swa) >= (int)sizeof text)
        return rq_fail(err, RQ_ERR_ARGUMENT,
                       "--kv-swa takes a cache format or two, as in wht3,wht4, not %.60s", p->kv_swa);
    if ((name_v = strchr(text, ',')) != NULL) *name_v++ = 0;
    const char *names[] = {text, name_v != NULL ? name_v : text};
    rq_kv_side *sides[] = {&plan->window_k, &plan->window_v};
    for (int i = 0; i < 2; i++) {
        if (is_auto(names[i]) || strcasecmp(names[i], "trip") == 0)
            return rq_fail(err, RQ_ERR_ARGUMENT, "--kv-swa takes the name of a cache format, not %.60s",
                           names[i]);
        rq_status status = choose_side(sides[i], names[i], i ? window->dim_v : window->dim_k, i != 0, p, err);
        if (status != RQ_OK) return status;
    }
    return RQ_OK;
}

static rq_status choose_formats(rq_kv_plan *plan, const rq_model *m, const rq_engine_params *p, rq_error *err)
{
    const char *type_k = p->type_k, *type_v = p->type_v;
    rq_kv_table table = {0};
    rq_status status = resolve_auto(m, p, &table, &type_k, &type_v, err);
    if (status == RQ_OK) status = choose_side(&plan->k, type_k, m->hp.dim_k, false, p, err);
    if (status == RQ_OK) status = choose_side(&plan->v, type_v, m->hp.dim_v, true, p, err);
    if (status == RQ_OK) status = choose_windows(plan, m, p, err);
    rq_kv_table_free(&table);
    return status;
}

/* ---- groups -------------------------------------------------------------------------------------------- */

static rq_status choose_pages(rq_kv_plan *plan, const rq_engine_params *p, rq_error *err)
{
    uint32_t recent = p->kv_recent != 0 ? p->kv_recent : DEFAULT_RECENT;
    if (recent > MAX_EXACT_TOKENS || p->kv_sinks > MAX_EXACT_TOKENS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "at most %d tokens can be kept uncompressed, not %u",
                       MAX_EXACT_TOKENS, recent > p->kv_sinks ? recent : p->kv_sinks);
    plan->recent_pages = (recent + RQ_PAGE_TOKENS - 1) / RQ_PAGE_TOKENS;
    plan->sink_pages = (p->kv_sinks + RQ_PAGE_TOKENS - 1) / RQ_PAGE_TOKENS;
    return RQ_OK;
}

/* There are no sinks: they leave the window. */
static void set_window(const rq_kv_plan *plan, rq_cache_group *group)
{
    group->type_k = plan->window_k.format.exact;
    group->type_v = plan->window_v.format.exact;
    if (!is_coded(&plan->window_k, &plan->window_v)) return;
    group->form_k = plan->window_k.format.form;
    group->form_v = plan->window_v.format.form;
    group->recent_pages = plan->recent_pages;
}

static rq_status choose_groups(rq_kv_plan *plan, const rq_model *m, const rq_engine_params *p, rq_error *err)
{
    bool coded = is_coded(&plan->k, &plan->v);
    if (coded || is_coded(&plan->window_k, &plan->window_v)) {
        rq_status status = choose_pages(plan, p, err);
        if (status != RQ_OK) return status;
    }
    rq_draft_wishes draft;
    rq_status read = rq_draft_read(m, p, &draft, err);
    if (read != RQ_OK) return read;
    plan->n_groups = m->n_groups + (draft.depth != 0);
    for (uint32_t g = 0; g < plan->n_groups; g++) {
        rq_cache_group *group = &plan->groups[g];
        *group = g < m->n_groups ? m->groups[g] : m->mtp_group;
        if (group->window != 0) {
            set_window(plan, group);
            continue;
        }
        group->type_k = plan->k.format.exact;
        group->type_v = plan->v.format.exact;
        if (!coded) continue;
        /* formats that need a basis, or hooks, are made for the trunk's layers */
        bool bound = plan->k.format.klt || plan->v.format.klt || plan->k.format.form == RQ_KV_TRIP ||
                     plan->v.format.form == RQ_KV_TRIP;
        if (g == m->n_groups && bound) continue;
        group->form_k = plan->k.format.form;
        group->form_v = plan->v.format.form;
        group->recent_pages = plan->recent_pages;
        group->sink_pages = plan->sink_pages;
        if (p->kv_hooks != NULL) {
            group->trip = p->kv_hooks->trip;
            group->trip_user = p->kv_hooks->trip_user;
        }
    }
    return RQ_OK;
}

/* ---- profile ------------------------------------------------------------------------------------------- */

static rq_status find_profile(rq_kv_plan *plan, const rq_model *m, const rq_engine_params *p, rq_error *err)
{
    const char *name = p->kv_profile;
    if (name != NULL && strcmp(name, "none") == 0) return RQ_OK;
    if (!rq_kv_side_takes_profile(&plan->k) && !rq_kv_side_takes_profile(&plan->v) &&
        !rq_kv_side_takes_profile(&plan->window_k) && !rq_kv_side_takes_profile(&plan->window_v)) {
        if (name != NULL)
            rq_say(p, "cache profile: %.300s is not used, because neither keys nor values are compressed",
                   name);
        return RQ_OK;
    }
    plan->profile_named = name != NULL;
    char *path = name != NULL ? rq_strdup(name) : rq_kv_profile_path(m);
    if (path == NULL) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the name of a cache profile");
    if (name == NULL && access(path, F_OK) != 0) {
        rq_free(path);
        return RQ_OK;
    }
    plan->profile_path = path;
    rq_status status = rq_kv_profile_read(path, &plan->profile, err);
    if (status != RQ_OK) return status;
    rq_error why = {0};
    status = rq_kv_profile_fits(plan->profile, m, 0, &why);
    if (status == RQ_OK) return RQ_OK;
    return rq_fail(err, status, "%.200s: %s%s", path, why.text,
                   name != NULL ? "" : " (--kv-profile none goes without it)");
}

rq_status rq_kv_plan_choose(rq_kv_plan *plan, const rq_model *m, const rq_engine_params *p, rq_error *err)
{
    rq_status status = choose_formats(plan, m, p, err);
    if (status == RQ_OK) status = choose_groups(plan, m, p, err);
    if (status == RQ_OK) status = find_profile(plan, m, p, err);
    return status;
}
