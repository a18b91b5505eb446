// weights.glsl - de-quantisation, once per tensor type. A block type gives its elements as signed bytes, four to a
// word, with one scale and one offset for sixteen neighbours: element = scale * code - low. That is exact, or rounded
// once where there is an offset, so the bits are those of backends/formats/dequantize.c and dequantize_iq.c whether
// or not the two operations are contracted, and integer dot products take the same bytes.
//
// A chunk is what sixteen (of Q8_0: thirty-two) bytes of codes hold, or half of that where codes have two bits or
// fewer: 32 elements in two halves of sixteen. raw_of() reads a chunk, half_of() unpacks a half of it.
// TYPE (GGUF's number of the type) and ALIGN (what divides the address of every block: 16, 4, or less) are
// specialisation constants.
#ifndef WEIGHT_TYPE_ID
#define WEIGHT_TYPE_ID 0
#endif
layout(constant_id = WEIGHT_TYPE_ID) const uint TYPE = 0u;
layout(constant_id = 7) const uint ALIGN = 1u;
const bool IS_FLOAT = TYPE == 0u || TYPE == 1u || TYPE == 28u || TYPE == 30u;
const bool HAS_LOW = TYPE == 3u || TYPE == 7u || TYPE == 10u || TYPE == 12u || TYPE == 13u;
// Types whose codes stand for levels of a table: what a byte of two codes stands for, a level in bits 0 to 7, the
// other's in bits 16 to 23. pairs_fill() first.
const bool HAS_LEVELS = TYPE == 20u || TYPE == 23u || TYPE == 39u || TYPE == 40u;
const uint N_PAIRS = HAS_LEVELS ? 256u : 1u;
shared uint pairs[N_PAIRS];

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

// Sixteen bytes at p, of which the block's start is a multiple of ALIGN. Where that is less than 4: whole words
// around them, none of them outside the words that hold these bytes.
uvec4 load16(uint64_t p)
{
    if (ALIGN >= 16u) return V16(p).d[0];
    if (ALIGN >= 4u) return V4(p).d[0];
    uint odd = uint(p) & 3u, shift = 8u * odd;
    uint64_t first = p - odd;
    uvec4 v = V4(first).d[0];
    uint last = U32(first + (odd == 0u ? 12u : 16u)).d[0];
    return v >> shift | uvec4(v.yzw, last) << 1u << 31u - shift;
}

uvec2 load8(uint64_t p)
{
    if (ALIGN >= 4u) return uvec2(U32(p).d[0], U32(p).d[1]);
    uint odd = uint(p) & 3u, shift = 8u * odd;
    uint64_t first = p - odd;
    uvec2 v = uvec2(U32(first).d[0], U32(first).d[1]);
    uint last = U32(first + (odd == 0u ? 4u : 8u)).d[0];
    return v >> shift | uvec2(v.y, last) << 1u << 31u - shift;
}

uint load4(uint64_t p)
{
    if (ALIGN >= 4u) return U32(p).d[0];
    return byte_at(p, 0u) | byte_at(p, 1u) << 8 | byte_at(p, 2u) << 16 | byte_at(p, 3u) << 24;
}

// ---- four bytes in a word ------------------------------------------------------------------------------------

// Each byte less k; bytes below 128, differences from -128 to 127.
uint minus4(uint x, uint k)
{
    return (x | 0x80808080u) - k * 0x01010101u ^ 0x80808080u;
}

uvec4 minus16(uvec4 x, uint k)
{
    return (x | 0x80808080u) - k * 0x01010101u ^ 0x80808080u;
}

// Bit i of the lowest four to byte i; two bits i of the lowest eight.
uint spread1(uint x)
{
    return (x & 15u) * 0x204081u & 0x01010101u;
}

uint spread2(uint x)
{
    return (x | x << 6 | x << 12 | x << 18) & 0x03030303u;
}

void pairs_fill(uint64_t tables, uint tid, uint step)
{
    if (!HAS_LEVELS) return;
    uint64_t levels = tables + (TYPE == 20u || TYPE == 23u ? TAB_IQ4NL : TAB_MXFP4);
    for (uint i = tid; i < 256u; i += step) pairs[i] = byte_at(levels, i & 15u) | byte_at(levels, i >> 4) << 16;
}

// Levels of the eight codes in a word: of the low nibbles (lo), of the high ones (hi).
void levels8(uint x, out uint lo, out uint hi)
{
    uint a = pairs[x & 255u] | pairs[x >> 8 & 255u] << 8, b = pairs[x >> 16 & 255u] | pairs[x >> 24] << 8;
    lo = a & 0xffffu | b << 16;
    hi = a >> 16 | b & 0xffff0000u;
}

uvec4 levels16(uvec4 x, uint h)
{
    uvec4 lo, hi;
    [[unroll]] for (uint i = 0u; i < 4u; i++) levels8(x[i], lo[i], hi[i]);
    return h == 0u ? lo : hi;
}

// Magnitudes, none of them zero, with signs by the bits of `signs` (word i: bits 4 i and on).
uint signed4(uint magnitudes, uint signs)
{
    uint ones = spread1(signs), all = ones * 255u;
    return (magnitudes ^ all) + ones;
}

// ---- blocks ----------------------------------------------------------------------------------------------------

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

uint chunks_per_block()
{
    return block_elems() / 32u;
}

// First element, in the block, of a half of a chunk; and the other way round, for run r of sixteen.
uint half_at(uint c, uint h)
{
    if (TYPE == 14u) return 128u * (c / 4u) + 16u * (c % 4u) + 64u * h;
    if (TYPE == 10u || TYPE == 11u || TYPE == 12u || TYPE == 13u || TYPE == 35u)
        return 64u * (c / 2u) + 16u * (c % 2u) + 32u * h;
    return 32u * c + 16u * h;
}

void half_of_run(uint r, out uint c, out uint h)
{
    if (TYPE == 14u) {
        c = 4u * (r / 8u) + r % 4u;
        h = r / 4u % 2u;
    } else if (TYPE == 10u || TYPE == 11u || TYPE == 12u || TYPE == 13u || TYPE == 35u) {
        c = 2u * (r / 4u) + r % 2u;
        h = r / 2u % 2u;
    } else {
        c = r / 2u;
        h = r % 2u;
    }
}

struct Raw {
    uvec4 codes, more, head;
};

// What half_of() needs of the chunk, in as few and as wide loads as its place allows; other types are read there.
Raw raw_of(uint64_t b, uint c)
{
    Raw raw;
    raw.codes = raw.more = raw.head = uvec4(0u);
    uint pair = c / 2u % 2u, h16 = 16u * (c % 2u);
    switch (TYPE) {
    case 2: case 20:
        raw.codes = load16(b + 2u);
        break;
    case 39:
        raw.codes = load16(b + 1u);
        break;
    case 3:
        raw.codes = load16(b + 4u);
        break;
    case 6:
        raw.codes = load16(b + 6u);
        raw.head.x = u32_at(b, 2u);
        break;
    case 7:
        raw.codes = load16(b + 8u);
        raw.head.x = load4(b + 4u);
        break;
    case 8:
        raw.codes = load16(b + 2u);
        raw.more = load16(b + 18u);
        break;
    case 10:
        raw.codes = load16(b + 16u + 32u * (c / 4u) + h16);
        break;
    case 11:
        raw.codes = load16(b + 32u + 32u * (c / 4u) + h16);
        raw.more = load16(b + h16);
        break;
    case 12:
        raw.codes = load16(b + 16u + 16u * c);
        raw.head = load16(b);
        break;
    case 13:
        raw.codes = load16(b + 48u + 16u * c);
        raw.more = load16(b + 16u + h16);
        raw.head = load16(b);
        break;
    case 14:
        raw.codes = load16(b + 64u * (c / 4u) + 32u * pair + h16);
        raw.more = load16(b + 128u + 32u * (c / 4u) + h16);
        break;
    case 23:
        raw.codes = load16(b + 8u + 16u * c);
        break;
    case 35:
        raw.codes = load16(b + 32u * (c / 4u) + h16);
        break;
    case 40:
        raw.codes = load16(b + 4u + 16u * c);
        break;
    case 41:
        raw.codes.x = u32_at(b, 2u + 4u * c);
        break;
    case 42:
        raw.codes.xy = uvec2(u32_at(b, 2u + 8u * c), u32_at(b, 6u + 8u * c));
        break;
    }
    return raw;
}

// Scale and minimum j of a block of Q4_K or Q5_K from its first sixteen bytes.
void k4_scale(uvec4 head, uint j, out float scale, out float low)
{
    uint i = 8u * (j & 3u), sc = head.y >> i, m = head.z >> i;
    if (j < 4u) {
        sc &= 63u;
        m &= 63u;
    } else {
        uint x = head.w >> i;
        sc = x & 15u | (sc >> 6 & 3u) << 4;
        m = x >> 4 & 15u | (m >> 6 & 3u) << 4;
    }
    scale = half_bits(head.x & 0xffffu) * float(sc);
    low = half_bits(head.x >> 16) * float(m);
}

// Half h of chunk c of the block at b: sixteen codes, element = scale * code - low.
void half_of(Raw raw, uint64_t b, uint64_t tables, uint c, uint h, out uvec4 q, out float scale, out float low)
{
    low = 0.0;
    scale = 0.0;
    q = uvec4(0u);
    switch (TYPE) {
    case 2:
        q = minus16(raw.codes >> 4u * h & 0x0f0f0f0fu, 8u);
        scale = f16_at(b, 0u);
        break;
    case 3:
        q = raw.codes >> 4u * h & 0x0f0f0f0fu;
        scale = f16_at(b, 0u);
        low = -f16_at(b, 2u);
        break;
    case 6: case 7:
        q = raw.codes >> 4u * h & 0x0f0f0f0fu;
        [[unroll]] for (uint i = 0u; i < 4u; i++) q[i] |= spread1(raw.head.x >> 16u * h + 4u * i) << 4;
        scale = f16_at(b, 0u);
        if (TYPE == 6u)
            q = minus16(q, 16u);
        else
            low = -f16_at(b, 2u);
        break;
    case 8:
        q = h == 0u ? raw.codes : raw.more;
        scale = f16_at(b, 0u);
        break;
    case 20:
        q = levels16(raw.codes, h);
        scale = f16_at(b, 0u);
        break;
    case 39: {
        uint e = byte_at(b, 0u); // 2^(e - 128)
        q = levels16(raw.codes, h);
        scale = uintBitsToFloat(e < 2u ? 0x200000u << e : e - 1u << 23);
        break;
    }
    case 10: {
        uint j = 2u * (c / 2u % 2u) + h, sc = byte_at(b, 8u * (c / 4u) + 2u * j + c % 2u);
        q = raw.codes >> 2u * j & 0x03030303u;
        scale = f16_at(b, 80u) * float(sc & 15u);
        low = f16_at(b, 82u) * float(sc >> 4);
        break;
    }
    case 11: {
        uint j = 2u * (c / 2u % 2u) + h, k = 8u * (c / 4u) + 2u * j + c % 2u;
        uint bits = k < 8u ? byte_at(b, 96u + k) & 15u : byte_at(b, 88u + k) >> 4;
        int sc = int(bits | (byte_at(b, 104u + k % 4u) >> 2u * (k / 4u) & 3u) << 4) - 32;
        q = raw.codes >> 2u * j & 0x03030303u | (raw.more >> 4u * (c / 4u) + j & 0x01010101u) << 2;
        q = minus16(q, 4u);
        scale = f16_at(b, 108u) * float(sc);
        break;
    }
    case 12: case 13: {
        uint j = 2u * (c / 2u) + h;
        q = raw.codes >> 4u * h & 0x0f0f0f0fu;
        if (TYPE == 13u) q |= (raw.more >> j & 0x01010101u) << 4;
        k4_scale(raw.head, j, scale, low);
        break;
    }
    case 14: {
        uint g = c / 2u % 2u + 2u * h;
        q = raw.codes >> 4u * h & 0x0f0f0f0fu | (raw.more >> 2u * g & 0x03030303u) << 4;
        q = minus16(q, 32u);
        scale = f16_at(b, 208u) * float(sbyte_at(b, 192u + 8u * (c / 4u) + 2u * g + c % 2u));
        break;
    }
    case 23: {
        int ls = int(byte_at(b, 4u + c / 2u) >> 4u * (c % 2u) & 15u | (u16_at(b, 2u) >> 2u * c & 3u) << 4);
        q = levels16(raw.codes, h);
        scale = f16_at(b, 0u) * float(ls - 32);
        break;
    }
    case 35:
        q = minus16(raw.codes >> 4u * (c / 2u % 2u) + 2u * h & 0x03030303u, 1u);
        scale = f16_at(b, 64u);
        break;
    case 40: {
        uint lo, hi, first, second;
        levels8(h == 0u ? raw.codes.x : raw.codes.z, lo, hi);
        levels8(h == 0u ? raw.codes.y : raw.codes.w, first, second);
        q = uvec4(lo, first, hi, second);
        scale = F32(tables + TAB_UE4M3).d[byte_at(b, 2u * c + h)];
        break;
    }
    case 41:
        [[unroll]] for (uint i = 0u; i < 4u; i++)
            q[i] = minus4(spread1(raw.codes.x >> 16u * h + 4u * i) << 1, 1u);
        scale = f16_at(b, 0u);
        break;
    case 42:
        [[unroll]] for (uint i = 0u; i < 4u; i++)
            q[i] = minus4(spread2((h == 0u ? raw.codes.x : raw.codes.y) >> 8u * i & 255u), 1u);
        scale = f16_at(b, 0u);
        break;
    case 16: {
        uint64_t p = b + 2u + 8u * c;
        uint a = u32_at(p, 4u);
        scale = f16_at(b, 0u) * (0.5 + float(a >> 28)) * 0.25;
        [[unroll]] for (uint i = 0u; i < 2u; i++) {
            U32 grid = U32(tables + TAB_IQ2XXS + 8u * byte_at(p, 2u * h + i));
            uint signs = byte_at(tables + TAB_KSIGNS, a >> 7u * (2u * h + i) & 127u);
            q[2u * i] = signed4(grid.d[0], signs);
            q[2u * i + 1u] = signed4(grid.d[1], signs >> 4);
        }
        break;
    }
    case 17: {
        scale = f16_at(b, 0u) * (0.5 + float(byte_at(b, 66u + c) >> 4u * h & 15u)) * 0.25;
        [[unroll]] for (uint i = 0u; i < 2u; i++) {
            uint x = u16_at(b, 2u + 8u * c + 4u * h + 2u * i), signs = byte_at(tables + TAB_KSIGNS, x >> 9);
            U32 grid = U32(tables + TAB_IQ2XS + 8u * (x & 511u));
            q[2u * i] = signed4(grid.d[0], signs);
            q[2u * i + 1u] = signed4(grid.d[1], signs >> 4);
        }
        break;
    }
    case 22: {
        scale = f16_at(b, 0u) * (0.5 + float(byte_at(b, 74u + c) >> 4u * h & 15u)) * 0.25;
        [[unroll]] for (uint i = 0u; i < 2u; i++) {
            uint l = 2u * h + i, signs = byte_at(b, 34u + 4u * c + l);
            uint index = byte_at(b, 2u + 4u * c + l) | (byte_at(b, 66u + c) >> 2u * l & 3u) << 8;
            U32 grid = U32(tables + TAB_IQ2S + 8u * index);
            q[2u * i] = signed4(grid.d[0], signs);
            q[2u * i + 1u] = signed4(grid.d[1], signs >> 4);
        }
        break;
    }
    case 18: {
        uint a = u32_at(b, 66u + 4u * c);
        scale = f16_at(b, 0u) * (0.5 + float(a >> 28)) * 0.5;
        [[unroll]] for (uint i = 0u; i < 4u; i++) {
            uint t = 4u * h + i, signs = byte_at(tables + TAB_KSIGNS, a >> 7u * (t / 2u) & 127u);
            q[i] = signed4(U32(tables + TAB_IQ3XXS).d[byte_at(b, 2u + 8u * c + t)], signs >> 4u * (i & 1u));
        }
        break;
    }
    case 21: {
        scale = f16_at(b, 0u) * float(2u * (byte_at(b, 106u + c / 2u) >> 4u * (c % 2u) & 15u) + 1u);
        [[unroll]] for (uint i = 0u; i < 4u; i++) {
            uint t = 4u * h + i, high = byte_at(b, 66u + c) >> t & 1u;
            q[i] = signed4(U32(tables + TAB_IQ3S).d[byte_at(b, 2u + 8u * c + t) | high << 8],
                           byte_at(b, 74u + 4u * c + t / 2u) >> 4u * (i & 1u));
        }
        break;
    }
    case 19: case 29: { // codes in eighths: eight times -1, 0 or 1, and one more or less
        uint head = TYPE == 19u ? u16_at(b, 34u + 2u * c) : u16_at(b, 48u + 2u * (c / 2u));
        if (TYPE == 19u) {
            scale = f16_at(b, 0u) * float(2u * (head >> 12 & 7u) + 1u) * 0.125;
        } else {
            uint bits = 0u;
            [[unroll]] for (uint i = 0u; i < 4u; i++) bits |= u16_at(b, 48u + 2u * i) >> 12 << 4u * i;
            scale = half_bits(bits) * float(2u * (head >> 3u * (2u * (c % 2u) + h) & 7u) + 1u) * 0.125;
        }
        [[unroll]] for (uint i = 0u; i < 2u; i++) {
            uint l = 2u * h + i, high, less;
            if (TYPE == 19u) {
                high = head >> 3u * l & 7u;
                less = head >> 15;
            } else {
                uint nibble = byte_at(b, 32u + 2u * c + h) >> 4u * i & 15u;
                high = nibble & 7u;
                less = nibble >> 3;
            }
            U32 grid = U32(tables + TAB_IQ1S + 8u * (byte_at(b, (TYPE == 19u ? 2u : 0u) + 4u * c + l) | high << 8));
            [[unroll]] for (uint k = 0u; k < 2u; k++) {
                uint above = (grid.d[k] & 0x03030303u) + 0x01010101u & 0x03030303u; // one more than -1, 0 or 1
                q[2u * i + k] = minus4(above << 3, less != 0u ? 9u : 7u);
            }
        }
        break;
    }
    case 34:
        scale = f16_at(b, 52u);
        [[unroll]] for (uint i = 0u; i < 16u; i++) { // digits to base 3, as fractions of 256
            uint e = 32u * c + 16u * h + i, at, digit;
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
            q[i / 4u] |= ((byte_at(b, at) * power & 255u) * 3u >> 8) << 8u * (i % 4u);
        }
        q = minus16(q, 1u);
        break;
    }
}

float code_at(uvec4 q, uint i)
{
    return float(bitfieldExtract(int(q[i / 4u]), int(8u * (i % 4u)), 8));
}

// Sixteen elements from codes.
void widen(uvec4 q, float scale, float low, out float v[16])
{
    [[unroll]] for (uint i = 0u; i < 16u; i++) {
        v[i] = scale * code_at(q, i);
        if (HAS_LOW) v[i] -= low;
    }
}

// ---- types of one element a block ------------------------------------------------------------------------------

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

// Elements e .. e + 7 of a row of n; those past n are zero.
void floats8(uint64_t row, uint e, uint n, out float v[8])
{
    if (TYPE == 1u || TYPE == 30u) {
        if (ALIGN >= 4u && e + 8u <= n) {
            uvec4 x = ALIGN >= 16u ? V16(row + 2ul * e).d[0] : V4(row + 2ul * e).d[0];
            [[unroll]] for (uint i = 0u; i < 4u; i++) {
                v[2u * i] = TYPE == 1u ? half_bits(x[i] & 0xffffu) : uintBitsToFloat(x[i] << 16);
                v[2u * i + 1u] = TYPE == 1u ? half_bits(x[i] >> 16) : uintBitsToFloat(x[i] & 0xffff0000u);
            }
            return;
        }
    }
    if (TYPE == 0u && ALIGN >= 4u && e + 8u <= n) {
        vec4 x = F32x4(row + 4ul * e).d[0], y = F32x4(row + 4ul * e).d[1];
        [[unroll]] for (uint i = 0u; i < 4u; i++) {
            v[i] = x[i];
            v[4u + i] = y[i];
        }
        return;
    }
    [[unroll]] for (uint i = 0u; i < 8u; i++) {
        v[i] = 0.0;
        if (e + i >= n) continue;
        if (TYPE == 0u) v[i] = F32(row).d[e + i];
        if (TYPE == 1u) v[i] = half_bits(uint(U16(row).d[e + i]));
        if (TYPE == 28u) v[i] = narrow(U32(row).d[2u * (e + i)], U32(row).d[2u * (e + i) + 1u]);
        if (TYPE == 30u) v[i] = uintBitsToFloat(uint(U16(row).d[e + i]) << 16);
    }
}

// Elements 16 r .. 16 r + 15 of the row at `row`, which has n of them; those past n are zero (only types of one
// element a block have rows whose length is no multiple of sixteen).
void weights16(uint64_t row, uint64_t tables, uint r, uint n, out float v[16])
{
    if (IS_FLOAT) {
        float a[8], b[8];
        floats8(row, 16u * r, n, a);
        floats8(row, 16u * r + 8u, n, b);
        [[unroll]] for (uint i = 0u; i < 8u; i++) {
            v[i] = a[i];
            v[8u + i] = b[i];
        }
        return;
    }
    uint per = block_elems() / 16u, c, h;
    uint64_t b = row + uint64_t(r / per) * block_bytes();
    half_of_run(r % per, c, h);
    uvec4 q;
    float scale, low;
    half_of(raw_of(b, c), b, tables, c, h, q, scale, low);
    widen(q, scale, low, v);
}
