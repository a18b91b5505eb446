/* Request bodies: arbitrary bytes become a request within its limits, or a sentence. The first byte
 * chooses the address. */
#include "backends/base/mem.h"
#include "server/json_check.h"
#include "server/request.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static void promise(bool kept)
{
    if (!kept) __builtin_trap();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    rq_json_use_rq_memory();
    return 0;
}

enum { VOCABULARY = 1000 };

static void check_generation(const rq_api_request *r)
{
    const rq_request *g = &r->generation;
    const rq_sampling *s = &g->sampling;
    promise(r->n >= 1 && r->n <= RQ_MAX_N && r->n_prompts * r->n <= RQ_MAX_CHOICES);
    promise(r->seed >= -1 && g->n_logprobs >= -1 && g->n_logprobs <= RQ_MAX_LOGPROBS);
    promise(s->temperature >= 0 && s->temperature <= 2 && s->top_p >= 0 && s->top_p <= 1 && s->min_p >= 0 &&
            s->min_p <= 1 && s->top_k >= -1 && s->repeat_penalty > 0 && s->repeat_last_n >= -1);
    promise(fabsf(s->presence_penalty) <= 2 && fabsf(s->frequency_penalty) <= 2);
    promise(g->n_stop <= RQ_MAX_STOPS && s->n_bias <= RQ_MAX_BIAS);
    for (size_t i = 0; i < g->n_stop; i++) {
        promise(g->stop[i][0] && strlen(g->stop[i]) <= RQ_MAX_STOP_BYTES);
    }
    for (size_t i = 0; i < s->n_bias; i++) {
        promise(s->bias[i].token >= 0 && s->bias[i].token < VOCABULARY && !isnan(s->bias[i].bias));
    }
}

static void check_texts(const rq_api_request *r)
{
    promise(r->n_messages > 0 || r->n_prompts > 0);
    promise(r->n_messages <= RQ_MAX_MESSAGES && r->n_prompts <= RQ_MAX_PROMPTS);
    for (size_t i = 0; i < r->n_messages; i++) {
        const rq_message *m = &r->messages[i];
        promise(m->role[0] && strlen(m->content) == m->content_bytes);
        promise(rq_json_utf8_valid(m->content, m->content_bytes));
        if (m->thoughts) promise(strlen(m->thoughts) == m->thoughts_bytes);
    }
    for (size_t i = 0; i < r->n_prompts; i++) {
        const rq_prompt *p = &r->prompts[i];
        promise((p->text != NULL) != (p->ids != NULL));
        if (p->text) promise(strlen(p->text) == p->bytes && rq_json_utf8_valid(p->text, p->bytes));
        for (size_t k = 0; k < p->n_ids; k++) promise(p->ids[k] >= 0 && p->ids[k] < VOCABULARY);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) return 0;
    rq_api api = data[0] % (RQ_API_TEMPLATE + 1); /* '0' % 5 == 3 and so on: all five can be reached */
    if (data[0] >= '0' && data[0] < '0' + 5) api = (rq_api)(data[0] - '0');
    const rq_parse_limits limits = {
        .max_values = 10000, .n_vocab = VOCABULARY, .sampling = rq_sampling_default()};
    int64_t alive = rq_mem_alive();
    rq_api_request request;
    rq_api_error error;
    if (rq_api_parse(api, (const char *)data + 1, size - 1, &limits, &request, &error)) {
        check_texts(&request);
        check_generation(&request);
        rq_api_request_free(&request);
    } else {
        promise(error.http_status == 400 && error.error.text[0] && error.type && !request.root);
        promise(strlen(error.param) < sizeof error.param);
    }
    promise(rq_mem_alive() == alive);
    return 0;
}
