// sim_driver.cpp - the driver's functions over the simulator. Work is done when it is asked for, the nodes of a graph
// in a random order that their dependencies allow.
#include "tests/simt/launch.h"
#include "tests/simt/sim.h"
#include "tests/simt/sim_memory.h"

#include "cuda/simt.cuh"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

enum { LAUNCH_FAILED = 719, NOT_FOUND = 500, INVALID = 1, PROCESSORS = 3 };

static uint32_t n_calls, n_alive;
static std::atomic<uint32_t> fail_in, n_failed;
static std::atomic<const char *> fail_call;

// Is this the call that fails?
static bool fails(const char *call)
{
    n_calls++;
    const char *only = fail_call;
    if (fail_in == 0 || (only && strcmp(only, call) != 0) || --fail_in) return false;
    n_failed++;
    return true;
}

uint32_t simt_fail_at(uint32_t n)
{
    uint32_t calls = n_calls;
    n_calls = 0;
    simt_fail_call(nullptr, n);
    return calls;
}

void simt_fail_call(const char *call, uint32_t n)
{
    fail_in = 0;
    fail_call = call;
    fail_in = n;
}

uint32_t simt_failed(void)
{
    return n_failed;
}

uint32_t simt_alive(void)
{
    return n_alive;
}

struct node {
    const simt::kernel *kernel;
    uint32_t grid[3];
    std::vector<char> args;
    std::vector<node *> after;
    bool done, dependent; // dependent: it may begin before those before it have ended
    uint32_t beginnings;  // looked at so often
};
struct graph {
    std::vector<node *> nodes;
};

#define CALL(result)                                                                                         \
    if (fails(__func__)) return result

static int init(unsigned int)
{
    CALL(CUDA_NO_DEVICE);
    return 0;
}
static int driver_version(int *v)
{
    CALL(INVALID);
    *v = 13000;
    return 0;
}
static int error_name(int code, const char **name)
{
    const char *said = simt_message();
    *name = said[0] ? said : code == CUDA_OUT_OF_MEMORY ? "no memory" : "a failed call";
    return 0;
}
static int device_count(int *n)
{
    CALL(INVALID);
    *n = 1;
    return 0;
}
static int device_get(int *d, int i)
{
    CALL(INVALID);
    *d = i;
    return i == 0 ? 0 : INVALID;
}
static int device_name(char *name, int n, int)
{
    CALL(INVALID);
    snprintf(name, (size_t)n, "the simulator");
    return 0;
}
static int device_attribute(int *v, int attribute, int)
{
    CALL(INVALID);
    *v = attribute == CUDA_ATTRIBUTE_PROCESSORS     ? PROCESSORS
         : attribute == CUDA_ATTRIBUTE_MAJOR        ? 9
         : attribute == CUDA_ATTRIBUTE_SHARED_BYTES ? 99 << 10
                                                    : 0;
    return 0;
}
static void *object(size_t bytes = 1)
{
    n_alive++;
    return malloc(bytes);
}
static int drop(void *p)
{
    n_alive--;
    free(p);
    return 0;
}
static int context_retain(void **c, int)
{
    CALL(CUDA_OUT_OF_MEMORY);
    *c = &n_alive;
    n_alive++;
    return 0;
}
static int context_release(int)
{
    n_alive--;
    return 0;
}
static int context_set(void *)
{
    CALL(INVALID);
    return 0;
}
static int memory_info(size_t *left, size_t *all)
{
    CALL(INVALID);
    *left = *all = (size_t)8 << 30;
    return 0;
}
static int module_load(void **m, const void *)
{
    CALL(CUDA_OUT_OF_MEMORY);
    *m = object();
    return 0;
}
static int module_function(void **f, void *, const char *name)
{
    CALL(NOT_FOUND);
    *f = (void *)simt::find(name);
    return *f ? 0 : NOT_FOUND;
}
static int function_attribute(void *, int attribute, int bytes)
{
    CALL(INVALID);
    return attribute == CUDA_FUNCTION_SHARED_BYTES && bytes >= 0 && bytes <= 99 << 10 ? 0 : INVALID;
}
static int memory_alloc(uint64_t *p, size_t bytes)
{
    CALL(CUDA_OUT_OF_MEMORY);
    void *m = simt::device_alloc(bytes);
    if (!m) return CUDA_OUT_OF_MEMORY;
    memset(m, 0xcb, bytes);
    *p = (uint64_t)(uintptr_t)m;
    n_alive++;
    return 0;
}
static int memory_free(uint64_t p)
{
    n_alive--;
    simt::device_free((void *)(uintptr_t)p);
    return 0;
}
static int memory_set(uint64_t p, unsigned char v, size_t n, void *)
{
    CALL(LAUNCH_FAILED);
    memset((void *)(uintptr_t)p, v, n);
    return 0;
}
static int copy_to_device(uint64_t to, const void *from, size_t n, void *)
{
    CALL(LAUNCH_FAILED);
    memcpy((void *)(uintptr_t)to, from, n);
    return 0;
}
static int copy_to_host(void *to, uint64_t from, size_t n, void *)
{
    CALL(LAUNCH_FAILED);
    memcpy(to, (void *)(uintptr_t)from, n);
    return 0;
}
static int host_alloc(void **p, size_t n, unsigned int)
{
    CALL(CUDA_OUT_OF_MEMORY);
    *p = object(n);
    return *p ? 0 : CUDA_OUT_OF_MEMORY;
}
static int stream_create(void **p, unsigned int)
{
    CALL(CUDA_OUT_OF_MEMORY);
    *p = object();
    return 0;
}
static int stream_wait(void *)
{
    CALL(LAUNCH_FAILED);
    return 0;
}
static int event_create(void **p, unsigned int)
{
    CALL(CUDA_OUT_OF_MEMORY);
    *p = object();
    return 0;
}
static int event_wait(void *)
{
    CALL(LAUNCH_FAILED);
    return 0;
}
static int event_record(void *, void *)
{
    CALL(LAUNCH_FAILED);
    return 0;
}
static int event_elapsed(float *ms, void *, void *)
{
    CALL(INVALID);
    *ms = 1;
    return 0;
}

static int launch(void *f, unsigned int x, unsigned int y, unsigned int z, unsigned int bx, unsigned int by,
                  unsigned int bz, unsigned int, void *, void **params, void **)
{
    CALL(LAUNCH_FAILED);
    const simt::kernel *k = (const simt::kernel *)f;
    const uint32_t grid[3] = {x, y, z};
    if (bx * by * bz != k->threads || !x || !y || !z || y > 65535 || z > 65535) return INVALID;
    const char *args = (const char *)params[0];
    std::vector<char> copy(args, args + k->args_bytes); // aligned, whatever the caller's is
    return simt::launch(k, grid, copy.data(), simt::ALONE) ? 0 : LAUNCH_FAILED;
}

static int graph_create(void **g, unsigned int)
{
    CALL(CUDA_OUT_OF_MEMORY);
    *g = new graph;
    n_alive++;
    return 0;
}
static int graph_add_kernel(void **out, void *g, void *const *after, size_t n, const cuda_kernel_node *p)
{
    CALL(CUDA_OUT_OF_MEMORY);
    const simt::kernel *k = (const simt::kernel *)p->function;
    if (p->block[0] * p->block[1] * p->block[2] != k->threads) return INVALID;
    if (!p->grid[0] || !p->grid[1] || !p->grid[2] || p->grid[1] > 65535 || p->grid[2] > 65535) return INVALID;
    const char *args = (const char *)p->params[0];
    node *made = new node{k,
                          {p->grid[0], p->grid[1], p->grid[2]},
                          std::vector<char>(args, args + k->args_bytes),
                          {},
                          false,
                          false,
                          0};
    for (size_t i = 0; i < n; i++) made->after.push_back((node *)after[i]);
    ((graph *)g)->nodes.push_back(made);
    *out = made;
    return 0;
}
static int graph_add_edges(void *g, void *const *from, void *const *to, const cuda_edge *edges, size_t n)
{
    CALL(CUDA_OUT_OF_MEMORY);
    for (size_t i = 0; i < n; i++) {
        const cuda_edge *e = &edges[i];
        if (e->from_port != CUDA_EDGE_PROGRAMMATIC || e->to_port || e->type != CUDA_EDGE_PROGRAMMATIC)
            return INVALID;
        for (size_t k = 0; k < sizeof e->reserved; k++)
            if (e->reserved[k]) return INVALID;
        node *later = (node *)to[i];
        for (const node *there : later->after)
            if (there == from[i]) return INVALID;
        later->after.push_back((node *)from[i]);
        later->dependent = true;
    }
    return ((graph *)g)->nodes.empty() ? INVALID : 0;
}
static int graph_instantiate(void **exec, void *g, unsigned long long)
{
    CALL(CUDA_OUT_OF_MEMORY);
    *exec = g;
    n_alive++;
    return 0;
}
static int graph_launch(void *exec, void *)
{
    CALL(LAUNCH_FAILED);
    std::vector<node *> waiting = ((graph *)exec)->nodes;
    for (node *n : waiting) n->done = false;
    while (!waiting.empty()) {
        size_t at = simt::random_below((uint32_t)waiting.size());
        bool ready = false;
        for (size_t tries = 0; tries < waiting.size() && !ready; tries++) {
            if (tries) at = (at + 1) % waiting.size();
            ready = true;
            for (const node *n : waiting[at]->after) ready &= n->done;
        }
        node *n = waiting[at];
        if (!simt::launch(n->kernel, n->grid, n->args.data(), n->dependent ? simt::DEPENDENT : simt::ALONE))
            return LAUNCH_FAILED;
        n->done = true;
        waiting.erase(waiting.begin() + (long)at);
    }
    // What launches write is known now: the beginnings of those that may run ahead, the first times and now and then.
    for (node *n : ((graph *)exec)->nodes) {
        if (!n->dependent || (n->beginnings > 1 && simt::random_below(16))) continue;
        n->beginnings++;
        if (!simt::launch(n->kernel, n->grid, n->args.data(), simt::AHEAD)) return LAUNCH_FAILED;
    }
    return 0;
}
static int graph_exec_destroy(void *)
{
    n_alive--;
    return 0;
}
static int graph_destroy(void *g)
{
    for (node *n : ((graph *)g)->nodes) delete n;
    delete (graph *)g;
    n_alive--;
    return 0;
}

const cuda_api simt_api = {
    init,
    driver_version,
    error_name,
    device_count,
    device_get,
    device_name,
    device_attribute,
    context_retain,
    context_release,
    context_set,
    memory_info,
    module_load,
    drop,
    module_function,
    function_attribute,
    memory_alloc,
    memory_free,
    memory_set,
    copy_to_device,
    copy_to_host,
    host_alloc,
    drop,
    stream_create,
    drop,
    stream_wait,
    event_create,
    drop,
    event_record,
    event_wait,
    event_elapsed,
    launch,
    graph_create,
    graph_add_kernel,
    graph_instantiate,
    graph_launch,
    graph_exec_destroy,
    graph_destroy,
    graph_add_edges,
};
