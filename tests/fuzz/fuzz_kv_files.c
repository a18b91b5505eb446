/* Cache profiles and tables of measurements from arbitrary bytes: refused with a sentence, or everything that was
 * read can be used. The checksum of a profile is made right first, or nothing behind it would ever be reached. */
#include "backends/base/mem.h"
#include "engine/kv.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A broken promise of the readers: the fuzzer reports it as a crash. */
static void promise(bool kept)
{
    if (!kept) __builtin_trap();
}

static void use_floats(const float *x, size_t n)
{
    for (size_t i = 0; x != NULL && i < n; i++) promise(isfinite(x[i]));
}

static void read_profile(const uint8_t *data, size_t size)
{
    rq_kv_profile *p = NULL;
    rq_error err = {0};
    if (rq_kv_profile_parse(data, size, "profile", &p, &err) != RQ_OK) {
        promise(p == NULL && err.text[0] != 0);
        return;
    }
    promise(p->n_layers > 0 && memchr(p->note, 0, sizeof p->note) != NULL);
    for (uint32_t i = 0; i < p->n_layers; i++) {
        const rq_kv_layer_profile *l = &p->layers[i];
        use_floats(l->mean_k, (size_t)l->n_heads * l->dim_k);
        use_floats(l->lambda_k, (size_t)l->n_heads * l->dim_k);
        use_floats(l->mean_v, (size_t)l->n_heads * l->dim_v);
        use_floats(l->so8_k, (size_t)l->n_heads * l->dim_k * 8);
        use_floats(l->so8_v, (size_t)l->n_heads * l->dim_v * 8);
        use_floats(l->klt_k, (size_t)l->n_heads * l->dim_k * l->dim_k);
        use_floats(l->klt_v, (size_t)l->n_heads * l->dim_v * l->dim_v);
    }
    promise(rq_kv_profile_check(p, NULL) == RQ_OK);
    rq_kv_profile_free(p);
}

static void read_table(const uint8_t *data, size_t size)
{
    rq_kv_table t = {0};
    rq_error err = {0};
    if (rq_kv_table_parse((const char *)data, size, "table", &t, &err) != RQ_OK) {
        promise(t.rows == NULL && err.text[0] != 0);
        return;
    }
    promise(t.n <= RQ_KV_MAX_TABLE);
    for (uint32_t i = 0; i < t.n; i++)
        promise(t.rows[i].type_k[15] == 0 && t.rows[i].type_v[15] == 0 && t.rows[i].bits > 0);
    const rq_kv_table_row *best = rq_kv_table_choose(&t, "auto", "auto");
    promise(best == NULL || best->error <= t.bound);
    rq_kv_table_free(&t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int64_t alive = rq_mem_alive();
    read_table(data, size);
    read_profile(data, size);
    uint8_t *right = size >= 8 ? malloc(size) : NULL;
    if (right != NULL) {
        memcpy(right, data, size);
        uint64_t sum = XXH3_64bits(right, size - 8);
        memcpy(right + size - 8, &sum, 8);
        read_profile(right, size);
        free(right);
    }
    promise(rq_mem_alive() == alive);
    return 0;
}
