// sim.cpp - runs kernels on the processor: a thread of a block is a fibre, blocks run one by one in shuffled order.
// A fibre runs until it waits at a barrier or for its warp; the next one in line goes on. What a card leaves to chance
// is made to show: shared memory starts as ones, asynchronous copies land at their wait and hold ones before, orders
// are shuffled, and a barrier or warp that not everybody reaches ends the launch with a sentence.
#include "tests/simt/sim.h"
#include "tests/simt/launch.h"
#include "tests/simt/sim_memory.h"

#include "cuda/simt.cuh"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(                                                                                                 \
    SIMT_THREAD) // this file itself is compiled without the thread sanitizer: its books are nobody's data
#include <sanitizer/tsan_interface.h>
#endif

namespace simt
{

enum {
    WARP = 32,
    MAX_THREADS = 1024,
    STACK_BYTES = 256 << 10,
    MAX_SHARED_BYTES = 99 << 10,
    MAX_COPIES = 256,
    AHEAD_BLOCKS = 6 // of a launch whose beginning is looked at
};

thread_position position;
uint32_t block_threads, grid_blocks_x;

enum fibre_state { READY, AT_BARRIER, AT_WARP, DONE };

struct copy {
    void *to;
    const void *from;
};

struct fibre {
    void *sp;
    char *stack;
    void *tsan;
    fibre_state state;
    bool waited; // for the launches before this one
    void *brought;
    uint32_t n_barriers, n_fences; // that it came to
    uint32_t n_copies, n_groups;
    copy copies[MAX_COPIES];
    uint32_t group_end[MAX_COPIES];
};

struct warp {
    uint32_t n;
    void (*op)(void *const *all);
    void *brought[WARP];
};

static struct {
    fibre fibres[MAX_THREADS];
    warp warps[MAX_THREADS / WARP];
    uint16_t queue[MAX_THREADS];
    uint32_t head, n_ready, n_waiting, n_done;
    const kernel *running;
    launch_mode mode;
    const void *args;
    void *home;
    void *home_tsan;
    const void *home_stack;
    size_t home_bytes;
    bool failed;
    char message[256];
    uint64_t seed = 1, launches, overlaps;
    const void *shared[64];
    uint32_t n_shared;
    size_t shared_bytes;
    // Of barriers and fences two, used by turns: who leaves one late must not know what others did behind it.
    char barrier_mark[2], start_mark, end_mark;
    char warp_mark[MAX_THREADS / WARP][2];
} now;

static kernel *first_kernel;

kernel::kernel(const char *n, uint32_t t, uint32_t bytes, void (*r)(const void *))
    : name(n), threads(t), args_bytes(bytes), run(r), launched(false), next(first_kernel)
{
    first_kernel = this;
}

static uint32_t below(uint32_t n)
{
    uint64_t z = now.seed += 0x9e3779b97f4a7c15ull; // splitmix64
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return (uint32_t)(((z ^ z >> 31) >> 32) * n >> 32);
}

// ---- fibres ------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
extern "C" void simt_switch(void **save, void *to);
asm(".text\n.globl simt_switch\n.type simt_switch, @function\nsimt_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size simt_switch, .-simt_switch\n");
static void *stack_of(char *stack, void (*entry)())
{
    void **top = (void **)(stack + STACK_BYTES);
    *--top = nullptr; // where a return address would be
    *--top = (void *)entry;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    return top;
}
#elif defined(__aarch64__)
extern "C" void simt_switch(void **save, void *to);
asm(".text\n.globl simt_switch\n.type simt_switch, %function\nsimt_switch:\n"
    "sub sp, sp, #160\nstp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\n"
    "stp x25, x26, [sp, #48]\nstp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\nstp d8, d9, [sp, #96]\n"
    "stp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\n"
    "ldp x25, x26, [sp, #48]\nldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\nldp d8, d9, [sp, #96]\n"
    "ldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\nadd sp, sp, #160\nret\n"
    ".size simt_switch, .-simt_switch\n");
static void *stack_of(char *stack, void (*entry)())
{
    void **top = (void **)(stack + STACK_BYTES - 160);
    memset(top, 0, 160);
    top[11] = (void *)entry; // x30
    return top;
}
#else
#error "the simulator knows how to change stacks on x86-64 and aarch64"
#endif

static void go(uint32_t thread)
{
    position.thread = thread;
}

// From the running fibre (or home) to another, or home (thread == MAX_THREADS).
static void change(void **save, uint32_t thread, bool forever)
{
    bool home = thread == MAX_THREADS;
    fibre *f = home ? nullptr : &now.fibres[thread];
    void *sp = home ? now.home : f->sp;
    if (!home) go(thread);
#if defined(SIMT_THREAD)
    __tsan_switch_to_fiber(home ? now.home_tsan : f->tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
    void *fake = nullptr;
    __sanitizer_start_switch_fiber(forever ? nullptr : &fake, home ? now.home_stack : f->stack,
                                   home ? now.home_bytes : (size_t)STACK_BYTES);
#endif
    (void)forever;
    simt_switch(save, sp);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

static void push(uint32_t thread)
{
    now.fibres[thread].state = READY;
    now.queue[(now.head + now.n_ready++) % MAX_THREADS] = (uint16_t)thread;
}

static uint32_t pop()
{
    if (now.n_ready == 0) return MAX_THREADS;
    uint32_t thread = now.queue[now.head];
    now.head = (now.head + 1) % MAX_THREADS;
    now.n_ready--;
    return thread;
}

static void leave(fibre_state state)
{
    uint32_t me = position.thread;
    now.fibres[me].state = state;
    uint32_t next = now.failed ? (uint32_t)MAX_THREADS : pop();
    if (next == me) return;
    change(&now.fibres[me].sp, next, state == DONE);
    go(me);
}

void fail(const char *format, ...)
{
    if (!now.failed) {
        char text[sizeof now.message]; // on this fibre's stack: formatting is seen by the thread sanitizer
        int n = snprintf(text, sizeof text,
                         "%s, block %u %u %u, thread %u: ", now.running ? now.running->name : "?",
                         position.block[0], position.block[1], position.block[2], position.thread);
        va_list args;
        va_start(args, format);
        vsnprintf(text + n, sizeof text - (size_t)n, format, args);
        va_end(args);
        for (size_t i = 0; i < sizeof text; i++) ((volatile char *)now.message)[i] = text[i];
    }
    now.failed = true;
    leave(DONE);
    abort(); // a fibre that left is not entered again
}

static void entry()
{
#if defined(__SANITIZE_ADDRESS__)
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (!now.home_stack) {
        now.home_stack = bottom;
        now.home_bytes = bytes;
    }
#endif
#if defined(SIMT_THREAD)
    __tsan_acquire(&now.start_mark);
#endif
    now.running->run(now.args);
#if defined(SIMT_THREAD)
    __tsan_release(&now.end_mark);
#endif
    if (now.mode != ALONE && !now.fibres[position.thread].waited)
        fail("it ends without having waited for the launch before it");
    if (now.fibres[position.thread].n_copies) fail("it ends with asynchronous copies under way");
    now.n_done++;
    leave(DONE);
    abort();
}

// Of a beginning this is the end: what follows is not run.
void wait_for_launches()
{
    now.fibres[position.thread].waited = true;
    if (now.mode != AHEAD) return;
#if defined(SIMT_THREAD)
    __tsan_release(&now.end_mark);
#endif
    now.n_done++;
    leave(DONE);
    abort();
}

void barrier()
{
#if defined(SIMT_THREAD)
    char *mark = &now.barrier_mark[now.fibres[position.thread].n_barriers++ % 2];
    __tsan_release(mark);
#endif
    if (++now.n_waiting < block_threads) {
        leave(AT_BARRIER);
    } else {
        now.n_waiting = 0;
        uint32_t start = below(block_threads); // who goes on first is anybody's guess
        for (uint32_t i = 0; i < block_threads; i++) {
            uint32_t t = (start + i) % block_threads;
            if (now.fibres[t].state == AT_BARRIER) push(t);
        }
    }
#if defined(SIMT_THREAD)
    __tsan_acquire(mark);
#endif
}

void meet(void *mine, void (*op)(void *const *all))
{
    uint32_t me = position.thread;
    warp *w = &now.warps[me / WARP];
    if (w->n && w->op != op) fail("lanes of one warp meet for different things");
    w->op = op;
    w->brought[me % WARP] = mine;
    if (++w->n < WARP) {
        leave(AT_WARP);
        return;
    }
    w->n = 0;
    if (op) op(w->brought);
    for (uint32_t t = me / WARP * WARP, i = 0; i < WARP; i++)
        if (t + i != me) push(t + i);
}

void warp_fence()
{
#if defined(SIMT_THREAD)
    char *mark = &now.warp_mark[position.thread / WARP][now.fibres[position.thread].n_fences++ % 2];
    __tsan_release(mark);
#endif
    meet(nullptr, nullptr);
#if defined(SIMT_THREAD)
    __tsan_acquire(mark);
#endif
}

// ---- memory ------------------------------------------------------------------------------------------------

// What a thread does to memory by a call of this file, told to the thread sanitizer.
#if defined(SIMT_THREAD)
extern "C" void __tsan_read_range(void *at, unsigned long bytes);
extern "C" void __tsan_write_range(void *at, unsigned long bytes);
static void reads16(const void *p)
{
    __tsan_read_range(const_cast<void *>(p), 16);
}
static void writes16(void *p)
{
    __tsan_write_range(p, 16);
}
#else
static void reads16(const void *) {}
static void writes16(void *) {}
#endif

static void fill_ones(void *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) ((volatile unsigned char *)p)[i] = 0xff;
}

void shared_memory(void *p, size_t bytes)
{
    for (uint32_t i = 0; i < now.n_shared; i++)
        if (now.shared[i] == p) return;
    if (now.n_shared == 64) fail("too many arrays in shared memory");
    now.shared[now.n_shared++] = p;
    now.shared_bytes += bytes;
    if (now.shared_bytes > MAX_SHARED_BYTES) fail("%zu bytes of shared memory", now.shared_bytes);
    fill_ones(p, bytes);
}

static fibre *me()
{
    return &now.fibres[position.thread];
}

void copy_begin(void *shared, const void *global)
{
    fibre *f = me();
    if (f->n_copies == MAX_COPIES) fail("more than %d asynchronous copies", (int)MAX_COPIES);
    f->copies[f->n_copies++] = {shared, global};
    writes16(shared);
    memset(shared, 0xff, 16);
}

void copy_close()
{
    fibre *f = me();
    if (f->n_groups == MAX_COPIES) fail("more than %d groups of asynchronous copies", (int)MAX_COPIES);
    f->group_end[f->n_groups++] = f->n_copies;
}

void copy_finish(uint32_t groups_left)
{
    fibre *f = me();
    if (f->n_groups <= groups_left) return;
    uint32_t done = f->n_groups - groups_left, n = f->group_end[done - 1];
    for (uint32_t i = 0; i < n; i++) {
        reads16(f->copies[i].from);
        writes16(f->copies[i].to);
        memcpy(f->copies[i].to, f->copies[i].from, 16);
    }
    memmove(f->copies, f->copies + n, (f->n_copies - n) * sizeof *f->copies);
    for (uint32_t i = 0; i < groups_left; i++) f->group_end[i] = f->group_end[done + i] - n;
    f->n_copies -= n;
    f->n_groups = groups_left;
}

// ---- numbers -----------------------------------------------------------------------------------------------

float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 0x3ff;
    if (e == 0) return (sign ? -1.0f : 1.0f) * (float)m * 0x1p-24f;
    return bits_float(sign | (e == 31 ? 0x7f800000u : (e + 112) << 23) | m << 13);
}

uint16_t float_to_half(float x)
{
    uint32_t b = float_bits(x), sign = b >> 16 & 0x8000, a = b & 0x7fffffff;
    if (a > 0x7f800000) return (uint16_t)(sign | 0x7fff);
    if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00);                                   // 65520 and up
    if (a < 0x38800000) return (uint16_t)(sign | (uint32_t)lrintf(bits_float(a) * 0x1p24f)); // subnormal
    a += 0xfff + (a >> 13 & 1);
    return (uint16_t)(sign | ((a - 0x38000000) >> 13));
}

void ballot_op(void *const *all)
{
    uint32_t bits = 0;
    for (int i = 0; i < WARP; i++) bits |= (((exchange<uint32_t> *)all[i])->in & 1) << i;
    for (int i = 0; i < WARP; i++) ((exchange<uint32_t> *)all[i])->out = bits;
}

struct fragments {
    const void *row;
    uint32_t *r;
    void *c;
    const uint32_t *a, *b;
    uint32_t copy[4];
};

template <bool TRANS> static void gather_op(void *const *all)
{
    for (int m = 0; m < 4; m++)
        for (int lane = 0; lane < WARP; lane++) {
            const uint16_t *rows[8];
            for (int r = 0; r < 8; r++)
                rows[r] = (const uint16_t *)(const void *)((fragments *)all[8 * m + r])->copy;
            int g = lane / 4, t = 2 * (lane % 4);
            uint32_t lo = TRANS ? rows[t][g] : rows[g][t], hi = TRANS ? rows[t + 1][g] : rows[g][t + 1];
            ((fragments *)all[lane])->r[m] = lo | hi << 16;
        }
}

void ldmatrix(uint32_t r[4], const void *row, bool trans)
{
    fragments f = {row, r, nullptr, nullptr, nullptr, {}};
    reads16(row);
    memcpy(f.copy, row, 16); // here, where the address sanitizer sees who reads it
    meet(&f, trans ? gather_op<true> : gather_op<false>);
}

// C += A B in double for halves (which a card's units come near to) and in integers for bytes.
template <matrix_type TYPE> static void mma_op(void *const *all)
{
    constexpr int K = TYPE == S8 ? 32 : 16, PER = K / 8; // elements of a register
    double a[16][K], b[K][8];
    auto element = [](uint32_t word, int i) -> double {
        if (TYPE == S8) return (int8_t)(word >> 8 * i);
        uint16_t h = (uint16_t)(word >> 16 * i);
        return TYPE == F16 ? half_to_float(h) : bits_float((uint32_t)h << 16);
    };
    for (int lane = 0; lane < WARP; lane++) {
        const fragments *f = (const fragments *)all[lane];
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < PER; i++) {
            for (int half = 0; half < 2; half++) {
                a[g][half * K / 2 + PER * t + i] = element(f->a[2 * half], i);
                a[g + 8][half * K / 2 + PER * t + i] = element(f->a[2 * half + 1], i);
                b[half * K / 2 + PER * t + i][g] = element(f->b[half], i);
            }
        }
    }
    for (int lane = 0; lane < WARP; lane++) {
        const fragments *f = (const fragments *)all[lane];
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            double s = 0;
            for (int k = 0; k < K; k++) s += a[row][k] * b[k][column];
            if (TYPE == S8)
                ((int32_t *)f->c)[i] += (int32_t)s;
            else
                ((float *)f->c)[i] = (float)(((float *)f->c)[i] + s);
        }
    }
}

void mma(void *c, const uint32_t a[4], const uint32_t b[2], matrix_type type)
{
    fragments f = {nullptr, nullptr, c, a, b, {}};
    meet(&f, type == F16 ? mma_op<F16> : type == BF16 ? mma_op<BF16> : mma_op<S8>);
}

// ---- launches ----------------------------------------------------------------------------------------------

static bool prepare(uint32_t n)
{
    for (uint32_t t = 0; t < n; t++) {
        fibre *f = &now.fibres[t];
        if (!f->stack) {
            void *p = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (p == MAP_FAILED) return false;
            f->stack = (char *)p;
#if defined(SIMT_THREAD)
            f->tsan = __tsan_create_fiber(0);
#endif
        }
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(f->stack, STACK_BYTES);
#endif
        f->sp = stack_of(f->stack, entry);
        f->n_barriers = f->n_fences = f->n_copies = f->n_groups = 0;
        f->waited = false;
    }
    return true;
}

static void run_block(const kernel *k)
{
    block_threads = k->threads;
    if (!prepare(k->threads)) {
        now.failed = true;
        return;
    }
    now.head = now.n_ready = now.n_waiting = now.n_done = now.n_shared = 0;
    now.shared_bytes = 0;
    memset(now.warps, 0, sizeof now.warps);
    uint16_t order[MAX_THREADS];
    for (uint32_t i = 0; i < k->threads; i++) order[i] = (uint16_t)i;
    for (uint32_t i = k->threads; i > 1; i--) {
        uint32_t j = below(i);
        uint16_t swap = order[i - 1];
        order[i - 1] = order[j], order[j] = swap;
    }
    for (uint32_t i = 0; i < k->threads; i++) push(order[i]);
#if defined(SIMT_THREAD)
    now.home_tsan = __tsan_get_current_fiber();
    __tsan_release(&now.start_mark);
#endif
    now.home_stack = nullptr;
    change(&now.home, pop(), false);
#if defined(SIMT_THREAD)
    __tsan_acquire(&now.end_mark);
#endif
    if (now.failed || now.n_done == k->threads) return;
    now.failed = true;
    snprintf(now.message, sizeof now.message,
             "%s, block %u %u %u: of %u threads %u ended, %u wait at a barrier", k->name, position.block[0],
             position.block[1], position.block[2], k->threads, now.n_done, now.n_waiting);
}

const kernel *find(const char *name)
{
    for (const kernel *k = first_kernel; k; k = k->next)
        if (strcmp(k->name, name) == 0) return k;
    return nullptr;
}

// Runs all blocks, or the beginnings of some; false after a failure.
bool launch(const kernel *k, const uint32_t grid[3], const void *args, launch_mode mode)
{
    const_cast<kernel *>(k)->launched = true;
    now.running = k;
    now.args = args;
    now.mode = mode;
    if (mode != AHEAD) now.launches++;
    if (mode == DEPENDENT) now.overlaps++;
    grid_blocks_x = grid[0];
    uint64_t n = (uint64_t)grid[0] * grid[1] * grid[2];
    // i -> (i * step + start) % n walks through all blocks when step has no divisor in common with n
    uint64_t step = n > 2 ? below((uint32_t)n - 1) + 1 : 1, start = below((uint32_t)n);
    auto common = [](uint64_t a, uint64_t b) {
        while (b) {
            uint64_t r = a % b;
            a = b, b = r;
        }
        return a;
    };
    while (common(step, n) != 1) step = step % n + 1;
    uint64_t count = mode == AHEAD && n > AHEAD_BLOCKS ? (uint64_t)AHEAD_BLOCKS : n;
    device_access(mode == AHEAD ? BEGINNINGS : KERNELS);
    for (uint64_t i = 0; i < count && !now.failed; i++) {
        uint64_t b = (i * step + start) % n;
        position.block[0] = (uint32_t)(b % grid[0]);
        position.block[1] = (uint32_t)(b / grid[0] % grid[1]);
        position.block[2] = (uint32_t)(b / grid[0] / grid[1]);
        run_block(k);
    }
    device_access(HOST);
    const void *early = touched_early();
    if (early && !now.failed) {
        now.failed = true;
        snprintf(now.message, sizeof now.message,
                 "%s touches what launches write, at %p, before it has waited for them", k->name, early);
    }
    now.running = nullptr;
    bool ok = !now.failed;
    now.failed = false;
    return ok;
}

uint32_t random_below(uint32_t n)
{
    return below(n);
}

} // namespace simt

const char *simt_message(void)
{
    static char out[sizeof simt::now.message];
    memcpy(out, simt::now.message, sizeof out);
    simt::now.message[0] = 0;
    return out;
}

uint64_t simt_launches(void)
{
    uint64_t n = simt::now.launches;
    simt::now.launches = 0;
    return n;
}

uint64_t simt_overlaps(void)
{
    uint64_t n = simt::now.overlaps;
    simt::now.overlaps = 0;
    return n;
}

const char *simt_kernel(uint32_t i, bool *launched)
{
    const simt::kernel *k = simt::first_kernel;
    while (k && i--) k = k->next;
    if (k) *launched = k->launched;
    return k ? k->name : nullptr;
}

void simt_seed(uint64_t seed)
{
    simt::now.seed = seed;
}

bool simt_run(const char *name, uint32_t x, uint32_t y, uint32_t z, const void *args)
{
    const simt::kernel *k = simt::find(name);
    const uint32_t grid[3] = {x, y, z};
    return k && simt::launch(k, grid, args, simt::ALONE);
}
