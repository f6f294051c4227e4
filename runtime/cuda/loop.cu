// Kernels that repeat steps inside of a CUDA graph. They are code of their own, which is loaded only
// where steps run so: it takes a driver that knows conditional nodes.
#ifdef __CUDACC__
// NVRTC has no header for it; the driver links it.
extern "C" __device__ __cudart_builtin__ void CUDARTAPI cudaGraphSetConditional(
    cudaGraphConditionalHandle handle, unsigned int value);
#endif

// Say how many steps the next loop makes, at least one.
extern "C" __global__ void set_steps(long long* left, long long steps) {
    if (blockIdx.x == 0 && threadIdx.x == 0) *left = steps;
}

// Count a step of a loop, and say whether there is another one.
extern "C" __global__ void repeat(long long* left, cudaGraphConditionalHandle loop) {
    if (blockIdx.x == 0 && threadIdx.x == 0) cudaGraphSetConditional(loop, --*left > 0);
}
