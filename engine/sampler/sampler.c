/* sampler.c - the chain of sampler.h. */
#include "engine/sampler/sampler.h"

#include "backends/base/mem.h"

#include <float.h>
#include <math.h>

rq_sampling rq_sampling_default(void)
{
    return (rq_sampling){.temperature = 0.8f,
                         .top_k = 40,
                         .top_p = 0.95f,
                         .min_p = 0.05f,
                         .repeat_penalty = 1.0f,
                         .repeat_last_n = 64};
}

rq_status rq_sampler_scratch_init(rq_sampler_scratch *w, uint32_t n_vocab, rq_error *err)
{
    memset(w, 0, sizeof *w);
    w->n_vocab = n_vocab;
    w->logits = rq_calloc(n_vocab, sizeof *w->logits);
    w->cands = rq_calloc(n_vocab, sizeof *w->cands);
    w->sorted = rq_calloc(n_vocab, sizeof *w->sorted);
    if (w->logits == NULL || w->cands == NULL || w->sorted == NULL) {
        rq_sampler_scratch_free(w);
        return rq_fail(err, RQ_ERR_MEMORY, "out of memory for sampling from %u tokens", n_vocab);
    }
    return RQ_OK;
}

void rq_sampler_scratch_free(rq_sampler_scratch *w)
{
    rq_free(w->logits);
    rq_free(w->cands);
    rq_free(w->sorted);
    memset(w, 0, sizeof *w);
}

rq_status rq_sampling_check(const rq_sampling *s, uint32_t n_vocab, rq_error *err)
{
    if (!isfinite(s->temperature))
        return rq_fail(err, RQ_ERR_ARGUMENT, "temperature must be a finite number");
    if (isnan(s->top_p)) return rq_fail(err, RQ_ERR_ARGUMENT, "top_p must be a number");
    if (isnan(s->min_p) || s->min_p > 1)
        return rq_fail(err, RQ_ERR_ARGUMENT, "min_p must be a number of at most 1");
    if (!isfinite(s->repeat_penalty) || s->repeat_penalty <= 0)
        return rq_fail(err, RQ_ERR_ARGUMENT, "repeat_penalty must be a number above 0");
    if (s->repeat_last_n < -1)
        return rq_fail(err, RQ_ERR_ARGUMENT, "repeat_last_n must be -1 or more, not %d", s->repeat_last_n);
    if (!isfinite(s->presence_penalty) || !isfinite(s->frequency_penalty))
        return rq_fail(err, RQ_ERR_ARGUMENT, "presence_penalty and frequency_penalty must be finite numbers");
    if (s->n_bias > RQ_MAX_BIAS)
        return rq_fail(err, RQ_ERR_ARGUMENT, "%zu logit biases are more than the %d allowed", s->n_bias,
                       RQ_MAX_BIAS);
    for (size_t i = 0; i < s->n_bias; i++) {
        if (s->bias[i].token < 0 || (uint32_t)s->bias[i].token >= n_vocab)
            return rq_fail(err, RQ_ERR_ARGUMENT,
                           "logit_bias names token %d, but the vocabulary has %u tokens", s->bias[i].token,
                           n_vocab);
        if (isnan(s->bias[i].bias) || s->bias[i].bias == INFINITY)
            return rq_fail(err, RQ_ERR_ARGUMENT,
                           "the logit bias of token %d must be finite or minus infinity", s->bias[i].token);
    }
    return RQ_OK;
}

/* Zeroed counts, allocated at first use. */
static bool clear_counts(uint32_t **counts, uint32_t n_vocab)
{
    if (*counts == NULL) return (*counts = rq_calloc(n_vocab, sizeof **counts)) != NULL;
    memset(*counts, 0, n_vocab * sizeof **counts);
    return true;
}

/* The first index of the last repeat_last_n of n tokens. */
static size_t window_start(const rq_sampling *s, size_t n)
{
    if (s->repeat_last_n < 0 || (size_t)s->repeat_last_n >= n) return 0;
    return n - (size_t)s->repeat_last_n;
}

rq_status rq_sampler_start(rq_sampler *s, const rq_sampling *settings, uint32_t n_vocab,
                           const rq_token *history, size_t n_history, const rq_token *banned, size_t n_banned,
                           rq_error *err)
{
    rq_status status = rq_sampling_check(settings, n_vocab, err);
    if (status != RQ_OK) return status;
    if (s->n_vocab != n_vocab) {
        rq_free(s->repeat_count);
        rq_free(s->generated_count);
        s->repeat_count = s->generated_count = NULL;
        s->n_vocab = n_vocab;
    }
    void *bias = s->bias;
    if (!rq_grow(&bias, &s->cap_bias, settings->n_bias, sizeof *s->bias)) goto no_memory;
    s->bias = bias;
    if (settings->n_bias > 0) memcpy(s->bias, settings->bias, settings->n_bias * sizeof *s->bias);
    s->settings = *settings;
    s->settings.bias = s->bias;
    s->banned = banned;
    s->n_banned = n_banned;
    s->repeat = settings->repeat_penalty != 1 && settings->repeat_last_n != 0;
    s->counted = settings->presence_penalty != 0 || settings->frequency_penalty != 0;
    if (s->repeat) {
        if (!clear_counts(&s->repeat_count, n_vocab)) goto no_memory;
        for (size_t i = window_start(settings, n_history); i < n_history; i++) s->repeat_count[history[i]]++;
    }
    if (s->counted && !clear_counts(&s->generated_count, n_vocab)) goto no_memory;
    rq_rng_init(&s->rng, settings->seed);
    return RQ_OK;
no_memory:
    return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the sampler of a request");
}

void rq_sampler_free(rq_sampler *s)
{
    rq_free(s->bias);
    rq_free(s->repeat_count);
    rq_free(s->generated_count);
    memset(s, 0, sizeof *s);
}

void rq_sampler_accept(rq_sampler *s, const rq_token *history, size_t n)
{
    rq_token token = history[n - 1];
    if (s->repeat) {
        s->repeat_count[token]++;
        size_t first = window_start(&s->settings, n);
        if (first > 0) s->repeat_count[history[first - 1]]--;
    }
    if (s->counted) s->generated_count[token]++;
}

/* Copies the logits; false if one is NaN or infinite. */
static bool copy_finite(float *to, const float *from, size_t n)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, from + i, sizeof u);
        bad |= ((u & 0x7f800000u) + 0x00800000u) & 0x80000000u; /* an exponent of all ones carries over */
        to[i] = from[i];
    }
    return bad == 0;
}

/* Biases and penalties of absurd size must not make infinities or NaNs out of finite logits. */
static float tame(float x)
{
    return isnan(x) ? -INFINITY : x > FLT_MAX ? FLT_MAX : x;
}

static void bias_and_penalties(const rq_sampler *s, float *x)
{
    const rq_sampling *p = &s->settings;
    for (size_t i = 0; i < p->n_bias; i++) {
        float *v = &x[p->bias[i].token];
        *v = tame(*v + p->bias[i].bias);
    }
    for (size_t i = 0; i < s->n_banned; i++)
        if ((uint32_t)s->banned[i] < s->n_vocab) x[s->banned[i]] = -INFINITY;
    /* repeat penalty: Keskar et al. 2019 (CTRL), with the usual mirror for negative logits */
    for (uint32_t i = 0; s->repeat && i < s->n_vocab; i++)
        if (s->repeat_count[i] > 0)
            x[i] = tame(x[i] > 0 ? x[i] / p->repeat_penalty : x[i] * p->repeat_penalty);
    /* presence and frequency: as the OpenAI API documents them */
    for (uint32_t i = 0; s->counted && i < s->n_vocab; i++)
        if (s->generated_count[i] > 0)
            x[i] = tame(x[i] - ((float)s->generated_count[i] * p->frequency_penalty + p->presence_penalty));
}

enum { HEAP_MAX = 128 };

static bool before(rq_cand a, rq_cand b) /* a comes before b in descending order */
{
    return a.key > b.key || (a.key == b.key && a.id < b.id);
}

/* The k <= HEAP_MAX largest of x in descending order, by a heap whose root is the smallest of them: most blocks
 * of logits hold none that is larger. Returns how many there are (banned ones do not count). */
static size_t top_few(const float *x, size_t n, size_t k, rq_cand *out)
{
    rq_cand heap[HEAP_MAX];
    size_t n_heap = 0;
    float least = -INFINITY; /* a new logit must be greater */
    for (size_t block = 0; block < n; block += 16) {
        size_t end = block + 16 < n ? block + 16 : n;
        int any = 0;
        for (size_t i = block; i < end; i++) any |= x[i] > least;
        if (!any) continue;
        for (size_t i = block; i < end; i++) {
            if (!(x[i] > least)) continue;
            rq_cand c = {rq_key_of(x[i]), (int32_t)i};
            size_t at;
            if (n_heap < k) {
                for (at = n_heap++; at > 0 && before(heap[(at - 1) / 2], c); at = (at - 1) / 2)
                    heap[at] = heap[(at - 1) / 2];
            } else {
                at = 0;
                for (size_t child; (child = 2 * at + 1) < n_heap; at = child) {
                    if (child + 1 < n_heap && before(heap[child], heap[child + 1])) child++;
                    if (!before(c, heap[child])) break;
                    heap[at] = heap[child];
                }
            }
            heap[at] = c;
            if (n_heap == k) least = rq_key_value(heap[0].key);
        }
    }
    for (size_t i = 0; i < n_heap; i++) { /* insertion into descending order */
        size_t j = i;
        for (; j > 0 && before(heap[i], out[j - 1]); j--) out[j] = out[j - 1];
        out[j] = heap[i];
    }
    return n_heap;
}

static size_t keep_top_p(rq_sampler_scratch *w, size_t n, float max_logit, bool *sorted, double share)
{
    double sum, run = 0;
    if (share < DBL_MIN) share = DBL_MIN; /* at least one stays */
    if (*sorted) {
        sum = rq_exp_sum(w->cands, n, max_logit);
    } else {
        n = rq_keep_mass(w->cands, n, max_logit, share, &sum);
        rq_sort_cands(w->cands, n, w->sorted);
        *sorted = true;
    }
    for (size_t i = 0; i < n; i++) {
        run += expf(rq_key_value(w->cands[i].key) - max_logit);
        if (run >= share * sum) return i + 1;
    }
    return n;
}

static size_t keep_min_p(rq_cand *cands, size_t n, float max_logit, float min_p)
{
    float least = max_logit + logf(min_p);
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (rq_key_value(cands[i].key) >= least) cands[kept++] = cands[i];
    return kept;
}

rq_status rq_sampler_choose(rq_sampler *s, rq_sampler_scratch *w, const float *logits, rq_token *token,
                            rq_error *err)
{
    const rq_sampling *p = &s->settings;
    uint32_t n_vocab = s->n_vocab;
    float *x = w->logits;
    if (!copy_finite(x, logits, n_vocab))
        return rq_fail(err, RQ_ERR_DEVICE, "the model produced non-finite logits; the file may be damaged");
    bias_and_penalties(s, x);
    int64_t best = rq_argmax(x, n_vocab);
    if (best < 0) return rq_fail(err, RQ_ERR_ARGUMENT, "logit_bias leaves no token to choose");
    float max_logit = x[best];
    if (p->temperature <= 0 || !isfinite(max_logit / p->temperature)) {
        *token = (rq_token)best;
        return RQ_OK;
    }

    size_t n = 0;
    bool sorted = false;
    if (p->top_k > 0 && p->top_k <= HEAP_MAX) {
        n = top_few(x, n_vocab, (size_t)p->top_k, w->cands);
        sorted = true;
    } else {
        for (uint32_t i = 0; i < n_vocab; i++)
            if (x[i] != -INFINITY) w->cands[n++] = (rq_cand){rq_key_of(x[i]), (int32_t)i};
        if (p->top_k > 0) {
            n = rq_keep_top_k(w->cands, n, (size_t)p->top_k);
            rq_sort_cands(w->cands, n, w->sorted);
            sorted = true;
        }
    }
    if (p->top_p < 1) n = keep_top_p(w, n, max_logit, &sorted, p->top_p);
    if (p->min_p > 0) n = keep_min_p(w->cands, n, max_logit, p->min_p);
    if (n == 1) {
        *token = w->cands[0].id;
        return RQ_OK;
    }

    float *weight = x; /* the candidates carry the logits now */
    float hot = max_logit / p->temperature;
    double sum = 0, run = 0;
    for (size_t i = 0; i < n; i++) {
        weight[i] = expf(rq_key_value(w->cands[i].key) / p->temperature - hot);
        sum += weight[i];
    }
    double target = sum * rq_rng_uniform(&s->rng);
    size_t chosen = 0;
    for (size_t i = 0; i < n; i++) {
        if (weight[i] == 0) continue;
        chosen = i;
        run += weight[i];
        if (run >= target) break;
    }
    *token = w->cands[chosen].id;
    return RQ_OK;
}

uint32_t rq_logprobs(const float *logits, uint32_t n_vocab, rq_token token, uint32_t n_top,
                     rq_token_logprob *chosen, rq_token_logprob *top)
{
    rq_cand best[RQ_MAX_LOGPROBS + 1];
    if (n_top > RQ_MAX_LOGPROBS) n_top = RQ_MAX_LOGPROBS;
    size_t n = top_few(logits, n_vocab, n_top > 0 ? n_top : 1, best);
    double max = n > 0 ? rq_key_value(best[0].key) : 0, sum = 0;
    for (uint32_t i = 0; i < n_vocab; i++) sum += exp(logits[i] - max);
    double base = max + log(sum);
    *chosen = (rq_token_logprob){.token = token, .logprob = (float)(logits[token] - base)};
    if (n > n_top) n = n_top;
    for (size_t i = 0; i < n; i++)
        top[i] = (rq_token_logprob){best[i].id, (float)(rq_key_value(best[i].key) - base)};
    return (uint32_t)n;
}
