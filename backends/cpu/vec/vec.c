/* vec.c - which table of row functions goes with which instruction set. */
#include "backends/cpu/vec/vec.h"

#include "backends/formats/kv_codec.h"

const rq_vec *rq_vec_of(const rq_cpu_isa *isa)
{
    switch (isa->id) {
#if defined(__x86_64__)
    case RQ_ISA_AVX2:
        return &rq_vec_avx2;
    case RQ_ISA_AVX512:
        return &rq_vec_avx512;
#elif defined(__aarch64__)
    case RQ_ISA_NEON:
        return &rq_vec_neon;
#endif
    default:
        return &rq_vec_scalar;
    }
}

rq_attend_code rq_attend_code_of(rq_kv_form form, bool is_v)
{
    rq_attend_code c = {.form = form};
    for (uint32_t i = 0; i < rq_kv_spans(form); i++) {
        const rq_kv_codec *row = rq_kv_codec_of(rq_kv_span_of(form, 0, i).form);
        c.span[i].unit = row ? row->unit * (is_v ? row->gain_v : row->gain_k) : 1.0f;
        if (row) c.span[i].level = row->level;
    }
    return c;
}
