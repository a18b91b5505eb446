/* tables.c - the constant tables of the quantised types as weights.glsl expects them: one after another. */
#include "backends/vulkan/vk.h"

#include "backends/base/mem.h"
#include "backends/formats/tables.h"

#include <string.h>

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
    const size_t n = sizeof parts / sizeof *parts, total = parts[n - 1].offset + parts[n - 1].bytes;
    uint8_t *out = rq_calloc(1, total);
    if (!out) return NULL;
    for (size_t i = 0; i < n; i++) memcpy(out + parts[i].offset, parts[i].data, parts[i].bytes);
    *bytes = total;
    return out;
}
