// What is asked for: the options of a picture, by the names of `bksdm.GenerationConfig`.
#pragma once

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bksdm/guidance.hpp"
#include "bksdm/images.hpp"

namespace bksdm {

class Denoising;

// Stops what it was given to, from any thread; copies are one and the same.
class Cancellation {
  public:
    Cancellation() : cancelled_(std::make_shared<std::atomic<bool>>(false)) {}

    void cancel() const noexcept { cancelled_->store(true, std::memory_order_relaxed); }
    bool cancelled() const noexcept { return cancelled_->load(std::memory_order_relaxed); }

  private:
    std::shared_ptr<std::atomic<bool>> cancelled_;
};

// Called after every step, in the thread that draws; returning false cancels.
using StepCallback = std::function<bool(Denoising&)>;

struct Request {
    std::string prompt;
    std::string negative_prompt;
    std::size_t height = 0, width = 0;  // in pixels; 0 is the model's, or the image's
    int steps = 50;
    std::string sampler;  // as the bundle has a table of; empty is the model's own
    Guidance guidance;
    std::size_t images = 1;
    // One seed draws the whole batch, several give each image its own.
    std::vector<std::uint64_t> seeds{0};
    // Image to image: the picture to start from, of the size that is drawn. With a mask, of the
    // same size, what is white in it is made anew and the rest kept.
    std::optional<Picture> image, mask;
    std::optional<double> strength;  // how much of the image to change; 0.8, or 1 with a mask
    StepCallback on_step;
    std::optional<Cancellation> cancellation;
};

namespace detail {

[[noreturn]] inline void refuse(const std::string& what) { throw Error(ErrorCode::request, what); }

}  // namespace detail

// Refuse what no bundle can draw.
inline void check(const Request& request) {
    using detail::refuse;
    if (request.steps < 1 || request.steps > 1000) refuse("steps must be from 1 to 1000");
    if (request.images < 1 || request.images > 1024) refuse("images must be from 1 to 1024");
    const auto part = [](double value) { return value >= 0 && value <= 1; };
    const Guidance& guidance = request.guidance;
    if (!std::isfinite(guidance.scale)) refuse("guidance.scale must be a number");
    if (!part(guidance.rescale)) refuse("guidance.rescale must be from 0 to 1");
    if (!part(guidance.start) || !part(guidance.end) || guidance.start > guidance.end)
        refuse("guidance.start and end must be ascending, from 0 to 1");
    if (request.seeds.size() != 1 && request.seeds.size() != request.images)
        refuse("seeds must be one, or one for each image");
    if (request.mask && !request.image) refuse("mask needs an image to start from");
    if (request.strength && !request.image) refuse("strength needs an image to start from");
    if (request.strength && !part(*request.strength)) refuse("strength must be from 0 to 1");
}

// How much of the image is changed, where there is one.
inline double strength_of(const Request& request) {
    return request.strength.value_or(request.mask ? 1.0 : 0.8);
}

// How many of N steps an image to start from leaves out: N - ⌊N · strength⌋.
inline std::uint32_t first_step(const Request& request) {
    if (!request.image) return 0;
    const double strength = strength_of(request);
    const int left = std::min(static_cast<int>(request.steps * strength), request.steps);
    if (left == 0 && strength > 0)
        detail::refuse("strength leaves none of the steps; take more steps or a higher one");
    return static_cast<std::uint32_t>(request.steps - left);
}

}  // namespace bksdm
