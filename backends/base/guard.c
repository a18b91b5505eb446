#include "backends/base/guard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A signal handler can only reach what is static, so this table is one of the few mutable globals. A slot is
 * written by its owner while CLAIMED and read by the handler only while ACTIVE. */
enum { FREE, CLAIMED, ACTIVE };

static struct {
    _Atomic int state;
    _Atomic bool lost;
    _Atomic uintptr_t start;
    _Atomic size_t bytes;
} slots[RQ_GUARD_MAX];
static _Atomic int slots_end; /* no slot at or above was ever used: bounds the handler's scan */

static pthread_once_t install_once = PTHREAD_ONCE_INIT;
static int install_errno;
static uintptr_t page_bytes;
static struct sigaction previous;

/* Puts zero pages over the range from the page of `address` to the end of the mapping. To the end, because a
 * page by page replacement of a large random-access mapping would exceed the kernel's limit of mappings. */
static bool replace_tail(uintptr_t address, uintptr_t start, size_t bytes)
{
    uintptr_t from = address & ~(page_bytes - 1);
    uintptr_t end = (start + bytes + page_bytes - 1) & ~(page_bytes - 1);
    /* The bare system call is async-signal-safe and not intercepted by sanitizers. */
    long got = syscall(SYS_mmap, (void *)from, end - from, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                       -1, (long)0);
    return got == (long)from;
}

static void on_sigbus(int signal_number, siginfo_t *info, void *context)
{
    int saved_errno = errno;
    uintptr_t address = (uintptr_t)info->si_addr;
    int end =
        info->si_code > 0 ? atomic_load_explicit(&slots_end, memory_order_acquire) : 0; /* not by kill() */
    for (int i = 0; i < end; i++) {
        if (atomic_load_explicit(&slots[i].state, memory_order_acquire) != ACTIVE) continue;
        uintptr_t start = atomic_load_explicit(&slots[i].start, memory_order_relaxed);
        size_t bytes = atomic_load_explicit(&slots[i].bytes, memory_order_relaxed);
        if (address < start || address - start >= bytes) continue;
        atomic_store_explicit(&slots[i].lost, true, memory_order_release);
        bool replaced = replace_tail(address, start, bytes);
        errno = saved_errno;
        if (replaced) return;
        break;
    }
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(signal_number, info, context);
    } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(signal_number);
    } else {
        /* Nobody else wants it: the access is repeated on return and ends the process as it would have. */
        signal(signal_number, SIG_DFL);
        if (info->si_code <= 0) raise(signal_number);
    }
    errno = saved_errno;
}

static void install(void)
{
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGBUS, NULL, &previous) || sigaction(SIGBUS, &action, NULL)) install_errno = errno;
}

rq_status rq_guard_add(const void *start, size_t bytes, int *slot, rq_error *err)
{
    pthread_once(&install_once, install);
    if (install_errno)
        return rq_fail(err, RQ_ERR_IO, "cannot install a SIGBUS handler: %s", strerror(install_errno));
    for (int i = 0; i < RQ_GUARD_MAX; i++) {
        int expected = FREE;
        if (!atomic_compare_exchange_strong(&slots[i].state, &expected, CLAIMED)) continue;
        atomic_store_explicit(&slots[i].lost, false, memory_order_relaxed);
        atomic_store_explicit(&slots[i].start, (uintptr_t)start, memory_order_relaxed);
        atomic_store_explicit(&slots[i].bytes, bytes, memory_order_relaxed);
        atomic_store_explicit(&slots[i].state, ACTIVE, memory_order_release);
        int end = atomic_load(&slots_end);
        while (end < i + 1 && !atomic_compare_exchange_weak(&slots_end, &end, i + 1)) continue;
        *slot = i;
        return RQ_OK;
    }
    return rq_fail(err, RQ_ERR_CAPACITY, "more than %d files are mapped at one time", RQ_GUARD_MAX);
}

void rq_guard_remove(int slot)
{
    if (slot >= 0 && slot < RQ_GUARD_MAX)
        atomic_store_explicit(&slots[slot].state, FREE, memory_order_release);
}

bool rq_guard_lost(int slot)
{
    return slot >= 0 && slot < RQ_GUARD_MAX && atomic_load_explicit(&slots[slot].lost, memory_order_relaxed);
}
