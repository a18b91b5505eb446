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
 *   RQ_OP_PRODUCTS             prims: [rms_norm,] matmul x n, add where there is an addend (n = n_out, 1..4)
 *     in  [0] x [n_in, T] f32   [1] norm weight [n_in] f32 |0   [2 .. 2+n) weights w_j [n_in, n_out_j], then 0
 *         [6 .. 6+n) addends a_j f32: [n_out_j, T] (residual) or [n_out_j] (bias) |0
 *     out [0 .. n) y_j [n_out_j, T] f32
 *     p.fused.normed, .eps       y_j = w_j . f(x) + a_j, f = rms_norm where normed; a_j is added last, once, to
 *                                the finished sum
 *
 *   RQ_OP_GLU_PRODUCTS         prims: rms_norm, gate, up, glu; gate and up are matmuls, or matmul_experts
 *     in  [0] x [n_in, T] f32   [1] norm weight |0   [2] w_gate [n_in, n_ff]   [3] w_up [n_in, n_ff]
 *         [4] ids i32 [k, T] |0: by expert; then x may be [n_in, 1 or k, T], the weights [n_in, n_ff, E]
 *     out [0] y [n_ff, T] f32, by expert [n_ff, k, T]
 *     p.fused.normed (true), .eps, .act
 *                                y = act(w_gate . f(x)) * (w_up . f(x))
 *
 *   RQ_OP_QKV_WRITE            prims: [rms_norm q, rms_norm k,] [rms_norm v,] rope q, rope k, [rotate q, rotate k,]
 *                              [rotate v,] kv_write
 *     in  [0] q [dk, H, T] f32  [1] k [dk, H_kv, T] f32  [2] v [dv, H_kv, T] f32  [3] inv_freq [n_rot/2] f32
 *         [4] q norm weight [dk] |0   [5] k norm weight [dk] |0   [6] cache (written)
 *         [7] q data |0   [8] q lambda |0   [9] k data |0   [10] k mean |0   [11] k lambda |0
 *         [12] v data |0   [13] v mean |0   (of the rotations)
 *     out [0] q as attention wants it [dk, H, T] f32
 *     p.fused.normed             whether the norms of q and k are part of it (a weight may be 0 even then)
 *     p.fused.v_normed           whether v is normed, without weight
 *     p.fused.eps, .n_rot, .pairing, .magnitude; the rotations' blocks: see rq_fused_rotate
 *                                out = R(rope(norm(q))); cache row of each token = (R(rope(norm(k))), R(norm(v)))
 *
 *   RQ_OP_ATTEND_ROTATE        prims: attend, [rotate (inverse),] [glu (sigmoid)]
 *     in  [0] cache   [1] q   [2] mean |0 (as attend)   [3] data |0   [4] mean of v |0   [5] gate [dv, H, T] |0
 *     out [0] y [dv, H, T] f32
 *     p.attend                   y = sigmoid(gate) * R^T(attend(q))
 *
 *   RQ_OP_COMBINE_ADD          prims: combine, [glu (sigmoid), add,] add
 *     in  [0] y [n, k, T]   [1] weights [k, T]   [2] addend [n, T]   [3] row [n, T] |0   [4] gate [1, T] |0
 *     out [0] [n, T] f32         (combine(y, weights) + sigmoid(gate) * row) + addend
 *
 *   RQ_OP_NORM_JOIN            prims: rms_norm, add or glu
 *     in  [0] x   [1] norm weight |0   [2] other, of the shape of x
 *     out [0] of the shape of x
 *     p.fused.eps, .glu, .act    rms_norm(x) + other; with glu: act(other) * rms_norm(x)
 *
 * One norm may be part of several of these: each makes it for itself, and it goes when nobody else reads it.
 *
 * What each saves of a generated token on a card, predicted from 2 us a launch inside a graph and the bytes of a row of
 * activations written and read again (n floats; both are small beside a launch below n = 100,000):
 *   PRODUCTS        norm and each addition: 1 launch each; q, k, v of one type: 2 more. Llama: 4 launches a layer
 *   GLU_PRODUCTS    3 launches (norm, one product, glu), 5 of a mixture's whose norm the router shares
 *   QKV_WRITE       2 (rope of q and k) to 7 (norms, rotations of q, k and v)
 *   ATTEND_ROTATE   1 (rotation), 2 with a gate       COMBINE_ADD  1, 3 with a shared expert
 *   NORM_JOIN       1
 * so a dense model of 36 layers with norms of q and k over a rotated cache goes from 23 launches a layer to 7: 1.1 ms
 * of a token less, as much as an H200 takes to read 4.6 GB of weights.
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

/* The ROTATE of a fused operation whose result the member after it takes as operand `which`, for its blocks: of
 * QKV_WRITE 0 (queries), 1 (keys), 2 (values), of ATTEND_ROTATE 0. NULL: there is none. */
const rq_op *rq_fused_rotate(const rq_tape *tape, const rq_op *fused, uint32_t which);

/* Is value v internal to a fused operation of a fused tape: written and read by primitives of lists only? */
bool rq_value_is_internal(const rq_tape *tape, rq_ref v);

#endif
