#include "engine/tokenizer/internal.h"

#include "backends/base/mem.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

struct rq_splitter {
    pcre2_general_context *memory;
    pcre2_code *pass[RQ_MAX_PASSES];
    int n_passes;
};

struct rq_split_state {
    pcre2_match_data *match;
    pcre2_match_context *limits;
};

static void *pcre2_malloc(PCRE2_SIZE bytes, void *user)
{
    return rq_malloc(bytes);
}

static void pcre2_release(void *p, void *user)
{
    rq_free(p);
}

void rq_splitter_free(rq_splitter *s)
{
    if (!s) return;
    for (int i = 0; i < s->n_passes; i++) pcre2_code_free(s->pass[i]);
    pcre2_general_context_free(s->memory);
    rq_free(s);
}

rq_status rq_splitter_create(const rq_pattern *pattern, bool *jit, rq_splitter **out, rq_error *err)
{
    rq_splitter *s = rq_calloc(1, sizeof *s);
    if (!s) return rq_no_memory(err);
    s->memory = pcre2_general_context_create(pcre2_malloc, pcre2_release, NULL);
    pcre2_compile_context *compile = s->memory ? pcre2_compile_context_create(s->memory) : NULL;
    rq_status status = compile ? RQ_OK : rq_no_memory(err);
    for (int i = 0; !status && i < RQ_MAX_PASSES && pattern->pass[i]; i++) {
        int code;
        PCRE2_SIZE at;
        s->pass[i] = pcre2_compile((PCRE2_SPTR)pattern->pass[i], PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                                   &code, &at, compile);
        if (!s->pass[i]) {
            char why[128];
            pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
            status =
                code == PCRE2_ERROR_HEAP_FAILED
                    ? rq_no_memory(err)
                    : rq_fail(err, RQ_ERR_INTERNAL, "pre-tokenizer %s, pass %d does not compile: %s at %zu",
                              pattern->name, i + 1, why, (size_t)at);
            break;
        }
        s->n_passes++;
        /* Where no executable memory is to be had (hardened systems) the same code is interpreted. */
        if (*jit && pcre2_jit_compile(s->pass[i], PCRE2_JIT_COMPLETE)) *jit = false;
    }
    pcre2_compile_context_free(compile);
    if (status) {
        rq_splitter_free(s);
        return status;
    }
    *out = s;
    return RQ_OK;
}

void rq_split_state_free(rq_split_state *state)
{
    if (!state) return;
    pcre2_match_data_free(state->match);
    pcre2_match_context_free(state->limits);
    rq_free(state);
}

rq_split_state *rq_split_state_create(const rq_splitter *s)
{
    rq_split_state *state = rq_calloc(1, sizeof *state);
    if (!state) return NULL;
    state->match = pcre2_match_data_create(1, s->memory);
    state->limits = pcre2_match_context_create(s->memory);
    if (state->match && state->limits) return state;
    rq_split_state_free(state);
    return NULL;
}

typedef struct rq_split_job {
    const rq_splitter *splitter;
    rq_split_state *state;
    rq_word_fn word;
    void *user;
} rq_split_job;

static rq_status cut(const rq_split_job *job, int pass, const uint8_t *text, size_t len, rq_error *err);

static rq_status deliver(const rq_split_job *job, int pass, const uint8_t *text, size_t len, rq_error *err)
{
    if (!len) return RQ_OK;
    return pass + 1 < job->splitter->n_passes ? cut(job, pass + 1, text, len, err)
                                              : job->word(job->user, text, len, err);
}

/* One pass over one piece: matches and the gaps between them go to the next pass. */
static rq_status cut(const rq_split_job *job, int pass, const uint8_t *text, size_t len, rq_error *err)
{
    const pcre2_code *code = job->splitter->pass[pass];
    pcre2_match_data *match = job->state->match;
    size_t done = 0;
    rq_status status = RQ_OK;
    while (!status && done < len) {
        /* The subject is the whole piece: look-behind may see what was matched already, but not beyond the
         * piece. */
        int rc = pcre2_match(code, text, len, done, PCRE2_NO_UTF_CHECK, match, job->state->limits);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
            rc = pcre2_match(code, text, len, done, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match,
                             job->state->limits);
        if (rc == PCRE2_ERROR_NOMATCH) break;
        if (rc == PCRE2_ERROR_NOMEMORY) return rq_no_memory(err);
        if (rc < 0)
            return rq_fail(err, RQ_ERR_INTERNAL,
                           "the pre-tokenizer gave up on a text of %zu bytes (PCRE2 %d)", len, rc);
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(match);
        size_t begin = span[0], end = span[1]; /* the next pass overwrites the match data */
        if (end <= begin) break;               /* no pattern of the table matches nothing */
        status = deliver(job, pass, text + done, begin - done, err);
        if (!status) status = deliver(job, pass, text + begin, end - begin, err);
        done = end;
    }
    return status ? status : deliver(job, pass, text + done, len - done, err);
}

rq_status rq_split(const rq_splitter *splitter, rq_split_state *state, const uint8_t *text, size_t len,
                   rq_word_fn word, void *user, rq_error *err)
{
    /* The patterns are linear, so these bounds are never reached; they are there in case one is not. */
    size_t limit = 1000000 + 16 * len;
    pcre2_set_match_limit(state->limits, limit < UINT32_MAX ? (uint32_t)limit : UINT32_MAX);
    rq_split_job job = {splitter, state, word, user};
    return cut(&job, 0, text, len, err);
}
