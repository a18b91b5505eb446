/* fuse.h - the peephole fuser, and the contract of the fused operations.
 *
 * A fused operation stands for a list of primitives, tape->prims[prim_first .. prim_first + prim_count), in
 * the order given below; running the list one by one is its definition. Values that only pass between
 * primitives of the list are internal: they are not operands of the fused operation and have no arena memory
 * (rq_plan: offset RQ_NO_ARENA). A backend reads everything it needs from in[], out[] and p.fused; the list
 * is for the reference and for the profiler.
 *
 * Operands ("|0": the reference may be 0, meaning absent). T = tokens.
 *
 *   RQ_OP_NORM_MATMULS         prims: rms_norm, matmul x n (n = n_out, 1..3)
 *     in  [0] x [n_in, T] f32   [1] norm weight [n_in] f32 |0   [2 .. 2+n) weights w_j [n_in, n_out_j]
 *     out [0 .. n) y_j [n_out_j, T] f32
 *     p.fused.eps                y_j = w_j . rms_norm(x)
 *
 *   RQ_OP_NORM_GLU_MATMULS     prims: rms_norm, matmul (gate), matmul (up), glu
 *     in  [0] x [n_in, T] f32   [1] norm weight |0   [2] w_gate [n_in, n_ff]   [3] w_up [n_in, n_ff]
 *     out [0] y [n_ff, T] f32
 *     p.fused.eps, p.fused.act   y = act(w_gate . n) * (w_up . n), n = rms_norm(x)
 *
 *   RQ_OP_MATMUL_ADD           prims: matmul, add
 *     in  [0] w [n_in, n_out]   [1] x [n_in, T] f32   [2] addend f32: [n_out, T] (residual) or [n_out] (bias)
 *     out [0] y [n_out, T] f32
 *                                y = w . x + addend; the addend is added last, once, to the finished sum
 *
 *   RQ_OP_QK_NORM_ROPE_WRITE   prims: [rms_norm q, rms_norm k,] rope q, rope k, kv_write
 *     in  [0] q [dk, H, T] f32  [1] k [dk, H_kv, T] f32  [2] v [dv, H_kv, T] f32  [3] inv_freq [n_rot/2] f32
 *         [4] q norm weight [dk] |0   [5] k norm weight [dk] |0   [6] cache (written)
 *     out [0] rotated q [dk, H, T] f32
 *     p.fused.normed             whether the two norms are part of it (a weight may be 0 even then)
 *     p.fused.eps, .n_rot, .pairing, .magnitude
 *                                out = rope(norm(q)); cache row of each token = (rope(norm(k)), v)
 *
 * q, k, v and x may be strided views (ne[0] is always contiguous); outputs are contiguous unless a family
 * builds its own views. An output never shares memory with an input. */
#ifndef RQ_FUSE_H
#define RQ_FUSE_H

#include "backends/tape/tape.h"

/* Asked for every candidate with the fused operation complete (its prims are on the tape): fuse it? */
typedef bool (*rq_fuse_supports)(void *user, const rq_tape *tape, const rq_op *op);

/* Replaces runs of primitives by fused operations wherever the pattern matches, all members belong to the
 * same layer, nothing outside reads an intermediate, moving the members together breaks no order between
 * operations that touch the same bytes, and `supports` says yes. On failure the tape's sticky error is set
 * and returned; the tape must be discarded. */
rq_status rq_tape_fuse(rq_tape *tape, rq_fuse_supports supports, void *user, rq_error *err);

/* Is value v internal to a fused operation of a fused tape: written and read by primitives of one list only?
 */
bool rq_value_is_internal(const rq_tape *tape, rq_ref v);

#endif
