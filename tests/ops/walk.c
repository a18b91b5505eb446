#include "tests/ops/walk.h"

#ifdef RQVK_HAS_VULKAN
#include "backends/vulkan/vulkan.h"
#endif

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void fault(walker *w, const op_case *c, uint32_t bucket, uint32_t n, const char *what, double value)
{
    const rq_type_info *type = rq_type_get((uint32_t)c->type);
    printf("%s %s %s (%s) n %u m %u heads %u/%u dim %u, %u tokens in bucket %u: %s %g\n", w->implementation,
           rq_op_get(c->kind)->name, type->name, c->what ? c->what : "", c->n, c->m, c->heads, c->kv_heads,
           c->dim, n, bucket, what, value);
    w->n_failed++;
}

static void judge(walker *w, const op_case *c, uint32_t bucket, uint32_t n, const op_error *e)
{
    rq_type type = case_is_coded(c) ? RQ_TYPE_Q8_0 : c->type; /* ops.h, tolerance */
    double tolerance = rq_op_tolerance(c->kind, type);
    op_error *sum = &w->sums[c->kind][type];
    sum->error += e->error;
    sum->reference += e->reference;
    sum->n += e->n;
    if (tolerance == 0) {
        if (!e->bits) fault(w, c, bucket, n, "other bits, by up to", e->largest);
        return;
    }
    if (e->n < 256 || e->reference == 0)
        return; /* too few for a mean; they count in the sum over all cases */
    double share = e->error / e->reference / tolerance, rms = sqrt(e->reference / (double)e->n);
    double tail = e->largest / (RQ_TOLERANCE_TAIL * sqrt(tolerance) * rms);
    if (share > w->worst[c->kind]) w->worst[c->kind] = share;
    if (!(share <= 1)) fault(w, c, bucket, n, "error over tolerance", share);
    if (!(tail <= 1)) fault(w, c, bucket, n, "one element off, over tolerance", tail);
}

static const char *only, *variant, *disable, *only_type, *only_op;
/* Fewer buckets, and products of fewer shapes: with at most so many kernels compiled. */
enum { QUICK_PIPELINES = 400 };
static bool quick;
enum { TURNS = 3 };
static uint32_t turn = TURNS; /* all */

/* Rows of an operation go to the turns one after another: each turn has some of every operation. */
static bool is_my_turn(walker *w, const op_case *c)
{
    return turn == TURNS || w->n_seen[c->kind]++ % TURNS == turn;
}

bool walk_is_quick(void)
{
    return quick;
}

enum { ROW_BYTES = 1 << 16 };

/* Caches for comparison live on the processor alone; cards say so. */
static bool for_comparison(rq_kv_form form)
{
    return form == RQ_KV_Q4_0 || form == RQ_KV_TRIP;
}

/* Runs the case with n tokens; false when the device refuses it. */
static bool walk_size(walker *w, const op_case *c, uint32_t n, void *first_row)
{
    if (only_op && (strcmp(rq_op_get(c->kind)->name, only_op) != 0 || n <= RQ_NARROW_BUCKET)) return true;
    uint32_t bucket = 1;
    while (bucket < n) bucket *= 2;
    rq_error why = {0};
    const char *by = case_served_by(w->device, c, bucket, &why);
    if (!by && c->kind >= RQ_OP_FUSED_FIRST) { /* a backend without the kind runs its primitives */
        w->unfused[c->kind] = true;
        return false;
    }
    if (!by && w->device->backend != &rq_backend_cpu &&
        (for_comparison(c->form_k) || for_comparison(c->form_v)))
        return false;
    if (!by) {
        fault(w, c, bucket, n, why.text, 0);
        return false;
    }
    bool honest = strcmp(w->implementation, "reference") == 0 ||
                  (strcmp(by, "reference") != 0 && strcmp(by, "widened") != 0);
    if (!honest) fault(w, c, bucket, n, "served by the reference or by widening", 0);
    op_error e = case_run(w->device, c, bucket, n, &w->data, first_row, ROW_BYTES);
    judge(w, c, bucket, n, &e);
    w->n_cases++;
    return true;
}

void walk_once(walker *w, const op_case *c, uint32_t n)
{
    if (!is_my_turn(w, c)) return;
    walk_size(w, c, n, NULL);
    case_data_clear(&w->data);
}

void walk(walker *w, const op_case *c, uint32_t largest)
{
    static const uint32_t sizes[] = {1, 3, 8, 50, 2, 4, 16, 64};
    /* The second half of the buckets once per operation and kind of kernel: floats, and one block type. */
    bool all = c->type == RQ_TYPE_F32 || c->type == RQ_TYPE_F16 || c->type == RQ_TYPE_Q4_K;
    static uint8_t alone[ROW_BYTES], beside[ROW_BYTES];
    if (!is_my_turn(w, c)) return;
    if (only_type && strcmp(rq_type_get((uint32_t)c->type)->name, only_type) != 0) return;
    memset(alone, 0, sizeof alone);
    for (uint32_t i = 0; i < (all ? 8 : 4); i++) {
        uint32_t n = sizes[i];
        if (quick && i != 0 && n != 50 && (n != 8 || !all)) continue;
        if (n > largest) continue;
        memset(beside, 0, sizeof beside);
        if (!walk_size(w, c, n, n == 1 ? alone : beside)) break;
        if (n > 1 && n <= RQ_NARROW_BUCKET && !c->rows && memcmp(alone, beside, ROW_BYTES) != 0)
            fault(w, c, n, n, "the first token has other bits than alone", 0);
    }
    case_data_clear(&w->data);
}

static void report(walker *w, bool (*mine)(rq_op_kind kind))
{
    for (uint32_t k = 1; k < RQ_OP_COUNT; k++) {
        if (!mine((rq_op_kind)k)) continue;
        bool any = false;
        double worst = w->worst[k];
        bool fused = !w->unfused[k];
        for (uint32_t t = 0; t < RQ_TYPE_LIMIT && !fused; t++) fused = w->sums[k][t].n > 0;
        if (!fused) {
            printf("  %-10s %-18s as its primitives\n", w->implementation, rq_op_get((rq_op_kind)k)->name);
            continue;
        }
        for (uint32_t t = 0; t < RQ_TYPE_LIMIT; t++) {
            const op_error *e = &w->sums[k][t];
            double tolerance = rq_op_tolerance((rq_op_kind)k, (rq_type)t);
            any |= e->n > 0;
            if (!e->n || e->reference == 0 || tolerance == 0) continue;
            double share = e->error / e->reference / tolerance;
            if (w->verbose)
                printf("  %-10s %-18s %-8s %.4f of the tolerance over %llu elements\n", w->implementation,
                       rq_op_get((rq_op_kind)k)->name, rq_type_get(t)->name, share, (unsigned long long)e->n);
            if (share > worst) worst = share;
            if (!(share <= 1)) {
                printf("%s %s %s: mean error %g of the tolerance\n", w->implementation,
                       rq_op_get((rq_op_kind)k)->name, rq_type_get(t)->name, share);
                w->n_failed++;
            }
        }
        if (!any && w->products_only) continue;
        if (rq_op_tolerance((rq_op_kind)k, RQ_TYPE_F32) == 0)
            printf("  %-10s %-18s same bits\n", w->implementation, rq_op_get((rq_op_kind)k)->name);
        else
            printf("  %-10s %-18s %.4f\n", w->implementation, rq_op_get((rq_op_kind)k)->name, worst);
        if (!any && !w->products_only && !only_type && !only_op && k != RQ_OP_ARGMAX && k != RQ_OP_GROUP) {
            printf("%s %s: no case\n", w->implementation, rq_op_get((rq_op_kind)k)->name);
            w->n_failed++;
        }
    }
}

static bool verbose;
static void (*all_rows)(walker *w);
static bool (*of_table)(rq_op_kind kind);

static void the_table(void **state)
{
    /* Implementations by name; a device opens those it has. NULL: the backend's own choice. */
    static const char *const names[] = {"scalar", "avx2", "avx512", "neon", "vulkan", "cuda", "simt"};
    uint32_t n_opened = 0;
    for (const rq_backend *const *b = rq_backends(); *b; b++)
        for (uint32_t i = 0; i < sizeof names / sizeof *names; i++) {
            bool card = i >= 4; /* when asked for by name: slow without a card */
            if (only ? strcmp(only, names[i]) != 0 : card) continue;
            if (card ? strcmp((*b)->name, names[i]) != 0 : *b != &rq_backend_cpu) continue;
            const char *name = variant ? variant : names[i];
            rq_device_options options = {.n_threads = 2, .implementation = name, .disable = disable};
            walker w = {.implementation = name, .verbose = verbose, .products_only = variant || disable};
            case_data_init(&w.data);
            rq_error err = {0};
            if ((*b)->open(&options, &w.device, &err) != RQ_OK) {
                printf("%s %s is not on this machine: %s\n", (*b)->name, name, err.text);
                case_data_free(&w.data);
                continue;
            }
            n_opened++;
            all_rows(&w);
            printf("%s %s: %u cases, worst error as a share of the tolerance:\n", (*b)->name, name,
                   w.n_cases);
            report(&w, of_table);
#ifdef RQVK_HAS_VULKAN
            if (*b == &rq_backend_vulkan) {
                printf("%s %s: %u pipelines\n", (*b)->name, w.implementation, rq_vulkan_pipelines(w.device));
                assert_int_equal(rq_vulkan_messages(w.device), 0);
                if (quick) assert_true(rq_vulkan_pipelines(w.device) <= QUICK_PIPELINES);
            }
#endif
            (*b)->close(w.device);
            case_data_free(&w.data);
            assert_int_equal(w.n_failed, 0);
        }
    assert_true(n_opened > 0);
}

int walk_table(int argc, char **argv, void (*rows)(walker *w), bool (*mine)(rq_op_kind kind))
{
    all_rows = rows;
    of_table = mine;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-v") == 0)
            verbose = true;
        else if (strcmp(argv[i], "--variant") == 0 && i + 1 < argc)
            variant = argv[++i];
        else if (strcmp(argv[i], "--disable") == 0 && i + 1 < argc)
            disable = argv[++i];
        else if (strcmp(argv[i], "--type") == 0 && i + 1 < argc)
            only_type = argv[++i];
        else if (strcmp(argv[i], "--wide") == 0 && i + 1 < argc)
            only_op = argv[++i]; /* that operation, and its wide steps alone */
        else if (strcmp(argv[i], "--quick") == 0)
            quick = true;
        else
            only = argv[i];
    }
    const char *chosen = getenv("RQVK_SIMT_TURN");
    if (chosen) turn = (uint32_t)strtoul(chosen, NULL, 10) % TURNS;
#ifdef RQVK_HAS_VULKAN
    rq_device *device = NULL;
    rq_error err = {0};
    if (only && strcmp(only, "vulkan") == 0 && !getenv("RQVK_VK_REQUIRED")) {
        if (rq_backend_vulkan.open(NULL, &device, &err) != RQ_OK) {
            printf("%s\n", err.text);
            return 77; /* left out */
        }
        rq_backend_vulkan.close(device);
    }
#endif
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_table)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
