/* types.h - the one table of tensor element types: weights, activations, caches.
 *
 * Type ids are GGUF's. A row of a tensor is a whole number of blocks; a block holds `block_elems` elements in
 * `block_bytes` bytes. Layouts are documented where they are decoded (dequantize.c). */
#ifndef RQ_TYPES_H
#define RQ_TYPES_H

#include <stdbool.h>
#include <stdint.h>

typedef enum rq_type {
    RQ_TYPE_F32 = 0,
    RQ_TYPE_F16 = 1,
    RQ_TYPE_Q4_0 = 2,
    RQ_TYPE_Q4_1 = 3,
    RQ_TYPE_Q5_0 = 6,
    RQ_TYPE_Q5_1 = 7,
    RQ_TYPE_Q8_0 = 8,
    RQ_TYPE_Q8_1 = 9,
    RQ_TYPE_Q2_K = 10,
    RQ_TYPE_Q3_K = 11,
    RQ_TYPE_Q4_K = 12,
    RQ_TYPE_Q5_K = 13,
    RQ_TYPE_Q6_K = 14,
    RQ_TYPE_Q8_K = 15,
    RQ_TYPE_IQ2_XXS = 16,
    RQ_TYPE_IQ2_XS = 17,
    RQ_TYPE_IQ3_XXS = 18,
    RQ_TYPE_IQ1_S = 19,
    RQ_TYPE_IQ4_NL = 20,
    RQ_TYPE_IQ3_S = 21,
    RQ_TYPE_IQ2_S = 22,
    RQ_TYPE_IQ4_XS = 23,
    RQ_TYPE_I8 = 24,
    RQ_TYPE_I16 = 25,
    RQ_TYPE_I32 = 26,
    RQ_TYPE_I64 = 27,
    RQ_TYPE_F64 = 28,
    RQ_TYPE_IQ1_M = 29,
    RQ_TYPE_BF16 = 30,
    RQ_TYPE_TQ1_0 = 34,
    RQ_TYPE_TQ2_0 = 35,
    RQ_TYPE_MXFP4 = 39,
    RQ_TYPE_NVFP4 = 40,
    RQ_TYPE_Q1_0 = 41,
    RQ_TYPE_Q2_0 = 42,
    RQ_TYPE_LIMIT = 43
} rq_type;

typedef struct rq_type_info {
    const char *name;     /* as in the GGUF world: "Q4_K", "IQ2_XXS"; NULL marks an id that is not a type */
    uint16_t block_elems; /* elements per block */
    uint16_t block_bytes; /* bytes per block */
    bool is_weight;       /* may be the weight of a matrix product or an embedding table */
    bool is_quantized;    /* block_elems > 1 */
    /* Writes n floats (n a multiple of block_elems) decoded from the blocks at `src` (any alignment). NULL
     * for integer types. Bit-exact: see dequantize.c. */
    void (*dequantize)(const void *src, float *dst, int64_t n);
} rq_type_info;

/* NULL when `id` is not a known type (any value may be passed, also one read from a file). */
const rq_type_info *rq_type_get(uint32_t id);

/* Type of a name such as "q4_k" or "Q4_K" (case-insensitive); false when there is none. */
bool rq_type_from_name(const char *name, rq_type *out);

/* Bytes of a row of n elements; n must be a multiple of block_elems. The blocks are counted first, so only a
 * result that does not fit 64 bits can wrap: callers bound n (a file's dims) by the bytes there are. */
uint64_t rq_row_bytes(rq_type type, uint64_t n);

/* ---- half precision (IEEE binary16 and bfloat16), exact including subnormals; never flushes ------------ */
float rq_f16_to_f32(uint16_t h);
uint16_t rq_f32_to_f16(float f); /* round to nearest even, overflow to infinity, NaN to 0x7e00 | sign */
float rq_bf16_to_f32(uint16_t h);
uint16_t rq_f32_to_bf16(float f); /* round to nearest even; NaN keeps its upper half | 0x40 */

/* The same for n values; the half side may have any alignment. half.h has them to inline. */
void rq_f16_to_f32_row(const void *src, float *dst, int64_t n);
void rq_f32_to_f16_row(const float *src, void *dst, int64_t n);
void rq_bf16_to_f32_row(const void *src, float *dst, int64_t n);
void rq_f32_to_bf16_row(const float *src, void *dst, int64_t n);

/* ---- encoders, for rqvk-synth and tests: not the best possible codes, but valid, deterministic ones ---- */
/* Encodes n floats (n a multiple of block_elems) as blocks of `type`; false when there is no encoder. */
bool rq_quantize(rq_type type, const float *src, void *dst, int64_t n);

#endif
