// recurrent.glsl - a run of the step and the slot of its state (backends/step.h, backends/state.h).
const uint STEP_N_RUNS = 2u;

struct Run {
    uint first, count, start, slot, pending, accepted;
};

bool run_at(U32 step, uint i, uint n_slots, out Run r)
{
    if (i >= step.d[STEP_N_RUNS]) return false;
    uint at = step.d[STEP_RUNS] + RUN_WORDS * i;
    r.first = step.d[at + 1u];
    r.count = step.d[at + 2u];
    r.start = step.d[at + 3u];
    r.slot = step.d[at + 5u];
    r.pending = step.d[at + 6u];
    r.accepted = step.d[at + 7u];
    return r.slot < n_slots;
}

// Runs are cut into pieces of `tokens`; piece i of all and which one of its run it is.
bool piece_at(U32 step, uint i, uint tokens, uint n_slots, out Run r, out uint piece)
{
    uint n_runs = step.d[STEP_N_RUNS], runs = step.d[STEP_RUNS];
    piece = i;
    for (uint at = 0u; at < n_runs; at++) {
        uint pieces = (step.d[runs + RUN_WORDS * at + 2u] + tokens - 1u) / tokens;
        if (piece < pieces) return run_at(step, at, n_slots, r);
        piece -= pieces;
    }
    return false;
}

// A sequence begins with zeros.
bool begins(Run r)
{
    return r.start == r.accepted;
}
