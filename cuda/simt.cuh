// simt.cuh - the only words kernels may use for what C++ does not have: threads, shared memory, barriers, warps,
// wide loads, asynchronous copies, matrix units. nvcc gets them from here as intrinsics and inline PTX; the
// simulator (tests/simt) supplies functions of the same names. A grep test holds kernels to this.
#ifndef RQ_SIMT_CUH
#define RQ_SIMT_CUH

#include "cuda/args.h"

struct alignas(16) u32x4 {
    uint32_t x, y, z, w;
};
struct alignas(8) u32x2 {
    uint32_t x, y;
};

#ifndef __CUDACC__
#include "tests/simt/vocabulary.h"
#else

#define DEVICE                      static __device__ __forceinline__
// A kernel with its argument structure and threads of a block. A launch may begin before the one that it depends on has
// ended (docs/cuda.md, "Launches that overlap"): a kernel lets the next one begin at once and then waits for the one before.
#define KERNEL(name, args, threads) KERNEL_BLOCKS(name, args, threads, 1)
// As KERNEL, and so many blocks shall fit on a multiprocessor.
#define KERNEL_BLOCKS(name, args, threads, blocks)                                                           \
    DEVICE void name##_run(const args &p);                                                                   \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ args p)       \
    {                                                                                                        \
        launch_next();                                                                                       \
        launch_wait();                                                                                       \
        name##_run(p);                                                                                       \
    }                                                                                                        \
    DEVICE void name##_run(const args &p)
// As KERNEL, for one that has something to do before it waits. Every thread calls launch_wait on every path, before it
// reads what any launch of the graph writes, and before it writes anything that is not its block's own.
#define KERNEL_AHEAD(name, args, threads)                                                                    \
    extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ args p)
#define DEVICE_MEMBER         __device__ __forceinline__
#define CONSTANT              static __device__ constexpr
#define SHARED(type, name, n) __shared__ alignas(16) type name[n]
// One object in shared memory of a size that the launch gives (CUDA_LARGE_KERNELS): up to 99 KB.
#define LARGE_SHARED(type, name)                                                                             \
    extern __shared__ u32x4 large_shared_memory[];                                                           \
    type *name = (type *)large_shared_memory

DEVICE uint32_t thread_x()
{
    return threadIdx.x;
}
DEVICE uint32_t threads_x()
{
    return blockDim.x;
}
DEVICE uint32_t block_x()
{
    return blockIdx.x;
}
DEVICE uint32_t block_y()
{
    return blockIdx.y;
}
DEVICE uint32_t block_z()
{
    return blockIdx.z;
}
DEVICE uint32_t blocks_x()
{
    return gridDim.x;
}

DEVICE void block_sync()
{
    __syncthreads();
}
DEVICE void warp_sync()
{
    __syncwarp();
}

DEVICE float shfl_xor(float v, uint32_t mask)
{
    return __shfl_xor_sync(0xffffffffu, v, mask);
}
DEVICE uint32_t shfl_xor(uint32_t v, uint32_t mask)
{
    return __shfl_xor_sync(0xffffffffu, v, mask);
}
DEVICE float shfl(float v, uint32_t lane)
{
    return __shfl_sync(0xffffffffu, v, lane);
}
DEVICE uint32_t shfl(uint32_t v, uint32_t lane)
{
    return __shfl_sync(0xffffffffu, v, lane);
}
DEVICE uint32_t vote_bits(bool v)
{
    return __ballot_sync(0xffffffffu, v);
}
DEVICE bool vote_any(bool v)
{
    return __any_sync(0xffffffffu, v);
}
DEVICE bool vote_all(bool v)
{
    return __all_sync(0xffffffffu, v);
}
DEVICE uint32_t atomic_add(uint32_t *p, uint32_t v)
{
    return atomicAdd(p, v);
}
DEVICE uint32_t atomic_max(uint32_t *p, uint32_t v)
{
    return atomicMax(p, v);
}

// ---- memory: 4, 8 and 16 aligned bytes
DEVICE uint32_t load4(const void *p)
{
    return *(const uint32_t *)p;
}
DEVICE u32x2 load8(const void *p)
{
    return *(const u32x2 *)p;
}
DEVICE u32x4 load16(const void *p)
{
    return *(const u32x4 *)p;
}
// Global memory that nobody writes during the launch, read once: not kept in the first-level cache.
DEVICE u32x4 load16_once(const void *p)
{
    u32x4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
// Asks for the line of 128 bytes around p, in memory that exists, to be brought into the second-level cache.
DEVICE void prefetch(const void *p)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}
DEVICE void store4(void *p, uint32_t v)
{
    *(uint32_t *)p = v;
}
DEVICE void store8(void *p, u32x2 v)
{
    *(u32x2 *)p = v;
}
DEVICE void store16(void *p, u32x4 v)
{
    *(u32x4 *)p = v;
}

// ---- asynchronous copies of 16 bytes from global to shared memory (plain ones before sm_80)
DEVICE uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}
DEVICE void copy16_async(void *shared, const void *global)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global)
                 : "memory");
#else
    *(u32x4 *)shared = *(const u32x4 *)global;
#endif
}
DEVICE void copy_commit()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most N groups of this thread are under way.
template <int N> DEVICE void copy_wait()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// ---- matrices: fragments as PTX names them (ISA, section "Matrix fragments for mma.m16n8k16" and following)
DEVICE void ldmatrix_x4(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// Kernels that live by the products below are empty where there are none.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
CONSTANT bool MATRIX_UNITS = false;
#else
CONSTANT bool MATRIX_UNITS = true;
#endif
#if __CUDA_ARCH__ >= 800
DEVICE void mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_s8(int32_t c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else // sm_75 has smaller tiles, which the halves of these operands are
DEVICE void mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
#pragma unroll
    for (uint32_t h = 0; h < 2; h++)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[2 * h]), "r"(a[2 * h + 1]), "r"(b[h]));
}
DEVICE void mma_s8(int32_t c[4], const uint32_t a[4], const uint32_t b[2])
{
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) // rows of the upper and lower half, elements of the first and second
        asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                     : "+r"(c[2 * (i % 2)]), "+r"(c[2 * (i % 2) + 1])
                     : "r"(a[i]), "r"(b[i / 2]));
}
// No bf16: the sums over a quad's operands, by shuffles. A loop as it stands, for it is wanted often.
DEVICE void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    uint32_t lane = threadIdx.x % 32, row = lane / 4 * 4, column = 2 * (lane % 4);
#pragma unroll 1
    for (uint32_t q = 0; q < 4; q++)
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            uint32_t x[2] = {__shfl_sync(0xffffffffu, a[2 * h], row + q),
                             __shfl_sync(0xffffffffu, a[2 * h + 1], row + q)};
            uint32_t y[2] = {__shfl_sync(0xffffffffu, b[h], 4 * column + q),
                             __shfl_sync(0xffffffffu, b[h], 4 * (column + 1) + q)};
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t m = x[i / 2], n = y[i % 2];
                c[i] = fmaf(__uint_as_float(m << 16), __uint_as_float(n << 16), c[i]);
                c[i] = fmaf(__uint_as_float(m & 0xffff0000u), __uint_as_float(n & 0xffff0000u), c[i]);
            }
        }
}
#endif

// ---- arithmetic on bytes and halves
// Sum of the products of four signed bytes, plus c.
DEVICE int32_t dp4a(uint32_t a, uint32_t b, int32_t c)
{
    return __dp4a((int)a, (int)b, c);
}
// Bytes of b:a by the nibbles of `selector`; bit 3 of a nibble: the byte's sign, eight times.
DEVICE uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector)
{
    uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(selector));
    return r;
}
DEVICE float bits_float(uint32_t v)
{
    return __uint_as_float(v);
}
DEVICE uint32_t float_bits(float v)
{
    return __float_as_uint(v);
}
DEVICE uint32_t leading_zeros(uint32_t v)
{
    return (uint32_t)__clz((int)v);
}
DEVICE uint32_t count_bits(uint32_t v)
{
    return (uint32_t)__popc(v);
}
// Nearest even; NaN becomes some NaN.
DEVICE uint32_t half_bits(float v)
{
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
}
DEVICE float half_float(uint32_t h)
{
    float f;
    uint16_t low = (uint16_t)h;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(low));
    return f;
}
// Two halves, the first in the low bits; sums and products of both (of fma the sum), each rounded to nearest even.
DEVICE uint32_t half2_bits(float lo, float hi)
{
#if __CUDA_ARCH__ >= 800
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
#else
    return half_bits(lo) | half_bits(hi) << 16;
#endif
}
DEVICE uint32_t half2_add(uint32_t a, uint32_t b)
{
    uint32_t r;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
DEVICE uint32_t half2_fma(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
DEVICE uint32_t half2_mul(uint32_t a, uint32_t b)
{
    uint32_t r;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
// Two to the power x, 2 units in the last place; -inf gives 0.
DEVICE float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Lets launches that depend on this one begin, once every block has called it or ended; they may not see anything that
// this one writes before they have waited. Before sm_90, and where the host did not ask for it, they begin afterwards.
DEVICE void launch_next()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// Waits until the launches that this one depends on have ended and all they wrote can be seen.
DEVICE void launch_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#endif // __CUDACC__
#endif
