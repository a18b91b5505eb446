/* quantize.h - the block encoders behind rq_quantize; call them through it. */
#ifndef RQ_QUANTIZE_H
#define RQ_QUANTIZE_H

#include <stdint.h>

/* Each encodes one block of finite floats at `x` as the bytes at `b`. */
void rq_encode_q4_0(const float *x, uint8_t *b);
void rq_encode_q4_1(const float *x, uint8_t *b);
void rq_encode_q5_0(const float *x, uint8_t *b);
void rq_encode_q5_1(const float *x, uint8_t *b);
void rq_encode_q8_0(const float *x, uint8_t *b);
void rq_encode_q8_1(const float *x, uint8_t *b);
void rq_encode_q2_k(const float *x, uint8_t *b);
void rq_encode_q3_k(const float *x, uint8_t *b);
void rq_encode_q4_k(const float *x, uint8_t *b);
void rq_encode_q5_k(const float *x, uint8_t *b);
void rq_encode_q6_k(const float *x, uint8_t *b);
void rq_encode_q8_k(const float *x, uint8_t *b);
void rq_encode_iq4_nl(const float *x, uint8_t *b);
void rq_encode_iq4_xs(const float *x, uint8_t *b);
void rq_encode_tq1_0(const float *x, uint8_t *b);
void rq_encode_tq2_0(const float *x, uint8_t *b);
void rq_encode_mxfp4(const float *x, uint8_t *b);
void rq_encode_nvfp4(const float *x, uint8_t *b);
void rq_encode_q1_0(const float *x, uint8_t *b);
void rq_encode_q2_0(const float *x, uint8_t *b);

/* The types with a grid: n elements, n a multiple of 256, because the search prepares tables first. */
void rq_encode_iq2_xxs(const float *x, uint8_t *b, int64_t n);
void rq_encode_iq2_xs(const float *x, uint8_t *b, int64_t n);
void rq_encode_iq2_s(const float *x, uint8_t *b, int64_t n);
void rq_encode_iq3_xxs(const float *x, uint8_t *b, int64_t n);
void rq_encode_iq3_s(const float *x, uint8_t *b, int64_t n);
void rq_encode_iq1_s(const float *x, uint8_t *b, int64_t n);
void rq_encode_iq1_m(const float *x, uint8_t *b, int64_t n);

#endif
