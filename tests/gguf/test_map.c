/* Mapped files: what may be mapped, and what happens when one shrinks while it is read. */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/base/file.h"
#include "backends/base/guard.h"
#include "tests/gguf/fixture.h"

enum { PAGES = 1024, FILE_BYTES = PAGES * 4096 };

static const char *ones_file(const char *name)
{
    const char *path = fx_path(name);
    char *bytes = malloc(FILE_BYTES);
    assert_non_null(bytes);
    memset(bytes, 1, FILE_BYTES);
    fx_write_file(path, bytes, FILE_BYTES);
    free(bytes);
    return path;
}

static uint64_t sum(const rq_map *map)
{
    uint64_t total = 0;
    const volatile uint8_t *p = map->data;
    for (uint64_t i = 0; i < map->bytes; i += 64) total += p[i];
    return total;
}

static void only_regular_files(void **state)
{
    rq_map map = {0};
    rq_error err = {0};
    const char *fifo = fx_path("fifo"), *empty = fx_path("empty"), *sock = fx_path("socket");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    fx_write_file(empty, "", 0);
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", sock);
    assert_int_equal(bind(s, (struct sockaddr *)&address, sizeof address), 0);
    const struct {
        const char *path, *text;
        rq_status status;
    } refused[] = {
        {".", "is a directory, not a file", RQ_ERR_IO},
        {fifo, "is a pipe, not a file", RQ_ERR_IO},
        {"/dev/null", "is a device, not a file", RQ_ERR_IO},
        {sock, "is a socket, not a file", RQ_ERR_IO},
        {empty, "is empty", RQ_ERR_FORMAT},
        {"/proc/self/maps", "is empty", RQ_ERR_FORMAT},
        {"no such file", "cannot open: No such", RQ_ERR_IO},
        {"", "cannot open", RQ_ERR_IO},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        assert_int_equal(rq_map_open(refused[i].path, &map, &err), refused[i].status);
        if (!strstr(err.text, refused[i].text)) fail_msg("%s", err.text);
        assert_null(map.data);
    }
    close(s);
}

static void maps_the_whole_file(void **state)
{
    rq_map map;
    rq_error err;
    const char *path = fx_path("small");
    fx_write_file(path, "hello", 5);
    assert_int_equal(rq_map_open(path, &map, &err), RQ_OK);
    assert_int_equal(map.bytes, 5);
    assert_memory_equal(map.data, "hello", 5);
    rq_map_will_need(&map, 0, 5), rq_map_will_need(&map, 4, UINT64_MAX), rq_map_will_need(&map, 9, 1);
    rq_map_release(&map, 0, 5), rq_map_release(&map, 4, UINT64_MAX), rq_map_release(&map, 9, 1);
    assert_memory_equal(map.data, "hello", 5);
    assert_false(rq_map_lost(&map));
    rq_map_close(&map);
    rq_map_close(&map); /* a closed one is zeroed */
}

/* ---- shrinking ----------------------------------------------------------------------------------------- */

typedef struct reading {
    const rq_map *map;
    _Atomic uint64_t rounds;
    _Atomic bool stop;
} reading;

static void *read_round_and_round(void *arg)
{
    reading *r = arg;
    while (!atomic_load(&r->stop)) {
        sum(r->map);
        atomic_fetch_add(&r->rounds, 1);
    }
    return NULL;
}

static void a_shrinking_file_reads_as_zeros(void **state)
{
    rq_map map, other;
    rq_error err;
    const char *path = ones_file("shrinks"), *kept = ones_file("stays");
    assert_int_equal(rq_map_open(path, &map, &err), RQ_OK);
    assert_int_equal(rq_map_open(kept, &other, &err), RQ_OK);
    pthread_t threads[2];
    reading r = {.map = &map};
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_round_and_round, &r), 0);
    while (atomic_load(&r.rounds) < 4) usleep(1000);
    assert_false(rq_map_lost(&map));
    assert_int_equal(truncate(path, FILE_BYTES / 2), 0);
    uint64_t seen = atomic_load(&r.rounds);
    while (atomic_load(&r.rounds) < seen + 4) usleep(1000); /* the readers survived */
    assert_true(rq_map_lost(&map));
    assert_int_equal(truncate(path, 0), 0);
    seen = atomic_load(&r.rounds);
    while (atomic_load(&r.rounds) < seen + 4) usleep(1000);
    atomic_store(&r.stop, true);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    assert_int_equal(sum(&map), 0);
    assert_int_equal(sum(&other), FILE_BYTES / 64);
    assert_false(rq_map_lost(&other));
    rq_map_close(&map);
    rq_map_close(&other);

    /* A slot that is used again starts without the old loss. */
    assert_int_equal(rq_map_open(kept, &map, &err), RQ_OK);
    assert_false(rq_map_lost(&map));
    rq_map_close(&map);
}

/* Pages met in descending order are the worst case for the number of kernel mappings. */
static void pages_lost_backwards(void **state)
{
    rq_map map;
    rq_error err;
    const char *path = ones_file("backwards");
    assert_int_equal(rq_map_open(path, &map, &err), RQ_OK);
    assert_int_equal(truncate(path, 0), 0);
    const volatile uint8_t *p = map.data;
    for (int page = PAGES; page-- > 0;) assert_int_equal(p[page * 4096 + 17], 0);
    assert_true(rq_map_lost(&map));
    rq_map_close(&map);
}

static void a_lost_model_says_so(void **state)
{
    fixture f;
    rq_gguf *g = NULL;
    rq_error err;
    fx_start(&f, 3, 1, 0);
    fx_tensor(&f, "t", 1, (uint64_t[]){65536}, RQ_TYPE_I8, 0);
    fx_pad(&f, 32);
    fx_zeros(&f, 65536);
    const char *path = fx_path("lost.gguf");
    fx_write_file(path, f.b.data, f.b.len);
    fx_free(&f);
    assert_int_equal(rq_gguf_open(path, &g, &err), RQ_OK);
    assert_int_equal(truncate(path, 100), 0);
    assert_false(rq_gguf_lost(g)); /* nobody has noticed yet */
    const volatile uint8_t *data = rq_gguf_tensor_at(g, 0)->data;
    assert_int_equal(data[60000], 0);
    assert_true(rq_gguf_lost(g));
    assert_int_equal(rq_gguf_fail_lost(g, &err), RQ_ERR_DEVICE);
    assert_non_null(strstr(err.text, "lost.gguf"));
    rq_gguf_close(g);
}

static void slots_run_out_politely(void **state)
{
    static int slots[RQ_GUARD_MAX];
    int n = 0, one = -1;
    rq_error err;
    while (n < RQ_GUARD_MAX && rq_guard_add(&slots, 1, &slots[n], &err) == RQ_OK) n++;
    assert_int_equal(n, RQ_GUARD_MAX);
    assert_int_equal(rq_guard_add(&slots, 1, &one, &err), RQ_ERR_CAPACITY);
    assert_int_equal(one, -1);
    while (n > 0) rq_guard_remove(slots[--n]);
    assert_int_equal(rq_guard_add(&slots, 1, &one, &err), RQ_OK);
    rq_guard_remove(one);
}

/* ---- a SIGBUS that is not ours (each in a process of its own) ------------------------------------------ */

static void touch_missing_page(void)
{
    const char *path = fx_path("unregistered");
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    void *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0); /* beyond the end from the start */
    if (p != MAP_FAILED) (void)*(volatile char *)p;
}

static void install_guard(void)
{
    static char here;
    int slot;
    rq_error err;
    if (rq_guard_add(&here, 1, &slot, &err)) _exit(9);
}

static void own_handler(int number)
{
    _exit(42);
}

static void own_info_handler(int number, siginfo_t *info, void *context)
{
    _exit(info->si_addr ? 43 : 9);
}

static int run_child(int kind)
{
    fx_path("x"); /* the folder must belong to this process, which removes it */
    pid_t child = fork();
    if (!child) {
        struct rlimit none = {0};
        setrlimit(RLIMIT_CORE, &none);
        struct sigaction action = {0};
        if (kind == 1) action.sa_handler = own_handler;
        if (kind == 2) action.sa_sigaction = own_info_handler, action.sa_flags = SA_SIGINFO;
        if (kind == 3) action.sa_handler = SIG_DFL;
        sigaction(SIGBUS, &action, NULL);
        install_guard();
        touch_missing_page();
        _exit(0); /* survived: wrong */
    }
    int status = 0;
    waitpid(child, &status, 0);
    return status;
}

static void other_faults_go_to_the_previous_handler(void **state)
{
    int status = run_child(1);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 42);
    status = run_child(2);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 43);
    status = run_child(3);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            other_faults_go_to_the_previous_handler), /* first: while no handler is installed here */
        cmocka_unit_test(only_regular_files),
        cmocka_unit_test(maps_the_whole_file),
        cmocka_unit_test(a_shrinking_file_reads_as_zeros),
        cmocka_unit_test(pages_lost_backwards),
        cmocka_unit_test(a_lost_model_says_so),
        cmocka_unit_test(slots_run_out_politely),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
