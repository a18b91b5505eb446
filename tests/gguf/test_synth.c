/* Synthetic models: types as llama.cpp chooses them, weights of the promised size, the same file twice. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/base/mem.h"
#include "tests/gguf/fixture.h"
#include "tools/synth/file.h"
#include "tools/synth/plan.h"
#include "tools/synth/vocab.h"
#include "tools/synth/weights.h"

/* ---- mixtures ------------------------------------------------------------------------------------------ */

/* How many tensors of each type the quantiser of llama.cpp (build 9079 of May 2026, dry run; the first eight with an
 * importance matrix) makes of the 8B Llama 3 shape, of the 896 wide Qwen2.5 shape, whose rows are no multiple of 256, of
 * hybrids and of Gemma 4; and where it is given, what it says they take. A published Qwen3.6 27B made by that rule has
 * 15.401 GiB, too (mradermacher, i1), a published Gemma 4 26B-A4B as many tensors of each type. */
static const struct {
    const char *preset, *mixture;
    struct {
        rq_type type;
        int n;
    } counts[6];
    double mib; /* of weights; 0: not compared */
} dry_runs[] = {
    {"llama-3.1-8b", "q4_k_m", {{RQ_TYPE_Q4_K, 193}, {RQ_TYPE_Q6_K, 33}}, 0},
    {"llama-3.1-8b",
     "q3_k_m",
     {{RQ_TYPE_Q3_K, 129}, {RQ_TYPE_Q4_K, 92}, {RQ_TYPE_Q5_K, 4}, {RQ_TYPE_Q6_K, 1}},
     0},
    {"llama-3.1-8b", "iq4_xs", {{RQ_TYPE_IQ4_XS, 193}, {RQ_TYPE_Q5_K, 32}, {RQ_TYPE_Q6_K, 1}}, 0},
    {"llama-3.1-8b",
     "iq3_xxs",
     {{RQ_TYPE_IQ3_XXS, 96}, {RQ_TYPE_IQ2_S, 64}, {RQ_TYPE_IQ3_S, 33}, {RQ_TYPE_Q4_K, 32}, {RQ_TYPE_Q5_K, 1}},
     0},
    {"llama-3.1-8b",
     "iq2_m",
     {{RQ_TYPE_IQ2_S, 156}, {RQ_TYPE_IQ3_S, 37}, {RQ_TYPE_Q4_K, 32}, {RQ_TYPE_Q5_K, 1}},
     0},
    {"llama-3.1-8b",
     "iq2_xxs",
     {{RQ_TYPE_IQ2_XXS, 188}, {RQ_TYPE_Q4_K, 32}, {RQ_TYPE_Q2_K, 5}, {RQ_TYPE_Q5_K, 1}},
     0},
    {"qwen2.5-0.5b",
     "q4_k_m",
     {{RQ_TYPE_Q5_0, 132}, {RQ_TYPE_Q8_0, 13}, {RQ_TYPE_Q6_K, 12}, {RQ_TYPE_Q4_K, 12}},
     0},
    {"qwen2.5-0.5b",
     "iq4_xs",
     {{RQ_TYPE_IQ4_NL, 120}, {RQ_TYPE_Q5_1, 24}, {RQ_TYPE_IQ4_XS, 24}, {RQ_TYPE_Q8_0, 1}},
     0},
    {"qwen3.6-27b", "q4_k_m", {{RQ_TYPE_Q4_K, 433}, {RQ_TYPE_Q6_K, 65}}, 15770.35},
    {"qwen3.6-35b-a3b", "q4_k_m", {{RQ_TYPE_Q4_K, 371}, {RQ_TYPE_Q6_K, 61}}, 20175.71},
    {"qwen3.5-397b-a17b", "q4_k_m", {{RQ_TYPE_Q4_K, 556}, {RQ_TYPE_Q6_K, 91}}, 229448.25},
    {"gemma-4-26b-a4b",
     "q4_k_m",
     {{RQ_TYPE_Q4_K, 192}, {RQ_TYPE_Q5_0, 32}, {RQ_TYPE_Q6_K, 14}, {RQ_TYPE_Q8_0, 28}},
     16002.84},
    {"gemma-4-31b", "q4_k_m", {{RQ_TYPE_Q4_K, 355}, {RQ_TYPE_Q6_K, 56}}, 17806.27},
};

static void mixtures_match_dry_runs(void **state)
{
    for (size_t r = 0; r < sizeof dry_runs / sizeof *dry_runs; r++) {
        synth_mixture mixture;
        synth_plan plan;
        rq_error err;
        int found[RQ_TYPE_LIMIT] = {0}, expected[RQ_TYPE_LIMIT] = {0};
        assert_true(synth_mixture_find(dry_runs[r].mixture, false, &mixture));
        assert_int_equal(synth_plan_build(synth_preset_find(dry_runs[r].preset), &mixture, &plan, &err),
                         RQ_OK);
        double bytes = 0;
        for (size_t i = 0; i < plan.n; i++) {
            const synth_tensor *t = &plan.tensors[i];
            const rq_type_info *type = rq_type_get(t->type);
            found[t->type]++;
            bytes += (double)(t->ne[0] * t->ne[1] * t->ne[2]) / type->block_elems * type->block_bytes;
        }
        if (dry_runs[r].mib > 0) assert_true(fabs(bytes / 1048576 - dry_runs[r].mib) < 0.01);
        for (int i = 0; i < 6; i++) expected[dry_runs[r].counts[i].type] += dry_runs[r].counts[i].n;
        expected[RQ_TYPE_F32] = found[RQ_TYPE_F32]; /* norms and biases */
        for (int t = 0; t < RQ_TYPE_LIMIT; t++)
            if (found[t] != expected[t])
                fail_msg("%s %s: %d tensors of type %s instead of %d", dry_runs[r].preset,
                         dry_runs[r].mixture, found[t], rq_type_get((uint32_t)t)->name, expected[t]);
        rq_free(plan.tensors);
    }
}

/* The quantised oracle models were written by llama.cpp itself. */
static void mixtures_match_written_files(void **state)
{
    static const struct {
        const char *part;
        synth_role role;
    } roles[] = {{"attn_q.", SYNTH_ROLE_Q},           {"attn_k.", SYNTH_ROLE_K},
                 {"attn_v.", SYNTH_ROLE_V},           {"attn_output.", SYNTH_ROLE_ATTN_OUTPUT},
                 {"ffn_gate.", SYNTH_ROLE_GATE_UP},   {"ffn_up.", SYNTH_ROLE_GATE_UP},
                 {"ffn_down.", SYNTH_ROLE_DOWN},      {"token_embd.", SYNTH_ROLE_EMBEDDING},
                 {"output.weight", SYNTH_ROLE_OUTPUT}};
    static const char *const names[] = {"Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_S", "IQ4_XS", "Q8_0"};
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        char path[300];
        rq_gguf *g = NULL;
        rq_error err;
        synth_mixture mixture;
        uint32_t file_type = 0, heads = 0, kv_heads = 0, layers = 0, compared = 0;
        snprintf(path, sizeof path, "%s/oracle/llama-%s.gguf", RQVK_TEST_DATA, names[n]);
        assert_int_equal(rq_gguf_open(path, &g, &err), RQ_OK);
        assert_true(synth_mixture_find(names[n], false, &mixture));
        assert_int_equal(rq_gguf_get_u32(g, "general.file_type", 0, 99, &file_type, &err), RQ_OK);
        assert_int_equal(mixture.file_type, file_type);
        assert_int_equal(rq_gguf_get_u32(g, "llama.attention.head_count", 1, 99, &heads, &err), RQ_OK);
        assert_int_equal(rq_gguf_get_u32(g, "llama.attention.head_count_kv", 1, 99, &kv_heads, &err), RQ_OK);
        assert_int_equal(rq_gguf_get_u32(g, "llama.block_count", 1, 99, &layers, &err), RQ_OK);
        for (uint64_t i = 0; i < rq_gguf_n_tensors(g); i++) {
            const rq_gguf_tensor *t = rq_gguf_tensor_at(g, i);
            size_t k = 0, n_roles = sizeof roles / sizeof *roles;
            const char *local = t->name;
            unsigned layer = 0;
            if (sscanf(t->name, "blk.%u.", &layer) == 1) local = strchr(t->name + 4, '.') + 1;
            while (k < n_roles && strncmp(local, roles[k].part, strlen(roles[k].part))) k++;
            if (k == n_roles) continue;
            synth_site site = {.role = roles[k].role,
                               .layer = layer,
                               .n_layer = layers,
                               .n_head = heads,
                               .n_head_kv = kv_heads,
                               .row = t->ne[0]};
            rq_type type = synth_mixture_type(&mixture, &site);
            if (type != t->type)
                fail_msg("%s: %s is %s, not %s", names[n], t->name, rq_type_get(t->type)->name,
                         rq_type_get(type)->name);
            compared++;
        }
        assert_int_equal(compared, 2 + 7 * layers);
        rq_gguf_close(g);
    }
}

static void names_of_types(void **state)
{
    synth_mixture m;
    assert_true(synth_mixture_find("IQ4_XS", false, &m) && !m.pure);
    assert_true(synth_mixture_find("iq4_xs", true, &m) && m.pure && m.base == RQ_TYPE_IQ4_XS);
    assert_true(synth_mixture_find("f16", false, &m) && m.pure && m.base == RQ_TYPE_F16 && m.file_type == 1);
    assert_false(synth_mixture_find("q4_k_m", true, &m));
    assert_false(synth_mixture_find("q8_k", false, &m)); /* not a type of weights */
    assert_false(synth_mixture_find("", false, &m));
    for (const char *const *name = synth_mixture_names(); *name; name++)
        assert_true(synth_mixture_find(*name, false, &m) && !m.pure);
}

/* ---- weights ------------------------------------------------------------------------------------------- */

/* Check vector of the factors, computed in Python with the formula of the Llama 3.1 release. */
static void llama3_factors(void **state)
{
    static const float ramp[6] = {1.207484f, 1.553415f, 2.026313f, 2.694530f, 3.684253f, 5.257327f};
    for (uint32_t i = 0; i < 64; i++) {
        float expected = i < 29 ? 1 : i < 35 ? ramp[i - 29] : 8;
        assert_true(fabsf(synth_llama3_factor(i, 128, 500000) - expected) < 2e-6f * expected);
    }
}

/* Mean 0 and the wanted deviation for every type of weights. The sample mean of 64 rows of 2560 independent
 * values deviates by 1/405 standard deviations; but in coarse types neighbours share a signed scale, so the
 * bound for the mean is 0.05. The deviation is set by a calibration on some 100,000 values: 5 %. */
static void weights_have_the_promised_size(void **state)
{
    enum { ROW = 2560, ROWS = 64 };
    static float values[ROW];
    static uint8_t row[ROW * 8];
    int tried = 0;
    for (uint32_t id = 0; id < RQ_TYPE_LIMIT; id++) {
        const rq_type_info *info = rq_type_get(id);
        if (!info || !info->is_weight || id == RQ_TYPE_F64) continue;
        synth_tensor tensor = {.name = "blk.0.attn_q.weight",
                               .type = (rq_type)id,
                               .n_dims = 2,
                               .ne = {ROW, ROWS, 1, 1},
                               .std = 0.02};
        synth_source source;
        double sum = 0, square = 0;
        assert_true(synth_source_init(&source, &tensor, 5));
        assert_int_equal(source.row_bytes, rq_row_bytes((rq_type)id, ROW));
        for (uint64_t r = 0; r < ROWS; r++) {
            synth_source_row(&source, r, row);
            info->dequantize(row, values, ROW);
            for (int i = 0; i < ROW; i++) {
                assert_true(fabsf(values[i]) < 0.2f);
                sum += (double)values[i];
                square += (double)values[i] * (double)values[i];
            }
        }
        double n = (double)ROW * ROWS, mean = sum / n, std = sqrt(square / n - mean * mean);
        if (!(fabs(mean) < 0.05 * 0.02) || !(fabs(std / 0.02 - 1) < 0.05))
            fail_msg("%s: mean %g, deviation %g", info->name, mean, std);
        tried++;
    }
    assert_true(tried > 25);
}

static void rows_differ_and_repeat(void **state)
{
    uint8_t a[544], b[544];
    synth_tensor tensor = {.name = "x", .type = RQ_TYPE_Q8_0, .n_dims = 2, .ne = {512, 9, 1, 1}, .std = 1};
    synth_source one, two;
    assert_true(synth_source_init(&one, &tensor, 1) && synth_source_init(&two, &tensor, 1));
    synth_source_row(&one, 3, a), synth_source_row(&two, 3, b);
    assert_memory_equal(a, b, sizeof a);
    synth_source_row(&two, 4, b);
    assert_memory_not_equal(a, b, sizeof a);
    assert_true(synth_source_init(&two, &tensor, 2));
    synth_source_row(&two, 3, b);
    assert_memory_not_equal(a, b, sizeof a);
    tensor.name[0] = 'y';
    assert_true(synth_source_init(&two, &tensor, 1));
    synth_source_row(&two, 3, b);
    assert_memory_not_equal(a, b, sizeof a);
}

/* ---- files --------------------------------------------------------------------------------------------- */

static rq_status write_tiny(const char *path, const char *preset, const char *type, rq_error *err)
{
    synth_mixture mixture;
    assert_true(synth_mixture_find(type, false, &mixture));
    return synth_write(path, synth_preset_find(preset), &mixture, 7, false, NULL, NULL, err);
}

static size_t slurp(const char *path, char **out)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    size_t n = (size_t)ftell(file);
    rewind(file);
    *out = malloc(n);
    assert_int_equal(fread(*out, 1, n, file), n);
    fclose(file);
    return n;
}

static void a_file_is_reproducible(void **state)
{
    rq_error err;
    char *a, *b;
    assert_int_equal(write_tiny(fx_path("s1.gguf"), "tiny-qwen3moe", "q4_k_m", &err), RQ_OK);
    assert_int_equal(write_tiny(fx_path("s2.gguf"), "tiny-qwen3moe", "q4_k_m", &err), RQ_OK);
    size_t n = slurp(fx_path("s1.gguf"), &a);
    assert_int_equal(slurp(fx_path("s2.gguf"), &b), n);
    assert_memory_equal(a, b, n);
    free(a), free(b);
}

static rq_gguf_str token(const rq_gguf *g, uint64_t id)
{
    const rq_gguf_kv *tokens = NULL;
    rq_gguf_str s = {0};
    rq_error err;
    assert_int_equal(rq_gguf_get_strs(g, "tokenizer.ggml.tokens", &tokens, &err), RQ_OK);
    assert_true(rq_gguf_elem_str(tokens, id, &s));
    return s;
}

/* Every tiny file opens; its vocabulary is complete and consistent: as many tokens as embedding rows, all
 * different, every merge joins two tokens into a third, special tokens where the ids say. */
static void vocabularies_are_consistent(void **state)
{
    static const char *const presets[] = {"tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-qwen3moe"};
    for (size_t p = 0; p < 4; p++) {
        rq_gguf *g = NULL;
        rq_error err;
        const char *path = fx_path("tiny.gguf");
        assert_int_equal(write_tiny(path, presets[p], "q8_0", &err), RQ_OK);
        assert_int_equal(rq_gguf_open(path, &g, &err), RQ_OK);
        uint64_t n = rq_gguf_find_tensor(g, "token_embd.weight")->ne[1];
        const rq_gguf_kv *tokens = rq_gguf_find(g, "tokenizer.ggml.tokens");
        const rq_gguf_kv *merges = rq_gguf_find(g, "tokenizer.ggml.merges");
        assert_int_equal(tokens->count, n);
        assert_int_equal(rq_gguf_find(g, "tokenizer.ggml.token_type")->count, n);
        for (uint64_t i = 0; i < n; i++)
            for (uint64_t k = i + 1; k < n; k++) {
                rq_gguf_str a = token(g, i), b = token(g, k);
                assert_false(a.len == b.len && !memcmp(a.data, b.data, a.len));
            }
        assert_true(merges->count > 100);
        for (uint64_t m = 0; m < merges->count; m++) {
            rq_gguf_str s;
            char joined[64];
            assert_true(rq_gguf_elem_str(merges, m, &s));
            const char *space = memchr(s.data, ' ', s.len);
            assert_true(space && s.len < sizeof joined);
            snprintf(joined, sizeof joined, "%.*s%.*s", (int)(space - s.data), s.data,
                     (int)(s.data + s.len - space - 1), space + 1);
            assert_true(
                rq_gguf_str_eq(token(g, 256 + m), joined)); /* learnt tokens follow the bytes, in order */
        }
        uint32_t eos = 0;
        assert_int_equal(rq_gguf_get_u32(g, "tokenizer.ggml.eos_token_id", 0, (uint32_t)n - 1, &eos, &err),
                         RQ_OK);
        assert_true(rq_gguf_str_eq(token(g, eos), p ? "<|im_end|>" : "<|eot_id|>"));
        rq_gguf_close(g);
    }
}

/* In a vocabulary of the published size the special tokens have the published ids. */
static void special_ids_are_the_published_ones(void **state)
{
    rq_error err;
    rq_gguf *g = NULL;
    static const struct {
        const char *preset;
        uint32_t n_vocab, id;
        const char *text;
    } known[] = {{"tiny-llama", 128256, 128000, "<|begin_of_text|>"},
                 {"tiny-llama", 128256, 128006, "<|start_header_id|>"},
                 {"tiny-llama", 128256, 128009, "<|eot_id|>"},
                 {"tiny-qwen3", 151936, 151643, "<|endoftext|>"},
                 {"tiny-qwen3", 151936, 151645, "<|im_end|>"},
                 {"tiny-qwen3", 151936, 151657, "<tool_call>"},
                 {"tiny-qwen3", 151936, 151667, "<think>"},
                 {"tiny-qwen3", 151936, 151668, "</think>"}};
    synth_mixture mixture;
    assert_true(synth_mixture_find("q4_0", false, &mixture));
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        synth_preset preset = *synth_preset_find(known[i].preset);
        preset.n_vocab = known[i].n_vocab;
        preset.n_embd = 32; /* small, as only the vocabulary matters */
        preset.n_layer = 1;
        const char *path = fx_path("ids.gguf");
        assert_int_equal(synth_write(path, &preset, &mixture, 1, false, NULL, NULL, &err), RQ_OK);
        assert_int_equal(rq_gguf_open(path, &g, &err), RQ_OK);
        assert_true(rq_gguf_str_eq(token(g, known[i].id), known[i].text));
        rq_gguf_close(g);
        unlink(path);
    }
}

/* A file with holes has the size and the tensors of the real one, and takes no room. */
static void sparse_files(void **state)
{
    rq_error err;
    rq_gguf *full = NULL, *sparse = NULL;
    synth_mixture mixture;
    struct stat a, b;
    assert_true(synth_mixture_find("q4_k_m", false, &mixture));
    synth_preset preset = *synth_preset_find("tiny-llama");
    preset.n_layer = 40; /* 20 MB */
    char path[300];
    snprintf(path, sizeof path, "%s", fx_path("full.gguf"));
    assert_int_equal(synth_write(path, &preset, &mixture, 1, false, NULL, NULL, &err), RQ_OK);
    assert_int_equal(stat(path, &a), 0);
    assert_int_equal(rq_gguf_open(path, &full, &err), RQ_OK);
    unlink(path);
    snprintf(path, sizeof path, "%s", fx_path("sparse.gguf"));
    assert_int_equal(synth_write(path, &preset, &mixture, 1, true, NULL, NULL, &err), RQ_OK);
    assert_int_equal(stat(path, &b), 0);
    assert_int_equal(rq_gguf_open(path, &sparse, &err), RQ_OK);
    unlink(path);
    assert_int_equal(a.st_size, b.st_size);
    assert_true(b.st_blocks < a.st_blocks / 4);
    assert_int_equal(rq_gguf_n_tensors(full), rq_gguf_n_tensors(sparse));
    for (uint64_t i = 0; i < rq_gguf_n_tensors(full); i++) {
        const rq_gguf_tensor *x = rq_gguf_tensor_at(full, i), *y = rq_gguf_tensor_at(sparse, i);
        assert_int_equal(x->nbytes, y->nbytes);
        assert_string_equal(x->name, y->name);
        if (x->ne[1] == 1) assert_memory_equal(x->data, y->data, x->nbytes); /* vectors are real */
    }
    rq_gguf_close(full);
    rq_gguf_close(sparse);
}

static void too_small_a_vocabulary(void **state)
{
    rq_error err;
    synth_mixture mixture;
    synth_preset preset = *synth_preset_find("tiny-llama");
    assert_true(synth_mixture_find("f16", false, &mixture));
    preset.n_vocab = synth_vocab_least(SYNTH_LLAMA) - 1;
    const char *path = fx_path("least.gguf");
    assert_int_equal(synth_write(path, &preset, &mixture, 1, false, NULL, NULL, &err), RQ_ERR_ARGUMENT);
    assert_int_equal(access(path, F_OK), -1);
    preset.n_vocab++;
    assert_int_equal(synth_write(path, &preset, &mixture, 1, false, NULL, NULL, &err), RQ_OK);
}

static void each_allocation_fails_once(void **state)
{
    const char *path = fx_path("faults.gguf");
    int64_t alive = rq_mem_alive();
    uint64_t n = 0;
    rq_status status;
    do {
        rq_error err = {0};
        rq_mem_fail_at(++n);
        status = write_tiny(path, "tiny-qwen2", "q4_0", &err);
        rq_mem_fail_at(0);
        assert_int_equal(rq_mem_alive(), alive);
        assert_int_equal(access(path, F_OK), status ? -1 : 0);
        if (status) assert_int_equal(status, RQ_ERR_MEMORY);
    } while (status);
    assert_true(n > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mixtures_match_dry_runs),
        cmocka_unit_test(mixtures_match_written_files),
        cmocka_unit_test(names_of_types),
        cmocka_unit_test(llama3_factors),
        cmocka_unit_test(weights_have_the_promised_size),
        cmocka_unit_test(rows_differ_and_repeat),
        cmocka_unit_test(a_file_is_reproducible),
        cmocka_unit_test(vocabularies_are_consistent),
        cmocka_unit_test(special_ids_are_the_published_ones),
        cmocka_unit_test(sparse_files),
        cmocka_unit_test(too_small_a_vocabulary),
        cmocka_unit_test(each_allocation_fails_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
