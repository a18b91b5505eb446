/* isa.c - what the machine can run, and the choice. */
#include "backends/cpu/isa.h"

#include <string.h>

#include "backends/cpu/kernels/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* F16C is CPUID leaf 1, ECX bit 29; the other bits (and that the system saves the registers) come from the
 * compiler's own check. */
static bool runs_avx2(void)
{
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}

static bool runs_avx512(void)
{
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

#if defined(__aarch64__)
#include <sys/auxv.h>

/* Bit 20 of the auxiliary vector's AT_HWCAP on arm64 Linux: the dot-product instructions (HWCAP_ASIMDDP). */
static bool runs_neon_dot(void)
{
    return getauxval(AT_HWCAP) >> 20 & 1;
}
#endif

static bool runs_always(void)
{
    return true;
}

static const struct {
    rq_cpu_isa isa;
    bool (*runs)(void);
} built[] = {
    {{"scalar", RQ_ISA_SCALAR, &rq_kernels_scalar}, runs_always},
#if defined(__x86_64__)
    {{"avx2", RQ_ISA_AVX2, &rq_kernels_avx2}, runs_avx2},
    {{"avx512", RQ_ISA_AVX512, &rq_kernels_avx512}, runs_avx512},
#elif defined(__aarch64__)
    {{"neon", RQ_ISA_NEON, &rq_kernels_neon}, runs_always},
    {{"neon_dot", RQ_ISA_NEON, &rq_kernels_neon_dot}, runs_neon_dot},
#endif
};

const rq_cpu_isa *rq_cpu_isa_at(size_t i)
{
    for (size_t j = 0; j < sizeof built / sizeof built[0]; j++)
        if (built[j].runs() && i-- == 0) return &built[j].isa;
    return NULL;
}

const rq_cpu_isa *rq_cpu_isa_best(void)
{
    const rq_cpu_isa *best = &built[0].isa;
    for (size_t i = 0; rq_cpu_isa_at(i); i++) best = rq_cpu_isa_at(i);
    return best;
}

const rq_cpu_isa *rq_cpu_isa_by_name(const char *name)
{
    const rq_cpu_isa *isa;
    for (size_t i = 0; name && (isa = rq_cpu_isa_at(i)); i++)
        if (strcmp(isa->name, name) == 0) return isa;
    return NULL;
}

bool rq_cpu_machine_runs(const char *name)
{
    if (strcmp(name, "scalar") == 0) return true;
#if defined(__x86_64__)
    if (strcmp(name, "avx2") == 0) return runs_avx2();
    if (strcmp(name, "avx512") == 0) return runs_avx512();
#elif defined(__aarch64__)
    if (strcmp(name, "neon") == 0) return true;
    if (strcmp(name, "neon_dot") == 0) return runs_neon_dot();
#endif
    return false;
}
