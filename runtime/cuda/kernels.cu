// The arithmetic between the networks. No thread waits for another, and there is one per element
// where nothing else is said; parameters are 64 bits wide. Pointers are to device memory.

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
    long long step;            // set by feed to next, read by the kernels after the UNet
    long long next;            // set by step to step + 1, read by feed
    long long total;           // evaluations of this picture
    long long draws;           // noises that a stochastic sampler adds
    long long first_bad_step;  // least evaluation with a NaN or infinity; total if there is none
    long long bad_embeddings;  // 1 if the text encoder gave a NaN or infinity
    long long bad_pixels;      // 1 if the VAE decoder did
    double rescale;            // how far the deviation of guided predictions is brought back
    float guidance;            // guidance scale
    float scaling_factor;      // of the VAE's latents
    const float* timesteps;    // [total]
    const float* input_scale;  // [total]
    const float* rows;         // [total + 1, 1 + draws + total], of the history
    const float* levels;       // [total + 1, 2]: α and σ
    float* history;            // [1 + draws + total, size]: x_T, drawn noises, noise predictions
    const float* pictures;     // [2, size]: x_0 and ε of the pictures; null without a mask
    const unsigned char* mask;  // [size]: 1 where the picture is made anew
    volatile long long* done;  // evaluations that are made, in host memory; null if nobody asks
};

__device__ inline bool finite(float value) {
    return value - value == 0.0f;
}

// ε = ε_u + s (ε_c − ε_u); `prediction` holds the unconditional half, then the conditional one.
__device__ inline float guided(
    const Control* control, const unsigned short* prediction, long long size, long long i) {
    const float unconditional = from_half(prediction[i]);
    return unconditional + control->guidance * (from_half(prediction[size + i]) - unconditional);
}

// Write the UNet's input, x · scale of this step, and its timestep, to each of its halves.
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

// One of `parts` threads per image: every parts-th ε and conditional ε_c, added up to
// sums[image, part]: Σ ε, Σ ε², Σ ε_c, Σ ε_c².
extern "C" __global__ void sum_moments(
    const Control* control, const unsigned short* prediction, double* sums,
    long long size, long long batch, long long parts) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= batch * parts) return;
    const long long count = size / batch, first = i / parts * count;
    double found[4] = {0.0, 0.0, 0.0, 0.0};
    for (long long j = first + i % parts; j < first + count; j += parts) {
        const double noise = guided(control, prediction, size, j);
        const double conditional = from_half(prediction[size + j]);
        found[0] += noise;
        found[1] += noise * noise;
        found[2] += conditional;
        found[3] += conditional * conditional;
    }
    for (long long moment = 0; moment < 4; ++moment) sums[i * 4 + moment] = found[moment];
}

// One thread per image: φ std(ε_c) / std(ε) + 1 − φ, by which its noise prediction is multiplied.
extern "C" __global__ void rescale(
    const Control* control, const double* sums, float* factors,
    long long size, long long batch, long long parts) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= batch) return;
    double total[4] = {0.0, 0.0, 0.0, 0.0};
    for (long long part = i * parts; part < (i + 1) * parts; ++part)
        for (long long moment = 0; moment < 4; ++moment) total[moment] += sums[part * 4 + moment];
    const double count = (double)(size / batch);
    // Squared deviations; what they are divided by is the same.
    const double noise = total[1] - total[0] * total[0] / count;
    const double conditional = total[3] - total[2] * total[2] / count;
    factors[i] = (float)(control->rescale * sqrt(conditional / noise) + (1.0 - control->rescale));
}

// ε joins the history, x becomes the next row of the matrix times it, and what the mask leaves
// returns to its noise level. `factors` are of the images, and null where nothing is rescaled.
extern "C" __global__ void step(
    Control* control, const unsigned short* prediction, float* latents, const float* factors,
    long long size, long long halves, long long batch) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long k = control->step;
    if (i == 0) {
        control->next = k + 1;
        if (control->done) *control->done = k + 1;
    }
    if (i >= size) return;
    float noise = halves == 2 ? guided(control, prediction, size, i) : from_half(prediction[i]);
    if (factors) noise *= factors[i / (size / batch)];
    float* history = control->history;
    const long long last = 1 + control->draws + k;
    history[last * size + i] = noise;
    const float* row = control->rows + (k + 1) * (1 + control->draws + control->total);
    float x = 0.0f;
    for (long long j = 0; j <= last; ++j) x += row[j] * history[j * size + i];
    if (control->pictures && !control->mask[i]) {
        const float* level = control->levels + (k + 1) * 2;
        x = level[0] * control->pictures[i] + level[1] * control->pictures[size + i];
    }
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
