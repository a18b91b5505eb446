// dot.glsl - activations as bytes (quantize.comp writes them), and dot products of them with codes. For n rows of n_in
// elements: n * n_in bytes, then for each sixteen elements of each row two floats: the scale d of their bytes, and d
// times the sum of the bytes, which is what the offset of a weight meets.
// The instruction is named directly (SPV_KHR_integer_dot_product): compilers older than its GLSL extension take it.
#extension GL_EXT_spirv_intrinsics : require
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6018, 6019], id = 4450)
int dot4_packed(uint a, uint b, spirv_literal int format); // OpSDot of PackedVectorFormat4x8Bit: signed bytes

int dot16(uvec4 a, uvec4 b)
{
    return dot4_packed(a.x, b.x, 0) + dot4_packed(a.y, b.y, 0) + dot4_packed(a.z, b.z, 0) + dot4_packed(a.w, b.w, 0);
}

layout(buffer_reference, scalar, buffer_reference_align = 8) buffer F32x2 { vec2 d[]; };

// Run r of sixteen elements of a row.
void quantized16(uint64_t x, uint n_rows, uint n_in, uint row, uint r, out uvec4 q, out vec2 d)
{
    q = V16(x + uint64_t(row) * n_in).d[r];
    d = F32x2(x + uint64_t(n_rows) * n_in).d[row * (n_in / 16u) + r];
}
