// select.comp - the rows of the head: y[:, r] = hidden[:, rows[r].token].
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
layout(local_size_x = 64) in;
// a: step, persist, y; u: n, rows of persist
void main()
{
    uint i = gl_GlobalInvocationID.x, r = gl_WorkGroupID.y, n = push.u[0];
    U32 step = U32(push.a[0]);
    if (i >= n || r >= step.d[STEP_N_ROWS]) return;
    uint token = step.d[step.d[STEP_ROWS] + ROW_WORDS * r];
    if (token < push.u[1]) F32(push.a[2]).d[r * n + i] = F32(push.a[1]).d[token * n + i];
}
