/* dequantize.h - the decoders behind rq_type_info.dequantize; call them through rq_type_get. */
#ifndef RQ_DEQUANTIZE_H
#define RQ_DEQUANTIZE_H

#include <stdint.h>

/* Each writes n floats, n a multiple of the type's block_elems, from blocks at `src` (any alignment). Any
 * bytes decode to something: no index leaves its table. */
void rq_dequantize_f32(const void *src, float *dst, int64_t n);
void rq_dequantize_f16(const void *src, float *dst, int64_t n);
void rq_dequantize_bf16(const void *src, float *dst, int64_t n);
void rq_dequantize_f64(const void *src, float *dst, int64_t n);
void rq_dequantize_q4_0(const void *src, float *dst, int64_t n);
void rq_dequantize_q4_1(const void *src, float *dst, int64_t n);
void rq_dequantize_q5_0(const void *src, float *dst, int64_t n);
void rq_dequantize_q5_1(const void *src, float *dst, int64_t n);
void rq_dequantize_q8_0(const void *src, float *dst, int64_t n);
void rq_dequantize_q8_1(const void *src, float *dst, int64_t n);
void rq_dequantize_q2_k(const void *src, float *dst, int64_t n);
void rq_dequantize_q3_k(const void *src, float *dst, int64_t n);
void rq_dequantize_q4_k(const void *src, float *dst, int64_t n);
void rq_dequantize_q5_k(const void *src, float *dst, int64_t n);
void rq_dequantize_q6_k(const void *src, float *dst, int64_t n);
void rq_dequantize_q8_k(const void *src, float *dst, int64_t n);
void rq_dequantize_iq2_xxs(const void *src, float *dst, int64_t n);
void rq_dequantize_iq2_xs(const void *src, float *dst, int64_t n);
void rq_dequantize_iq2_s(const void *src, float *dst, int64_t n);
void rq_dequantize_iq3_xxs(const void *src, float *dst, int64_t n);
void rq_dequantize_iq3_s(const void *src, float *dst, int64_t n);
void rq_dequantize_iq1_s(const void *src, float *dst, int64_t n);
void rq_dequantize_iq1_m(const void *src, float *dst, int64_t n);
void rq_dequantize_iq4_nl(const void *src, float *dst, int64_t n);
void rq_dequantize_iq4_xs(const void *src, float *dst, int64_t n);
void rq_dequantize_tq1_0(const void *src, float *dst, int64_t n);
void rq_dequantize_tq2_0(const void *src, float *dst, int64_t n);
void rq_dequantize_mxfp4(const void *src, float *dst, int64_t n);
void rq_dequantize_nvfp4(const void *src, float *dst, int64_t n);
void rq_dequantize_q1_0(const void *src, float *dst, int64_t n);
void rq_dequantize_q2_0(const void *src, float *dst, int64_t n);

#endif
