/* x86_tile.h - a tile of eight rows x 256 elements, decoded once and used for many columns.
 *
 * The codes are turned so that a register holds the same four elements of eight rows; one activation is then
 * four bytes broadcast from memory, and sums of rows need no horizontal additions. */
#ifndef RQ_X86_TILE_H
#define RQ_X86_TILE_H

#include "backends/cpu/kernels/x86_gemv.h"

/* q[s]: elements 4 s .. 4 s + 3 of eight rows. sc[g]: the scale of group g, in both words of a row's lane.
 * mn[p]: two words per row, the minima (or -offset * scale) of the groups whose activation sums are dword p of
 * bs32 (group 32) or bsx (group 16). */
typedef struct rq_tile256 {
    __m256i q[64], sc[16], mn[8];
    __m256 d, dm;
} rq_tile256;

/* d[2 j], d[2 j + 1]: scales of the halves of group j (equal but for NVFP4). */
typedef struct rq_tile32 {
    __m256i q[64];
    __m256 d[16], dm[8];
} rq_tile32;

typedef union rq_tile {
    rq_tile256 t256;
    rq_tile32 t32;
} rq_tile;

RQ_INLINE void rq_tile_finish256(__m256i sc[8], __m256i mn[8], rq_tile256 *t, const int group,
                                 const int offset, const int has_min)
{
    __m256i u[8], o[8];
    if (group == 32) {
        for (int i = 0; i < 8; i++)
            u[i] = _mm256_blend_epi32(_mm256_unpacklo_epi16(sc[i], sc[i]),
                                      _mm256_unpackhi_epi16(sc[i], sc[i]), 0xf0);
        rq_transpose8(u, t->sc);
    } else {
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 8; i++)
                u[i] = half ? _mm256_unpackhi_epi16(sc[i], sc[i]) : _mm256_unpacklo_epi16(sc[i], sc[i]);
            rq_transpose8(u, o);
            for (int i = 0; i < 4; i++) {
                t->sc[8 * half + 2 * i] = o[i];
                t->sc[8 * half + 2 * i + 1] = o[4 + i];
            }
        }
    }
    if (has_min) rq_transpose8(mn, t->mn);
    if (offset) {
        for (int i = 0; i < 8; i++) u[i] = _mm256_mullo_epi16(sc[i], _mm256_set1_epi16((short)-offset));
        rq_transpose8(u, t->mn);
    }
}

#define RQ_PACK_256(id, name, block_bytes, is_signed, offset, has_min, group, chain, sign)                   \
    static void rq_pack_##name(const uint8_t *const rows[8], size_t span, int n32, rq_tile *tile)            \
    {                                                                                                        \
        rq_tile256 *t = &tile->t256;                                                                         \
        __m256i codes[8][8], sc[8], mn[8];                                                                   \
        float d[8], dm[8];                                                                                   \
        for (int i = 0; i < 8; i++) {                                                                        \
            rq_u256 u;                                                                                       \
            rq_u_##name(rows[i] + span * (block_bytes), &u);                                                 \
            for (int j = 0; j < 8; j++)                                                                      \
                codes[j][i] = is_signed && offset                                                            \
                                  ? _mm256_add_epi8(u.q[j], _mm256_set1_epi8((char)(offset)))                \
                                  : u.q[j];                                                                  \
            sc[i] = u.sc;                                                                                    \
            d[i] = u.d;                                                                                      \
            mn[i] = has_min ? u.mn : u.sc;                                                                   \
            dm[i] = has_min ? u.dm : 0.0f;                                                                   \
        }                                                                                                    \
        for (int j = 0; j < 8; j++) rq_transpose8(codes[j], t->q + 8 * j);                                   \
        t->d = _mm256_loadu_ps(d);                                                                           \
        t->dm = _mm256_loadu_ps(dm);                                                                         \
        rq_tile_finish256(sc, mn, t, group, offset, has_min);                                                \
    }
RQ_TYPES_256(RQ_PACK_256)

#define RQ_PACK_32(id, name, span_bytes, offset, has_min, chain, sign)                                       \
    static void rq_pack_##name(const uint8_t *const rows8[8], size_t span, int n32, rq_tile *tile)           \
    {                                                                                                        \
        rq_tile32 *t = &tile->t32;                                                                           \
        const uint8_t *rows[8];                                                                              \
        for (int i = 0; i < 8; i++) rows[i] = rows8[i] + span * (span_bytes);                                \
        for (int j = 0; j < n32; j++) {                                                                      \
            __m256i codes[8];                                                                                \
            for (int i = 0; i < 8; i++) codes[i] = rq_g_##name(rows[i], j);                                  \
            rq_transpose8(codes, t->q + 8 * j);                                                              \
            t->d[2 * j] = RQ_D_##name(rows, j);                                                              \
            if (has_min) t->dm[j] = RQ_M_##name(rows, j);                                                    \
        }                                                                                                    \
    }
RQ_TYPES_32(RQ_PACK_32)

static void rq_pack_nvfp4(const uint8_t *const rows8[8], size_t span, int n32, rq_tile *tile)
{
    rq_tile32 *t = &tile->t32;
    const uint8_t *rows[8];
    for (int i = 0; i < 8; i++) rows[i] = rows8[i] + span * 144;
    for (int j = 0; j < n32; j++) {
        __m256i codes[8];
        for (int i = 0; i < 8; i++) codes[i] = _mm256_sub_epi8(rq_g_nvfp4(rows[i], j), _mm256_set1_epi8(12));
        rq_transpose8(codes, t->q + 8 * j);
        t->d[2 * j] = RQ_DH_nvfp4(rows, j, 0);
        t->d[2 * j + 1] = RQ_DH_nvfp4(rows, j, 1);
    }
}

#endif
