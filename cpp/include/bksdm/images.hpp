// Pixels: from the VAE decoder's output, and to what the VAE encoder takes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "bksdm/error.hpp"

namespace bksdm {

// A picture of 8 bits, row by row from the top; 3 channels are RGB, 1 is grey.
struct Picture {
    std::size_t width = 0, height = 0, channels = 3;
    std::vector<std::uint8_t> pixels;
};

// Convert VAE output [3, height, width], nominally in -1 ... 1, to 256 levels, rounded half to even
// as diffusers does.
inline Picture to_picture(const float* sample, std::size_t height, std::size_t width) {
    Picture picture{width, height, 3, std::vector<std::uint8_t>(3 * height * width)};
    const std::size_t plane = height * width;
    for (std::size_t c = 0; c < 3; ++c)
        for (std::size_t i = 0; i < plane; ++i) {
            const float unit = std::clamp(sample[c * plane + i] * 0.5F + 0.5F, 0.0F, 1.0F);
            picture.pixels[3 * i + c] = static_cast<std::uint8_t>(std::nearbyint(unit * 255.0F));
        }
    return picture;
}

// Convert a picture to the VAE encoder's input, [3, height, width] in -1 ... 1.
inline std::vector<float> to_sample(const Picture& picture) {
    const std::size_t plane = picture.height * picture.width;
    if (picture.channels != 3 || picture.pixels.size() != 3 * plane)
        throw Error(ErrorCode::request, "image must be RGB, of 8 bits");
    std::vector<float> sample(3 * plane);
    for (std::size_t c = 0; c < 3; ++c)
        for (std::size_t i = 0; i < plane; ++i)
            sample[c * plane + i] =
                static_cast<float>(picture.pixels[3 * i + c]) / 255.0F * 2.0F - 1.0F;
    return sample;
}

// The latent pixels that a mask makes anew, white being from 128 on: as diffusers, every so many
// pixels of it are looked at.
inline std::vector<bool> to_mask(const Picture& mask, std::size_t scale) {
    if (mask.channels != 1 || mask.pixels.size() != mask.height * mask.width)
        throw Error(ErrorCode::request, "mask must be grey, of 8 bits");
    std::vector<bool> white;
    for (std::size_t y = 0; y < mask.height; y += scale)
        for (std::size_t x = 0; x < mask.width; x += scale)
            white.push_back(mask.pixels[y * mask.width + x] >= 128);
    return white;
}

}  // namespace bksdm
