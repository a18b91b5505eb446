// launch.h - what the simulator's driver asks of the simulator.
#ifndef RQ_SIMT_LAUNCH_H
#define RQ_SIMT_LAUNCH_H

#include <cstdint>

namespace simt
{

struct kernel;

// ALONE: everything before it has ended. DEPENDENT: it began before that, and each of its threads has to wait for what it
// depends on. AHEAD: what such a launch does before it waits, of some blocks, with what launches write out of reach; the
// rest is not run.
enum launch_mode { ALONE, DEPENDENT, AHEAD };

const kernel *find(const char *name);
// False after a failure (simt_message).
bool launch(const kernel *k, const uint32_t grid[3], const void *args, launch_mode mode);
uint32_t random_below(uint32_t n);

} // namespace simt

#endif
