/* foreign_hook.c - see foreign_hook.h. */
#include "tools/ppl/foreign_hook.h"

#include "backends/base/mem.h"
#include "tools/kv/foreign.h"

enum { MAX_DIMS = 8, FOREIGN_SEED = 1 };

/* One codec for keys or for values, made for each head size. */
typedef struct side {
    const char *name; /* NULL: none; only read while the hook is made */
    uint32_t dims[MAX_DIMS], n_dims;
    kv_foreign *codecs[MAX_DIMS];
    double bits, elements; /* sums over the layers */
} side;

struct rq_foreign_hook {
    rq_kv_hooks hooks;
    side sides[2]; /* of keys, of values */
};

static const kv_foreign *codec_of(const side *s, uint32_t d)
{
    for (uint32_t i = 0; i < s->n_dims; i++)
        if (s->dims[i] == d) return s->codecs[i];
    return NULL;
}

static void trip(void *user, bool is_v, float *rows, uint32_t n, uint32_t d)
{
    const rq_foreign_hook *h = user;
    const kv_foreign *codec = codec_of(&h->sides[is_v], d);
    if (codec) kv_foreign_trip(codec, rows, n);
}

static rq_status add(side *s, uint32_t n_heads, uint32_t d, rq_error *err)
{
    if (!s->name) return RQ_OK;
    if (!codec_of(s, d)) {
        if (s->n_dims == MAX_DIMS)
            return rq_fail(err, RQ_ERR_UNSUPPORTED, "the model has more than %d different head sizes",
                           MAX_DIMS);
        rq_status status = kv_foreign_make(s->name, d, FOREIGN_SEED, &s->codecs[s->n_dims], err);
        if (status) return status;
        s->dims[s->n_dims++] = d;
    }
    s->elements += (double)n_heads * d;
    s->bits += (double)n_heads * d * kv_foreign_bits(codec_of(s, d));
    return RQ_OK;
}

rq_status rq_foreign_hook_make(const rq_model *model, const char *name_k, const char *name_v,
                               rq_foreign_hook **out, rq_error *err)
{
    rq_foreign_hook *h = rq_calloc(1, sizeof *h);
    if (!h) return rq_fail(err, RQ_ERR_MEMORY, "out of memory for the codec %.40s", name_k ? name_k : name_v);
    h->sides[0].name = name_k;
    h->sides[1].name = name_v;
    h->hooks = (rq_kv_hooks){.trip = trip, .trip_user = h};
    rq_model_info info;
    rq_model_describe(model, &info);
    rq_status s = RQ_OK;
    for (uint32_t i = 0; i < info.n_layers && !s; i++) {
        rq_kv_layer layer;
        if (rq_kv_layer_of(model, i, &layer, NULL)) continue;
        s = add(&h->sides[0], layer.n_heads_kv, layer.dim_k, err);
        if (!s) s = add(&h->sides[1], layer.n_heads_kv, layer.dim_v, err);
    }
    if (s)
        rq_foreign_hook_free(h);
    else
        *out = h;
    return s;
}

void rq_foreign_hook_free(rq_foreign_hook *hook)
{
    if (!hook) return;
    for (int i = 0; i < 2; i++)
        for (uint32_t d = 0; d < hook->sides[i].n_dims; d++) kv_foreign_free(hook->sides[i].codecs[d]);
    rq_free(hook);
}

const rq_kv_hooks *rq_foreign_hook_of(const rq_foreign_hook *hook)
{
    return &hook->hooks;
}

double rq_foreign_hook_bits(const rq_foreign_hook *hook, bool is_v)
{
    const side *s = &hook->sides[is_v];
    return s->elements > 0 ? s->bits / s->elements : 0;
}
