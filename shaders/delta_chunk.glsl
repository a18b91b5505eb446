// delta_chunk.glsl - the chunks that long runs are cut into (backends/state.h), and where what the tokens of one have to do
// with one another lies in scratch memory. For each chunk of the step and each head, in floats:
//   [CHUNK][CHUNK / 2][4]  [j][r]: of tokens 2r and 2r + 1, what token j's residue adds to their differences, then what
//                          j's difference adds to their results; 0 where j comes later
//   [CHUNK]                what is left at each token of the state before the chunk
//   [CHUNK]                what is left at the chunk's end of what each token wrote
const uint CHUNK = 32u, PAIRS = CHUNK / 2u, CHUNK_FLOATS = CHUNK * CHUNK * 2u + 2u * CHUNK;

bool is_long(Run r, uint fewest)
{
    return r.count >= fewest && r.pending == 0u;
}

// Chunks of the long runs in front of run i.
uint chunks_before(U32 step, uint i, uint fewest)
{
    uint n = 0u, runs = step.d[STEP_RUNS];
    for (uint at = 0u; at < i; at++) {
        uint count = step.d[runs + RUN_WORDS * at + 2u];
        if (count >= fewest && step.d[runs + RUN_WORDS * at + 6u] == 0u) n += (count + CHUNK - 1u) / CHUNK;
    }
    return n;
}

F32 chunk_floats(uint64_t scratch, uint chunk, uint heads, uint head)
{
    return F32(scratch + 4ul * uint64_t(CHUNK_FLOATS) * (uint64_t(chunk) * heads + head));
}
