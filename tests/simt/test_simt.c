/* The simulator finds the mistakes it exists for, the thread sanitizer and the address sanitizer theirs, each in the
 * build that has it; the host side survives the failure of any call.
 *
 *   test_simt                  the tests
 *   test_simt --launched FILE...
 *                              are all kernels named in these files? (tests of the tables write which they launched) */
#include "backends/base/mem.h"
#include "backends/cuda/cu.h"
#include "backends/cuda/cuda.h"
#include "backends/ops.h"
#include "tests/simt/backend.h"
#include "tests/simt/mutants.h"
#include "tests/simt/sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__)
enum { ADDRESS = 1, THREAD = 0 };
#elif defined(__SANITIZE_THREAD__)
enum { ADDRESS = 0, THREAD = 1 };
#else
enum { ADDRESS = 0, THREAD = 0 };
#endif

/* ---- mutants --------------------------------------------------------------------------------------------- */

typedef struct data {
    _Alignas(16) float in[512], out[512], want[512];
} data;

static bool same(const data *d, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (d->out[i] != d->want[i]) return false; /* a number that is none differs too */
    return true;
}

static void fill(data *d)
{
    memset(d, 0, sizeof *d);
    for (int i = 0; i < 512; i++) d->in[i] = (float)(i * 7 % 101) + 0.5f;
}

/* Is the kernel's result right under several orders? */
static bool always_right(const char *kernel, uint32_t blocks, data *d, uint32_t n)
{
    mutant_args args = {d->in, d->out};
    bool right = true;
    for (uint64_t seed = 1; seed < 6; seed++) {
        simt_seed(seed);
        memset(d->out, 0, sizeof d->out);
        assert_true(simt_run(kernel, blocks, 1, 1, &args));
        right &= same(d, n);
    }
    return right;
}

/* The arrays of run_kernel; of their exact size, as the driver's functions make them. */
enum { N_NUMBERS = 384 };

/* test_simt --kernel NAME: three blocks of it in a process of its own. */
static int run_kernel(const char *name)
{
    float *in = malloc(N_NUMBERS * sizeof *in), *out = malloc(N_NUMBERS * sizeof *out);
    bool ok = in && out;
    for (int i = 0; i < N_NUMBERS && ok; i++) in[i] = (float)i;
    mutant_args args = {in, out};
    for (uint64_t seed = 1; seed < 3 && ok; seed++) {
        simt_seed(seed);
        ok = simt_run(name, 3, 1, 1, &args);
    }
    free(in);
    free(out);
    return ok ? 0 : 2;
}

/* Does a process end with an error that runs the kernel, and say so with one of two words? (A sanitizer ends it.) A new
 * one: after a fork the thread sanitizer sees no barriers any more. */
static bool kills(const char *kernel, const char *says, const char *or_says)
{
    char report[1 << 16];
    size_t n = 0;
    int ends[2];
    fflush(NULL);
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        execl("/proc/self/exe", "test_simt", "--kernel", kernel, (char *)NULL);
        _exit(2);
    }
    close(ends[1]);
    for (ssize_t got; n < sizeof report - 1 && (got = read(ends[0], report + n, sizeof report - 1 - n)) > 0;)
        n += (size_t)got;
    report[n] = 0;
    close(ends[0]);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return false;
    if (!strstr(report, says) && !strstr(report, or_says)) fail_msg("%s ends with\n%s", kernel, report);
    return true;
}

/* Under the thread sanitizer the mutant is reported as a race, and only it; without, its results are wrong. */
static void races(const char *right, const char *mutant, data *d, uint32_t blocks, uint32_t n)
{
    static const char race[] = "data race";
    assert_true(always_right(right, blocks, d, n));
    if (THREAD || ADDRESS) assert_false(kills(right, race, race));
    if (THREAD)
        assert_true(kills(mutant, race, race));
    else
        assert_false(always_right(mutant, blocks, d, n));
}

static void barriers(void **state)
{
    data d;
    fill(&d);
    for (int i = 0; i < 384; i++) d.want[i] = d.in[i] + d.in[i / 128 * 128 + (i + 1) % 128];
    races("neighbour_right", "neighbour_barrier", &d, 3, 384);
    for (int i = 0; i < 384; i++) d.want[i] += d.in[i / 128 * 128 + (i + 2) % 128];
    races("again_right", "again_barrier", &d, 3, 384);
}

static void matrices(void **state)
{
    data d;
    fill(&d);
    for (int tid = 0; tid < 64; tid++)
        for (int i = 0; i < 4; i++) {
            int row = (tid < 32 ? 32 : 0) + 8 * i + tid % 32 / 4;
            d.want[4 * tid + i] = d.in[4 * row + tid % 4];
        }
    races("tile_right", "tile_barrier", &d, 1, 256);
}

static void fences(void **state)
{
    data d;
    fill(&d);
    for (int i = 0; i < 32; i++) {
        int other = (i + 5) % 32;
        d.want[i] = d.in[4 * other] + d.in[4 * other + 3] + d.in[128 + i];
    }
    races("fetch_right", "fetch_fence", &d, 1, 32);
}

/* In the build with the address sanitizer; that for undefined behaviour may come first. */
static void indices(void **state)
{
    static const char *const mutants[] = {"neighbour_past", "global_read_past", "global_write_past",
                                          "copy_past"};
    if (!ADDRESS) skip();
    for (size_t i = 0; i < sizeof mutants / sizeof *mutants; i++)
        if (!kills(mutants[i], "buffer-overflow", "insufficient space"))
            fail_msg("%s goes unnoticed", mutants[i]);
}

static void copies(void **state)
{
    data d;
    fill(&d);
    for (int i = 0; i < 32; i++) {
        int other = (i + 5) % 32;
        d.want[i] = d.in[4 * other] + d.in[4 * other + 3] + d.in[128 + i];
    }
    races("fetch_right", "fetch_wait", &d, 1, 32);
}

static void fragments(void **state)
{
    data d;
    fill(&d);
    int8_t *bytes = (int8_t *)(void *)d.in;
    for (int i = 0; i < 24 * 32; i++) bytes[i] = (int8_t)(i * 37 % 255 - 127);
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 8; c++) {
            int sum = 0;
            for (int k = 0; k < 32; k++) sum += bytes[r * 32 + k] * bytes[(16 + c) * 32 + k];
            d.want[r * 8 + c] = (float)sum;
        }
    assert_true(always_right("product_right", 1, &d, 128));
    assert_false(always_right("product_wrong", 1, &d, 128));
}

static void refusals(void **state)
{
    static const struct {
        const char *kernel, *says;
    } cases[] = {{"half_barrier", "wait at a barrier"},
                 {"half_warp", "lanes of one warp meet for different things"},
                 {"odd_load", "at an odd place"}};
    data d;
    fill(&d);
    mutant_args args = {d.in, d.out};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_false(simt_run(cases[i].kernel, 1, 1, 1, &args));
        const char *message = simt_message();
        if (!strstr(message, cases[i].says)) fail_msg("%s says: %s", cases[i].kernel, message);
    }
    assert_true(always_right("neighbour_right", 0 + 1, &d, 0)); /* and goes on */
}

/* ---- names ------------------------------------------------------------------------------------------------ */

static const char *const MUTANTS[] = {
    "neighbour_right",   "neighbour_barrier", "neighbour_past", "again_right", "again_barrier",
    "fetch_right",       "fetch_wait",        "fetch_fence",    "copy_past",   "product_right",
    "product_wrong",     "half_barrier",      "half_warp",      "odd_load",    "global_read_past",
    "global_write_past", "tile_right",        "tile_barrier"};
enum { N_MUTANTS = sizeof MUTANTS / sizeof *MUTANTS };

static bool mutant_kernel(const char *name)
{
    for (uint32_t i = 0; i < N_MUTANTS; i++)
        if (strcmp(MUTANTS[i], name) == 0) return true;
    return false;
}

/* The host's list of kernels and the kernels there are: the same names. */
static void every_kernel_has_a_number(void **state)
{
    uint32_t n_host = 0, n_there = 0;
    bool launched;
    for (uint32_t i = 0; simt_kernel(i, &launched); i++) n_there++;
    for (uint32_t k = 0; k < CU_KERNEL_COUNT; k++) {
        char name[32];
        cu_kernel_name(k, name);
        if (k >= CU_MATVEC_1) {
            const rq_type_info *info = rq_type_get((k - CU_MATVEC_1) % RQ_TYPE_LIMIT);
            if (!info || !info->is_weight) continue;
        }
        n_host++;
        bool found = false;
        const char *other;
        for (uint32_t i = 0; !found && (other = simt_kernel(i, &launched)) != NULL; i++)
            found = strcmp(other, name) == 0;
        if (!found) fail_msg("there is no kernel %s", name);
    }
    assert_int_equal(n_there - n_host, N_MUTANTS);
}

/* Kernels that are not among the names, each of which has a line break behind it; says which. */
static uint32_t not_among(const char *names, bool quiet)
{
    bool launched;
    const char *name;
    uint32_t n_missed = 0;
    for (uint32_t i = 0; (name = simt_kernel(i, &launched)) != NULL; i++) {
        size_t n = strlen(name);
        const char *at = names;
        while ((at = strstr(at, name)) != NULL && ((at > names && at[-1] != '\n') || at[n] != '\n')) at++;
        if (at || mutant_kernel(name)) continue;
        if (!quiet) printf("no test launched the kernel %s\n", name);
        n_missed++;
    }
    return n_missed;
}

static void a_kernel_that_never_ran_is_missed(void **state)
{
    char names[1 << 14] = "";
    bool launched;
    const char *name;
    for (uint32_t i = 0; (name = simt_kernel(i, &launched)) != NULL; i++) {
        if (mutant_kernel(name)) continue;
        size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%s\n", name);
    }
    assert_int_equal(not_among(names, false), 0);
    names[strlen(names) - 2] = '?';
    assert_int_equal(not_among(names, true), 1);
}

static int all_launched(int n, char **paths)
{
    char names[1 << 16] = "";
    size_t at = 0;
    for (int i = 0; i < n; i++) {
        FILE *in = fopen(paths[i], "r");
        if (!in) {
            printf("%s is not there\n", paths[i]);
            return 1;
        }
        at += fread(names + at, 1, sizeof names - 1 - at, in);
        fclose(in);
    }
    names[at] = 0;
    return not_among(names, false) ? 1 : 0;
}

/* ---- failures -------------------------------------------------------------------------------------------- */

enum { N = 64, BUCKET = 4 };

/* Two operations on a device opened for them; 0 or what failed. */
static rq_status once(rq_error *err)
{
    rq_device *device = NULL;
    rq_status status = rq_backend_simt.open(NULL, &device, err);
    if (status != RQ_OK) return status;
    float x[N * BUCKET];
    for (int i = 0; i < N * BUCKET; i++) x[i] = (float)i;
    rq_tape tape;
    rq_tape_init(&tape, BUCKET);
    tape.persist_rows[RQ_PERSIST_HIDDEN] = BUCKET;
    rq_ref a = rq_tape_act(&tape, RQ_TYPE_F32, N, BUCKET, 1, 1), b = rq_op_scale(&tape, a, 2);
    rq_op_add(&tape, b, a);
    rq_op_select_rows(&tape, rq_tape_persist(&tape, RQ_PERSIST_HIDDEN, RQ_TYPE_F32, N, BUCKET));
    status = rq_tape_check(&tape, err);
    uint64_t offsets[16] = {0};
    const uint8_t barrier[] = {0, 1, 0};
    for (uint32_t v = 1, at = 0; v < tape.n_values && v < 16; v++)
        if (tape.values[v].space == RQ_SPACE_ACT) offsets[v] = 4ull * N * BUCKET * at++;
    rq_step_caps caps = {.max_tokens = BUCKET, .n_groups = 0, .n_seqs = 2, .max_pages = 1};
    rq_step_caps_complete(&caps);
    uint32_t *words = rq_calloc(rq_step_words(&caps), 4);
    if (status == RQ_OK && !words) status = rq_fail(err, RQ_ERR_MEMORY, "no memory");
    rq_step step;
    if (words) {
        rq_step_init(&step, &caps, NULL, words);
        rq_step_finish(&step);
    }
    rq_memory *arena = NULL, *hidden = NULL;
    rq_program *program = NULL;
    const rq_backend *be = device->backend;
    if (status == RQ_OK) status = be->alloc(device, 4ull * N * BUCKET * 4, "arena", &arena, err);
    if (status == RQ_OK) status = be->alloc(device, 4ull * N * BUCKET, "hidden", &hidden, err);
    if (status == RQ_OK) status = be->upload(arena, offsets[a], x, sizeof x, err);
    rq_bindings bindings = {.arena = arena, .caps = &caps};
    bindings.persist[RQ_PERSIST_HIDDEN] = hidden;
    rq_segment segment = {.tape = &tape, .count = tape.n_ops, .arena_offset = offsets, .barrier = barrier};
    if (status == RQ_OK) status = be->compile(device, &segment, &bindings, &program, err);
    uint64_t ns[3];
    for (int i = 0; i < 6 && status == RQ_OK; i++) status = be->run(program, words, err);
    if (status == RQ_OK) status = be->wait(device, err);
    if (status == RQ_OK) status = be->profile(program, words, ns, err);
    float y[N * BUCKET];
    if (status == RQ_OK) status = be->download(arena, offsets[tape.ops[1].out[0]], y, sizeof y, err);
    for (int i = 0; i < N * BUCKET && status == RQ_OK; i++) assert_true(y[i] == 3 * x[i]);
    if (program) be->destroy(program);
    be->release(arena);
    be->release(hidden);
    rq_free(words);
    rq_tape_free(&tape);
    be->close(device);
    return status;
}

static void any_call_may_fail(void **state)
{
    rq_error err = {0};
    simt_fail_at(0);
    if (once(&err) != RQ_OK) fail_msg("%s", err.text);
    uint32_t calls = simt_fail_at(0);
    assert_true(calls > 60);
    assert_int_equal(simt_alive(), 0);
    for (uint32_t n = 1; n <= calls; n++) {
        err.text[0] = 0;
        simt_fail_at(n);
        rq_status status = once(&err);
        simt_fail_at(0);
        if (status != RQ_OK) assert_true(strlen(err.text) > 10);
        assert_int_equal(simt_alive(), 0);
    }
}

static void any_allocation_may_fail(void **state)
{
    rq_error err = {0};
    size_t alive = rq_mem_alive();
    for (int n = 1; n < 200; n++) {
        rq_mem_fail_at(n);
        rq_status status = once(&err);
        rq_mem_fail_at(0);
        assert_int_equal(rq_mem_alive(), alive);
        assert_int_equal(simt_alive(), 0);
        if (status == RQ_OK) {
            assert_true(n > 10);
            return;
        }
    }
    fail_msg("it never succeeds");
}

static void a_machine_without_a_driver(void **state)
{
    rq_device *device = NULL;
    rq_error err = {0};
    if (rq_backend_cuda.open(NULL, &device, &err) == RQ_OK) {
        rq_backend_cuda.close(device);
        skip();
    }
    assert_true(strstr(err.text, "CUDA") && strlen(err.text) > 30);
    assert_int_equal(rq_backend_cuda.count(), 0);
}

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[1], "--kernel") == 0) return run_kernel(argv[2]);
    if (argc > 2 && strcmp(argv[1], "--launched") == 0) return all_launched(argc - 2, argv + 2);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(barriers),
        cmocka_unit_test(matrices),
        cmocka_unit_test(fences),
        cmocka_unit_test(indices),
        cmocka_unit_test(copies),
        cmocka_unit_test(fragments),
        cmocka_unit_test(refusals),
        cmocka_unit_test(every_kernel_has_a_number),
        cmocka_unit_test(a_kernel_that_never_ran_is_missed),
        cmocka_unit_test(any_call_may_fail),
        cmocka_unit_test(any_allocation_may_fail),
        cmocka_unit_test(a_machine_without_a_driver),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
