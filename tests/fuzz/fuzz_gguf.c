/* The GGUF reader on arbitrary bytes: a file is refused with a sentence, or everything it offers can be read. */
#include "backends/base/mem.h"
#include "engine/gguf/gguf.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A broken promise of the reader: the fuzzer reports it as a crash. */
static void promise(bool kept)
{
    if (!kept) __builtin_trap();
}

static uint64_t touched; /* keeps the reads from being optimised away */

static void read_pair(const rq_gguf *g, const rq_gguf_kv *kv)
{
    rq_error err = {0};
    char key[64];
    uint64_t step = kv->count > 1000 ? kv->count / 1000 : 1;
    for (uint64_t i = 0; i < kv->count; i += step) {
        int64_t integer = 0;
        double real = 0;
        rq_gguf_str s = {0};
        bool is_integer = rq_gguf_elem_i64(kv, i, &integer), is_real = rq_gguf_elem_f64(kv, i, &real);
        bool is_string = rq_gguf_elem_str(kv, i, &s);
        promise(is_string == (kv->type == RQ_GGUF_STRING) && is_real != is_string &&
                (is_real || !is_integer));
        if (is_string && s.len) touched += (uint8_t)s.data[0] + (uint8_t)s.data[s.len - 1];
    }
    if (kv->key.len >= sizeof key) return;
    memcpy(key, kv->key.data, kv->key.len);
    key[kv->key.len] = 0;
    promise(rq_gguf_find(g, key) == kv);
    int64_t i64;
    uint32_t u32, u32s[4];
    float f32;
    bool truth;
    rq_gguf_str s;
    const rq_gguf_kv *array;
    touched += rq_gguf_get_i64(g, key, -5, 1000, &i64, &err) + rq_gguf_get_u32(g, key, 0, 100, &u32, &err) +
               rq_gguf_get_f32(g, key, &f32, &err) + rq_gguf_get_bool(g, key, &truth, &err) +
               rq_gguf_get_str(g, key, &s, &err) + rq_gguf_get_u32s(g, key, 4, 0, 100, u32s, &err) +
               rq_gguf_get_strs(g, key, &array, &err) + rq_gguf_get_ints(g, key, &array, &err) +
               rq_gguf_get_reals(g, key, &array, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    rq_gguf *g = NULL;
    rq_error err = {0};
    int64_t alive = rq_mem_alive();
    if (rq_gguf_open_memory(data, size, "fuzz", &g, &err)) {
        promise(!g && err.text[0]);
    } else {
        for (uint64_t i = 0; i < rq_gguf_n_kv(g); i++) read_pair(g, rq_gguf_kv_at(g, i));
        for (uint64_t i = 0; i < rq_gguf_n_tensors(g); i++) {
            const rq_gguf_tensor *t = rq_gguf_tensor_at(g, i);
            promise(rq_gguf_find_tensor(g, t->name) == t);
            promise(t->data >= data && t->nbytes <= (uint64_t)(data + size - t->data));
            if (t->nbytes) touched += t->data[0] + t->data[t->nbytes - 1];
        }
        rq_gguf_close(g);
    }
    promise(rq_mem_alive() == alive);
    return 0;
}
