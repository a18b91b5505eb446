#include "tools/synth/mixture.h"

#include "tools/synth/weights.h"

#include <strings.h>

/* Base types and general.file_type numbers of the mixtures (the numbers are llama.cpp's). The importance
 * matrix that quantisers use changes some choices; these are the ones made with it. */
static const synth_mixture mixtures[] = {
    {"q2_k", RQ_TYPE_Q2_K, 10, false},       {"q3_k_m", RQ_TYPE_Q3_K, 12, false},
    {"q4_k_s", RQ_TYPE_Q4_K, 14, false},     {"q4_k_m", RQ_TYPE_Q4_K, 15, false},
    {"q5_k_s", RQ_TYPE_Q5_K, 16, false},     {"q5_k_m", RQ_TYPE_Q5_K, 17, false},
    {"iq2_xxs", RQ_TYPE_IQ2_XXS, 19, false}, {"iq3_xxs", RQ_TYPE_IQ3_XXS, 23, false},
    {"iq2_m", RQ_TYPE_IQ2_S, 29, false},     {"iq4_xs", RQ_TYPE_IQ4_XS, 30, false},
};
enum { N_MIXTURES = sizeof mixtures / sizeof *mixtures };

static const char *const names[N_MIXTURES + 1] = {
    "q2_k", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "iq2_xxs", "iq3_xxs", "iq2_m", "iq4_xs", 0};

const char *const *synth_mixture_names(void)
{
    return names;
}

/* general.file_type of a file in which all matrices are of one type; 0 (all F32) when it has no number. */
static uint32_t pure_file_type(rq_type type)
{
    static const struct {
        rq_type type;
        uint32_t file_type;
    } known[] = {
        {RQ_TYPE_F16, 1},     {RQ_TYPE_Q4_0, 2},     {RQ_TYPE_Q4_1, 3},    {RQ_TYPE_Q8_0, 7},
        {RQ_TYPE_Q5_0, 8},    {RQ_TYPE_Q5_1, 9},     {RQ_TYPE_Q2_K, 10},   {RQ_TYPE_Q3_K, 11},
        {RQ_TYPE_Q4_K, 14},   {RQ_TYPE_Q5_K, 16},    {RQ_TYPE_Q6_K, 18},   {RQ_TYPE_IQ2_XXS, 19},
        {RQ_TYPE_IQ2_XS, 20}, {RQ_TYPE_IQ3_XXS, 23}, {RQ_TYPE_IQ1_S, 24},  {RQ_TYPE_IQ4_NL, 25},
        {RQ_TYPE_IQ3_S, 26},  {RQ_TYPE_IQ2_S, 28},   {RQ_TYPE_IQ4_XS, 30}, {RQ_TYPE_IQ1_M, 31},
        {RQ_TYPE_BF16, 32},   {RQ_TYPE_TQ1_0, 36},   {RQ_TYPE_TQ2_0, 37},  {RQ_TYPE_MXFP4, 38},
        {RQ_TYPE_NVFP4, 39},  {RQ_TYPE_Q1_0, 40},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].type == type) return known[i].file_type;
    return 0;
}

bool synth_mixture_find(const char *name, bool pure, synth_mixture *out)
{
    for (int i = 0; i < N_MIXTURES && !pure; i++)
        if (!strcasecmp(name, mixtures[i].name)) {
            *out = mixtures[i];
            return true;
        }
    rq_type type;
    if (!rq_type_from_name(name, &type) || !synth_can_make(type)) return false;
    *out = (synth_mixture){
        .name = rq_type_get(type)->name, .base = type, .file_type = pure_file_type(type), .pure = true};
    return true;
}

/* "more bits here": the first and last eighth of the layers, and every third between. */
static bool more(uint32_t layer, uint32_t n)
{
    return layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
}

static rq_type output_type(const synth_mixture *m)
{
    switch (m->base) {
    case RQ_TYPE_IQ2_XXS:
    case RQ_TYPE_IQ3_XXS:
    case RQ_TYPE_IQ2_S:
        return RQ_TYPE_Q5_K;
    default:
        return RQ_TYPE_Q6_K;
    }
}

static rq_type embedding_type(const synth_mixture *m)
{
    switch (m->base) {
    case RQ_TYPE_IQ2_XXS:
        return RQ_TYPE_Q2_K;
    case RQ_TYPE_IQ3_XXS:
    case RQ_TYPE_IQ2_S:
        return RQ_TYPE_IQ3_S;
    default:
        return m->base;
    }
}

/* The attention values, alone or with queries and keys in one matrix: where errors cost most. */
static rq_type value_type(const synth_mixture *m, const synth_site *s)
{
    bool grouped = s->n_head / s->n_head_kv >= 4;
    bool shared = grouped || s->n_expert >= 4;
    rq_type type = m->base;
    switch (m->file_type) {
    case 10:
        type = grouped ? RQ_TYPE_Q4_K : RQ_TYPE_Q3_K;
        break;
    case 12:
        type = s->layer < 2 ? RQ_TYPE_Q5_K : RQ_TYPE_Q4_K;
        break;
    case 14:
        type = s->layer < 4 ? RQ_TYPE_Q5_K : RQ_TYPE_Q4_K;
        break;
    case 15:
    case 17:
        type = more(s->layer, s->n_layer) ? RQ_TYPE_Q6_K : m->base;
        break;
    case 19:
        type = shared ? RQ_TYPE_Q4_K : RQ_TYPE_Q2_K;
        break;
    case 23:
        type = grouped ? RQ_TYPE_Q4_K : RQ_TYPE_IQ3_XXS;
        break;
    case 29:
        type = shared ? RQ_TYPE_Q4_K : RQ_TYPE_IQ3_S;
        break;
    case 30:
        type = grouped ? RQ_TYPE_Q5_K : m->base;
        break;
    default:
        break;
    }
    return s->n_expert == 8 ? RQ_TYPE_Q8_0 : type;
}

static rq_type down_type(const synth_mixture *m, const synth_site *s)
{
    uint32_t l = s->layer, n = s->n_layer;
    switch (m->file_type) {
    case 10:
        return RQ_TYPE_Q3_K;
    case 12:
        return l < n / 16 ? RQ_TYPE_Q5_K : RQ_TYPE_Q4_K;
    case 14:
        return l < n / 8 ? RQ_TYPE_Q5_K : RQ_TYPE_Q4_K;
    case 15:
    case 17:
        return more(l, n) ? RQ_TYPE_Q6_K : m->base;
    case 19:
        return l < n / 8 ? RQ_TYPE_Q2_K : m->base;
    case 29:
        return l < n / 8 ? RQ_TYPE_IQ3_S : m->base;
    default:
        return m->base;
    }
}

static rq_type attn_output_type(const synth_mixture *m, const synth_site *s)
{
    if (s->n_expert == 8) return RQ_TYPE_Q5_K;
    switch (m->file_type) {
    case 10:
        return RQ_TYPE_Q3_K;
    case 12:
        return RQ_TYPE_Q4_K;
    case 23:
    case 29:
        return RQ_TYPE_IQ3_S;
    default:
        return m->base;
    }
}

static rq_type query_key_type(const synth_mixture *m, const synth_site *s)
{
    if (s->role == SYNTH_ROLE_K && s->n_expert == 8) return RQ_TYPE_Q8_0;
    return m->file_type == 23 ? RQ_TYPE_IQ2_S : m->base;
}

/* Rows that are no whole number of blocks get the nearest type with smaller blocks. */
static rq_type fallback(rq_type type, synth_role role, uint64_t row)
{
    if (row % rq_type_get(type)->block_elems == 0) return type;
    rq_type narrower = RQ_TYPE_F16;
    switch (type) {
    case RQ_TYPE_Q2_K:
    case RQ_TYPE_Q3_K:
    case RQ_TYPE_TQ1_0:
    case RQ_TYPE_TQ2_0:
        narrower = RQ_TYPE_Q4_0;
        break;
    case RQ_TYPE_Q4_K:
        narrower = RQ_TYPE_Q5_0;
        break;
    case RQ_TYPE_Q5_K:
        narrower = RQ_TYPE_Q5_1;
        break;
    case RQ_TYPE_Q6_K:
        narrower = RQ_TYPE_Q8_0;
        break;
    default:
        if (rq_type_get(type)->block_elems == 256) narrower = RQ_TYPE_IQ4_NL;
        break;
    }
    if (role == SYNTH_ROLE_OUTPUT && rq_type_get(type)->block_elems == 256) narrower = RQ_TYPE_Q8_0;
    return row % rq_type_get(narrower)->block_elems == 0 ? narrower : RQ_TYPE_F16;
}

rq_type synth_mixture_type(const synth_mixture *m, const synth_site *s)
{
    rq_type type = m->base;
    if (!m->pure) switch (s->role) {
        case SYNTH_ROLE_OUTPUT:
            type = output_type(m);
            break;
        case SYNTH_ROLE_EMBEDDING:
            type = embedding_type(m);
            break;
        case SYNTH_ROLE_Q:
        case SYNTH_ROLE_K:
            type = query_key_type(m, s);
            break;
        case SYNTH_ROLE_V:
        case SYNTH_ROLE_QKV:
            type = value_type(m, s);
            break;
        case SYNTH_ROLE_ATTN_OUTPUT:
            type = attn_output_type(m, s);
            break;
        case SYNTH_ROLE_DOWN:
            type = down_type(m, s);
            break;
        case SYNTH_ROLE_GATE_UP:
        case SYNTH_ROLE_OTHER:
            break;
        }
    return fallback(type, s->role, s->row);
}
