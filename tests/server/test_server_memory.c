/* Every allocation of every kind of request fails once: the client gets an answer, an error or a closed
 * connection, the server goes on, and in the end nothing is left behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backends/base/mem.h"
#include "server/http.h"
#include "server/options.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct fixture {
    rq_server server;
    rq_http *http;
    struct sockaddr_in address;
} fixture;

static void open_server(fixture *f)
{
    rq_error err = {0};
    *f = (fixture){.server = {.config = rq_server_config_default()}};
    f->server.config.engine.model = "fake.gguf";
    f->server.config.n_parallel = 2;
    f->server.config.log_requests = false;
    assert_int_equal(rq_server_settle(&f->server, &err), RQ_OK);
    assert_int_equal(rq_engine_args_open(&f->server.config.engine, &f->server.model, &f->server.engine, &err),
                     RQ_OK);
    rq_model_describe(f->server.model, &f->server.model_info);
    rq_engine_describe(f->server.engine, &f->server.engine_info);
    f->server.ctx_limit = f->server.engine_info.n_ctx;
    snprintf(f->server.model_id, sizeof f->server.model_id, "fake");
    assert_int_equal(rq_pool_open(&f->server.pool, f->server.engine, 2, 4, &err), RQ_OK);
    f->server.phase = RQ_READY;

    int fd = socket(AF_INET, SOCK_STREAM, 0);
    f->address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof f->address;
    assert_int_equal(bind(fd, (struct sockaddr *)&f->address, length), 0);
    assert_int_equal(listen(fd, 16), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&f->address, &length), 0);
    assert_int_equal(rq_http_start(&f->server, fd, &f->http, &err), RQ_OK);
}

static void close_server(fixture *f)
{
    atomic_store(&f->server.phase, RQ_CANCELLING);
    rq_http_stop(f->http);
    rq_pool_close(&f->server.pool);
    rq_engine_free(f->server.engine);
    rq_model_free(f->server.model);
    rq_server_free_keys(&f->server);
}

/* Sends the request and returns the status of the answer, 0 when the connection was closed without one. The
 * answer's text is put into `answer`. */
static int ask(const fixture *f, const char *head, const char *body, char *answer, size_t capacity)
{
    char request[4096];
    int n = snprintf(request, sizeof request,
                     "%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
                     head, strlen(body), body);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    const struct timeval patience = {.tv_sec = 20};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    assert_int_equal(connect(fd, (const struct sockaddr *)&f->address, sizeof f->address), 0);
    send(fd, request, (size_t)n, MSG_NOSIGNAL);
    size_t got = 0;
    for (ssize_t k; got < capacity - 1 && (k = recv(fd, answer + got, capacity - 1 - got, 0)) > 0;)
        got += (size_t)k;
    answer[got] = '\0';
    close(fd);
    return strncmp(answer, "HTTP/1.1 ", 9) ? 0 : (int)strtol(answer + 9, NULL, 10);
}

/* Waits until the server has put everything about the last request away. */
static void settle(fixture *f)
{
    for (int i = 0; i < 20000; i++) {
        if (!atomic_load(&f->server.metrics.exchanges) && !atomic_load(&f->server.metrics.connections))
            return;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    fail_msg("requests are still at work");
}

static void test_every_allocation(void **state)
{
    (void)state;
    static const struct {
        const char *head, *body;
    } requests[] = {
        {"POST /v1/chat/completions",
         "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"x "
         "@tokens=4\"}]}],\"n\":2,"
         "\"logprobs\":true,\"top_logprobs\":2,\"stop\":[\"zz\"],\"logit_bias\":{\"1\":1}}"},
        {"POST /v1/chat/completions",
         "{\"messages\":[{\"role\":\"user\",\"content\":\"x @tokens=4\"}],\"stream\":true,\"logprobs\":true,"
         "\"stream_options\":{\"include_usage\":true}}"},
        {"POST /v1/completions",
         "{\"prompt\":[[120,32,64,116],\"@tokens=3\"],\"echo\":true,\"stream\":true}"},
        {"POST /v1/completions", "{\"prompt\":[[120,32,64],\"@tokens=3\"],\"logprobs\":2,\"max_tokens\":3}"},
        {"POST /v1/chat/completions",
         "{\"messages\":[{\"role\":\"assistant\",\"content\":null,\"reasoning_content\":\"t\"},"
         "{\"role\":\"user\",\"content\":\"@say=<think>a</think>b\"}]}"},
        {"POST /v1/completions", "{\"prompt\":1}"},
        {"POST /tokenize", "{\"content\":\"abc\",\"with_pieces\":true}"},
        {"POST /detokenize", "{\"tokens\":[97,98]}"},
        {"POST /apply-template", "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}"},
        {"GET /v1/models", ""},
        {"GET /metrics", ""},
        {"GET /nothing", ""},
        {"GET /", ""},
    };
    static char answer[1 << 20];
    fixture f;
    int64_t before = rq_mem_alive();
    rq_json_use_rq_memory();
    open_server(&f);
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        int good = ask(&f, requests[i].head, requests[i].body, answer, sizeof answer);
        assert_true(good == 200 || good == 400 || good == 404);
        bool reached = false;
        for (uint64_t n = 1; !reached; n++) {
            assert_true(n < 2000);
            settle(&f);
            rq_mem_fail_at(n);
            int status = ask(&f, requests[i].head, requests[i].body, answer, sizeof answer);
            settle(&f);
            reached = rq_mem_count() < n;
            rq_mem_fail_at(0);
            bool ended =
                strstr(answer, "\r\n0\r\n\r\n") || strstr(answer, "\"error\"") || !strstr(answer, "chunked");
            if (status != good && status != 0 && status < 500) {
                fail_msg("%s, allocation %llu: status %d", requests[i].head, (unsigned long long)n, status);
            }
            if (reached) assert_true(status == good && ended);
        }
        assert_int_equal(ask(&f, requests[i].head, requests[i].body, answer, sizeof answer), good);
    }
    settle(&f);
    close_server(&f);
    assert_int_equal(rq_mem_alive(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_allocation)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
