// sim_memory.h - device memory of the simulator, whose accesses by kernels are watched.
#ifndef RQ_SIMT_SIM_MEMORY_H
#define RQ_SIMT_SIM_MEMORY_H

#include <cstddef>
#include <cstdint>

namespace simt
{

void *device_alloc(size_t bytes); // nullptr: there is no memory
void device_free(void *p);

// Who touches device memory from now on. KERNELS: their writes mark what they write to. BEGINNINGS: launches up to where
// they wait; what was marked may not be touched, the rest not be written.
enum access_phase { HOST, KERNELS, BEGINNINGS };
void device_access(access_phase next);
// An address that was touched against that, or nullptr; forgets it.
const void *touched_early();

} // namespace simt

#endif
