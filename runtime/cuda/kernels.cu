// The arithmetic between the networks. Every kernel is one thread per element and no thread waits
// for another; parameters are 64 bits wide. Pointers are to device memory.

#ifdef __CUDACC__
__device__ inline float from_half(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ inline unsigned short to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

// Mirrored by CONTROL in session.py. Steps count evaluations of the UNet from 0.
struct Control {
    long long step;            // set by feed to next, read by step
    long long next;            // set by step to step + 1, read by feed
    long long total;           // evaluations of this picture
    long long first_bad_step;  // least evaluation with a NaN or infinity; total if there is none
    long long bad_embeddings;  // 1 if the text encoder gave a NaN or infinity
    long long bad_pixels;      // 1 if the VAE decoder did
    float guidance;            // guidance scale
    float scaling_factor;      // of the VAE's latents
    const float* timesteps;    // [total]
    const float* input_scale;  // [total]
    const float* rows;         // [total + 1, total + 1], lower triangular
    float* history;            // [total + 1, size]: x_T, then the noise predictions
};

__device__ inline bool finite(float value) {
    return value - value == 0.0f;
}

// Write the UNet's input, x · scale of this step, and its timestep; `halves` is 2 with guidance.
extern "C" __global__ void feed(
    Control* control, const float* latents, unsigned short* sample, float* timestep,
    long long size, long long halves, long long batch) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long k = control->next;
    // Nothing in this kernel reads `step`, nothing in the kernel `step` reads `next`.
    if (i == 0) control->step = k;
    if (i < batch * halves) timestep[i] = control->timesteps[k];
    if (i >= size) return;
    const unsigned short input = to_half(latents[i] * control->input_scale[k]);
    for (long long half = 0; half < halves; ++half) sample[half * size + i] = input;
}

// ε = ε_u + s (ε_c − ε_u) joins the history, and x becomes the next row of the matrix times it.
extern "C" __global__ void step(
    Control* control, const unsigned short* prediction, float* latents,
    long long size, long long halves) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long k = control->step;
    if (i == 0) control->next = k + 1;
    if (i >= size) return;
    float noise = from_half(prediction[i]);
    if (halves == 2) {
        const float conditional = from_half(prediction[size + i]);
        noise += control->guidance * (conditional - noise);
    }
    float* history = control->history;
    history[(k + 1) * size + i] = noise;
    const float* row = control->rows + (k + 1) * (control->total + 1);
    float x = 0.0f;
    for (long long j = 0; j <= k + 1; ++j) x += row[j] * history[j * size + i];
    latents[i] = x;
    if (!finite(noise) || !finite(x)) atomicMin(&control->first_bad_step, k);
}

// Write the VAE decoder's input, x_0 / scaling factor.
extern "C" __global__ void finish(
    const Control* control, const float* latents, unsigned short* sample, long long size) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) sample[i] = to_half(latents[i] / control->scaling_factor);
}

// Note whether any of the embeddings is NaN or infinite.
extern "C" __global__ void check_embeddings(
    Control* control, const unsigned short* embeddings, long long size) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size && !finite(from_half(embeddings[i]))) control->bad_embeddings = 1;
}

// The VAE's [batch, 3, area] in −1 … 1 to bytes [batch, area, 3]: round(255 clip(y / 2 + 1 / 2)).
extern "C" __global__ void to_pixels(
    Control* control, const unsigned short* sample, unsigned char* pixels,
    long long area, long long batch) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= batch * area) return;
    const unsigned short* picture = sample + i / area * 3 * area + i % area;
    for (long long channel = 0; channel < 3; ++channel) {
        const float y = from_half(picture[channel * area]);
        if (!finite(y)) control->bad_pixels = 1;
        const float unit = fminf(fmaxf(y * 0.5f + 0.5f, 0.0f), 1.0f);
        pixels[i * 3 + channel] = (unsigned char)rintf(unit * 255.0f);
    }
}
