#include "backends/base/mem.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* The only mutable globals of the base room: counters of the fault injector (see mem.h). */
static _Atomic uint64_t alloc_count;
static _Atomic uint64_t alloc_fail_at;
static _Atomic int64_t alloc_alive;

static bool injected_failure(void)
{
    uint64_t n = atomic_fetch_add_explicit(&alloc_count, 1, memory_order_relaxed) + 1;
    return n == atomic_load_explicit(&alloc_fail_at, memory_order_relaxed);
}

static void *counted(void *p)
{
    if (p) atomic_fetch_add_explicit(&alloc_alive, 1, memory_order_relaxed);
    return p;
}

void rq_mem_fail_at(uint64_t n)
{
    atomic_store(&alloc_count, 0);
    atomic_store(&alloc_fail_at, n);
}

uint64_t rq_mem_count(void)
{
    return atomic_load(&alloc_count);
}

int64_t rq_mem_alive(void)
{
    return atomic_load(&alloc_alive);
}

void *rq_malloc(size_t bytes)
{
    return injected_failure() ? NULL : counted(malloc(bytes ? bytes : 1));
}

void *rq_calloc(size_t count, size_t bytes)
{
    if (injected_failure()) return NULL;
    return count && bytes ? counted(calloc(count, bytes)) : counted(calloc(1, 1));
}

void *rq_realloc(void *old, size_t bytes)
{
    if (injected_failure()) return NULL;
    void *p = realloc(old, bytes ? bytes : 1);
    return old ? p : counted(p);
}

void *rq_realloc_array(void *old, size_t count, size_t bytes)
{
    uint64_t total;
    if (!rq_mul_u64(count, bytes, &total)) return NULL;
    return rq_realloc(old, total);
}

void *rq_calloc_aligned(size_t alignment, size_t bytes)
{
    if (injected_failure()) return NULL;
    void *p = NULL;
    if (posix_memalign(&p, alignment, bytes ? bytes : 1)) return NULL;
    memset(p, 0, bytes ? bytes : 1);
    return counted(p);
}

char *rq_strndup(const char *text, size_t bytes)
{
    if (bytes == SIZE_MAX) return NULL;
    char *copy = rq_malloc(bytes + 1);
    if (!copy) return NULL;
    if (bytes) memcpy(copy, text, bytes);
    copy[bytes] = 0;
    return copy;
}

char *rq_strdup(const char *text)
{
    return rq_strndup(text, strlen(text));
}

void rq_free(void *p)
{
    if (!p) return;
    atomic_fetch_sub_explicit(&alloc_alive, 1, memory_order_relaxed);
    free(p);
}

bool rq_grow(void **array, size_t *cap, size_t need, size_t item_bytes)
{
    if (need <= *cap) return true;
    size_t grown = *cap ? *cap : 8;
    while (grown < need) {
        if (grown > SIZE_MAX / 2) return false;
        grown *= 2;
    }
    void *p = rq_realloc_array(*array, grown, item_bytes);
    if (!p) return false;
    *array = p;
    *cap = grown;
    return true;
}
