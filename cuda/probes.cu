// probes.cu - kernels that are never launched: the unpacking of coded words alone, many times over, so that the check of
// compiled kernels can count instructions per element. A thread unpacks PROBES times two octets; what it costs to load the
// words and to store 16 bytes per 16 elements is part of the count.
#include "cuda/attend_tile.cuh"

CONSTANT uint32_t PROBES = 32;

struct probe_args {
    const uint32_t *words;
    const cuda_tables *tables;
    uint8_t *out;
};

// Keys: the octet before comes from the neighbour in the quad.
template <int FORM> DEVICE void probe_keys(const probe_args &p)
{
    uint32_t lane = thread_x() % 32, t = lane % 4;
    level_table levels = load_levels<FORM>(p.tables);
    const uint32_t *words = p.words + lane / 4;
    uint8_t *out = p.out + 16 * thread_x();
#pragma unroll
    for (uint32_t i = 0; i < PROBES; i++) {
        octets o = load_octets<FORM>(words + 512 * i, 64, t, 8);
        uint32_t before = shfl(o.b, (lane & ~3u) | ((t + 3) & 3));
        if (t == 0) before <<= 4;
        u32x4 v;
        octet_levels<FORM>(levels, o.a, o.a2, before, v.x, v.y);
        octet_levels<FORM>(levels, o.b, o.b2, o.a, v.z, v.w);
        store16(out + 512 * i, v);
    }
}

// Values: the octets before are those of the element eight before, which the lane has just unpacked.
template <int FORM> DEVICE void probe_values(const probe_args &p)
{
    uint32_t lane = thread_x() % 32, t = lane % 4;
    level_table levels = load_levels<FORM>(p.tables);
    const uint32_t *words = p.words + lane / 4;
    uint8_t *out = p.out + 16 * thread_x();
    octets before = load_octets<FORM>(words, 128, t, 8);
#pragma unroll
    for (uint32_t i = 0; i < PROBES; i++) {
        octets o = load_octets<FORM>(words + 8 * i + 8, 128, t, 8);
        u32x4 v;
        octet_levels<FORM>(levels, o.a, o.a2, before.a, v.x, v.y);
        octet_levels<FORM>(levels, o.b, o.b2, before.b, v.z, v.w);
        store16(out + 512 * i, v);
        before = o;
    }
}

// As above, to the halves of attend_tile: the levels are scaled.
template <int FORM> DEVICE void probe_key_halves(const probe_args &p)
{
    uint32_t lane = thread_x() % 32, t = lane % 4;
    level_table levels = raised_levels<FORM>(p.tables);
    const uint32_t *words = p.words + lane / 4;
    uint8_t *out = p.out + 32 * thread_x();
    uint32_t scale = p.words[lane], rest = p.words[lane + 32];
#pragma unroll
    for (uint32_t i = 0; i < PROBES; i++) {
        octets o = load_octets<FORM>(words + 512 * i, 64, t, 8);
        uint32_t before = shfl(o.b, (lane & ~3u) | ((t + 3) & 3)), lo, hi;
        if (t == 0) before <<= 4;
        u32x4 v;
        octet_levels<FORM>(levels, o.a, o.a2, before, lo, hi);
        finely_scaled<FORM>(lo, scale, rest, v.x, v.y);
        finely_scaled<FORM>(hi, scale, rest, v.z, v.w);
        store16(out + 1024 * i, v);
        octet_levels<FORM>(levels, o.b, o.b2, o.a, lo, hi);
        finely_scaled<FORM>(lo, scale, rest, v.x, v.y);
        finely_scaled<FORM>(hi, scale, rest, v.z, v.w);
        store16(out + 1024 * i + 16, v);
    }
}

template <int FORM> DEVICE void probe_value_halves(const probe_args &p)
{
    uint32_t lane = thread_x() % 32, t = lane % 4;
    level_table levels = raised_levels<FORM>(p.tables);
    const uint32_t *words = p.words + lane / 4;
    uint8_t *out = p.out + 32 * thread_x();
    octets before = load_octets<FORM>(words, 128, t, 8);
    u32x4 s0 = load16(p.words + 16 * t), s1 = load16(p.words + 16 * t + 8);
#pragma unroll
    for (uint32_t i = 0; i < PROBES; i++) {
        octets o = load_octets<FORM>(words + 8 * i + 8, 128, t, 8);
        uint32_t lo, hi;
        u32x4 v;
        octet_levels<FORM>(levels, o.a, o.a2, before.a, lo, hi);
        scaled_halves<FORM>(lo, s0.x, s0.y, v.x, v.y);
        scaled_halves<FORM>(hi, s0.z, s0.w, v.z, v.w);
        store16(out + 1024 * i, v);
        octet_levels<FORM>(levels, o.b, o.b2, before.b, lo, hi);
        scaled_halves<FORM>(lo, s1.x, s1.y, v.x, v.y);
        scaled_halves<FORM>(hi, s1.z, s1.w, v.z, v.w);
        store16(out + 1024 * i + 16, v);
        before = o;
    }
}

KERNEL(probe_keys_2, probe_args, 32)
{
    probe_keys<(int)C2>(p);
}
KERNEL(probe_keys_3, probe_args, 32)
{
    probe_keys<(int)C3>(p);
}
KERNEL(probe_keys_4, probe_args, 32)
{
    probe_keys<(int)C4>(p);
}
KERNEL(probe_values_2, probe_args, 32)
{
    probe_values<(int)C2>(p);
}
KERNEL(probe_values_3, probe_args, 32)
{
    probe_values<(int)C3>(p);
}
KERNEL(probe_values_4, probe_args, 32)
{
    probe_values<(int)C4>(p);
}
KERNEL(probe_halves_keys_3, probe_args, 32)
{
    probe_key_halves<(int)C3>(p);
}
KERNEL(probe_halves_values_3, probe_args, 32)
{
    probe_value_halves<(int)C3>(p);
}
