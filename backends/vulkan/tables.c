/* tables.c - the constant tables of the quantised types as weights.glsl expects them: one after another. */
#include "backends/vulkan/vk.h"

#include "backends/base/mem.h"
#include "backends/formats/kv_codec.h"
#include "backends/formats/tables.h"

#include <string.h>

/* As in shaders/pages.glsl. */
enum { TAB_LEVELS = 36032, TAB_SCALES = 36128, TAB_CODEC = 39200, TAB_LOG2 = 39260, TABLE_BYTES = 39388 };

uint8_t *vk_tables_make(uint64_t *bytes)
{
    /* offsets: TAB_* of shaders/weights.glsl */
    const struct {
        const void *data;
        size_t bytes, offset;
    } parts[] = {
        {rq_iq2xxs_grid, sizeof rq_iq2xxs_grid, 0},
        {rq_iq2xs_grid, sizeof rq_iq2xs_grid, 2048},
        {rq_iq2s_grid, sizeof rq_iq2s_grid, 6144},
        {rq_iq1s_grid, sizeof rq_iq1s_grid, 14336},
        {rq_iq3xxs_grid, sizeof rq_iq3xxs_grid, 30720},
        {rq_iq3s_grid, sizeof rq_iq3s_grid, 31744},
        {rq_ksigns, sizeof rq_ksigns, 33792},
        {rq_iq4nl_values, sizeof rq_iq4nl_values, 33920},
        {rq_mxfp4_values, sizeof rq_mxfp4_values, 33936},
        {rq_e8m0_half, sizeof rq_e8m0_half, 33952},
        {rq_ue4m3_half, sizeof rq_ue4m3_half, 34976},
    };
    const size_t n = sizeof parts / sizeof *parts;
    uint8_t *out = rq_calloc(1, TABLE_BYTES);
    if (!out) return NULL;
    for (size_t i = 0; i < n; i++) memcpy(out + parts[i].offset, parts[i].data, parts[i].bytes);
    for (uint32_t i = 0; i < 3; i++) {
        const rq_kv_codec *row = rq_kv_codec_of((rq_kv_form)(RQ_KV_C2 + i));
        const float gains[2] = {row->gain_k, row->gain_v};
        memcpy(out + TAB_LEVELS + 32 * i, row->level, 32);
        for (uint32_t e = 0; e < 256; e++) {
            float scale = rq_kv_scale(row, (uint8_t)e);
            memcpy(out + TAB_SCALES + 4 * (256 * i + e), &scale, 4);
        }
        const int32_t search[3] = {row->base, row->slope, row->offset};
        memcpy(out + TAB_CODEC + 20 * i, search, 12);
        memcpy(out + TAB_CODEC + 20 * i + 12, gains, 8);
    }
    for (uint32_t i = 0; i < 128; i++) out[TAB_LOG2 + i] = (uint8_t)(rq_kv_log2(128 + i) - 7 * 256);
    *bytes = TABLE_BYTES;
    return out;
}
