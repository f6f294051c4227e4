// Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598), also rescaled or for a time.
#pragma once

#include <cmath>
#include <cstddef>

namespace bksdm {

// How two noise predictions become one.
struct Guidance {
    double scale = 7.5;  // s of ε = ε_uncond + s (ε_cond - ε_uncond)
    double rescale = 0;  // φ of section 3.4 of Lin et al. 2023 (arXiv 2305.08891)
    double start = 0;    // guided in this part of the evaluations only, from start to below end
    double end = 1;      // (Kynkäänniemi et al. 2024, arXiv 2404.07724)

    bool on() const noexcept { return scale > 1; }

    bool at(std::size_t index, std::size_t total) const noexcept {
        const double part = static_cast<double>(index) / static_cast<double>(total);
        return on() && start <= part && part < end;
    }
};

// Combine the halves of one image's predictions.
inline void guide(const float* unconditional, const float* conditional, double scale,
                  std::size_t size, float* out) {
    const auto s = static_cast<float>(scale);
    for (std::size_t i = 0; i < size; ++i)
        out[i] = (conditional[i] - unconditional[i]) * s + unconditional[i];
}

// The standard deviation of a sample.
inline double deviation(const float* values, std::size_t size) {
    double mean = 0;
    for (std::size_t i = 0; i < size; ++i) mean += static_cast<double>(values[i]);
    mean /= static_cast<double>(size);
    double squares = 0;
    for (std::size_t i = 0; i < size; ++i) {
        const double away = static_cast<double>(values[i]) - mean;
        squares += away * away;
    }
    return std::sqrt(squares / static_cast<double>(size - 1));
}

// Bring the deviation of one image's guided prediction nearer to that of the conditional one.
inline void rescale_deviation(const float* conditional, double amount, std::size_t size,
                              float* out) {
    const double ratio = deviation(conditional, size) / deviation(out, size);
    const auto factor = static_cast<float>(amount * ratio + (1 - amount));
    for (std::size_t i = 0; i < size; ++i) out[i] *= factor;
}

}  // namespace bksdm
