/* x86_types.h - how each quantised type meets the AVX2 and AVX-512 kernels.
 *
 * u8 codes multiply as unsigned x signed bytes; an offset type has w = code - offset, corrected by the sums of
 * the activation codes. Sixteen-bit sums of products must not saturate: two products of a code up to m and an
 * activation up to 127, `chain` times, stay within 32767 when m * 254 * chain <= 32767.
 * Signed types (sign = 1) move the code's sign to the activation first: |w| x (sign(w) a), |w| <= 128.
 *
 * 256-element types: X(ID, name, block bytes, codes signed in registers, offset, minimum, group, chain, sign)
 *   `codes signed`: x86_unpack256.h yields w itself; the tile for many columns then adds the offset (sign = 0)
 *   or keeps it (sign = 1).
 * 32-element types: X(ID, name, bytes per 256 elements, offset, minimum, chain, sign) */
#ifndef RQ_X86_TYPES_H
#define RQ_X86_TYPES_H

/* VNNI adds four products in 32 bits, so full bytes need no sign trick: codes + 128, corrected like an offset. */
#ifdef RQ_VNNI
#define RQ_SIGN_OFFSET 128
#define RQ_SIGN        0
#else
#define RQ_SIGN_OFFSET 0
#define RQ_SIGN        1
#endif

#define RQ_TYPES_256(X)                                                                                      \
    X(Q2_K, q2_k, 84, 0, 0, 1, 16, 8, 0)                                                                     \
    X(Q3_K, q3_k, 110, 0, 4, 0, 16, 8, 0)                                                                    \
    X(Q4_K, q4_k, 144, 0, 0, 1, 32, 8, 0)                                                                    \
    X(Q5_K, q5_k, 176, 0, 0, 1, 32, 4, 0)                                                                    \
    X(Q6_K, q6_k, 210, 0, 32, 0, 16, 2, 0)                                                                   \
    X(IQ2_XXS, iq2_xxs, 66, 1, 43, 0, 32, 1, 0)                                                              \
    X(IQ2_XS, iq2_xs, 74, 1, 43, 0, 16, 1, 0)                                                                \
    X(IQ2_S, iq2_s, 82, 1, 43, 0, 16, 1, 0)                                                                  \
    X(IQ3_XXS, iq3_xxs, 98, 1, 62, 0, 32, 1, 0)                                                              \
    X(IQ3_S, iq3_s, 110, 1, 15, 0, 32, 4, 0)                                                                 \
    X(IQ1_S, iq1_s, 50, 1, 9, 0, 32, 4, 0)                                                                   \
    X(IQ1_M, iq1_m, 56, 1, 9, 0, 16, 4, 0)                                                                   \
    X(IQ4_XS, iq4_xs, 136, 1, RQ_SIGN_OFFSET, 0, 32, 1, RQ_SIGN)                                             \
    X(TQ1_0, tq1_0, 54, 0, 1, 0, 32, 8, 0)                                                                   \
    X(TQ2_0, tq2_0, 66, 0, 1, 0, 32, 8, 0)

#define RQ_TYPES_32(X)                                                                                       \
    X(Q4_0, q4_0, 144, 8, 0, 8, 0)                                                                           \
    X(Q4_1, q4_1, 160, 0, 1, 8, 0)                                                                           \
    X(Q5_0, q5_0, 176, 16, 0, 4, 0)                                                                          \
    X(Q5_1, q5_1, 192, 0, 1, 4, 0)                                                                           \
    X(Q8_0, q8_0, 272, 0, 0, 1, 1)                                                                           \
    X(IQ4_NL, iq4_nl, 144, 0, 0, 1, 1)                                                                       \
    X(MXFP4, mxfp4, 136, 12, 0, 4, 0)                                                                        \
    X(Q1_0, q1_0, 36, 1, 0, 8, 0)                                                                            \
    X(Q2_0, q2_0, 72, 1, 0, 8, 0)

#endif
