// kv_write.comp - keys and values of the step into their pages; one invocation per element, keys transposed.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "pages.glsl"
layout(local_size_x = 64) in;

void put(uint64_t p, uint i, uint type, float x)
{
    if (type == 0u)
        F32(p).d[i] = x;
    else
        U16(p).d[i] = uint16_t(type == 1u ? to_half_bits(x) : to_bf16_bits(x));
}

// a: step, pool, k, v; u: group, layer, strides of k [heads, tokens], of v, in floats
void main()
{
    U32 step = U32(push.a[0]);
    uint64_t pool = push.a[1];
    uint i = gl_GlobalInvocationID.x, h = gl_WorkGroupID.y, t = gl_WorkGroupID.z;
    if (t >= step.d[STEP_N_TOKENS] || int(step.d[step.d[STEP_TOKEN_RUN] + t]) < 0) return;
    uint slot = step.d[step.d[STEP_TOKEN_SLOT + push.u[0]] + t], page = slot / 64u, at = slot % 64u;
    if (!page_exists(pool, page)) return;
    uint dv = pool_word(pool, G_DV);
    uint64_t block = page_block(pool, page, push.u[1], h);
    if (i < pool_word(pool, G_DK))
        put(block, i * 64u + at, pool_word(pool, G_TYPE_K), F32(push.a[2]).d[h * push.u[2] + t * push.u[3] + i]);
    if (i < dv)
        put(block + 16ul * pool_word(pool, G_K_16), at * dv + i, pool_word(pool, G_TYPE_V),
            F32(push.a[3]).d[h * push.u[4] + t * push.u[5] + i]);
}
