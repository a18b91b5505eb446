/* published.c - see published.h. The figures are the project's research on what ships today ("end to end: what ships
 * versus what is possible"): K NMSE, KL of the attention and relative error of its output on the sets (a) Gaussian, (b)
 * outliers, (c') rope and (e) Student, 12 heads of 128, 1,024 keys, 64 queries, logits of standard deviation 2. The
 * sets are drawn number by number in the same order, so sampling does not matter. */
#include "tools/kv/published.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

typedef struct cell {
    double k_nmse, kl, out;
} cell;

typedef struct row {
    const char *format;
    double bits;
    cell cells[KV_PUBLISHED_SETS];
} row;

const kv_set_kind kv_published_sets[KV_PUBLISHED_SETS] = {KV_SET_GAUSSIAN, KV_SET_OUTLIERS, KV_SET_ROPE,
                                                          KV_SET_STUDENT};

static const row rows[] = {
    {"ref-q8_0",
     8.5,
     {{0.00003, 0.00006, 0.0111},
      {0.00013, 0.00044, 0.0306},
      {0.00007, 0.00049, 0.0305},
      {0.00007, 0.00044, 0.0215}}},
    {"ref-q4_0",
     4.5,
     {{0.00736, 0.01461, 0.1764},
      {0.02202, 0.05904, 0.3219},
      {0.01764, 0.11305, 0.4653},
      {0.01514, 0.05389, 0.2443}}},
    {"ref-q4_0-h64",
     4.5,
     {{0.00737, 0.01491, 0.1850},
      {0.00406, 0.01239, 0.1652},
      {0.00650, 0.03903, 0.2788},
      {0.00645, 0.01681, 0.1357}}},
    {"ref-q4_0-wht",
     4.5,
     {{0.00738, 0.01482, 0.1786},
      {0.00503, 0.01586, 0.1952},
      {0.00661, 0.03919, 0.2760},
      {0.00662, 0.02538, 0.1523}}},
    {"ref-planar4",
     4.125,
     {{0.01803, 0.03495, 0.2647},
      {0.26492, 0.57841, 1.1186},
      {0.13347, 0.55412, 1.2238},
      {0.13453, 1.27402, 0.8569}}},
    {"ref-turbo4",
     4.25,
     {{0.01813, 0.03519, 0.2672},
      {0.01059, 0.03374, 0.2811},
      {0.01557, 0.07887, 0.3905},
      {0.01443, 0.03651, 0.1981}}},
    {"ref-wht4",
     4.125,
     {{0.00918, 0.01808, 0.1993},
      {0.00814, 0.02710, 0.2499},
      {0.00873, 0.05007, 0.3136},
      {0.00820, 0.02755, 0.1714}}},
    {"ref-planar3",
     3.125,
     {{0.03379, 0.06491, 0.3545},
      {0.30289, 0.77427, 1.3567},
      {0.14265, 0.64876, 1.3293},
      {0.18740, 2.16260, 0.9275}}},
    {"ref-iso3",
     3.125,
     {{0.03377, 0.06627, 0.3691},
      {0.24997, 0.62376, 1.2257},
      {0.11492, 0.50531, 1.1062},
      {0.13674, 1.39192, 0.8486}}},
    {"ref-turbo3",
     3.125,
     {{0.03382, 0.06641, 0.3680},
      {0.02991, 0.09906, 0.4769},
      {0.03199, 0.18034, 0.5971},
      {0.03045, 0.11416, 0.3246}}},
    {"ref-planar2",
     2.125,
     {{0.11867, 0.22954, 0.6481},
      {0.68183, 1.83843, 2.0331},
      {0.31471, 1.40136, 1.9159},
      {0.38490, 3.97375, 1.1240}}},
    {"ref-turbo2",
     2.125,
     {{0.11888, 0.23064, 0.6529},
      {0.08526, 0.26129, 0.7664},
      {0.11170, 0.58433, 1.0367},
      {0.10989, 0.46167, 0.6131}}},
};

static const row *find(const char *format)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (strcmp(rows[i].format, format) == 0) return &rows[i];
    return NULL;
}

const char *kv_published_name(size_t i)
{
    return i < sizeof rows / sizeof *rows ? rows[i].format : NULL;
}

bool kv_published_has(const char *format)
{
    return find(format) != NULL;
}

static rq_status agree(const char *format, kv_set_kind set, const char *what, double got, double want,
                       double last_digit, rq_error *err)
{
    if (fabs(got - want) <= 0.02 * want + last_digit / 2) return RQ_OK;
    return rq_fail(err, RQ_ERR_INTERNAL,
                   "%s is not what was published: on the set %s its %s is %.5f, not %.5f within 2 %%", format,
                   kv_set_name(set), what, got, want);
}

rq_status kv_published_agrees(const kv_result *got, size_t set, rq_error *err)
{
    const row *r = find(got->name);
    if (!r || set >= KV_PUBLISHED_SETS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "there are no published figures of %.40s", got->name);
    if (got->bits_k != r->bits || got->bits_v != r->bits)
        return rq_fail(err, RQ_ERR_INTERNAL, "%s has %.4f bits per element, not %.4f", got->name, got->bits_k,
                       r->bits);
    const kv_set_kind kind = kv_published_sets[set];
    const cell *want = &r->cells[set];
    rq_status s = agree(got->name, kind, "NMSE of K", got->quality.k_nmse, want->k_nmse, 1e-5, err);
    if (!s) s = agree(got->name, kind, "KL", got->quality.kl, want->kl, 1e-5, err);
    if (!s) s = agree(got->name, kind, "output error", got->quality.out, want->out, 1e-4, err);
    return s;
}

rq_status kv_published_check(const char *format, rq_error *err)
{
    if (!kv_published_has(format))
        return rq_fail(err, RQ_ERR_ARGUMENT, "there are no published figures of %.40s", format);
    kv_format_list list = {0};
    rq_status s = kv_format_list_add(&list, format, err);
    for (size_t i = 0; i < KV_PUBLISHED_SETS && !s; i++) {
        kv_experiment e = kv_experiment_default();
        kv_result got;
        e.set = kv_published_sets[i];
        s = kv_experiment_run(&e, &list, &got, NULL, NULL, err);
        if (!s) s = kv_published_agrees(&got, i, err);
    }
    return s;
}
