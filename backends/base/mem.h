/* mem.h - allocation. Every heap allocation of the program goes through these functions, so that a test can
 * fail the N-th one and check that everything else is released. */
#ifndef RQ_MEM_H
#define RQ_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* All return NULL on failure (also when a size computation would overflow); a size of zero yields a valid,
 * freeable pointer. rq_free(NULL) does nothing. */
void *rq_malloc(size_t bytes);
void *rq_calloc(size_t count, size_t bytes);
void *rq_realloc(void *old, size_t bytes); /* on failure `old` is untouched */
/* realloc for arrays: fails instead of wrapping when count * bytes overflows. */
void *rq_realloc_array(void *old, size_t count, size_t bytes);
/* `alignment` is a power of two >= sizeof(void *); zero-filled; release with rq_free. */
void *rq_calloc_aligned(size_t alignment, size_t bytes);
char *rq_strndup(const char *text, size_t bytes); /* copies `bytes` bytes and appends NUL */
char *rq_strdup(const char *text);
void rq_free(void *p);

/* Grows *array (of `item_bytes` items, capacity *cap) so that it holds at least `need` items, doubling.
 * Returns false and changes nothing when memory runs out. */
bool rq_grow(void **array, size_t *cap, size_t need, size_t item_bytes);

/* Checked arithmetic: return true and store the result, or return false when it does not fit. */
static inline bool rq_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool rq_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

/* ---- for tests ---------------------------------------------------------------------------------------- */

/* Makes the n-th allocation from now on (1 = the next) return NULL, once; 0 switches this off. Process-wide,
 * any thread. */
void rq_mem_fail_at(uint64_t n);
/* Number of allocations since the last call of rq_mem_fail_at, and how many are alive now. */
uint64_t rq_mem_count(void);
int64_t rq_mem_alive(void);

#endif
