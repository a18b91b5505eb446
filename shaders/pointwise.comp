// pointwise.comp - add, multiply, scale, gated activations, copies: one invocation per element.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 64) in;
layout(constant_id = 0) const uint OP = 0u;
const uint ADD = 0u, MUL = 1u, SCALE = 2u, SILU = 3u, GELU = 4u, COPY = 5u;

// exp with an error of a few units in the last place, whatever the driver's is: 2^k times a polynomial of the rest.
float exp_exact(float x)
{
    x = clamp(x, -104.0, 88.72);
    float k = floor(x * 1.44269504 + 0.5);
    float r = (x - k * 0.693359375) + k * 2.12194440e-4; // the first product is exact
    float p = 1.9875691500e-4;
    p = p * r + 1.3981999507e-3;
    p = p * r + 8.3334519073e-3;
    p = p * r + 4.1665795894e-2;
    p = p * r + 1.6666665459e-1;
    p = p * r + 5.0000001201e-1;
    float e = p * r * r + r + 1.0;
    int i = int(k), half_i = i / 2;
    return e * uintBitsToFloat(uint(half_i + 127) << 23) * uintBitsToFloat(uint(i - half_i + 127) << 23);
}

float quotient(float a, float b)
{
    float q = a / b;
    return isinf(b) ? q : q + (a - q * b) / b;
}

// a: x, second operand, y; u: n, ne1, ne2, rows, strides of x in floats [3], of the second [3], factor
void main()
{
    uint i = gl_GlobalInvocationID.x, r = gl_WorkGroupID.y + gl_WorkGroupID.z * 32768u, n = push.u[0];
    if (i >= n || r >= push.u[3]) return;
    uint i1 = r % push.u[1], rest = r / push.u[1], i2 = rest % push.u[2], i3 = rest / push.u[2];
    float x = F32(push.a[0]).d[i1 * push.u[4] + i2 * push.u[5] + i3 * push.u[6] + i], b = 0.0;
    if (OP != SCALE && OP != COPY) b = F32(push.a[1]).d[i1 * push.u[7] + i2 * push.u[8] + i3 * push.u[9] + i];
    float y = x;
    if (OP == ADD) y = x + b;
    if (OP == MUL) y = x * b;
    if (OP == SCALE) y = x * uintBitsToFloat(push.u[10]);
    if (OP == SILU) y = quotient(x, 1.0 + exp_exact(-x)) * b;
    if (OP == GELU) { // (1 + tanh z) / 2 = 1 / (1 + exp(-2 z))
        float z = 0.7978845608028654 * (x + 0.044715 * x * x * x);
        y = quotient(x, 1.0 + exp_exact(-2.0 * z)) * b;
    }
    F32(push.a[2]).d[r * n + i] = y;
}
