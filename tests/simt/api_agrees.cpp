// api_agrees.cpp - compiles only where backends/cuda/api.h says what cuda.h says: the same number of parameters, each
// of the same kind and size, pointers to the same behind them, the same numbers of enumerations, the same places in
// structures. Built where a toolkit is installed; nothing runs.
#include "backends/cuda/api.h"

#include <cstddef>
#include <cuda.h>
#include <type_traits>

namespace
{

template <class A, class B> constexpr bool same();

// What handles point to has no definition in cuda.h; here they are plain pointers.
template <class T, class = void> struct is_opaque : std::true_type {
};
template <class T> struct is_opaque<T, std::void_t<decltype(sizeof(T))>> : std::false_type {
};

template <class A, class B> constexpr bool same_behind()
{
    using a = std::remove_cv_t<A>;
    using b = std::remove_cv_t<B>;
    if constexpr (std::is_const_v<A> != std::is_const_v<B>)
        return false;
    else if constexpr (std::is_void_v<a>)
        return std::is_void_v<b> || is_opaque<b>::value;
    else if constexpr (std::is_void_v<b>)
        return false;
    else if constexpr (std::is_same_v<a, cuda_kernel_node>)
        return std::is_same_v<b, CUDA_KERNEL_NODE_PARAMS_v2>;
    else if constexpr (std::is_same_v<a, cuda_edge>)
        return std::is_same_v<b, CUgraphEdgeData>;
    else
        return same<a, b>();
}

// A of api.h, B of cuda.h
template <class A, class B> constexpr bool same()
{
    if constexpr (std::is_pointer_v<A> && std::is_pointer_v<B>)
        return same_behind<std::remove_pointer_t<A>, std::remove_pointer_t<B>>();
    else if constexpr (std::is_pointer_v<A> || std::is_pointer_v<B>)
        return false;
    else if constexpr (std::is_integral_v<A>)
        return (std::is_integral_v<B> || std::is_enum_v<B>)&&sizeof(A) == sizeof(B);
    else
        return std::is_same_v<A, B>;
}

template <class R, class... A, class S, class... B> constexpr bool agree(R (*)(A...), S (*)(B...))
{
    if constexpr (sizeof...(A) != sizeof...(B))
        return false;
    else
        return same<R, S>() && (same<A, B>() && ...);
}

#define AGREES(member, symbol, parameters)                                                                   \
    static_assert(agree((int(*) parameters) nullptr, (decltype(&symbol))nullptr), #symbol);
CUDA_API(AGREES)
CUDA_API_NEWER(AGREES)

#define SAME_PLACE(here, there)                                                                              \
    static_assert(offsetof(cuda_kernel_node, here) == offsetof(CUDA_KERNEL_NODE_PARAMS_v2, there), #here)
SAME_PLACE(function, func);
SAME_PLACE(grid, gridDimX);
SAME_PLACE(block, blockDimX);
SAME_PLACE(shared_bytes, sharedMemBytes);
SAME_PLACE(params, kernelParams);
SAME_PLACE(extra, extra);
SAME_PLACE(kernel, kern);
SAME_PLACE(context, ctx);
static_assert(sizeof(cuda_kernel_node) == sizeof(CUDA_KERNEL_NODE_PARAMS_v2), "nodes");
static_assert(offsetof(cuda_edge, from_port) == offsetof(CUgraphEdgeData, from_port), "from_port");
static_assert(offsetof(cuda_edge, to_port) == offsetof(CUgraphEdgeData, to_port), "to_port");
static_assert(offsetof(cuda_edge, type) == offsetof(CUgraphEdgeData, type), "type");
static_assert(offsetof(cuda_edge, reserved) == offsetof(CUgraphEdgeData, reserved), "reserved");
static_assert(sizeof(cuda_edge) == sizeof(CUgraphEdgeData), "edges");

#define SAME_NUMBER(here, there) static_assert((int)(here) == (int)(there), #there)
SAME_NUMBER(CUDA_EDGE_PROGRAMMATIC, CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC);
SAME_NUMBER(CUDA_EDGE_PROGRAMMATIC, CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC);
SAME_NUMBER(CUDA_OK, CUDA_SUCCESS);
SAME_NUMBER(CUDA_OUT_OF_MEMORY, CUDA_ERROR_OUT_OF_MEMORY);
SAME_NUMBER(CUDA_NO_DEVICE, CUDA_ERROR_NO_DEVICE);
SAME_NUMBER(CUDA_CONTEXT_BROKEN_FIRST, CUDA_ERROR_ILLEGAL_ADDRESS);
SAME_NUMBER(CUDA_CONTEXT_BROKEN_LAST, CUDA_ERROR_LAUNCH_FAILED);
SAME_NUMBER(CUDA_ATTRIBUTE_PROCESSORS, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME_NUMBER(CUDA_ATTRIBUTE_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME_NUMBER(CUDA_ATTRIBUTE_MINOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME_NUMBER(CUDA_STREAM_ALONE, CU_STREAM_NON_BLOCKING);
SAME_NUMBER(CUDA_EVENT_NO_TIME, CU_EVENT_DISABLE_TIMING);

// The test can fail: what differs is seen.
template <class A, class B> constexpr bool pass = agree((A *)nullptr, (B *)nullptr);
static_assert(pass<int(void *, const int *), CUresult(CUstream, const int *)>, "the same");
static_assert(!pass<int(void *), CUresult(CUstream, CUevent)>, "one more");
static_assert(!pass<int(unsigned), CUresult(CUdeviceptr)>, "a wider one");
static_assert(!pass<int(uint64_t), CUresult(CUstream)>, "a pointer");
static_assert(!pass<int(void *), CUresult(CUstream *)>, "a pointer to one");
static_assert(!pass<int(const void *), CUresult(void *)>, "one that may be written through");

} // namespace
