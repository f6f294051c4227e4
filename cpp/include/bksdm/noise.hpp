// torch's CPU random stream: the same seed gives the noise of torch.Generator("cpu").
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "bksdm/error.hpp"

namespace bksdm {

// The stream of torch.Generator("cpu").manual_seed(seed): MT19937, of which torch seeds with the
// low 32 bits, and Box-Muller.
class TorchCpuGenerator {
  public:
    explicit TorchCpuGenerator(std::uint64_t seed)
        : words_(static_cast<std::mt19937::result_type>(seed & 0xFFFFFFFFU)) {}

    // Standard normal values as torch.randn draws them. From 16 on: blocks of eight pairs of
    // float32 uniforms, of which the last block is drawn anew where it is not whole; below, one
    // pair at a time in double precision, the second value of which is kept for the next call.
    void randn(float* values, std::size_t count) {
        if (count < 16) {
            for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(one());
            return;
        }
        for (std::size_t i = 0; i < count; ++i) values[i] = uniform();
        for (std::size_t block = 0; block + 16 <= count; block += 16) box_muller(values + block);
        if (count % 16 != 0) {
            float* last = values + (count - 16);
            for (std::size_t i = 0; i < 16; ++i) last[i] = uniform();
            box_muller(last);
        }
    }

    std::vector<float> randn(std::size_t count) {
        std::vector<float> values(count);
        randn(values.data(), count);
        return values;
    }

  private:
    static constexpr double turn = 6.283185307179586476925286766559;

    float uniform() { return static_cast<float>(words_() & 0xFFFFFFU) * 0x1p-24F; }

    static void box_muller(float* values) {
        for (std::size_t i = 0; i < 8; ++i) {
            const float radius = std::sqrt(-2.0F * std::log(1.0F - values[i]));
            const float angle = static_cast<float>(turn) * values[i + 8];
            values[i] = radius * std::cos(angle);
            values[i + 8] = radius * std::sin(angle);
        }
    }

    double one() {
        if (spare_) return *std::exchange(spare_, std::nullopt);
        const double angle = twice(), height = twice();
        const double radius = std::sqrt(-2 * std::log1p(-height));
        spare_ = radius * std::sin(turn * angle);
        return radius * std::cos(turn * angle);
    }

    double twice() {
        const std::uint64_t high = words_();
        const std::uint64_t low = words_();
        return static_cast<double>((high << 32 | low) & ((std::uint64_t{1} << 53) - 1)) * 0x1p-53;
    }

    std::mt19937 words_;
    std::optional<double> spare_;
};

// Unit noise for a batch, draw after draw, as diffusers' randn_tensor has it: one seed draws the
// whole batch from one stream, several give each image its own.
class BatchNoise {
  public:
    BatchNoise(const std::vector<std::uint64_t>& seeds, std::size_t images)
        : each_(seeds.size() > 1), images_(images) {
        if (seeds.size() != 1 && seeds.size() != images)
            throw Error(ErrorCode::request, "there must be one seed, or one for each image");
        for (const auto seed : seeds) streams_.emplace_back(seed);
    }

    bool each() const noexcept { return each_; }

    // [count, size] of the first images; by default of all.
    std::vector<float> draw(std::size_t size) { return draw(size, images_); }

    std::vector<float> draw(std::size_t size, std::size_t count) {
        std::vector<float> values(size * count);
        if (!each_) {
            streams_.front().randn(values.data(), values.size());
        } else {
            for (std::size_t i = 0; i < count; ++i)
                streams_[i].randn(values.data() + i * size, size);
        }
        return values;
    }

  private:
    std::vector<TorchCpuGenerator> streams_;
    bool each_;
    std::size_t images_;
};

}  // namespace bksdm
