// sim_memory.cpp - device memory of the simulator, and what kernels do to it before they may. Memory is mapped, with a
// page that nobody may touch on both sides. It begins as read-only for kernels; the first write of a kernel marks the
// allocation as written by launches. While only the beginnings of launches run (sim.cpp, AHEAD), such memory may not be
// touched and no other written: a kernel that does either did not wait for the launch before it.
#include "tests/simt/sim_memory.h"

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace simt
{

namespace
{
struct allocation {
    char *at;
    size_t bytes, mapped;
    bool written; // by a kernel
};
std::vector<allocation> allocations;
access_phase phase = HOST;
const void *touched;
struct sigaction before;

void allow(const allocation &a)
{
    int how = PROT_READ | PROT_WRITE;
    if (phase == KERNELS && !a.written) how = PROT_READ;
    if (phase == BEGINNINGS) how = a.written ? PROT_NONE : PROT_READ;
    mprotect(a.at, a.mapped, how);
}

void fault(int, siginfo_t *info, void *)
{
    char *at = (char *)info->si_addr;
    for (allocation &a : allocations) {
        if (at < a.at || at >= a.at + a.mapped) continue;
        if (phase == BEGINNINGS && !touched) touched = at;
        if (phase == KERNELS) a.written = true;
        mprotect(a.at, a.mapped, PROT_READ | PROT_WRITE);
        return; // and the access happens
    }
    sigaction(SIGSEGV, &before, nullptr); // it happens again, and is theirs
}
} // namespace

void *device_alloc(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), mapped = (bytes + page - 1) / page * page;
    if (bytes > SIZE_MAX - 4 * page) return nullptr;
    if (mapped == 0) mapped = page;
    void *all =
        mmap(nullptr, mapped + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) return nullptr;
    allocation a = {(char *)all + page, bytes, mapped, false};
    if (mprotect(a.at, mapped, PROT_READ | PROT_WRITE)) {
        munmap(all, mapped + 2 * page);
        return nullptr;
    }
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(a.at + bytes, mapped - bytes);
#endif
    allocations.push_back(a);
    return a.at;
}

void device_free(void *p)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < allocations.size(); i++) {
        allocation a = allocations[i];
        if (a.at != p) continue;
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(a.at, a.mapped);
#endif
        munmap(a.at - page, a.mapped + 2 * page);
        allocations.erase(allocations.begin() + (long)i);
        return;
    }
    abort(); // never given out
}

void device_access(access_phase next)
{
    if (phase == HOST && next != HOST) {
        struct sigaction ours;
        memset(&ours, 0, sizeof ours);
        ours.sa_sigaction = fault;
        ours.sa_flags = SA_SIGINFO;
        sigaction(SIGSEGV, &ours, &before);
    }
    bool back = phase != HOST && next == HOST;
    phase = next;
    for (const allocation &a : allocations) allow(a);
    if (back) sigaction(SIGSEGV, &before, nullptr);
}

const void *touched_early()
{
    const void *p = touched;
    touched = nullptr;
    return p;
}

} // namespace simt
