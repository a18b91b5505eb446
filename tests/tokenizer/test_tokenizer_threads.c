/* One tokenizer, several threads: the same ids as alone. Worth most under the thread sanitizer. */
#include "tests/tokenizer/helper.h"

#include "backends/base/mem.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { N_THREADS = 4, TEXT_BYTES = 20000 };

typedef struct job {
    const rq_tokenizer *tok;
    char text[TEXT_BYTES];
    rq_tokens ids, alone;
    bool ok;
} job;

static void *work(void *user)
{
    job *j = user;
    rq_error err = {{0}};
    j->ok = true;
    for (int i = 0; i < 5; i++) {
        j->ids.n = 0;
        j->ok = j->ok && rq_tokenizer_encode(j->tok, j->text, sizeof j->text, RQ_TOKENIZE_PARSE_SPECIAL,
                                             &j->ids, &err) == RQ_OK;
    }
    return NULL;
}

static void run(const char *name)
{
    static job jobs[N_THREADS];
    pthread_t thread[N_THREADS];
    rq_tokenizer *tok = load_vocab(name);
    uint64_t seed = 11;
    for (int t = 0; t < N_THREADS; t++) {
        memset(&jobs[t], 0, sizeof jobs[t]);
        jobs[t].tok = tok;
        for (size_t i = 0; i < TEXT_BYTES; i++)
            jobs[t].text[i] = "etaoin shrdlu\n.,1\xC3\xA9<|im_end|>"[next_random(&seed) % 29];
        jobs[t].alone = encode(tok, jobs[t].text, TEXT_BYTES, RQ_TOKENIZE_PARSE_SPECIAL);
    }
    for (int t = 0; t < N_THREADS; t++) assert_int_equal(pthread_create(&thread[t], NULL, work, &jobs[t]), 0);
    for (int t = 0; t < N_THREADS; t++) pthread_join(thread[t], NULL);
    for (int t = 0; t < N_THREADS; t++) {
        assert_true(jobs[t].ok);
        assert_int_equal(jobs[t].ids.n, jobs[t].alone.n);
        assert_memory_equal(jobs[t].ids.ids, jobs[t].alone.ids, jobs[t].alone.n * sizeof(rq_token));
        rq_free(jobs[t].ids.ids);
        rq_free(jobs[t].alone.ids);
    }
    rq_tokenizer_free(tok);
}

static void test_threads(void **state)
{
    run("oracle-qwen35.gguf");
    run("ggml-vocab-llama-spm.gguf");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_threads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
