/* x86_types.h - how each quantised type meets the AVX2 and AVX-512 kernels.
 *
 * u8 codes multiply as unsigned x signed bytes; an offset type has w = code - offset, corrected by the sums of
 * the activation codes. Sixteen-bit sums of products must not saturate: two products of a code up to m and an
 * activation up to 127, `chain` times, stay within 32767 when m * 254 * chain <= 32767.
 * Signed types (sign = 1) move the code's sign to the activation first: |w| x (sign(w) a), |w| <= 128.
 *
 * 256-element types: X(name, block bytes, codes signed in registers, offset, minimum, group, chain, sign)
 *   `codes signed`: x86_unpack256.h yields w itself; the tile for many columns then adds the offset (sign = 0)
 *   or keeps it (sign = 1).
 * 32-element types: X(name, bytes per 256 elements, offset, minimum, chain, sign) */
#ifndef RQ_X86_TYPES_H
#define RQ_X86_TYPES_H

#define RQ_TYPES_256(X)                                                                                      \
    X(q2_k, 84, 0, 0, 1, 16, 8, 0)                                                                           \
    X(q3_k, 110, 0, 4, 0, 16, 8, 0)                                                                          \
    X(q4_k, 144, 0, 0, 1, 32, 8, 0)                                                                          \
    X(q5_k, 176, 0, 0, 1, 32, 4, 0)                                                                          \
    X(q6_k, 210, 0, 32, 0, 16, 2, 0)                                                                         \
    X(iq2_xxs, 66, 1, 43, 0, 32, 1, 0)                                                                       \
    X(iq2_xs, 74, 1, 43, 0, 16, 1, 0)                                                                        \
    X(iq2_s, 82, 1, 43, 0, 16, 1, 0)                                                                         \
    X(iq3_xxs, 98, 1, 62, 0, 32, 1, 0)                                                                       \
    X(iq3_s, 110, 1, 15, 0, 32, 4, 0)                                                                        \
    X(iq1_s, 50, 1, 9, 0, 32, 4, 0)                                                                          \
    X(iq1_m, 56, 1, 9, 0, 16, 4, 0)                                                                          \
    X(iq4_xs, 136, 1, 0, 0, 32, 1, 1)                                                                        \
    X(tq1_0, 54, 0, 1, 0, 32, 8, 0)                                                                          \
    X(tq2_0, 66, 0, 1, 0, 32, 8, 0)

#define RQ_TYPES_32(X)                                                                                       \
    X(q4_0, 144, 8, 0, 8, 0)                                                                                 \
    X(q4_1, 160, 0, 1, 8, 0)                                                                                 \
    X(q5_0, 176, 16, 0, 4, 0)                                                                                \
    X(q5_1, 192, 0, 1, 4, 0)                                                                                 \
    X(q8_0, 272, 0, 0, 1, 1)                                                                                 \
    X(iq4_nl, 144, 0, 0, 1, 1)                                                                               \
    X(mxfp4, 136, 12, 0, 4, 0)                                                                               \
    X(q1_0, 36, 1, 0, 8, 0)                                                                                  \
    X(q2_0, 72, 1, 0, 8, 0)

#endif
