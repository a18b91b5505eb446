#include "tests/engine/kv_bench.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[200], linked[256];

rq_model *kb_load_alone(const char *name)
{
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.150s/rqvk-kv-XXXXXX", base != NULL ? base : "/tmp");
    assert_non_null(mkdtemp(folder));
    snprintf(linked, sizeof linked, "%s/model.gguf", folder);
    assert_int_equal(symlink(rb_path(name), linked), 0);
    return rb_load(linked);
}

const char *kb_beside(const char *suffix)
{
    static char path[300];
    snprintf(path, sizeof path, "%s%s", linked, suffix);
    return path;
}

void kb_remove(void)
{
    unlink(kb_beside(".kvprofile"));
    unlink(kb_beside(".kvtable"));
    unlink(linked);
    assert_int_equal(rmdir(folder), 0);
}

void kb_tokens(rq_token *ids, size_t n)
{
    uint64_t x = 88172645463325252u;
    for (size_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (rq_token)((x >> 33) % KB_VOCAB);
    }
}

typedef struct sink {
    float *rows;
    size_t n;
} sink;

static void take(void *user, size_t position, const float *logits)
{
    sink *s = user;
    memcpy(s->rows + position * KB_VOCAB, logits, KB_VOCAB * sizeof *logits);
    s->n++;
}

void kb_logits(rq_engine *engine, const rq_token *ids, size_t n, uint32_t chunk, float *logits)
{
    rq_session *session = rb_session(engine);
    rq_error err = {0};
    sink s = {.rows = logits};
    if (rq_evaluate(session, ids, n, chunk, RQ_LOGITS_ALL, take, &s, &err) != RQ_OK) fail_msg("%s", err.text);
    rq_session_free(session);
    assert_int_equal(s.n, n);
}

void kb_logits_of(const rq_model *model, const rq_engine_params *params, const rq_token *ids, size_t n,
                  uint32_t chunk, float *logits)
{
    rq_engine *engine = rb_engine(model, params);
    kb_logits(engine, ids, n, chunk, logits);
    rq_engine_free(engine);
}

double kb_nmse(const float *a, const float *b, size_t n)
{
    double error = 0, energy = 0;
    for (size_t i = 0; i < n; i++) {
        double mean_a = 0, mean_b = 0;
        for (size_t v = 0; v < KB_VOCAB; v++) {
            mean_a += a[i * KB_VOCAB + v] / (double)KB_VOCAB;
            mean_b += b[i * KB_VOCAB + v] / (double)KB_VOCAB;
        }
        for (size_t v = 0; v < KB_VOCAB; v++) {
            double x = a[i * KB_VOCAB + v] - mean_a, y = b[i * KB_VOCAB + v] - mean_b;
            error += (x - y) * (x - y);
            energy += y * y;
        }
    }
    assert_true(isfinite(error) && isfinite(energy) && energy > 0);
    return error / energy;
}

static double log_sum(const float *row)
{
    double top = row[0], sum = 0;
    for (size_t v = 1; v < KB_VOCAB; v++)
        if (row[v] > top) top = row[v];
    for (size_t v = 0; v < KB_VOCAB; v++) sum += exp(row[v] - top);
    return top + log(sum);
}

double kb_divergence(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const float *p = a + i * KB_VOCAB, *q = b + i * KB_VOCAB;
        double lp = log_sum(p), lq = log_sum(q);
        for (size_t v = 0; v < KB_VOCAB; v++) sum += exp(p[v] - lp) * ((p[v] - lp) - (q[v] - lq));
    }
    return sum / (double)n;
}
