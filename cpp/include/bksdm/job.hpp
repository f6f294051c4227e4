// A denoising job: everything that a batch of pictures needs, whatever runs the networks.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "bksdm/error.hpp"
#include "bksdm/guidance.hpp"
#include "bksdm/step_table.hpp"

namespace bksdm {

// Shape of a batch's latents.
struct LatentShape {
    std::size_t images = 0, channels = 0, height = 0, width = 0;

    std::size_t of_one() const noexcept { return channels * height * width; }
    std::size_t size() const noexcept { return images * of_one(); }
};

// Pictures of which only the masked part is made anew: every sampler works value by value, so that
// replacing some values in every step changes no other.
struct Inpainting {
    std::vector<float> latents, noise;  // x_0 of the pictures, and what they are noised with
    std::vector<bool> mask;             // [images, height, width], true where they are made anew

    void restore(std::vector<float>& x, const LatentShape& shape, float alpha, float sigma) const {
        const std::size_t plane = shape.height * shape.width;
        for (std::size_t i = 0; i < x.size(); ++i)
            if (!mask[i / shape.of_one() * plane + i % plane])
                x[i] = alpha * latents[i] + sigma * noise[i];
    }
};

struct Job {
    LatentShape shape;
    std::shared_ptr<const StepTable> table;
    Guidance guidance;
    std::vector<float> latents;  // x_T, at the noise level of the first evaluation
    std::vector<float> noises;   // [draws, images, channels, height, width]
    std::optional<Inpainting> inpainting;
    // Embeddings of one image, [tokens, width]; every image of the batch has the same text.
    std::vector<float> conditional, unconditional;
    std::size_t tokens = 0;
};

// No picture is made from NaN or infinity.
inline void require_finite(const float* values, std::size_t count, const char* stage) {
    for (std::size_t i = 0; i < count; ++i)
        if (!std::isfinite(values[i]))
            throw Error(ErrorCode::non_finite, std::string(stage) + ": NaN or infinity");
}

}  // namespace bksdm
