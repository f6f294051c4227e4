// What kernels.cu needs of CUDA, for the host's compiler: one thread after the other.
#include <cmath>
#include <cstdint>
#include <cstring>

struct Dim { unsigned x; };
static Dim blockIdx, blockDim, threadIdx;

#define __device__
#define __global__

static inline float from_half(unsigned short bits) {
    _Float16 value;
    memcpy(&value, &bits, 2);
    return (float)value;
}

static inline unsigned short to_half(float number) {
    const _Float16 value = (_Float16)number;
    unsigned short bits;
    memcpy(&bits, &value, 2);
    return bits;
}

static inline void atomicMin(long long* place, long long value) {
    if (value < *place) *place = value;
}

// The handle of a loop begins with its condition.
typedef uint64_t cudaGraphConditionalHandle;
static inline void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned value) {
    *(unsigned*)handle = value;
}

// All parameters of all kernels are 64 bits wide, so one call fits them.
extern "C" void run_kernel(void* kernel, unsigned blocks, unsigned threads, const uint64_t* a) {
    typedef void (*Kernel)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                           uint64_t);
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
            ((Kernel)kernel)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
}
