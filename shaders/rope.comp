// rope.comp - rotary position embedding; one invocation per pair or passed element. Moves each element once.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 64) in;

// cos and sin of a >= 0 up to 2^20 and beyond. Whole turns are taken away with constants short enough that the
// products are exact (Cody & Waite 1980): k below 2^18 is cut into parts of 9 bits, 2 pi into pieces of 15.
void cos_sin(float a, out float c, out float s)
{
    float k = floor(a * 0.15915494309189535 + 0.5), k1 = floor(k / 512.0) * 512.0, k0 = k - k1;
    const float P1 = 6.282958984375, P2 = 2.263188362121582e-4, P3 = 3.968374073792802e-9;
    precise float r = a - k1 * P1;
    r = r - k0 * P1;
    r = r - k1 * P2;
    r = r - k0 * P2;
    r = r - k * P3;
    // quadrant, then polynomials on [-pi/4, pi/4] (minimax coefficients of S. Moshier's Cephes sinf, cosf)
    float q = floor(r * 0.6366197723675814 + 0.5);
    precise float z = r - q * 1.5703125;
    z = z - q * 4.838267923332751e-4;
    float w = z * z;
    float sn = ((-1.9515295891e-4 * w + 8.3321608736e-3) * w - 1.6666654611e-1) * w * z + z;
    float cs = ((2.443315711809948e-5 * w - 1.388731625493765e-3) * w + 4.166664568298827e-2) * w * w - 0.5 * w + 1.0;
    int m = int(q) & 3;
    c = m == 0 ? cs : m == 1 ? -sn : m == 2 ? -cs : sn;
    s = m == 0 ? sn : m == 1 ? cs : m == 2 ? -sn : -cs;
}

// a: step, x, inv_freq, y; u: d, heads, n_rot, strides of heads and tokens in floats, pairing (1: neox), magnitude
void main()
{
    uint64_t step = push.a[0];
    uint i = gl_GlobalInvocationID.x, h = gl_WorkGroupID.y, t = gl_WorkGroupID.z, d = push.u[0], n_rot = push.u[2];
    if (t >= U32(step).d[STEP_N_TOKENS]) return;
    F32 x = F32(push.a[1] + 4ul * (uint64_t(h) * push.u[3] + uint64_t(t) * push.u[4]));
    F32 y = F32(push.a[3] + 4ul * (uint64_t(t) * push.u[1] + h) * d);
    uint half_rot = n_rot / 2u;
    if (i < half_rot) {
        float c, s, m = uintBitsToFloat(push.u[6]);
        precise float angle = float(U32(step).d[U32(step).d[STEP_TOKEN_POS] + t]) * F32(push.a[2]).d[i];
        cos_sin(angle, c, s);
        uint p = push.u[5] != 0u ? i : 2u * i, q = push.u[5] != 0u ? i + half_rot : 2u * i + 1u;
        float a = x.d[p], b = x.d[q];
        y.d[p] = m * (a * c - b * s);
        y.d[q] = m * (a * s + b * c);
    } else if (i + half_rot < d) {
        y.d[i + half_rot] = x.d[i + half_rot];
    }
}
