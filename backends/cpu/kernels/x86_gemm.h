/* x86_gemm.h - many columns, and the choice of a kernel by type. Include after defining rq_core256 and rq_core32
 * (the products of one tile with up to RQ_CORE_COLS columns) and RQ_CORE_COLS (4 or 8). */
#ifndef RQ_X86_GEMM_H
#define RQ_X86_GEMM_H

#include "backends/cpu/kernels/x86_float.h"
#include "backends/cpu/kernels/x86_tile.h"

typedef void (*rq_pack_fn)(const uint8_t *const rows[8], size_t span, int n32, rq_tile *tile);
/* Adds one span of 16 rows x cols columns to acc[t][0 .. 15]. */
typedef void (*rq_core_fn)(const rq_tile tile[2], const void *const *a, float *const *acc, int n32, int cols);

#if RQ_CORE_COLS == 8
#define RQ_WIDEST(core, act, ...)                                                                            \
    case 8:                                                                                                  \
        core(tile, (const act *const *)a, acc, n32, 8, __VA_ARGS__);                                         \
        break;
#else
#define RQ_WIDEST(core, act, ...)
#endif
#define RQ_CORE(name, core, act, ...)                                                                        \
    static void rq_core_##name(const rq_tile tile[2], const void *const *a, float *const *acc, int n32,      \
                               int cols)                                                                     \
    {                                                                                                        \
        switch (cols) {                                                                                      \
            RQ_WIDEST(core, act, __VA_ARGS__)                                                                \
        case 1:                                                                                              \
            core(tile, (const act *const *)a, acc, n32, 1, __VA_ARGS__);                                     \
            break;                                                                                           \
        case 2:                                                                                              \
            core(tile, (const act *const *)a, acc, n32, 2, __VA_ARGS__);                                     \
            break;                                                                                           \
        case 3:                                                                                              \
            core(tile, (const act *const *)a, acc, n32, 3, __VA_ARGS__);                                     \
            break;                                                                                           \
        default:                                                                                             \
            core(tile, (const act *const *)a, acc, n32, 4, __VA_ARGS__);                                     \
            break;                                                                                           \
        }                                                                                                    \
    }
#define RQ_CORE_256(id, name, block_bytes, is_signed, offset, has_min, group, chain, sign)                   \
    RQ_CORE(name, rq_core256, rq_act256, group, chain, offset, has_min, sign)
#define RQ_CORE_32(id, name, span_bytes, offset, has_min, chain, sign)                                       \
    RQ_CORE(name, rq_core32, rq_act32, chain, offset, has_min, sign, 0)
RQ_TYPES_256(RQ_CORE_256)
RQ_TYPES_32(RQ_CORE_32)
RQ_CORE(nvfp4, rq_core32, rq_act32, 1, 0, 0, 1, 1)

/* All columns of the call: the accumulators of a tile's 16 rows live in scratch between spans. */
static void rq_gemm(const rq_mm_call *c, rq_pack_fn pack, rq_core_fn core)
{
    rq_tile *tile = (rq_tile *)c->scratch; /* two */
    float *acc = (float *)(c->scratch + (2 * sizeof(rq_tile) + 63) / 64 * 64);
    const rq_type_info *info = rq_type_get(c->type);
    size_t span_bytes = (size_t)(RQ_SPAN / info->block_elems) * info->block_bytes;
    int64_t spans = (c->n_in + RQ_SPAN - 1) / RQ_SPAN;
    for (int64_t r = c->r0; r < c->r1; r += 16) {
        const uint8_t *rows[2][8];
        rq_rows8(c, r, rows[0]);
        rq_rows8(c, r + 8, rows[1]);
        size_t ahead = rq_ahead(c, r, 16);
        memset(acc, 0, (size_t)c->n_cols * 16 * sizeof(float));
        for (int64_t s = 0; s < spans; s++) {
            int n32 = rq_groups_left(c->n_in - s * RQ_SPAN);
            for (int i = 0; i < 16; i++)
                rq_prefetch(rows[i / 8][i % 8] + (size_t)s * span_bytes, ahead, (int)span_bytes);
            pack(rows[0], (size_t)s, n32, &tile[0]);
            pack(rows[1], (size_t)s, n32, &tile[1]);
            for (int t = 0, cols; t < c->n_cols; t += cols) {
                int left = c->n_cols - t;
                const void *a[RQ_CORE_COLS];
                float *y[RQ_CORE_COLS];
                cols = left >= RQ_CORE_COLS ? RQ_CORE_COLS : left < 4 ? left : 4;
                for (int i = 0; i < cols; i++) {
                    a[i] = (const rq_act256 *)c->acts[t + i] + s;
                    y[i] = acc + 16 * (t + i);
                    /* The activations of the next columns: 320 bytes each, a row apart. */
                    if (t + RQ_CORE_COLS + i < c->n_cols)
                        rq_prefetch(c->acts[t + RQ_CORE_COLS + i], (size_t)s * sizeof(rq_act256),
                                    sizeof(rq_act256));
                }
                core(tile, a, y, n32, cols);
            }
        }
        for (int t = 0; t < c->n_cols; t++) {
            int64_t n = c->r1 - r < 16 ? c->r1 - r : 16;
            memcpy(c->y[t] + r, acc + 16 * t, (size_t)n * sizeof(float));
        }
    }
}

_Static_assert(2 * sizeof(rq_tile) + 64 + RQ_MM_COLS * 16 * sizeof(float) <= RQ_MM_SCRATCH, "scratch");
_Static_assert(RQ_FT_COLS *RQ_FT_ROWS * 32 + RQ_FT_ROWS * RQ_FT_K * 4 <= RQ_MM_SCRATCH, "scratch");

typedef struct rq_kernel {
    void (*few)(const rq_mm_call *c);
    int most; /* columns for `few` */
    rq_pack_fn pack;
    rq_core_fn core;
} rq_kernel;

#define RQ_ENTRY_256(id, name, block_bytes, is_signed, offset, has_min, group, chain, sign)                  \
    [RQ_TYPE_##id] = {rq_gemv_##name, RQ_FEW_256, rq_pack_##name, rq_core_##name},
#define RQ_ENTRY_32(id, name, span_bytes, offset, has_min, chain, sign)                                      \
    [RQ_TYPE_##id] = {rq_gemv_##name, RQ_FEW_32, rq_pack_##name, rq_core_##name},
static const rq_kernel rq_table[RQ_TYPE_LIMIT] = {
    RQ_TYPES_256(RQ_ENTRY_256)
        RQ_TYPES_32(RQ_ENTRY_32)[RQ_TYPE_NVFP4] = {rq_gemv_nvfp4, 1, rq_pack_nvfp4, rq_core_nvfp4},
};

static void rq_matmul_any(const rq_mm_call *c)
{
    switch (c->type) {
    case RQ_TYPE_F32:
        rq_matmul_f32(c);
        return;
    case RQ_TYPE_F16:
        rq_matmul_f16(c);
        return;
    case RQ_TYPE_BF16:
        rq_matmul_bf16(c);
        return;
    case RQ_TYPE_F64:
        rq_matmul_f64(c);
        return;
    default:
        break;
    }
    const rq_kernel *k = &rq_table[c->type];
    if (c->n_cols <= k->most)
        k->few(c);
    else
        rq_gemm(c, k->pack, k->core);
}

#endif
