/* profile.h - what the files of engine/kv share about profiles; their public face is engine/kv.h. */
#ifndef RQ_KV_PROFILE_H
#define RQ_KV_PROFILE_H

#include "engine/kv.h"

enum { RQ_KV_PARTS = RQ_KV_KLT_V + 1 };

/* Floats of a part of a layer; 0 when the heads cannot have it. */
size_t rq_kv_part_floats(const rq_kv_layer_profile *layer, rq_kv_part part);
float **rq_kv_part_slot(rq_kv_layer_profile *layer, rq_kv_part part);

/* Could a model have a layer of this shape? */
bool rq_kv_shape_exists(const rq_kv_layer_profile *layer);

/* A profile of layers without shapes; NULL when memory runs out. */
rq_kv_profile *rq_kv_profile_make(uint32_t n_layers);

#endif
