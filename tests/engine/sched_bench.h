/* sched_bench.h - a scheduler over the fake executor, and what its sessions must answer: shared by the scheduler's
 * tests. */
#ifndef SCHED_BENCH_H
#define SCHED_BENCH_H

#include "backends/base/mem.h"
#include "engine/cache/size.h"
#include "engine/sampler/sampler.h"
#include "engine/sched/sched.h"
#include "tests/engine/fake_executor.h"
#include "tests/engine/tiny_vocab.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum { VOCAB = TINY_COUNT };

typedef struct bench {
    rq_tokenizer *tok;
    rq_executor *ex;
    rq_sched *sched;
    atomic_bool lost;
} bench;

/* The two cache groups: no coded form, both with one, or only the second (with a sink page). */
typedef enum kv_kind { KV_PLAIN, KV_CODED, KV_MIXED } kv_kind;

typedef struct setup {
    uint32_t n_ctx, n_sessions, n_batch, n_queue, cache_tokens, step_us, n_piece;
    uint32_t step_tokens; /* what a step really takes; 0: n_batch */
} setup;

enum { MAX_TOKENS = 700 };

typedef struct answer {
    rq_token ids[MAX_TOKENS]; /* without the token that ended it */
    size_t n, n_events;
    char text[8 * MAX_TOKENS];
    size_t bytes;
    rq_event last;
} answer;

/* What every bench opened from now on has: each test runs with all of them. */
extern kv_kind bench_kv;
int run_with_every_kv(int (*run)(const char *name));

rq_status bench_open(bench *b, setup s, rq_error *err);
uint32_t bench_close(bench *b);
void open_ok(bench *b, setup s);
rq_session *session_of(bench *b);
/* A prompt of printable bytes, a function of its number. */
void make_prompt(rq_token *ids, size_t n, uint32_t number);
/* What the request must give, by the plain definition: one token after the other, alone. */
void expect(bench *b, const rq_token *prompt, size_t n, const rq_request *r, uint32_t n_ctx, answer *a);
/* Reads the running request to its end. */
void collect(rq_session *s, answer *a);
void check_same(const answer *got, const answer *want);
rq_request request(uint32_t max_tokens, uint64_t seed);
void submit_ok(rq_session *s, const rq_token *ids, size_t n, const rq_request *r);
void pause_ms(int ms);
/* Waits until nothing moves any more. */
void settle(bench *b);

#endif
