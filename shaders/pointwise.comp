// pointwise.comp - add, multiply, scale, soft cap, gated activations, copies: one invocation per element.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "exact.glsl"
layout(local_size_x = 64) in;
layout(constant_id = 0) const uint OP = 0u;
const uint ADD = 0u, MUL = 1u, SCALE = 2u, SILU = 3u, GELU = 4u, COPY = 5u, SIGMOID = 6u, SOFTCAP = 7u;

// a: x, second operand, y; u: n, ne1, ne2, rows, strides of x in floats [3], of the second [3], factor, [11] has x one
// element to a row
void main()
{
    uint i = gl_GlobalInvocationID.x, r = gl_WorkGroupID.y + gl_WorkGroupID.z * 32768u, n = push.u[0];
    if (i >= n || r >= push.u[3]) return;
    uint i1 = r % push.u[1], rest = r / push.u[1], i2 = rest % push.u[2], i3 = rest / push.u[2];
    float x = F32(push.a[0]).d[i1 * push.u[4] + i2 * push.u[5] + i3 * push.u[6] + (push.u[11] != 0u ? 0u : i)],
          b = 0.0;
    if (OP != SCALE && OP != COPY && OP != SOFTCAP)
        b = F32(push.a[1]).d[i1 * push.u[7] + i2 * push.u[8] + i3 * push.u[9] + i];
    float y = x;
    if (OP == ADD) y = x + b;
    if (OP == MUL) y = x * b;
    if (OP == SCALE) y = x * uintBitsToFloat(push.u[10]);
    if (OP == SILU) y = quotient(x, 1.0 + exp_exact(-x)) * b;
    if (OP == SIGMOID) y = sigmoid(x) * b;
    if (OP == GELU) { // (1 + tanh z) / 2 = 1 / (1 + exp(-2 z))
        float z = 0.7978845608028654 * (x + 0.044715 * x * x * x);
        y = quotient(x, 1.0 + exp_exact(-2.0 * z)) * b;
    }
    if (OP == SOFTCAP) { // tanh |z| = (1 - e) / (1 + e), e = exp(-2 |z|); near 0 its series, then 62/2835 |z|^9
        float cap = uintBitsToFloat(push.u[10]), z = quotient(abs(x), cap);
        float e = exp_exact(-2.0 * z), zz = z * z;
        float series = z * (1.0 - zz * (0.33333334 - zz * (0.13333334 - zz * 0.053968254)));
        y = cap * (z < 0.2 ? series : quotient(1.0 - e, 1.0 + e));
        if (x < 0.0) y = -y;
    }
    F32(push.a[2]).d[r * n + i] = y;
}
