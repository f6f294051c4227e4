// Pictures to latents.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "bksdm/engine.hpp"
#include "bksdm/images.hpp"
#include "bksdm/job.hpp"

namespace bksdm {

// Mean and standard deviation of a picture's scaled latents, [channels, height, width] each.
struct LatentDistribution {
    std::vector<float> mean, deviation;
};

// Encode one picture. The network's output is the mean and log σ², which is clipped to -30 … 20
// (diffusers' DiagonalGaussianDistribution).
inline LatentDistribution encode_picture(const Engine& encoder, const Picture& picture,
                                         double scaling_factor, std::size_t latents) {
    const std::vector<float> pixels = to_sample(picture);
    const ElementType type = encoder.input("sample").type;
    Tensor sample(type, {1, 3, static_cast<std::int64_t>(picture.height),
                         static_cast<std::int64_t>(picture.width)});
    store_floats(pixels.data(), pixels.size(), type, sample.bytes());
    Tensors outputs = encoder({{"sample", sample.view()}});
    // Its only output has had several names.
    if (outputs.size() != 1)
        throw Error(ErrorCode::bundle, "vae_encoder: has several outputs; export it again");
    const std::vector<float> parameters = to_floats(outputs.begin()->second);
    if (parameters.size() != 2 * latents)
        throw Error(ErrorCode::bundle, "vae_encoder: gives no mean and variance; export it again");
    require_finite(parameters.data(), parameters.size(), "latents of the VAE encoder");
    const auto scale = static_cast<float>(scaling_factor);
    LatentDistribution found{std::vector<float>(latents), std::vector<float>(latents)};
    for (std::size_t i = 0; i < latents; ++i) {
        found.mean[i] = parameters[i] * scale;
        const float log_variance = std::clamp(parameters[latents + i], -30.0F, 20.0F);
        found.deviation[i] = std::exp(log_variance * 0.5F) * scale;
    }
    return found;
}

}  // namespace bksdm
