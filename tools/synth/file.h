/* file.h - writes a synthetic model. */
#ifndef RQ_SYNTH_FILE_H
#define RQ_SYNTH_FILE_H

#include "backends/base/status.h"
#include "tools/synth/mixture.h"
#include "tools/synth/preset.h"

/* Called after each piece of data with the bytes written so far and in all. */
typedef void (*synth_progress)(void *context, uint64_t done, uint64_t total);

/* Writes the model to `path`; the same arguments give the same bytes. The file appears only when it is
 * complete. `sparse`: matrices are holes full of zeros, for plans that need no weights. `progress` may be NULL. */
rq_status synth_write(const char *path, const synth_preset *preset, const synth_mixture *mixture,
                      uint64_t seed, bool sparse, synth_progress progress, void *context, rq_error *err);

#endif
