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

static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uintptr_t page_bytes;
/* The handler that was there before ours: SIG_DFL, SIG_IGN or a function, and which of the two kinds. */
static _Atomic uintptr_t previous;
static _Atomic bool previous_takes_info;

/* Puts zero pages over the range from the page of `address` to the end of the mapping. To the end, because a
 * page by page replacement of a large random-access mapping would exceed the kernel's limit of mappings. */
static bool replace_tail(uintptr_t address, uintptr_t start, size_t bytes)
{
    uintptr_t in_page = atomic_load_explicit(&page_bytes, memory_order_relaxed) - 1;
    uintptr_t from = address & ~in_page, end = (start + bytes + in_page) & ~in_page;
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
    /* The one before may itself pass the signal on to us, if it was installed between two calls of ours. */
    static _Thread_local volatile sig_atomic_t passing_on;
    uintptr_t handler = passing_on ? (uintptr_t)SIG_DFL : atomic_load(&previous);
    passing_on = 1;
    if (handler == (uintptr_t)SIG_DFL || handler == (uintptr_t)SIG_IGN) {
        /* Nobody else wants it: the access is repeated on return and ends the process as it would have. */
        signal(signal_number, SIG_DFL);
        if (info->si_code <= 0) raise(signal_number);
    } else if (atomic_load(&previous_takes_info)) {
        ((void (*)(int, siginfo_t *, void *))handler)(signal_number, info, context);
    } else {
        ((void (*)(int))handler)(signal_number);
    }
    passing_on = 0;
    errno = saved_errno;
}

/* Puts our handler in place unless it is. Asked for every range, because test frameworks and crash reporters
 * replace handlers. */
static int install(void)
{
    struct sigaction now, action = {0};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&action.sa_mask);
    int error = 0;
    pthread_mutex_lock(&install_lock);
    if (sigaction(SIGBUS, NULL, &now)) {
        error = errno;
    } else if (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != on_sigbus) {
        atomic_store(&page_bytes, (uintptr_t)sysconf(_SC_PAGESIZE));
        bool takes_info = now.sa_flags & SA_SIGINFO;
        atomic_store(&previous, takes_info ? (uintptr_t)now.sa_sigaction : (uintptr_t)now.sa_handler);
        atomic_store(&previous_takes_info, takes_info);
        if (sigaction(SIGBUS, &action, NULL)) error = errno;
    }
    pthread_mutex_unlock(&install_lock);
    return error;
}

rq_status rq_guard_add(const void *start, size_t bytes, int *slot, rq_error *err)
{
    int error = install();
    if (error) return rq_fail(err, RQ_ERR_IO, "cannot install a SIGBUS handler: %s", strerror(error));
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
