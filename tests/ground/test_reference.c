/* The reference against values worked out by hand: it is the oracle of everything else. */
#include "backends/base/mem.h"
#include "backends/cpu/reference/reference.h"
#include "backends/ops.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* A bench with room for a few values and weights, a cache of two pages and a step. */
typedef struct bench {
    rq_tape t;
    float memory[64][512]; /* by owning value */
    float weights[4][256];
    float persist[RQ_PERSIST_COUNT][256];
    rq_cache_group group;
    rq_cache_pool pool;
    rq_memory slab, table;
    uint32_t pages[4];
    rq_step_caps caps;
    rq_step step;
    uint32_t *words;
    void *slab_bytes;
} bench;

static void *address(void *user, const rq_tape *tape, rq_ref r)
{
    bench *b = user;
    const rq_value *v = &tape->values[r];
    char *base = (char *)(v->space == RQ_SPACE_ACT      ? b->memory[v->index]
                          : v->space == RQ_SPACE_WEIGHT ? b->weights[v->index]
                                                        : b->persist[v->index]);
    return base + v->offset;
}

/* One run of `tokens` tokens from position `start`. */
static bench *bench_open(uint32_t tokens, uint32_t start, uint32_t window)
{
    bench *b = rq_calloc(1, sizeof *b);
    rq_tape_init(&b->t, tokens);
    b->group = (rq_cache_group){.n_layers = 1,
                                .n_heads = 1,
                                .dim_k = 8,
                                .dim_v = 8,
                                .window = window,
                                .type_k = RQ_TYPE_F32,
                                .type_v = RQ_TYPE_F32};
    b->pool = (rq_cache_pool){
        .group = &b->group, .layout = rq_page_layout_of(&b->group), .n_slabs = 1, .n_pages = 2};
    b->slab_bytes = rq_calloc_aligned(64, 2 * b->pool.layout.page_bytes);
    b->slab = (rq_memory){.host = b->slab_bytes, .bytes = 2 * b->pool.layout.page_bytes};
    b->table = (rq_memory){.host = b->pages, .bytes = sizeof b->pages};
    b->pages[0] = 1;
    b->pool.slabs[0] = &b->slab;
    b->pool.table = &b->table;
    b->caps = (rq_step_caps){.max_tokens = tokens, .n_groups = 1, .n_seqs = 2, .max_pages = 2};
    rq_step_caps_complete(&b->caps);
    b->words = rq_calloc(rq_step_words(&b->caps), 4);
    rq_step_init(&b->step, &b->caps, &b->group, b->words);
    const int32_t ids[8] = {1, 0, -1 - 1, 1, 1, 1, 1, 1};
    const uint32_t *table[1] = {b->pages};
    assert_int_equal(rq_step_add_run(&b->step, 0, ids, tokens, start, table), 0);
    for (uint32_t i = 0; i < tokens; i++) rq_step_add_row(&b->step, tokens - 1 - i, i % 2);
    rq_step_finish(&b->step);
    return b;
}

static void bench_run(bench *b)
{
    rq_error err = {0};
    assert_int_equal(rq_tape_check(&b->t, &err), RQ_OK);
    rq_reference_env env = {.address = address,
                            .user = b,
                            .pools = &b->pool,
                            .caps = &b->caps,
                            .step_words = b->words,
                            .sampled = (const int32_t *)(const void *)b->persist[RQ_PERSIST_SAMPLED]};
    for (uint32_t i = 0; i < b->t.n_ops; i++)
        assert_int_equal(rq_reference_run(&b->t, &b->t.ops[i], &env, &err), RQ_OK);
}

static void bench_close(bench *b)
{
    rq_free(b->slab_bytes);
    rq_free(b->words);
    rq_tape_free(&b->t);
    rq_free(b);
}

static void near(double y, double expected)
{
    if (!(fabs(y - expected) <= 1e-6 * fmax(1, fabs(expected)))) fail_msg("%.9g is not %.9g", y, expected);
}

static void pointwise(void **state)
{
    bench *b = bench_open(1, 0, 0);
    rq_ref x = rq_tape_act(&b->t, RQ_TYPE_F32, 2, 1, 1, 1), u = rq_tape_act(&b->t, RQ_TYPE_F32, 2, 1, 1, 1);
    rq_ref w = rq_tape_weight(&b->t, 0, RQ_TYPE_F32, (uint32_t[4]){2, 1, 1, 1}, "w");
    memcpy(b->memory[x], (float[]){3, 4}, 8);
    memcpy(b->memory[u], (float[]){1, -2}, 8);
    memcpy(b->weights[0], (float[]){2, 10}, 8);
    rq_ref norm = rq_op_rms_norm(&b->t, x, w, 0), plain = rq_op_rms_norm(&b->t, x, 0, 12.5f);
    rq_ref silu = rq_op_glu(&b->t, u, x, RQ_ACT_SILU), gelu = rq_op_glu(&b->t, u, x, RQ_ACT_GELU_TANH);
    rq_ref add = rq_op_add(&b->t, x, u), mul = rq_op_mul(&b->t, x, w), scale = rq_op_scale(&b->t, x, -0.5f);
    bench_run(b);
    near(b->memory[norm][0], 2 * 3 / sqrt(12.5)); /* mean of squares 12.5 */
    near(b->memory[norm][1], 10 * 4 / sqrt(12.5));
    near(b->memory[plain][0], 3.0 / 5);
    near(b->memory[silu][0], 3 * 0.7310585786300049); /* 1 / (1 + 1/e) */
    near(b->memory[silu][1], 4 * -2 * 0.11920292202211755);
    near(b->memory[gelu][0], 3 * 0.8411919906082768); /* gelu_tanh(1), Hendrycks & Gimpel's approximation */
    near(b->memory[gelu][1], 4 * -0.04540230591222157);
    near(b->memory[add][1], 2);
    near(b->memory[mul][1], 40);
    near(b->memory[scale][0], -1.5);
    bench_close(b);
}

static void products(void **state)
{
    bench *b = bench_open(2, 0, 0);
    rq_ref w = rq_tape_weight(&b->t, 0, RQ_TYPE_F32, (uint32_t[4]){2, 3, 1, 1}, "w");
    rq_ref e = rq_tape_weight(&b->t, 1, RQ_TYPE_F32, (uint32_t[4]){2, 1, 3, 1}, "e");
    rq_ref x = rq_tape_act(&b->t, RQ_TYPE_F32, 2, 2, 1, 1), l = rq_tape_act(&b->t, RQ_TYPE_F32, 3, 2, 1, 1);
    memcpy(b->weights[0], (float[]){1, 2, 3, 4, 5, 6}, 24);
    memcpy(b->weights[1], (float[]){1, 0, 0, 1, 1, 1}, 24); /* experts: first, second, sum */
    memcpy(b->memory[x], (float[]){1, 10, -1, 1}, 16);
    memcpy(b->memory[l], (float[]){(float)log(1), (float)log(3), (float)log(4), 5, 5, -1}, 24);
    rq_ref y = rq_op_matmul(&b->t, w, x), ids, weights;
    rq_op_route(&b->t, l, 2, 2, &ids, &weights);
    rq_ref group = rq_op_group(&b->t, ids, 3), z = rq_op_matmul_experts(&b->t, e, x, ids, group);
    rq_ref sum = rq_op_combine(&b->t, z, weights), row = rq_op_embed(&b->t, w);
    bench_run(b);
    const float expected[] = {21, 43, 65, 1, 1, 1};
    assert_memory_equal(b->memory[y], expected, sizeof expected);
    const int32_t *id = (const int32_t *)(const void *)b->memory[ids];
    const int32_t chosen[] = {2, 1, 0, 1}; /* a tie goes to the lower index */
    assert_memory_equal(id, chosen, sizeof chosen);
    near(b->memory[weights][0], 2 * 4.0 / 7); /* P = 1/8, 3/8, 4/8 */
    near(b->memory[weights][1], 2 * 3.0 / 7);
    near(b->memory[weights][2], 1);
    near(b->memory[z][0], 11);
    near(b->memory[z][1], 10);
    near(b->memory[z][2], -1);
    near(b->memory[sum][0], 2 * (4.0 / 7 * 11 + 3.0 / 7 * 10));
    near(b->memory[sum][1], 0);
    rq_group_layout g = rq_group_layout_of(3, 2, 2);
    const int32_t *block = (const int32_t *)(const void *)b->memory[group];
    const int32_t head[] = {4, 3, 3, 0}, counts[] = {1, 2, 1}, starts[] = {0, 1, 3, 4},
                  order[] = {2, 1, 3, 0};
    const int32_t tiles[] = {0, 0, 1, 1, 1, 2, 2, 3, 1};
    assert_memory_equal(block, head, sizeof head);
    assert_memory_equal(block + g.counts, counts, sizeof counts);
    assert_memory_equal(block + g.starts, starts, sizeof starts);
    assert_memory_equal(block + g.order, order, sizeof order);
    assert_memory_equal(block + g.tiles, tiles, sizeof tiles);
    const float rows[] = {3, 4, 1, 2}; /* tokens 1 and 0 */
    assert_memory_equal(b->memory[row], rows, sizeof rows);
    bench_close(b);
}

static void rotary(void **state)
{
    for (uint32_t pairing = 0; pairing < 2; pairing++) {
        bench *b = bench_open(1, 3, 0);
        rq_ref x = rq_tape_act(&b->t, RQ_TYPE_F32, 6, 1, 1, 1);
        rq_ref f = rq_tape_weight(&b->t, 0, RQ_TYPE_F32, (uint32_t[4]){2, 1, 1, 1}, "f");
        memcpy(b->memory[x], (float[]){1, 2, 3, 4, 5, 6}, 24);
        memcpy(b->weights[0], (float[]){0.5235987755982988f, 0},
               8); /* position 3: a quarter turn, and none */
        rq_ref y = rq_op_rope(&b->t, x, f, 4, pairing ? RQ_ROPE_NEOX : RQ_ROPE_NORM, 2);
        bench_run(b);
        const float *o = b->memory[y];
        near(o[0], pairing ? -6 : -4); /* (1, 2) or (1, 3) turned, twice as long */
        near(o[pairing ? 2 : 1], 2);
        near(o[pairing ? 1 : 2], pairing ? 4 : 6);
        near(o[3], 8);
        near(o[4], 5);
        near(o[5], 6);
        bench_close(b);
    }
}

/* Three positions with keys 0, 0 and log 2 along the query: probabilities 1/4, 1/4, 1/2 seen from the last. */
static void attention(void **state)
{
    for (uint32_t window = 0; window < 3; window++) { /* 0: none */
        bench *b = bench_open(3, 61, window);
        memset(b->slab_bytes, 0, b->slab.bytes);
        float *page = (float *)b->slab_bytes + b->pool.layout.page_bytes / 4; /* page id 1 */
        float *values = page + b->pool.layout.k_bytes / 4;
        for (uint32_t j = 0; j < 61; j++) page[j] = -1000; /* element 0 of the keys before: out of sight */
        rq_ref cache = rq_tape_cache(&b->t, 0, 0);
        rq_ref q = rq_tape_act(&b->t, RQ_TYPE_F32, 8, 1, 3, 1),
               k = rq_tape_act(&b->t, RQ_TYPE_F32, 8, 1, 3, 1);
        rq_ref v = rq_tape_act(&b->t, RQ_TYPE_F32, 8, 1, 3, 1);
        for (uint32_t t = 0; t < 3; t++) {
            b->memory[q][8 * t] = 2;
            b->memory[k][8 * t] = t == 2 ? (float)log(2) : 0;
            b->memory[v][8 * t] = (float)(t + 1);
            b->memory[v][8 * t + 7] = 1;
        }
        rq_op_kv_write(&b->t, cache, k, v);
        rq_ref y = rq_op_attend(&b->t, cache, q, 8, 0.5f, 0);
        bench_run(b);
        near(page[63], log(2)); /* K lies transposed, V does not */
        near(values[63 * 8], 3);
        near(values[63 * 8 + 7], 1);
        near(b->memory[y][0], 1);
        near(b->memory[y][8], window == 1 ? 2 : 1.5);
        near(b->memory[y][16], window == 1 ? 3 : window == 2 ? 2.0 / 3 + 2 : 0.25 + 0.5 + 1.5);
        near(b->memory[y][16 + 7], 1);
        near(b->memory[y][16 + 3], 0);
        bench_close(b);
    }
}

static void soft_cap(void **state)
{
    bench *b = bench_open(2, 0, 0);
    rq_ref cache = rq_tape_cache(&b->t, 0, 0);
    rq_ref q = rq_tape_act(&b->t, RQ_TYPE_F32, 8, 1, 2, 1), k = rq_tape_act(&b->t, RQ_TYPE_F32, 8, 1, 2, 1);
    b->memory[q][8] = 3;
    b->memory[k][8] = 4;
    b->memory[k][0] = 0;
    rq_op_kv_write(&b->t, cache, k, k);
    rq_ref y = rq_op_attend(&b->t, cache, q, 8, 1, 5);
    bench_run(b);
    double s = 5 * tanh(12.0 / 5), p = exp(s) / (1 + exp(s)); /* scores 0 and 12, capped at 5 */
    near(b->memory[y][8], 4 * p);
    bench_close(b);
}

/* A quarter turn of a pair, and a Hadamard pair whose second element is mirrored. */
static void rotation(void **state)
{
    const rq_rotation_block blocks[] = {{0, 1, 2, false}, {2, 1, 2, true}};
    bench *b = bench_open(1, 0, 0);
    rq_ref data = rq_tape_weight(&b->t, 0, RQ_TYPE_F32, (uint32_t[4]){6, 1, 1, 1}, "r");
    rq_ref mean = rq_tape_weight(&b->t, 1, RQ_TYPE_F32, (uint32_t[4]){4, 2, 1, 1}, "m");
    rq_ref lambda = rq_tape_weight(&b->t, 2, RQ_TYPE_F32, (uint32_t[4]){4, 1, 1, 1}, "l");
    memcpy(b->weights[0], (float[]){0, -1, 1, 0, 1, -1}, 24);
    memcpy(b->weights[1], (float[]){1, 1, 1, 1, 0, 0, 0, 10}, 32);
    memcpy(b->weights[2], (float[]){2, 1, 1, 2}, 16);
    rq_ref x = rq_tape_act(&b->t, RQ_TYPE_F32, 4, 4, 1, 1); /* the first two heads take the first mean */
    for (int h = 0; h < 4; h++) memcpy(b->memory[x] + 4 * h, (float[]){3, 4, 5, 6}, 16);
    rq_ref y = rq_op_rotate(&b->t, x, data, mean, lambda, blocks, 2, false);
    rq_ref z = rq_op_rotate(&b->t, x, data, mean, lambda, blocks, 2, true);
    rq_ref only = rq_op_rotate(&b->t, x, 0, mean, 0, NULL, 0, false);
    bench_run(b);
    const double first[] = {-3, 4, -6 / sqrt(2), 14 / sqrt(2)}, last[] = {-4, 6, 13 / sqrt(2), -3 / sqrt(2)};
    const double back[] = {5, -2, 1 + 11 / sqrt(2), 1 + 1 / sqrt(2)}; /* of 4 -3, 11 and -1 mirrored */
    for (int i = 0; i < 4; i++) {
        near(b->memory[y][i], first[i]); /* of 4 3 4 10 */
        near(b->memory[y][4 + i], first[i]);
        near(b->memory[y][8 + i], last[i]); /* of 6 4 5 -8 */
        near(b->memory[z][i], back[i]);
        near(b->memory[only][4 + i], 2 + i);
        near(b->memory[only][12 + i], i == 3 ? -4 : 3 + i);
    }
    bench_close(b);
}

/* Page 0 has ones as values; its coded form has one key and one value that are not zero. The query at 126 reads the
 * first, the one at 127 the second. */
static void two_forms(void **state)
{
    bench *b = bench_open(2, 126, 0);
    b->group.form_k = b->group.form_v = RQ_KV_Q8_0;
    b->group.recent_pages = 1;
    memset(b->slab_bytes, 0, b->slab.bytes);
    b->pages[0] = 0, b->pages[1] = 1;
    uint32_t codes_of[2] = {0, RQ_NO_PAGE};
    rq_memory coded_table = {.host = codes_of, .bytes = sizeof codes_of};
    b->pool.coded_layout = rq_coded_layout_of(&b->group);
    const rq_coded_layout *l = &b->pool.coded_layout;
    assert_int_equal(l->head_bytes, 2 * 64 * (8 + 2)); /* a byte for each element, a scale for each row */
    uint8_t *block = rq_calloc(1, l->page_bytes);
    rq_memory coded = {.host = block, .bytes = l->page_bytes};
    b->pool.coded_slabs[0] = &coded;
    b->pool.coded_table = &coded_table;
    b->pool.n_coded = b->pool.n_coded_slabs = 1;
    float *values = (float *)b->slab_bytes + b->pool.layout.k_bytes / 4;
    for (uint32_t t = 0; t < 64; t++) values[8 * t] = 1;
    uint16_t *scales = (uint16_t *)(void *)(block + l->k_bytes + l->v_bytes);
    block[4 * 5] = 2;                                  /* K: word 0 of token 5, byte 0 is element 0 */
    scales[5] = 0x3800;                                /* 0.5 */
    block[l->k_bytes + (uint64_t)4 * (8 + 3) + 1] = 4; /* V: word 1 of element 3, byte 1 is token 5 */
    scales[64 + 5] = 0x4000;                           /* 2 */
    rq_ref q = rq_tape_act(&b->t, RQ_TYPE_F32, 8, 1, 2, 1);
    b->memory[q][0] = b->memory[q][8] = (float)log(4);
    rq_ref y = rq_op_attend(&b->t, rq_tape_cache(&b->t, 0, 0), q, 8, 1, 0);
    bench_run(b);
    near(b->memory[y][0], 64.0 / 127);
    near(b->memory[y][3], 0);
    near(b->memory[y][8], 0);
    near(b->memory[y][8 + 3], 4 * 8 / (4 + 127.0));

    /* what encoding makes of rows whose largest element is 127, and of nothing */
    rq_encode encode = {0, 0};
    assert_true(rq_step_add_encode(&b->step, 0, encode.exact, encode.coded));
    float *keys = b->slab_bytes;
    keys[2 * 64 + 7] = -127;
    keys[3 * 64 + 7] = 64.2f;
    rq_tape encoding;
    rq_tape_init(&encoding, 1);
    rq_op_kv_encode(&encoding, rq_tape_cache(&encoding, 0, 0));
    rq_reference_env env = {.pools = &b->pool, .caps = &b->caps, .step_words = b->words};
    assert_int_equal(rq_reference_run(&encoding, &encoding.ops[0], &env, NULL), RQ_OK);
    assert_int_equal((int8_t)block[4 * 7 + 2], -127);
    assert_int_equal((int8_t)block[4 * 7 + 3], 64);
    assert_int_equal(block[4 * 5], 0);
    assert_int_equal(scales[7], 0x3c00);
    assert_int_equal(scales[5], 0);
    rq_tape_free(&encoding);
    rq_free(block);
    bench_close(b);
}

/* Round to nearest even; a mean shifts the scores of a soft cap, and nothing else. */
static void bf16_and_means(void **state)
{
    bench *b = bench_open(2, 0, 0);
    b->group.type_k = b->group.type_v = RQ_TYPE_BF16;
    b->pool.layout = rq_page_layout_of(&b->group);
    rq_ref cache = rq_tape_cache(&b->t, 0, 0);
    rq_ref q = rq_tape_act(&b->t, RQ_TYPE_F32, 8, 1, 2, 1), k = rq_tape_act(&b->t, RQ_TYPE_F32, 8, 1, 2, 1);
    rq_ref mean = rq_tape_weight(&b->t, 0, RQ_TYPE_F32, (uint32_t[4]){8, 1, 1, 1}, "m");
    b->weights[0][0] = 2;
    b->memory[q][8] = 3;
    b->memory[k][8] = 4;
    b->memory[k][1] = 1 + 0x1p-8f; /* halfway */
    b->memory[k][2] = 1 + 0x3p-8f;
    rq_op_kv_write(&b->t, cache, k, k);
    rq_ref y = rq_op_attend_mean(&b->t, cache, q, mean, 8, 1, 5),
           z = rq_op_attend_mean(&b->t, cache, q, mean, 8, 1, 0);
    bench_run(b);
    const uint16_t *page =
        (const uint16_t *)(const void *)((char *)b->slab_bytes + b->pool.layout.page_bytes);
    assert_int_equal(page[64], 0x3f80);
    assert_int_equal(page[2 * 64], 0x3f82);
    double s0 = 5 * tanh(6.0 / 5), s1 = 5 * tanh(18.0 / 5); /* 3 * 2 more than 0 and 12 */
    near(b->memory[y][8], 4 * exp(s1) / (exp(s0) + exp(s1)));
    near(b->memory[z][8], 4 * exp(12) / (1 + exp(12)));
    bench_close(b);
}

static void rows_and_ids(void **state)
{
    bench *b = bench_open(2, 0, 0);
    rq_ref hidden = rq_tape_persist(&b->t, RQ_PERSIST_HIDDEN, RQ_TYPE_F32, 3, 4);
    rq_ref sampled = rq_tape_persist(&b->t, RQ_PERSIST_SAMPLED, RQ_TYPE_I32, 1, 2);
    rq_ref x = rq_tape_act(&b->t, RQ_TYPE_F32, 3, 2, 1, 1);
    memcpy(b->memory[x], (float[]){7, 9, 9, NAN, -5, -INFINITY}, 24);
    rq_op_copy(&b->t, x, hidden);
    rq_ref y = rq_op_select_rows(&b->t, hidden);
    rq_op_argmax(&b->t, y, sampled);
    bench_run(b);
    assert_memory_equal(b->memory[y], b->memory[x] + 3, 12); /* rows name the tokens backwards */
    assert_memory_equal(b->memory[y] + 3, b->memory[x], 12);
    const int32_t *ids = (const int32_t *)(const void *)b->persist[RQ_PERSIST_SAMPLED];
    assert_int_equal(ids[0], 1); /* not a number never wins */
    assert_int_equal(ids[1], 1); /* the lower of two equal ones */
    bench_close(b);
}

/* Ids of the batch, of what was sampled, and outside the table. */
static void embedding(void **state)
{
    bench *b = bench_open(4, 0, 0);
    rq_ref w = rq_tape_weight(&b->t, 0, RQ_TYPE_F32, (uint32_t[4]){2, 3, 1, 1}, "w");
    memcpy(b->weights[0], (float[]){1, 2, 3, 4, 5, 6}, 24);
    ((int32_t *)(void *)b->persist[RQ_PERSIST_SAMPLED])[1] = 2;
    ((int32_t *)(b->words + b->step.header->token_id))[3] = 3;
    rq_ref y = rq_op_embed(&b->t, w);
    bench_run(b);
    const float expected[] = {3, 4, 1, 2, 5, 6, 0, 0};
    assert_memory_equal(b->memory[y], expected, sizeof expected);
    bench_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pointwise),      cmocka_unit_test(products), cmocka_unit_test(rotary),
        cmocka_unit_test(attention),      cmocka_unit_test(soft_cap), cmocka_unit_test(rows_and_ids),
        cmocka_unit_test(embedding),      cmocka_unit_test(rotation), cmocka_unit_test(two_forms),
        cmocka_unit_test(bf16_and_means),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
