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

// Of one slot of the batch; there is one for each. Steps count evaluations of the UNet from 0. Where
// `next` is `total` the slot is free or done: it is fed zeros, and stays as it is. A slot that is
// not guided in a step takes the conditional half's prediction, and leaves the other one alone.
// Mirrored by CONTROL in slot.py.
struct Control {
    long long step;            // set by feed to next, read by the kernels after the UNet
    long long next;            // set by step to step + 1, read by feed
    long long total;           // evaluations of this picture
    long long draws;           // noises that a stochastic sampler adds
    long long guided_from;     // the first evaluation with guidance
    long long guided_until;    // the first one after those
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
    float* history;            // [1 + draws + total, count]: x_T, drawn noises, noise predictions
    const float* pictures;     // [2, count]: x_0 and ε of the picture; null without a mask
    const unsigned char* mask;  // [count]: 1 where the picture is made anew
    volatile long long* done;  // evaluations that are made, in host memory; null if nobody asks
};

__device__ inline bool finite(float value) {
    return value - value == 0.0f;
}

__device__ inline bool is_guided(const Control* control) {
    return control->guided_from <= control->step && control->step < control->guided_until;
}

__device__ inline bool is_rescaled(const Control* control) {
    return control->rescale != 0.0 && is_guided(control);
}

// ε = ε_u + s (ε_c − ε_u); `prediction` holds the unconditional half, then the conditional one.
__device__ inline float guided(
    const Control* control, const unsigned short* prediction, long long size, long long i) {
    const float unconditional = from_half(prediction[i]);
    return unconditional + control->guidance * (from_half(prediction[size + i]) - unconditional);
}

// Write the UNet's input, x · scale of its step, and its timestep, to each half of every slot. One
// picture has `count` values.
extern "C" __global__ void feed(
    Control* controls, const float* latents, unsigned short* sample, float* timestep,
    long long count, long long halves, long long batch) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long slot = i / count;
    if (slot >= batch) return;
    Control* control = controls + slot;
    const long long k = control->next;
    const bool moves = k < control->total;
    if (i % count == 0) {
        // Nothing in this kernel reads `step`, nothing in the kernel `step` reads `next`.
        control->step = k;
        for (long long half = 0; half < halves; ++half)
            timestep[half * batch + slot] = moves ? control->timesteps[k] : 0.0f;
    }
    const unsigned short input = to_half(moves ? latents[i] * control->input_scale[k] : 0.0f);
    for (long long half = 0; half < halves; ++half) sample[half * batch * count + i] = input;
}

// One of `parts` threads per slot: every parts-th ε and conditional ε_c, added up to
// sums[slot, part]: Σ ε, Σ ε², Σ ε_c, Σ ε_c².
extern "C" __global__ void sum_moments(
    const Control* controls, const unsigned short* prediction, double* sums,
    long long count, long long batch, long long parts) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= batch * parts) return;
    const Control* control = controls + i / parts;
    if (!is_rescaled(control)) return;
    const long long size = batch * count, first = i / parts * count;
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

// One thread per slot: φ std(ε_c) / std(ε) + 1 − φ, by which its noise prediction is multiplied.
extern "C" __global__ void rescale(
    const Control* controls, const double* sums, float* factors,
    long long count, long long batch, long long parts) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= batch) return;
    const Control* control = controls + i;
    factors[i] = 1.0f;
    if (!is_rescaled(control)) return;
    double total[4] = {0.0, 0.0, 0.0, 0.0};
    for (long long part = i * parts; part < (i + 1) * parts; ++part)
        for (long long moment = 0; moment < 4; ++moment) total[moment] += sums[part * 4 + moment];
    // Squared deviations; what they are divided by is the same.
    const double noise = total[1] - total[0] * total[0] / (double)count;
    const double conditional = total[3] - total[2] * total[2] / (double)count;
    factors[i] = (float)(control->rescale * sqrt(conditional / noise) + (1.0 - control->rescale));
}

// ε joins the history, x becomes the next row of the matrix times it, and what the mask leaves
// returns to its noise level. `factors` are of the slots, and null where nothing is rescaled.
extern "C" __global__ void step(
    Control* controls, const unsigned short* prediction, float* latents, const float* factors,
    long long count, long long halves, long long batch) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long slot = i / count, place = i % count;
    if (slot >= batch) return;
    Control* control = controls + slot;
    const long long k = control->step;
    if (k >= control->total) return;
    if (place == 0) {
        control->next = k + 1;
        if (control->done) *control->done = k + 1;
    }
    const long long size = batch * count;
    float noise = is_guided(control) ? guided(control, prediction, size, i)
                                     : from_half(prediction[(halves - 1) * size + i]);
    if (factors) noise *= factors[slot];
    float* history = control->history;
    const long long last = 1 + control->draws + k;
    history[last * count + place] = noise;
    const float* row = control->rows + (k + 1) * (1 + control->draws + control->total);
    float x = 0.0f;
    for (long long j = 0; j <= last; ++j) x += row[j] * history[j * count + place];
    if (control->pictures && !control->mask[place]) {
        const float* level = control->levels + (k + 1) * 2;
        x = level[0] * control->pictures[place] + level[1] * control->pictures[count + place];
    }
    latents[i] = x;
    if (!finite(noise) || !finite(x)) atomicMin(&control->first_bad_step, k);
}

// Write the VAE decoder's input, x_0 / scaling factor. Here and below the control block is that of
// the first of a job's slots, which lie beside each other.
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
