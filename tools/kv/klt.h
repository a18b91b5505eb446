/* klt.h - learned bases for klt formats: directions of keys and values in the order of how much they matter.
 *
 * A code spends its bits evenly over a group and makes noise of the same size in each of its elements. In a basis
 * in which the second moments of keys and of the queries that meet them are the same diagonal matrix (a balanced
 * basis; Moore 1981 for the construction, by a Cholesky factor and the eigenvectors of what it makes of the other
 * moment), that noise costs the scores least, and directions that are weak in both can do with fewer bits. The
 * same holds of values and of what the layer's output matrix makes of their errors. */
#ifndef RQ_KV_KLT_H
#define RQ_KV_KLT_H

#include "backends/base/status.h"

#include <stdint.h>

/* From the covariance of rows and the second moment of what they are multiplied with, symmetric [d][d], to the
 * balanced basis, directions in descending order of the energy they carry (both scaled to a mean of 1). Directions
 * that nothing was seen in are filled up with 2 % of the mean energy. *first_half gets the share of the first
 * d / 2 directions. */
rq_status kv_klt(uint32_t d, const double *rows, const double *weights, float *basis, double *first_half,
                 rq_error *err);

#endif
