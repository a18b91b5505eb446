/* Kernels use the words of cuda/simt.cuh and no others: what would run on a card and not in the simulator, or only on some
 * cards, or in no fixed order, is found here by its name. */
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* A word, and a line with it that must be found. */
static const struct {
    const char *word, *planted;
} FOREIGN[] = {
    /* assembly and intrinsics, and with them partial masks, managed memory and questions for an architecture */
    {"asm", "    asm volatile(\"bar.sync 0;\");\n"},
    {"__", "    float v = __shfl_xor_sync(0xffffu, x, 1);\n"},
    {"__", "CONSTANT bool new = __CUDA_ARCH__ >= 900;\n"},
    {"threadIdx", "    uint32_t i = threadIdx.x;\n"},
    {"blockIdx", "    uint32_t i = blockIdx.y;\n"},
    {"gridDim", "    uint32_t n = gridDim.x;\n"},
    {"blockDim", "    uint32_t n = blockDim.x;\n"},
    {"std::", "    float v = std::exp(x);\n"},
    /* cooperative groups, barriers of a grid, clusters, dynamic parallelism */
    {"cooperative", "namespace cg = cooperative_groups;\n"},
    {"this_grid", "    this_grid().sync();\n"},
    {"cg::", "    cg::sync(block);\n"},
    {"cluster", "    cluster_arrive();\n"},
    {"<<<", "    other<<<1, 32>>>(p);\n"},
    /* what some cards have */
    {"wgmma", "    wgmma_fence();\n"},
    {"tma", "    tma_load(to, from);\n"},
    {"cp.async", "    \"cp.async.bulk\";\n"},
    {"mbarrier", "    mbarrier_init(b, 1);\n"},
    /* atomics that are not those of u32 */
    {"atomicAdd", "    atomicAdd(&sum, v);\n"},
    {"atomicCAS", "    atomicCAS(&word, old, v);\n"},
    {"atomicExch", "    atomicExch(&word, v);\n"},
    /* waiting for other blocks */
    {"while (true", "    while (true) {\n"},
    {"while (1", "    while (1)\n"},
    {"while (load", "    while (load4(p.flag) == 0) {\n"},
    {"volatile", "    while (*(volatile uint32_t *)p.flag == 0) {\n"},
    {"goto", "    goto again;\n"},
    /* memory and output of the runtime library */
    {"cudaMalloc", "    cudaMallocManaged(&p, 4);\n"},
    {"malloc", "    float *p = (float *)malloc(4);\n"},
    {"printf", "    printf(\"here\\n\");\n"},
    /* one text for card and simulator */
    {"simt::", "    simt::barrier();\n"},
    {"#if", "#ifdef RQ_SIMULATED\n"},
    {"#if", "  #if 1\n"},
    {"# if", "# if 1\n"},
    {"#include <", "#include <cuda_fp16.h>\n"},
    {"#include \"tests", "#include \"tests/simt/vocabulary.h\"\n"},
};
enum { N_FOREIGN = sizeof FOREIGN / sizeof *FOREIGN };

/* Files with foreign words: says where, and returns how many lines there are. */
static uint32_t foreign_lines(FILE *in, const char *name, bool quiet)
{
    char line[512];
    uint32_t bad = 0;
    for (uint32_t number = 1; fgets(line, sizeof line, in); number++) {
        char *comment = strstr(line, "//");
        if (comment) *comment = 0;
        if (strstr(line, "#ifndef RQ_CUDA_")) continue; /* the guard of a header */
        for (size_t f = 0; f < N_FOREIGN; f++) {
            if (!strstr(line, FOREIGN[f].word)) continue;
            if (!quiet) printf("%s:%u: %s is not a word of cuda/simt.cuh\n", name, number, FOREIGN[f].word);
            bad++;
            break;
        }
    }
    return bad;
}

static void kernels_keep_to_their_words(void **state)
{
    glob_t files;
    assert_int_equal(glob(RQVK_TEST_DATA "/../../cuda/*.cu*", 0, NULL, &files), 0);
    uint32_t n = 0, bad = 0;
    for (size_t i = 0; i < files.gl_pathc; i++) {
        const char *path = files.gl_pathv[i];
        if (strstr(path, "/simt.cuh")) continue;
        FILE *in = fopen(path, "r");
        assert_non_null(in);
        bad += foreign_lines(in, path, false);
        fclose(in);
        n++;
    }
    globfree(&files);
    assert_true(n >= 10);
    assert_int_equal(bad, 0);
}

static uint32_t found_in(const char *text)
{
    FILE *in = fmemopen((void *)(size_t)text, strlen(text), "r");
    assert_non_null(in);
    uint32_t bad = foreign_lines(in, "", true);
    fclose(in);
    return bad;
}

static void planted_words_are_found(void **state)
{
    static const char right[] =
        "// a kernel; asm is for others\n#ifndef RQ_CUDA_ROWS_CUH\n"
        "#include \"cuda/common.cuh\"\n#pragma unroll\n"
        "KERNEL(scale, cuda_rows_args, 128) // not __global__\n{\n    block_sync();\n}\n";
    assert_int_equal(found_in(right), 0);
    for (size_t i = 0; i < N_FOREIGN; i++) {
        char text[1024];
        assert_non_null(strstr(FOREIGN[i].planted, FOREIGN[i].word));
        snprintf(text, sizeof text, "%s%s}\n", right, FOREIGN[i].planted);
        if (found_in(text) != 1) fail_msg("not found: %s", FOREIGN[i].planted);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernels_keep_to_their_words),
        cmocka_unit_test(planted_words_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
