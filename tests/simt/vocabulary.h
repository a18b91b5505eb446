// vocabulary.h - cuda/simt.cuh for the simulator: the same words as calls of sim.cpp.
#ifndef RQ_SIMT_VOCABULARY_H
#define RQ_SIMT_VOCABULARY_H

#include <cmath>
#include <cstdint>
#include <cstring>

namespace simt
{

struct thread_position {
    uint32_t thread, block[3];
};
extern thread_position position; // of the running thread
extern uint32_t block_threads, grid_blocks_x;

// A kernel of this program; `run` calls it with the argument structure.
struct kernel {
    kernel(const char *name, uint32_t threads, uint32_t args_bytes, void (*run)(const void *args));
    const char *name;
    uint32_t threads, args_bytes;
    void (*run)(const void *args);
    bool launched;
    kernel *next;
};

// Ends the launch with this sentence. Does not return.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

void barrier();
// All lanes of a warp meet: the last one calls op with what each brought.
void meet(void *mine, void (*op)(void *const *all));
// Shared memory at its declaration: filled with ones once for a block, counted.
void shared_memory(void *p, size_t bytes);
void copy_begin(void *shared, const void *global);
void copy_close();
void copy_finish(uint32_t groups_left);
void warp_fence();
void wait_for_launches();

float half_to_float(uint16_t h);
uint16_t float_to_half(float f);

void ldmatrix(uint32_t r[4], const void *row, bool trans);
enum matrix_type { F16, BF16, S8 };
void mma(void *c, const uint32_t a[4], const uint32_t b[2], matrix_type type);

template <typename T> struct exchange {
    T in, out;
    uint32_t lane;
};

// Lanes wait in it while one of them does it: the thread sanitizer shall not see it.
template <typename T> __attribute__((no_sanitize("thread"))) void shuffle_op(void *const *all)
{
    for (int i = 0; i < 32; i++) {
        auto *e = (exchange<T> *)all[i];
        e->out = ((exchange<T> *)all[e->lane % 32])->in;
    }
}
template <typename T> T shuffle(T v, uint32_t lane)
{
    exchange<T> e = {v, v, lane};
    meet(&e, shuffle_op<T>);
    return e.out;
}
void ballot_op(void *const *all);

template <typename T> const T *checked(const void *p)
{
    if ((uintptr_t)p % sizeof(T)) fail("a load or store of %u bytes at an odd place", (unsigned)sizeof(T));
    return (const T *)p;
}

} // namespace simt

#define KERNEL_AHEAD(name, args, threads)                                                                    \
    static void name(const args &p);                                                                         \
    static simt::kernel name##_entry(#name, threads, sizeof(args),                                           \
                                     [](const void *a) { name(*(const args *)a); });                         \
    static void name(const args &p)
#define KERNEL(name, args, threads)                                                                          \
    static void name(const args &p);                                                                         \
    static simt::kernel name##_entry(#name, threads, sizeof(args), [](const void *a) {                       \
        launch_next();                                                                                       \
        launch_wait();                                                                                       \
        name(*(const args *)a);                                                                              \
    });                                                                                                      \
    static void name(const args &p)
#define DEVICE                                     static inline __attribute__((unused))
#define KERNEL_BLOCKS(name, args, threads, blocks) KERNEL(name, args, threads)
#define DEVICE_MEMBER
#define CONSTANT static constexpr
#define SHARED(type, name, n)                                                                                \
    alignas(16) static type name[n];                                                                         \
    simt::shared_memory(name, sizeof name)
#define LARGE_SHARED(type, name) SHARED(type, name, 1)

DEVICE uint32_t thread_x()
{
    return simt::position.thread;
}
DEVICE uint32_t threads_x()
{
    return simt::block_threads;
}
DEVICE uint32_t block_x()
{
    return simt::position.block[0];
}
DEVICE uint32_t block_y()
{
    return simt::position.block[1];
}
DEVICE uint32_t block_z()
{
    return simt::position.block[2];
}
DEVICE uint32_t blocks_x()
{
    return simt::grid_blocks_x;
}

DEVICE void block_sync()
{
    simt::barrier();
}
DEVICE void warp_sync()
{
    simt::warp_fence();
}

DEVICE float shfl_xor(float v, uint32_t mask)
{
    return simt::shuffle(v, (simt::position.thread ^ mask) % 32);
}
DEVICE uint32_t shfl_xor(uint32_t v, uint32_t mask)
{
    return simt::shuffle(v, (simt::position.thread ^ mask) % 32);
}
DEVICE float shfl(float v, uint32_t lane)
{
    return simt::shuffle(v, lane);
}
DEVICE uint32_t shfl(uint32_t v, uint32_t lane)
{
    return simt::shuffle(v, lane);
}
DEVICE uint32_t vote_bits(bool v)
{
    simt::exchange<uint32_t> e = {v, 0, 0};
    simt::meet(&e, simt::ballot_op);
    return e.out;
}
DEVICE bool vote_any(bool v)
{
    return vote_bits(v) != 0;
}
DEVICE bool vote_all(bool v)
{
    return vote_bits(v) == 0xffffffffu;
}
DEVICE uint32_t atomic_add(uint32_t *p, uint32_t v)
{
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
DEVICE uint32_t atomic_max(uint32_t *p, uint32_t v)
{
    uint32_t old = __atomic_load_n(p, __ATOMIC_RELAXED);
    if (v > old) __atomic_store_n(p, v, __ATOMIC_RELAXED); // threads change at calls only
    return old;
}

DEVICE uint32_t load4(const void *p)
{
    return *simt::checked<uint32_t>(p);
}
DEVICE u32x2 load8(const void *p)
{
    return *simt::checked<u32x2>(p);
}
DEVICE u32x4 load16(const void *p)
{
    return *simt::checked<u32x4>(p);
}
DEVICE u32x4 load16_once(const void *p)
{
    return *simt::checked<u32x4>(p);
}
DEVICE void prefetch(const void *p)
{
    (void)*(const volatile uint8_t *)p;
}
DEVICE void store4(void *p, uint32_t v)
{
    *(uint32_t *)simt::checked<uint32_t>(p) = v;
}
DEVICE void store8(void *p, u32x2 v)
{
    *(u32x2 *)simt::checked<u32x2>(p) = v;
}
DEVICE void store16(void *p, u32x4 v)
{
    *(u32x4 *)simt::checked<u32x4>(p) = v;
}

DEVICE void copy16_async(void *shared, const void *global)
{
    simt::checked<u32x4>(global);
    simt::copy_begin((void *)simt::checked<u32x4>(shared), global);
}
DEVICE void copy_commit()
{
    simt::copy_close();
}
template <int N> DEVICE void copy_wait()
{
    simt::copy_finish(N);
}

DEVICE void ldmatrix_x4(uint32_t r[4], const void *row)
{
    simt::ldmatrix(r, simt::checked<u32x4>(row), false);
}
DEVICE void ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    simt::ldmatrix(r, simt::checked<u32x4>(row), true);
}
CONSTANT bool MATRIX_UNITS = true;
DEVICE void mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    simt::mma(c, a, b, simt::F16);
}
DEVICE void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    simt::mma(c, a, b, simt::BF16);
}
DEVICE void mma_s8(int32_t c[4], const uint32_t a[4], const uint32_t b[2])
{
    simt::mma(c, a, b, simt::S8);
}

DEVICE int32_t dp4a(uint32_t a, uint32_t b, int32_t c)
{
    for (int i = 0; i < 4; i++) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
    return c;
}
DEVICE uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector)
{
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t s = selector >> 4 * i & 15, byte = (uint32_t)(both >> 8 * (s & 7)) & 255;
        if (s & 8) byte = byte & 128 ? 255 : 0;
        r |= byte << 8 * i;
    }
    return r;
}
DEVICE float bits_float(uint32_t v)
{
    float f;
    memcpy(&f, &v, 4);
    return f;
}
DEVICE uint32_t float_bits(float v)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    return u;
}
DEVICE uint32_t leading_zeros(uint32_t v)
{
    return v ? (uint32_t)__builtin_clz(v) : 32;
}
DEVICE uint32_t count_bits(uint32_t v)
{
    return (uint32_t)__builtin_popcount(v);
}
DEVICE uint32_t half_bits(float v)
{
    return simt::float_to_half(v);
}
DEVICE float half_float(uint32_t h)
{
    return simt::half_to_float((uint16_t)h);
}
DEVICE uint32_t half2_bits(float lo, float hi)
{
    return half_bits(lo) | half_bits(hi) << 16;
}
DEVICE uint32_t half2_add(uint32_t a, uint32_t b)
{
    return half2_bits(half_float(a & 0xffffu) + half_float(b & 0xffffu),
                      half_float(a >> 16) + half_float(b >> 16));
}
DEVICE uint32_t half2_fma(uint32_t a, uint32_t b, uint32_t c)
{
    return half2_bits(half_float(a & 0xffffu) * half_float(b & 0xffffu) + half_float(c & 0xffffu),
                      half_float(a >> 16) * half_float(b >> 16) + half_float(c >> 16));
}
DEVICE uint32_t half2_mul(uint32_t a, uint32_t b)
{
    return half2_bits(half_float(a & 0xffffu) * half_float(b & 0xffffu),
                      half_float(a >> 16) * half_float(b >> 16));
}
DEVICE float exp2_fast(float x)
{
    return x < -126 ? 0 : exp2f(x);
}
DEVICE void launch_next() {}
DEVICE void launch_wait()
{
    simt::wait_for_launches();
}

#endif
