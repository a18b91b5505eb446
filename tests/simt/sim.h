/* sim.h - the simulated card as tests see it. */
#ifndef RQ_SIMT_SIM_H
#define RQ_SIMT_SIM_H

#include "backends/cuda/api.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

extern const cuda_api simt_api;

/* The n-th driver call from now fails (1: the next); 0: none does. Returns how many calls were made since the last
 * time this was called. */
uint32_t simt_fail_at(uint32_t n);
/* The n-th call from now of the function that the table (api.h) calls so fails. Fit for a signal's handler. */
void simt_fail_call(const char *call, uint32_t n);
/* Calls that were let fail. */
uint32_t simt_failed(void);
/* Objects of the driver that were made and not given back. */
uint32_t simt_alive(void);
/* The sentence of the last launch that failed, "" when none did; forgets it. */
const char *simt_message(void);
/* Launches since the last call of this. */
uint64_t simt_launches(void);
/* Those of them that could begin before the launches that they depend on had ended, since the last call of this. */
uint64_t simt_overlaps(void);
/* The i-th registered kernel and whether it was launched; NULL behind the last one. */
const char *simt_kernel(uint32_t i, bool *launched);
/* Seed of the order of blocks, threads and graph nodes. */
void simt_seed(uint64_t seed);
/* One launch of a kernel by name, for tests of the simulator itself; false after a failure. */
bool simt_run(const char *name, uint32_t blocks_x, uint32_t blocks_y, uint32_t blocks_z, const void *args);

#ifdef __cplusplus
}
#endif

#endif
