/* rqvk-ppl and rqvk-needle over a small random model: what must come out whatever the weights are. Argument: the
 * model file. */
#include "backends/base/buf.h"
#include "backends/base/mem.h"
#include "tools/needle/run.h"
#include "tools/ppl/report.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static rq_model *model;
static rq_tokens ids;

static void make_ids(void)
{
    rq_model_info info;
    rq_model_describe(model, &info);
    size_t n = 4000;
    ids.ids = rq_malloc(n * sizeof *ids.ids);
    ids.n = ids.cap = ids.ids ? n : 0;
    uint32_t x = 1;
    for (size_t i = 0; i < ids.n; i++) {
        x = x * 1664525u + 1013904223u;
        ids.ids[i] = (rq_token)((x >> 8) % info.n_vocab);
    }
}

static rq_ppl_job job_of(const rq_entries *entries, uint32_t n_ctx, size_t windows)
{
    rq_ppl_job job = {
        .model = model, .ids = &ids, .entries = entries, .n_lanes = 2, .n_threads = 2, .quiet = true};
    job.params = (rq_engine_params){.n_batch = 64, .kv_recent = 64};
    rq_error err = {0};
    assert_int_equal(rq_windows_plan(ids.n, n_ctx, 0, 0, false, windows, &job.windows, &err), RQ_OK);
    return job;
}

/* The plainest way to the same numbers: one engine, one call for the whole window, exponentials in a row. */
typedef struct plain {
    const rq_token *tokens;
    uint32_t n_vocab, first;
    double nll;
    size_t n;
} plain;

static void plain_row(void *user, size_t position, const float *logits)
{
    plain *p = user;
    if (position < p->first) return;
    double sum = 0;
    for (uint32_t i = 0; i < p->n_vocab; i++) sum += exp((double)logits[i]);
    p->nll += log(sum) - logits[p->tokens[position + 1]];
    p->n++;
}

static double plain_nll(const rq_ppl_job *job)
{
    rq_model_info info;
    rq_model_describe(model, &info);
    rq_engine_params p = {.n_ctx = job->windows.n_ctx};
    rq_engine *engine = NULL;
    rq_session *session = NULL;
    rq_error err = {0};
    assert_int_equal(rq_engine_create(model, &p, &engine, &err), RQ_OK);
    assert_int_equal(rq_session_create(engine, &session, &err), RQ_OK);
    plain sum = {.n_vocab = info.n_vocab, .first = job->windows.first};
    for (size_t w = 0; w < job->windows.n; w++) {
        sum.tokens = ids.ids + w * job->windows.stride;
        assert_int_equal(rq_session_truncate(session, 0, &err), RQ_OK);
        assert_int_equal(
            rq_evaluate(session, sum.tokens, job->windows.n_ctx - 1, 0, RQ_LOGITS_ALL, plain_row, &sum, &err),
            RQ_OK);
    }
    rq_session_free(session);
    rq_engine_free(engine);
    return sum.nll / (double)sum.n;
}

static void test_ppl(void **state)
{
    rq_entries entries = {0};
    rq_error err = {0};
    assert_int_equal(rq_entries_parse("f32,f16,nonsense9,q8_0,wht3:cal,wht3,wht2", &entries, &err), RQ_OK);
    rq_ppl_job job = job_of(&entries, 704, 2);
    rq_ppl_results r;
    assert_int_equal(rq_ppl_run(&job, &r, &err), RQ_OK);
    assert_int_equal(r.n_done, 2);
    rq_ppl_figures reference, f[7];
    assert_int_equal(rq_ppl_figures_of(&job, &r, &r.reference, &reference, &err), RQ_OK);
    for (int i = 0; i < 7; i++)
        if (!r.columns[i].refused[0])
            assert_int_equal(rq_ppl_figures_of(&job, &r, &r.columns[i], &f[i], &err), RQ_OK);
    assert_int_equal(reference.n, 2 * 351);
    double want = plain_nll(&job);
    if (fabs(log(reference.ppl) - want) > 1e-5 * want) fail_msg("%.8f is not %.8f", log(reference.ppl), want);
    /* The same format again: the same bits. */
    assert_true(f[1].kl == 0 || fabs(f[1].kl) < 1e-12);
    assert_true(f[1].same_top == 1 && f[1].ratio == 0 && f[1].ppl == reference.ppl);
    /* f32 differs from f16 by rounding; a code differs by more, and the coarser one by the most. */
    assert_true(f[0].kl > -1e-7 && f[0].kl < f[5].kl && f[5].kl < f[6].kl);
    assert_true(f[3].kl < f[5].kl);
    assert_true(f[5].kl_99 >= f[5].kl && f[5].kl_most >= f[5].kl_99);
    assert_true(!f[5].kl_refused && f[5].coded_share >= RQ_LEAST_CODED_SHARE && f[0].coded_share == 0);
    /* Refusals keep the engine's sentence and stop nobody else. */
    assert_true(strlen(r.columns[2].refused) > 10 && strlen(r.columns[4].refused) > 10);
    assert_true(!r.columns[5].refused[0] && !r.columns[6].refused[0]);
    rq_ppl_results_free(&r);
}

/* A context too short for what is measured: perplexity yes, KL no, and the reason with a way out. */
static void test_refused(void **state)
{
    rq_entries entries = {0};
    rq_error err = {0};
    assert_int_equal(rq_entries_parse("wht3", &entries, &err), RQ_OK);
    rq_ppl_job job = job_of(&entries, 256, 1);
    rq_ppl_results r;
    assert_int_equal(rq_ppl_run(&job, &r, &err), RQ_OK);
    rq_ppl_figures columns[1], reference;
    assert_int_equal(rq_ppl_figures_of(&job, &r, &r.columns[0], &columns[0], &err), RQ_OK);
    assert_int_equal(rq_ppl_figures_of(&job, &r, &r.reference, &reference, &err), RQ_OK);
    assert_true(columns[0].kl_refused && columns[0].coded_share < RQ_LEAST_CODED_SHARE);
    rq_ppl_report report = {
        .job = &job, .results = &r, .reference = reference, .columns = columns, .text_path = "x"};
    rq_model_describe(model, &report.model);
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    rq_ppl_print_table(&report, out);
    rq_ppl_print_csv(&report, out);
    rq_ppl_print_json(&report, out);
    fclose(out);
    assert_non_null(strstr(text, "No comparison with f16"));
    assert_non_null(strstr(text, "--ctx-size"));
    assert_non_null(strstr(text, "\"kl\": null"));
    free(text);
    assert_int_equal(rq_ppl_print_svg(&report, stdout, &err), RQ_ERR_ARGUMENT); /* nothing to draw */
    rq_ppl_results_free(&r);
}

static void test_needle(void **state)
{
    rq_buf text = {.max = 1 << 20};
    for (int i = 0; i < 300; i++) rq_buf_printf(&text, "Sentence %d of a text without any sense. ", i);
    rq_needle_haystack h;
    rq_entries entries = {0};
    rq_error err = {0};
    assert_int_equal(rq_needle_haystack_make(model, text.data, text.len, &h, &err), RQ_OK);
    assert_int_equal(rq_entries_parse("f16,wht3,nonsense9", &entries, &err), RQ_OK);
    rq_needle_job job = {.model = model,
                         .params = {.kv_recent = 64},
                         .haystack = &h,
                         .entries = &entries,
                         .lengths = {600},
                         .n_lengths = 1,
                         .depths = {0, 100},
                         .n_depths = 2,
                         .n_each = 2,
                         .seed = 3,
                         .n_lanes = 2,
                         .n_threads = 2,
                         .quiet = true};
    assert_int_equal(rq_needle_form_of(model, &job.form, &err), RQ_OK);
    rq_needle_results r;
    assert_int_equal(rq_needle_run(&job, &r, &err), RQ_OK);
    assert_int_equal(r.n_done, 4);
    for (int t = 0; t < 4; t++) {
        assert_true(r.outcomes[t * 3] != RQ_NEEDLE_NOT_RUN && r.outcomes[t * 3 + 1] != RQ_NEEDLE_NOT_RUN);
        assert_int_equal(r.outcomes[t * 3 + 2], RQ_NEEDLE_NOT_RUN);
    }
    assert_true(strlen(r.columns[2].refused) > 10 && !r.columns[1].refused[0]);
    rq_needle_results_free(&r);
    rq_needle_haystack_free(&h);
    rq_buf_free(&text);
}

int main(int argc, char **argv)
{
    if (argc != 2) return 1;
    rq_error err = {0};
    if (rq_model_load(argv[1], &model, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    make_ids();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ppl), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_needle)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rq_tokens_free(&ids);
    rq_model_free(model);
    return failed;
}
