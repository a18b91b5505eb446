/* The sampler against plain re-implementations, against theory (chi-square) and against the random numbers of
 * libstdc++ and CPython. */
#include "backends/base/mem.h"
#include "engine/sampler/sampler.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

/* ---- random numbers -------------------------------------------------------------------------------------- */

static void test_rng(void **state)
{
    rq_rng r;
    /* ISO C++17 [rand.predef]: the 10000th invocation of a default-constructed mt19937 gives 4123659995 */
    rq_rng_init(&r, 5489);
    for (int i = 0; i < 9999; i++) rq_rng_u32(&r);
    assert_int_equal(rq_rng_u32(&r), 4123659995u);
    /* libstdc++ 12.2: std::uniform_real_distribution<double>(0, 1) of std::mt19937(seed) */
    static const struct {
        uint64_t seed;
        double u[3];
    } uniform[] = {{0, {0.59284461651668263, 0.84426574425659828, 0.85794561998982988}},
                   {42, {0.79654298428784598, 0.18343478789336848, 0.77969099761266125}},
                   {5489, {0.1354770042967805, 0.8350085899945795, 0.96886777112423139}}};
    for (size_t i = 0; i < 3; i++) {
        rq_rng_init(&r, uniform[i].seed);
        for (int j = 0; j < 3; j++) assert_true(rq_rng_uniform(&r) == uniform[i].u[j]);
    }
    /* CPython 3.11: random.seed(n); random.getrandbits(32), which uses init_by_array with the words of n */
    rq_rng_init(&r, (1ull << 40) + 12345);
    static const uint32_t words[] = {1332995613, 1500173691, 493462063, 16738666};
    for (int i = 0; i < 4; i++) assert_int_equal(rq_rng_u32(&r), words[i]);
    rq_rng_init(&r, 1ull << 32);
    assert_int_equal(rq_rng_u32(&r), 485306839u);
    assert_int_equal(rq_rng_u32(&r), 1508871100u);
}

static rq_rng source;

static uint32_t below(uint32_t n)
{
    return rq_rng_u32(&source) % n;
}

static float normal(void)
{
    return (float)(sqrt(-2 * log(1 - rq_rng_uniform(&source))) *
                   cos(6.283185307179586 * rq_rng_uniform(&source)));
}

/* ---- selection ------------------------------------------------------------------------------------------- */

enum { KINDS = 6 };

/* Logits of many shapes: normal, many ties, flat, one peak, tiny differences, huge range. */
static void fill(float *x, uint32_t n, uint32_t kind)
{
    for (uint32_t i = 0; i < n; i++) {
        float g = normal();
        x[i] = kind == 0   ? 3 * g
               : kind == 1 ? (float)(int)(2 * g)
               : kind == 2 ? -0.0f * (i & 1)
               : kind == 3 ? (i == n / 2 ? 30 : g)
               : kind == 4 ? 10 + g * 1e-6f
                           : g * 1e30f;
    }
}

static int by_rank(const void *a, const void *b)
{
    const rq_token_logprob *x = a, *y = b;
    if (x->logprob != y->logprob) return x->logprob < y->logprob ? 1 : -1;
    return x->token < y->token ? -1 : 1;
}

static void test_selection(void **state)
{
    enum { N = 3000 };
    static float x[N];
    static rq_cand c[N], scratch[N];
    static rq_token_logprob ref[N];
    rq_rng_init(&source, 1);
    for (int round = 0; round < 400; round++) {
        uint32_t n = 1 + below(round % 4 == 0 ? N : 90), k = below(n + 2);
        fill(x, n, (uint32_t)round % KINDS);
        int64_t best = rq_argmax(x, n);
        for (uint32_t i = 0; i < n; i++) {
            c[i] = (rq_cand){rq_key_of(x[i]), (int32_t)i};
            ref[i] = (rq_token_logprob){(rq_token)i, x[i]};
            assert_true(rq_key_value(c[i].key) == x[i]);
        }
        qsort(ref, n, sizeof *ref, by_rank);
        assert_int_equal(best, ref[0].token);
        size_t kept = rq_keep_top_k(c, n, k);
        assert_int_equal(kept, k < n ? k : n);
        for (size_t i = 1; i < kept; i++) assert_true(c[i - 1].id < c[i].id); /* order stays */
        rq_sort_cands(c, kept, scratch);
        for (size_t i = 0; i < kept; i++) assert_int_equal(c[i].id, ref[i].token);
    }
    float none[3] = {-INFINITY, -INFINITY, -INFINITY};
    assert_int_equal(rq_argmax(none, 3), -1);
    assert_int_equal(rq_argmax(none, 0), -1);
}

/* ---- the chain against a plain one ----------------------------------------------------------------------- */

typedef struct candidate {
    rq_token id;
    float logit;
    double p;
} candidate;

static int by_logit(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

/* One token by the definition: copy, change, sort everything, cut, draw. Returns the number kept in *kept. */
static rq_token plain_choice(const rq_sampling *s, const float *logits, uint32_t n, const rq_token *history,
                             size_t n_prompt, size_t n_history, const rq_token *banned, size_t n_banned,
                             rq_rng *rng, size_t *kept)
{
    candidate *c = malloc(n * sizeof *c);
    for (uint32_t i = 0; i < n; i++) {
        float x = logits[i];
        bool ban = false;
        for (size_t b = 0; b < s->n_bias; b++)
            if (s->bias[b].token == (rq_token)i) x += s->bias[b].bias;
        for (size_t b = 0; b < n_banned; b++) ban |= banned[b] == (rq_token)i;
        size_t in_window = 0, generated = 0;
        for (size_t h = 0; h < n_history; h++) {
            if (history[h] != (rq_token)i) continue;
            if (s->repeat_last_n < 0 || h + (size_t)s->repeat_last_n >= n_history) in_window++;
            if (h >= n_prompt) generated++;
        }
        if (in_window > 0) x = x > 0 ? x / s->repeat_penalty : x * s->repeat_penalty;
        if (generated > 0) x -= (float)generated * s->frequency_penalty + s->presence_penalty;
        c[i] = (candidate){.id = (rq_token)i, .logit = ban ? -INFINITY : x};
    }
    candidate *best = &c[0];
    for (uint32_t i = 1; i < n; i++)
        if (c[i].logit > best->logit) best = &c[i];
    float max = best->logit;
    rq_token chosen = best->id;
    *kept = 1;
    if (s->temperature > 0) {
        uint32_t m = 0;
        for (uint32_t i = 0; i < n; i++)
            if (c[i].logit != -INFINITY) c[m++] = c[i];
        if (s->top_k > 0 || s->top_p < 1) qsort(c, m, sizeof *c, by_logit);
        if (s->top_k > 0 && (uint32_t)s->top_k < m) m = (uint32_t)s->top_k;
        if (s->top_p < 1) {
            double sum = 0, run = 0;
            for (uint32_t i = 0; i < m; i++) sum += expf(c[i].logit - max);
            uint32_t i = 0;
            while (i < m && ((run += expf(c[i].logit - max)) < s->top_p * sum)) i++;
            if (i + 1 < m) m = i + 1;
        }
        if (s->min_p > 0) {
            uint32_t left = 0;
            for (uint32_t i = 0; i < m; i++)
                if (c[i].logit >= max + logf(s->min_p)) c[left++] = c[i];
            m = left;
        }
        *kept = m;
        chosen = c[0].id;
        if (m > 1) {
            double sum = 0, run = 0;
            for (uint32_t i = 0; i < m; i++)
                sum += c[i].p = expf(c[i].logit / s->temperature - max / s->temperature);
            double target = sum * rq_rng_uniform(rng);
            for (uint32_t i = 0; i < m; i++) {
                if (c[i].p == 0) continue;
                chosen = c[i].id;
                run += c[i].p;
                if (run >= target) break;
            }
        }
    }
    free(c);
    return chosen;
}

static void test_chain_against_plain(void **state)
{
    enum { N = 700, PROMPT = 30, STEPS = 40 };
    rq_sampler_scratch scratch;
    assert_int_equal(rq_sampler_scratch_init(&scratch, N, NULL), RQ_OK);
    rq_sampler sampler = {0};
    static float logits[N];
    rq_rng_init(&source, 2);
    size_t shrunk = 0, many = 0;
    for (int round = 0; round < 300; round++) {
        rq_logit_bias bias[4];
        rq_sampling s = rq_sampling_default();
        s.bias = bias;
        s.n_bias = below(5);
        for (size_t i = 0; i < s.n_bias; i++)
            bias[i] = (rq_logit_bias){(rq_token)below(N), below(3) == 0 ? -INFINITY : 2 * normal()};
        static const float temperatures[] = {0, 0.1f, 0.8f, 1, 3}, top_ps[] = {0, 0.3f, 0.95f, 1, 2},
                           min_ps[] = {0, 0.05f, 0.5f, 1};
        static const int32_t top_ks[] = {0, 1, 5, 40, 128, 129, 500, 5000}, last_ns[] = {-1, 0, 3, 64};
        s.temperature = temperatures[below(5)];
        s.top_p = top_ps[below(5)];
        s.min_p = min_ps[below(4)];
        s.top_k = top_ks[below(8)];
        s.repeat_last_n = last_ns[below(4)];
        s.repeat_penalty = below(2) ? 1.0f : 1.3f;
        s.presence_penalty = below(2) ? 0 : normal();
        s.frequency_penalty = below(2) ? 0 : normal();
        s.seed = below(3) == 0 ? (1ull << 33) + below(9) : below(1000);
        rq_token banned[2] = {(rq_token)below(N), (rq_token)below(N)}, history[PROMPT + STEPS];
        size_t n_banned = below(3), n = PROMPT;
        for (size_t i = 0; i < PROMPT; i++) history[i] = (rq_token)below(20);
        if (round % KINDS == 5) s.repeat_penalty = 1;
        assert_int_equal(rq_sampler_start(&sampler, &s, N, history, PROMPT, banned, n_banned, NULL), RQ_OK);
        rq_rng rng;
        rq_rng_init(&rng, s.seed);
        for (int step = 0; step < STEPS; step++) {
            fill(logits, N, (uint32_t)round % KINDS);
            rq_token token = -1;
            size_t kept;
            rq_token expected =
                plain_choice(&s, logits, N, history, PROMPT, n, banned, n_banned, &rng, &kept);
            uint64_t allocations = rq_mem_count();
            assert_int_equal(rq_sampler_choose(&sampler, &scratch, logits, &token, NULL), RQ_OK);
            assert_int_equal(token, expected);
            shrunk += kept < N;
            many += kept > 200;
            history[n++] = token;
            rq_sampler_accept(&sampler, history, n);
            assert_int_equal(rq_mem_count(), allocations); /* a token allocates nothing */
        }
    }
    assert_true(shrunk > 3000 && many > 300); /* the settings reached both ends */
    rq_sampler_free(&sampler);
    rq_sampler_scratch_free(&scratch);
}

/* ---- the distribution ------------------------------------------------------------------------------------ */

/* Draws n tokens and compares their counts with probabilities p (0 outside the filters). */
static void check_distribution(const rq_sampling *s, const float *logits, uint32_t n_vocab, const double *p)
{
    enum { DRAWS = 100000 };
    rq_sampler_scratch scratch;
    assert_int_equal(rq_sampler_scratch_init(&scratch, n_vocab, NULL), RQ_OK);
    rq_sampler sampler = {0};
    assert_int_equal(rq_sampler_start(&sampler, s, n_vocab, NULL, 0, NULL, 0, NULL), RQ_OK);
    uint32_t count[64] = {0};
    for (int i = 0; i < DRAWS; i++) {
        rq_token token;
        assert_int_equal(rq_sampler_choose(&sampler, &scratch, logits, &token, NULL), RQ_OK);
        count[token]++;
    }
    double chi2 = 0;
    int degrees = -1;
    for (uint32_t i = 0; i < n_vocab; i++) {
        if (p[i] == 0) {
            assert_int_equal(count[i], 0);
            continue;
        }
        double expected = p[i] * DRAWS;
        chi2 += (count[i] - expected) * (count[i] - expected) / expected;
        degrees++;
    }
    /* Wilson and Hilferty 1931: (chi2/k)^(1/3) is nearly normal; 4.75 deviations are one in a million */
    double z = (cbrt(chi2 / degrees) - (1 - 2.0 / (9 * degrees))) / sqrt(2.0 / (9 * degrees));
    assert_true(z < 4.75);
    rq_sampler_free(&sampler);
    rq_sampler_scratch_free(&scratch);
}

static void test_distribution(void **state)
{
    float logits[16];
    double p[16];
    rq_sampling s = {.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = 7};
    /* all filters off: softmax(logits / T) */
    for (int t = 0; t < 3; t++) {
        s.temperature = t == 0 ? 1.0f : t == 1 ? 0.5f : 2.5f;
        double sum = 0;
        for (int i = 0; i < 16; i++) {
            logits[i] = (float)((i * 7) % 16) * 0.3f - 2;
            sum += p[i] = exp(logits[i] / s.temperature);
        }
        for (int i = 0; i < 16; i++) p[i] /= sum;
        check_distribution(&s, logits, 16, p);
    }
    /* top-k 4 of 16, then temperature */
    s.top_k = 4;
    s.temperature = 0.7f;
    double sum = 0;
    for (int i = 0; i < 16; i++) {
        int rank = 15 - (i * 7) % 16;
        sum += p[i] = rank < 4 ? exp(logits[i] / 0.7) : 0;
    }
    for (int i = 0; i < 16; i++) p[i] /= sum;
    check_distribution(&s, logits, 16, p);
}

/* ---- edges ----------------------------------------------------------------------------------------------- */

static void test_senseless_logits(void **state)
{
    enum { N = 50 };
    rq_sampler_scratch scratch;
    assert_int_equal(rq_sampler_scratch_init(&scratch, N, NULL), RQ_OK);
    rq_sampler sampler = {0};
    rq_sampling s = rq_sampling_default();
    assert_int_equal(rq_sampler_start(&sampler, &s, N, NULL, 0, NULL, 0, NULL), RQ_OK);
    float logits[N] = {0};
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < N; i += 7) {
            rq_token token = 77;
            rq_error err = {0};
            logits[i] = bad[k];
            assert_int_equal(rq_sampler_choose(&sampler, &scratch, logits, &token, &err), RQ_ERR_DEVICE);
            assert_non_null(strstr(err.text, "non-finite"));
            assert_int_equal(token, 77);
            logits[i] = 0;
        }
    /* extreme but finite ones are fine, at any temperature */
    static const float extremes[] = {FLT_MAX, -FLT_MAX, FLT_MIN, 1e-45f, 0};
    static const float temperatures[] = {1e-45f, 1e-30f, 1e-3f, 1, 1e30f, FLT_MAX};
    for (int round = 0; round < 600; round++) {
        for (int i = 0; i < N; i++) logits[i] = extremes[(i * 13 + round) % 5];
        s.temperature = temperatures[round % 6];
        s.top_k = round % 3 == 0 ? 0 : round % 50;
        s.top_p = round % 2 ? 1 : 0.9f;
        s.repeat_penalty = round % 5 ? 1 : 1e-3f;
        s.frequency_penalty = round % 7 ? 0 : -FLT_MAX;
        assert_int_equal(rq_sampler_start(&sampler, &s, N, NULL, 0, NULL, 0, NULL), RQ_OK);
        rq_token history[8];
        for (size_t i = 0; i < 8; i++) {
            assert_int_equal(rq_sampler_choose(&sampler, &scratch, logits, &history[i], NULL), RQ_OK);
            assert_in_range(history[i], 0, N - 1);
            rq_sampler_accept(&sampler, history, i + 1);
        }
    }
    /* everything banned */
    rq_logit_bias bias[N];
    for (int i = 0; i < N; i++) bias[i] = (rq_logit_bias){i, -INFINITY};
    s = rq_sampling_default();
    s.bias = bias;
    s.n_bias = N;
    for (int greedy = 0; greedy < 2; greedy++) {
        rq_token token;
        rq_error err = {0};
        s.temperature = greedy ? 0 : 1;
        assert_int_equal(rq_sampler_start(&sampler, &s, N, NULL, 0, NULL, 0, NULL), RQ_OK);
        assert_int_equal(rq_sampler_choose(&sampler, &scratch, logits, &token, &err), RQ_ERR_ARGUMENT);
        assert_true(err.text[0] != 0);
    }
    bias[3].bias = -100; /* now 3 is all that is left */
    rq_token token;
    assert_int_equal(rq_sampler_start(&sampler, &s, N, NULL, 0, NULL, 0, NULL), RQ_OK);
    assert_int_equal(rq_sampler_choose(&sampler, &scratch, logits, &token, NULL), RQ_OK);
    assert_int_equal(token, 3);
    rq_sampler_free(&sampler);
    rq_sampler_scratch_free(&scratch);
}

static void test_settings_are_checked(void **state)
{
    static const rq_logit_bias outside = {100, 1}, negative = {-1, 1}, not_a_number = {1, NAN},
                               endless = {1, INFINITY};
#define BAD(field, value)                                                                                    \
    do {                                                                                                     \
        rq_sampling s = rq_sampling_default();                                                               \
        rq_error err = {0};                                                                                  \
        s.field = value;                                                                                     \
        s.n_bias = s.bias != NULL;                                                                           \
        assert_int_equal(rq_sampling_check(&s, 100, &err), RQ_ERR_ARGUMENT);                                 \
        assert_true(err.text[0] != 0);                                                                       \
    } while (0)
    BAD(temperature, NAN);
    BAD(temperature, INFINITY);
    BAD(top_p, NAN);
    BAD(min_p, NAN);
    BAD(min_p, 1.5f);
    BAD(repeat_penalty, 0);
    BAD(repeat_penalty, -1);
    BAD(repeat_penalty, NAN);
    BAD(repeat_last_n, -2);
    BAD(presence_penalty, INFINITY);
    BAD(frequency_penalty, NAN);
    BAD(bias, &outside);
    BAD(bias, &negative);
    BAD(bias, &not_a_number);
    BAD(bias, &endless);
    rq_sampling s = rq_sampling_default();
    assert_int_equal(rq_sampling_check(&s, 100, NULL), RQ_OK);
    s.n_bias = RQ_MAX_BIAS + 1;
    assert_int_equal(rq_sampling_check(&s, 100, NULL), RQ_ERR_ARGUMENT);
}

static void test_logprobs(void **state)
{
    enum { N = 300 };
    static float x[N];
    static rq_token_logprob ref[N];
    rq_rng_init(&source, 5);
    for (uint32_t round = 0; round < 60; round++) {
        uint32_t n = round < 50 ? N : 1 + round % 10, n_top = below(RQ_MAX_LOGPROBS + 1);
        fill(x, n, round % KINDS);
        rq_token_logprob chosen, top[RQ_MAX_LOGPROBS];
        rq_token token = (rq_token)below(n);
        uint32_t got = rq_logprobs(x, n, token, n_top, &chosen, top);
        assert_int_equal(got, n_top < n ? n_top : n);
        long double sum = 0, max = -INFINITY;
        for (uint32_t i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
        for (uint32_t i = 0; i < n; i++) sum += expl(x[i] - max);
        for (uint32_t i = 0; i < n; i++) ref[i] = (rq_token_logprob){(rq_token)i, x[i]};
        /* exp and log in double: relative error of a few 2^-53 of each term, then one rounding to float */
        double want = (double)(x[token] - max - logl(sum)), tolerance = fabs(want) * 1e-6 + 1e-6;
        assert_int_equal(chosen.token, token);
        assert_true(fabs(chosen.logprob - want) <= tolerance || want < -1e30);
        qsort(ref, n, sizeof *ref, by_rank);
        for (uint32_t i = 0; i < got; i++) {
            assert_int_equal(top[i].token, ref[i].token);
            want = (double)(ref[i].logprob - max - logl(sum));
            assert_true(fabs(top[i].logprob - want) <= fabs(want) * 1e-6 + 1e-6);
        }
    }
}

static void test_failing_allocations(void **state)
{
    int64_t alive = rq_mem_alive();
    rq_logit_bias bias = {1, 2};
    rq_sampling s = rq_sampling_default();
    s.bias = &bias;
    s.n_bias = 1;
    s.repeat_penalty = 1.1f;
    s.presence_penalty = 1;
    uint64_t n = 1;
    for (bool done = false; !done; n++) {
        rq_sampler_scratch scratch;
        rq_sampler sampler = {0};
        rq_error err = {0};
        rq_mem_fail_at(n);
        rq_status status = rq_sampler_scratch_init(&scratch, 64, &err);
        if (status == RQ_OK) {
            status = rq_sampler_start(&sampler, &s, 64, NULL, 0, NULL, 0, &err);
            done = status == RQ_OK;
            rq_sampler_free(&sampler);
            rq_sampler_scratch_free(&scratch);
        }
        if (!done) assert_int_equal(status, RQ_ERR_MEMORY);
        assert_int_equal(rq_mem_alive(), alive);
    }
    rq_mem_fail_at(0);
    assert_int_equal(n, 8); /* six allocations, and one round without a failure */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rng),
        cmocka_unit_test(test_selection),
        cmocka_unit_test(test_chain_against_plain),
        cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_senseless_logits),
        cmocka_unit_test(test_settings_are_checked),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
