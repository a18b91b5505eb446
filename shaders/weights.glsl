// weights.glsl - de-quantisation, once per tensor type: eight neighbouring elements of a row.
// Layouts and formulas: backends/formats/dequantize.c and dequantize_iq.c; the products keep their order, so that
// the bits are the same. TYPE is a specialisation constant (GGUF's number of the type).
#ifndef WEIGHT_TYPE_ID
#define WEIGHT_TYPE_ID 0
#endif
layout(constant_id = WEIGHT_TYPE_ID) const uint TYPE = 0u;

// Tables, one after another in device memory, in bytes from their start (backends/vulkan/tables.c).
const uint TAB_IQ2XXS = 0u, TAB_IQ2XS = 2048u, TAB_IQ2S = 6144u, TAB_IQ1S = 14336u, TAB_IQ3XXS = 30720u,
           TAB_IQ3S = 31744u, TAB_KSIGNS = 33792u, TAB_IQ4NL = 33920u, TAB_MXFP4 = 33936u, TAB_E8M0 = 33952u,
           TAB_UE4M3 = 34976u;

uint byte_at(uint64_t p, uint i)
{
    return uint(U8(p).d[i]);
}

int sbyte_at(uint64_t p, uint i)
{
    return bitfieldExtract(int(U8(p).d[i]), 0, 8);
}

uint u16_at(uint64_t p, uint i) // byte offset, even
{
    return uint(U16(p + i).d[0]);
}

uint u32_at(uint64_t p, uint i) // byte offset, even
{
    return u16_at(p, i) | u16_at(p, i + 2) << 16;
}

float f16_at(uint64_t p, uint i)
{
    return half_bits(u16_at(p, i));
}

int level_at(uint64_t tables, uint table, uint i)
{
    return sbyte_at(tables + table, i);
}

void k4_scale(uint64_t s, uint j, out uint scale, out uint min)
{
    if (j < 4u) {
        scale = byte_at(s, j) & 63u;
        min = byte_at(s, j + 4u) & 63u;
    } else {
        scale = byte_at(s, j + 4u) & 15u | byte_at(s, j - 4u) >> 6 << 4;
        min = byte_at(s, j + 4u) >> 4 | byte_at(s, j) >> 6 << 4;
    }
}

void put_signed(out float v[8], float scale, uint lo, uint hi, uint signs)
{
    [[unroll]] for (uint i = 0u; i < 8u; i++) {
        float w = scale * float((i < 4u ? lo : hi) >> 8u * (i & 3u) & 255u);
        v[i] = (signs >> i & 1u) != 0u ? -w : w;
    }
}

void put_delta(out float v[8], float scale, uint64_t entry, float delta)
{
    [[unroll]] for (uint i = 0u; i < 8u; i++) v[i] = scale * (float(sbyte_at(entry, i)) + delta);
}

// Bytes of a block and elements in it.
uint block_bytes()
{
    switch (TYPE) {
    case 0: return 4u;
    case 28: return 8u;
    case 1: case 30: return 2u;
    case 2: case 20: case 41: case 42: return 18u;
    case 3: return 20u;
    case 6: return 22u;
    case 7: return 24u;
    case 8: return 34u;
    case 10: return 84u;
    case 11: case 21: return 110u;
    case 12: return 144u;
    case 13: return 176u;
    case 14: return 210u;
    case 16: return 66u;
    case 17: return 74u;
    case 18: return 98u;
    case 19: return 50u;
    case 22: return 82u;
    case 23: return 136u;
    case 29: return 56u;
    case 34: return 54u;
    case 35: return 66u;
    case 39: return 17u;
    case 40: return 36u;
    }
    return 0u;
}

uint block_elems()
{
    switch (TYPE) {
    case 0: case 1: case 28: case 30: return 1u;
    case 2: case 3: case 6: case 7: case 8: case 20: case 39: return 32u;
    case 40: case 42: return 64u;
    case 41: return 128u;
    }
    return 256u;
}

// A double narrowed with one rounding to nearest even, by integer arithmetic: few devices have doubles.
float narrow(uint lo, uint hi)
{
    uint sign = hi & 0x80000000u, a = hi & 0x7fffffffu;
    if (a >= 0x7ff00000u) return uintBitsToFloat(sign | 0x7f800000u | (((a & 0xfffffu) | lo) != 0u ? 0x400000u : 0u));
    int e = int(a >> 20) - 1023 + 127; // the float's exponent field
    if (e >= 255) return uintBitsToFloat(sign | 0x7f800000u);
    if (e < -24) return uintBitsToFloat(sign);
    uint m = a << 3 & 0x7ffff8u | lo >> 29 | 0x800000u, rest = lo << 3; // 24 bits, and what is below them
    if (e <= 0) { // subnormal
        uint shift = uint(1 - e);
        rest = (shift < 32u ? m << 32u - shift : m) | uint(rest != 0u);
        m = shift < 32u ? m >> shift : 0u;
        e = 0;
    } else {
        m &= 0x7fffffu;
    }
    m += uint(rest > 0x80000000u || rest == 0x80000000u && (m & 1u) != 0u);
    return uintBitsToFloat(sign | (uint(e) << 23) + m);
}

// Elements 8 j .. 8 j + 7 of the row at `row`, which has n of them; those past n are zero (only types of one
// element a block have rows whose length is no multiple of eight).
void weights8(uint64_t row, uint64_t tables, uint j, uint n, out float v[8])
{
    if (TYPE == 0u || TYPE == 1u || TYPE == 28u || TYPE == 30u) {
        [[unroll]] for (uint i = 0u; i < 8u; i++) {
            v[i] = 0.0;
            uint e = 8u * j + i;
            if (e < n) {
                if (TYPE == 0u) v[i] = F32(row).d[e];
                if (TYPE == 1u) v[i] = half_bits(uint(U16(row).d[e]));
                if (TYPE == 28u) v[i] = narrow(U32(row).d[2u * e], U32(row).d[2u * e + 1u]);
                if (TYPE == 30u) v[i] = uintBitsToFloat(uint(U16(row).d[e]) << 16);
            }
        }
        return;
    }
    uint per = block_elems() / 8u, o = j % per; // o: which eight of the block
    uint64_t b = row + uint64_t(j / per) * block_bytes();
    switch (TYPE) {
    case 2: case 3: case 6: case 7: case 20: case 39: { // 32 elements, nibbles j and j + 16
        uint at = TYPE == 3u ? 4u : TYPE == 6u ? 6u : TYPE == 7u ? 8u : TYPE == 39u ? 1u : 2u;
        float d, m = 0.0;
        uint qh = 0u;
        if (TYPE == 39u)
            d = F32(tables + TAB_E8M0).d[byte_at(b, 0u)];
        else
            d = f16_at(b, 0u);
        if (TYPE == 3u || TYPE == 7u) m = f16_at(b, 2u);
        if (TYPE == 6u) qh = u32_at(b, 2u);
        if (TYPE == 7u) qh = u32_at(b, 4u);
        [[unroll]] for (uint i = 0u; i < 8u; i++) {
            uint e = 8u * o + i, q = byte_at(b, at + (e & 15u)) >> (e >> 4) * 4u & 15u;
            if (TYPE == 2u) v[i] = float(int(q) - 8) * d;
            if (TYPE == 3u) v[i] = float(q) * d + m;
            if (TYPE == 6u) v[i] = float(int(q | (qh >> e & 1u) << 4) - 16) * d;
            if (TYPE == 7u) v[i] = float(q | (qh >> e & 1u) << 4) * d + m;
            if (TYPE == 20u) v[i] = d * float(level_at(tables, TAB_IQ4NL, q));
            if (TYPE == 39u) v[i] = float(level_at(tables, TAB_MXFP4, q)) * d;
        }
        return;
    }
    case 8: {
        float d = f16_at(b, 0u);
        [[unroll]] for (uint i = 0u; i < 8u; i += 2u) {
            uint q = u16_at(b, 2u + 8u * o + i);
            v[i] = float(bitfieldExtract(int(q), 0, 8)) * d;
            v[i + 1u] = float(bitfieldExtract(int(q), 8, 8)) * d;
        }
        return;
    }
    case 10: {
        uint k = o / 2u, sc = byte_at(b, k), shift = 2u * (k % 8u / 2u);
        float scale = f16_at(b, 80u) * float(sc & 15u), min = f16_at(b, 82u) * float(sc >> 4);
        uint at = 16u + 32u * (k / 8u) + 16u * (k % 2u) + 8u * (o % 2u);
        [[unroll]] for (uint i = 0u; i < 8u; i++) v[i] = scale * float(byte_at(b, at + i) >> shift & 3u) - min;
        return;
    }
    case 11: {
        uint k = o / 2u, shift = 2u * (k % 8u / 2u), bit = k / 2u;
        uint low = k < 8u ? byte_at(b, 96u + k) & 15u : byte_at(b, 88u + k) >> 4;
        int sc = int(low | (byte_at(b, 104u + k % 4u) >> 2u * (k / 4u) & 3u) << 4) - 32;
        float scale = f16_at(b, 108u) * float(sc);
        uint h = 16u * (k % 2u) + 8u * (o % 2u), q = 32u + 32u * (k / 8u) + h;
        [[unroll]] for (uint i = 0u; i < 8u; i++) {
            int code = int(byte_at(b, q + i) >> shift & 3u | (byte_at(b, h + i) >> bit & 1u) << 2) - 4;
            v[i] = scale * float(code);
        }
        return;
    }
    case 12: case 13: {
        uint s = o / 4u, sc, m, at = (TYPE == 12u ? 16u : 48u) + 32u * (s / 2u) + 8u * (o % 4u);
        k4_scale(b + 4u, s, sc, m);
        float scale = f16_at(b, 0u) * float(sc), min = f16_at(b, 2u) * float(m);
        [[unroll]] for (uint i = 0u; i < 8u; i += 4u) {
            uint q = U32(b + at + i).d[0] >> 4u * (s & 1u), h = 0u;
            if (TYPE == 13u) h = U32(b + 16u + 8u * (o % 4u) + i).d[0] >> s;
            [[unroll]] for (uint l = 0u; l < 4u; l++)
                v[i + l] = scale * float(q >> 8u * l & 15u | (h >> 8u * l & 1u) << 4) - min;
        }
        return;
    }
    case 14: {
        uint k = o / 2u, h = k / 8u, g = k % 8u / 2u, first = 16u * (k % 2u) + 8u * (o % 2u);
        float scale = f16_at(b, 208u) * float(sbyte_at(b, 192u + k));
        [[unroll]] for (uint i = 0u; i < 8u; i += 2u) {
            uint ql = u16_at(b, 64u * h + 32u * (g % 2u) + first + i) >> 4u * (g / 2u);
            uint qh = u16_at(b, 128u + 32u * h + first + i) >> 2u * g;
            v[i] = scale * float(int(ql & 15u | (qh & 3u) << 4) - 32);
            v[i + 1u] = scale * float(int(ql >> 8 & 15u | (qh >> 8 & 3u) << 4) - 32);
        }
        return;
    }
    case 16: {
        uint64_t p = b + 2u + 8u * (o / 4u);
        uint l = o % 4u, a = u32_at(p, 4u);
        float scale = f16_at(b, 0u) * (0.5 + float(a >> 28)) * 0.25;
        uint64_t entry = tables + TAB_IQ2XXS + 8u * byte_at(p, l);
        put_signed(v, scale, U32(entry).d[0], U32(entry).d[1],
                   byte_at(tables + TAB_KSIGNS, a >> 7u * l & 127u));
        return;
    }
    case 17: {
        uint x = u16_at(b, 2u + 2u * o);
        float scale = f16_at(b, 0u) * (0.5 + float(byte_at(b, 66u + o / 4u) >> 4u * (o % 4u / 2u) & 15u)) * 0.25;
        uint64_t entry = tables + TAB_IQ2XS + 8u * (x & 511u);
        put_signed(v, scale, U32(entry).d[0], U32(entry).d[1], byte_at(tables + TAB_KSIGNS, x >> 9));
        return;
    }
    case 22: {
        uint index = byte_at(b, 2u + o) | (byte_at(b, 66u + o / 4u) >> 2u * (o % 4u) & 3u) << 8;
        float scale = f16_at(b, 0u) * (0.5 + float(byte_at(b, 74u + o / 4u) >> 4u * (o % 4u / 2u) & 15u)) * 0.25;
        uint64_t entry = tables + TAB_IQ2S + 8u * index;
        put_signed(v, scale, U32(entry).d[0], U32(entry).d[1], byte_at(b, 34u + o));
        return;
    }
    case 18: {
        uint g = o / 4u, t = 2u * (o % 4u), a = u32_at(b, 66u + 4u * g);
        float scale = f16_at(b, 0u) * (0.5 + float(a >> 28)) * 0.5;
        put_signed(v, scale, U32(tables + TAB_IQ3XXS).d[byte_at(b, 2u + 8u * g + t)],
                   U32(tables + TAB_IQ3XXS).d[byte_at(b, 3u + 8u * g + t)],
                   byte_at(tables + TAB_KSIGNS, a >> 7u * (t / 2u) & 127u));
        return;
    }
    case 21: {
        uint g = o / 4u, t = 2u * (o % 4u), high = byte_at(b, 66u + g) >> t;
        float scale = f16_at(b, 0u) * float(2u * (byte_at(b, 106u + g / 2u) >> 4u * (g % 2u) & 15u) + 1u);
        put_signed(v, scale, U32(tables + TAB_IQ3S).d[byte_at(b, 2u + 8u * g + t) | (high & 1u) << 8],
                   U32(tables + TAB_IQ3S).d[byte_at(b, 3u + 8u * g + t) | (high >> 1 & 1u) << 8],
                   byte_at(b, 74u + 4u * g + t / 2u));
        return;
    }
    case 19: {
        uint g = o / 4u, l = o % 4u, h = u16_at(b, 34u + 2u * g);
        float scale = f16_at(b, 0u) * float(2u * (h >> 12 & 7u) + 1u);
        uint index = byte_at(b, 2u + 4u * g + l) | (h >> 3u * l & 7u) << 8;
        put_delta(v, scale, tables + TAB_IQ1S + 8u * index, (h & 0x8000u) != 0u ? -0.125 : 0.125);
        return;
    }
    case 29: {
        uint nibble = byte_at(b, 32u + o / 2u) >> 4u * (o % 2u) & 15u, k = o / 2u, bits = 0u;
        [[unroll]] for (uint i = 0u; i < 4u; i++) bits |= u16_at(b, 48u + 2u * i) >> 12 << 4u * i;
        float scale = half_bits(bits) * float(2u * (u16_at(b, 48u + 2u * (k / 4u)) >> 3u * (k % 4u) & 7u) + 1u);
        put_delta(v, scale, tables + TAB_IQ1S + 8u * (byte_at(b, o) | (nibble & 7u) << 8),
                  (nibble & 8u) != 0u ? -0.125 : 0.125);
        return;
    }
    case 23: {
        uint g = o / 4u, high = u16_at(b, 2u);
        int ls = int(byte_at(b, 4u + g / 2u) >> 4u * (g % 2u) & 15u | (high >> 2u * g & 3u) << 4);
        float scale = f16_at(b, 0u) * float(ls - 32);
        [[unroll]] for (uint i = 0u; i < 8u; i++) {
            uint e = 8u * (o % 4u) + i, q = byte_at(b, 8u + 16u * g + (e & 15u)) >> (e >> 4) * 4u & 15u;
            v[i] = scale * float(level_at(tables, TAB_IQ4NL, q));
        }
        return;
    }
    case 34: {
        float d = f16_at(b, 52u);
        [[unroll]] for (uint i = 0u; i < 8u; i++) {
            uint e = 8u * o + i, at, digit;
            if (e < 160u) {
                at = e % 32u;
                digit = e / 32u;
            } else if (e < 240u) {
                at = 32u + (e - 160u) % 16u;
                digit = (e - 160u) / 16u;
            } else {
                at = 48u + (e - 240u) % 4u;
                digit = (e - 240u) / 4u;
            }
            uint power = digit == 0u ? 1u : digit == 1u ? 3u : digit == 2u ? 9u : digit == 3u ? 27u : 81u;
            v[i] = float(int((byte_at(b, at) * power & 255u) * 3u >> 8) - 1) * d;
        }
        return;
    }
    case 35: {
        float d = f16_at(b, 64u);
        uint g = o / 4u, at = 32u * (g / 4u) + 8u * (o % 4u), shift = 2u * (g % 4u);
        [[unroll]] for (uint i = 0u; i < 8u; i++) v[i] = float(int(byte_at(b, at + i) >> shift & 3u) - 1) * d;
        return;
    }
    case 41: {
        float d = f16_at(b, 0u);
        uint q = byte_at(b, 2u + o);
        [[unroll]] for (uint i = 0u; i < 8u; i++) v[i] = (q >> i & 1u) != 0u ? d : -d;
        return;
    }
    case 42: {
        float d = f16_at(b, 0u);
        uint q = u16_at(b, 2u + 2u * o);
        [[unroll]] for (uint i = 0u; i < 8u; i++) v[i] = float(int(q >> 2u * i & 3u) - 1) * d;
        return;
    }
    case 40: {
        float d = F32(tables + TAB_UE4M3).d[byte_at(b, o / 2u)];
        [[unroll]] for (uint i = 0u; i < 8u; i++)
            v[i] = float(level_at(tables, TAB_MXFP4, byte_at(b, 4u + 8u * (o / 2u) + i) >> 4u * (o % 2u) & 15u)) * d;
        return;
    }
    }
}
