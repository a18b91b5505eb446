// recurrent.glsl - a run of the step and the slot of its state (backends/step.h, backends/state.h).
const uint STEP_N_RUNS = 2u;

struct Run {
    uint first, count, start, slot;
};

bool run_at(U32 step, uint i, uint n_slots, out Run r)
{
    if (i >= step.d[STEP_N_RUNS]) return false;
    uint at = step.d[STEP_RUNS] + RUN_WORDS * i;
    r.first = step.d[at + 1u];
    r.count = step.d[at + 2u];
    r.start = step.d[at + 3u];
    r.slot = step.d[at + 5u];
    return r.slot < n_slots;
}
