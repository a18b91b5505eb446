// mutants.cu - small kernels with the mistakes that the simulator exists to find; MUTANT 0 is the right one.
#include "cuda/simt.cuh"

#include "tests/simt/mutants.h"

// Each thread's sum with its neighbour's number.
template <int MUTANT> DEVICE void neighbour(const mutant_args &p)
{
    SHARED(float, numbers, 128);
    uint32_t tid = thread_x(), i = block_x() * 128 + tid;
    numbers[tid] = p.in[i];
    if (MUTANT != MISSING_BARRIER) block_sync();
    const float *next = numbers + (MUTANT == PAST_THE_END ? tid + 1 : (tid + 1) % 128);
    p.out[i] = numbers[tid] + *next;
}
KERNEL(neighbour_right, mutant_args, 128)
{
    neighbour<RIGHT>(p);
}
KERNEL(neighbour_barrier, mutant_args, 128)
{
    neighbour<MISSING_BARRIER>(p);
}
KERNEL(neighbour_past, mutant_args, 128)
{
    neighbour<PAST_THE_END>(p);
}

// With both neighbours' numbers: the array is used twice, and must not be written while others still read.
template <int MUTANT> DEVICE void again(const mutant_args &p)
{
    SHARED(float, numbers, 128);
    uint32_t tid = thread_x(), i = block_x() * 128 + tid;
    numbers[tid] = p.in[i];
    block_sync();
    float sum = numbers[tid] + numbers[(tid + 1) % 128];
    if (MUTANT != MISSING_BARRIER) block_sync();
    numbers[(tid + 127) % 128] = p.in[block_x() * 128 + (tid + 1) % 128];
    block_sync();
    p.out[i] = sum + numbers[tid];
}
KERNEL(again_right, mutant_args, 128)
{
    again<RIGHT>(p);
}
KERNEL(again_barrier, mutant_args, 128)
{
    again<MISSING_BARRIER>(p);
}

// Arrays of 384 numbers, three blocks.
KERNEL(global_read_past, mutant_args, 128)
{
    uint32_t i = block_x() * 128 + thread_x();
    p.out[i] = p.in[i + 1];
}
KERNEL(global_write_past, mutant_args, 128)
{
    uint32_t i = block_x() * 128 + thread_x();
    p.out[i + 1] = p.in[i];
}
KERNEL(copy_past, mutant_args, 32)
{
    SHARED(uint8_t, bytes, 512);
    copy16_async(bytes + 16 * thread_x(), p.in + 384 - 4 * 31 + 4 * thread_x());
    copy_commit();
    copy_wait<0>();
    p.out[thread_x()] = (float)bytes[16 * thread_x()];
}

// Two warps; each loads as four matrices the 32 rows that the other one stored: of matrix i a lane has the float
// lane % 4 of row lane / 4.
template <int MUTANT> DEVICE void tile(const mutant_args &p)
{
    SHARED(float, rows, 64 * 4); // 16 bytes a row
    uint32_t tid = thread_x();
    for (uint32_t i = 0; i < 4; i++) rows[4 * tid + i] = p.in[4 * tid + i];
    if (MUTANT != MISSING_BARRIER) block_sync();
    uint32_t r[4];
    ldmatrix_x4(r, rows + 4 * (tid ^ 32));
    for (uint32_t i = 0; i < 4; i++) p.out[4 * tid + i] = bits_float(r[i]);
}
KERNEL(tile_right, mutant_args, 64)
{
    tile<RIGHT>(p);
}
KERNEL(tile_barrier, mutant_args, 64)
{
    tile<MISSING_BARRIER>(p);
}

// Through shared memory by asynchronous copies, two stages.
template <int MUTANT> DEVICE void fetch(const mutant_args &p)
{
    SHARED(uint8_t, ring, 2 * 512);
    uint32_t tid = thread_x();
    copy16_async(ring + 16 * tid, p.in + 4 * tid);
    copy_commit();
    copy16_async(ring + 512 + 16 * tid, p.in + 128 + 4 * tid);
    copy_commit();
    if (MUTANT == MISSING_WAIT)
        copy_wait<2>();
    else
        copy_wait<1>();
    if (MUTANT != MISSING_FENCE) warp_sync();
    uint32_t other = (tid + 5) % 32;
    u32x4 v = load16(ring + 16 * other);
    p.out[tid] = bits_float(v.x) + bits_float(v.w);
    copy_wait<0>();
    warp_sync();
    p.out[tid] += ((const float *)(ring + 512))[tid];
}
KERNEL(fetch_right, mutant_args, 32)
{
    fetch<RIGHT>(p);
}
KERNEL(fetch_fence, mutant_args, 32)
{
    fetch<MISSING_FENCE>(p);
}
KERNEL(fetch_wait, mutant_args, 32)
{
    fetch<MISSING_WAIT>(p);
}

// C = A B^T of bytes, A [16][32], B [8][32] in in, C [16][8].
template <int MUTANT> DEVICE void product(const mutant_args &p)
{
    const uint32_t *words = (const uint32_t *)p.in;
    uint32_t lane = thread_x(), g = lane / 4, t = MUTANT == WRONG_FRAGMENT ? (lane + 1) % 4 : lane % 4;
    uint32_t a[4] = {words[g * 8 + t], words[(g + 8) * 8 + t], words[g * 8 + t + 4],
                     words[(g + 8) * 8 + t + 4]};
    uint32_t b[2] = {words[128 + g * 8 + lane % 4], words[128 + g * 8 + lane % 4 + 4]};
    int32_t c[4] = {0, 0, 0, 0};
    mma_s8(c, a, b);
    for (uint32_t i = 0; i < 4; i++) p.out[(g + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = (float)c[i];
}
KERNEL(product_right, mutant_args, 32)
{
    product<RIGHT>(p);
}
KERNEL(product_wrong, mutant_args, 32)
{
    product<WRONG_FRAGMENT>(p);
}

// A barrier that half of the threads pass by; lanes that meet for different things.
KERNEL(half_barrier, mutant_args, 64)
{
    if (thread_x() < 32) block_sync();
    p.out[thread_x()] = 0;
}
KERNEL(half_warp, mutant_args, 32)
{
    float v = thread_x() < 16 ? shfl_xor(1.0f, 1) : (float)shfl_xor(1u, 1);
    p.out[thread_x()] = v;
}
KERNEL(odd_load, mutant_args, 32)
{
    p.out[thread_x()] = bits_float(load16((const uint8_t *)p.in + 4 * thread_x()).x);
}
