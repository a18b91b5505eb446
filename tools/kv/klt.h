/* klt.h - learned bases for klt formats: directions of keys and values in the order of how much they matter.
 *
 * A code spends its bits evenly over a group and makes noise of the same size in each of its elements. In a basis
 * in which the second moments of keys and of the queries that meet them are the same diagonal matrix (a balanced
 * basis; Moore 1981 for the construction, by a Cholesky factor and the eigenvectors of what it makes of the other
 * moment), that noise costs the scores least, and directions that are weak in both can do with fewer bits. For
 * values, whose error nobody weighs, it is the Karhunen-Loeve basis: the eigenvectors of their covariance. */
#ifndef RQ_KV_KLT_H
#define RQ_KV_KLT_H

#include "backends/base/status.h"

#include <stdint.h>

/* From the covariance of keys and the second moment of queries, symmetric [d][d], to the balanced basis, rows in
 * descending order of the energy they carry (scaled to a mean of 1 for both). Directions nobody was seen in are
 * filled up with 2 % of the mean energy. *first_half gets the share of the first d / 2 directions. */
rq_status kv_klt_keys(uint32_t d, const double *keys, const double *queries, float *basis, double *first_half,
                      rq_error *err);

/* From the covariance of values to their eigenvectors, likewise. */
rq_status kv_klt_values(uint32_t d, const double *values, float *basis, double *first_half, rq_error *err);

#endif
