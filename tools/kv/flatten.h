/* flatten.h - learned rotations of eights: the orthogonal matrix that makes samples as even as it can.
 *
 * A code with one scale for a group loses most where single elements stick out. Among the rotations of a block of
 * eight the best are those after which the fourth powers of the elements have the smallest sum; for two elements
 * that angle is known in closed form from fourth moments, and going round all pairs (as Jacobi does for eigenvalues,
 * and Cardoso and Souloumiac 1993 for independent components, where the sum is maximised) finds a minimum. */
#ifndef RQ_KV_FLATTEN_H
#define RQ_KV_FLATTEN_H

#include <stdint.h>

/* Samples x [n][8], overwritten. Writes the rotation, row-major, row = output element, determinant 1; the better of
 * the two minima found from the unit matrix and from the Hadamard matrix. Returns the mean of the sum of fourth
 * powers that is left. */
double kv_flatten(float *x, uint32_t n, float matrix[64]);

#endif
