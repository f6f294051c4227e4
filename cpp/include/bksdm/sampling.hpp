// The diffusion loop: ask for a noise prediction, be told it, move on.
//
//     while (!denoising.done()) {
//         predict(denoising);  // writes to denoising.prediction()
//         denoising.advance();
//     }
#pragma once

#include <cstddef>
#include <map>
#include <utility>
#include <vector>

#include "bksdm/job.hpp"

namespace bksdm {

// A job on its way through its steps: x_k = rows[k] · [x_T, ε_0 … ε_{k-1}] + noise[k] · [z_0 …] in
// float32, and carried[k] · [δ_1 …] of latents that were changed on the way. It is moved, not
// copied; one thread at a time drives it, whether for one job or for many.
class Denoising {
  public:
    explicit Denoising(Job job) : job_(std::move(job)), latents_(job_.latents) {
        const std::size_t size = job_.shape.size(), draws = job_.table->draws * size;
        if (job_.latents.size() != size || job_.noises.size() != draws)
            throw Error(ErrorCode::request, "latents or noises are of another shape");
        history_.resize(job_.table->evaluations * size);
    }
    Denoising(Denoising&&) noexcept = default;
    Denoising& operator=(Denoising&&) noexcept = default;
    Denoising(const Denoising&) = delete;
    Denoising& operator=(const Denoising&) = delete;
    ~Denoising() = default;

    const Job& job() const noexcept { return job_; }
    const StepTable& table() const noexcept { return *job_.table; }
    bool done() const noexcept { return index_ == table().evaluations; }
    std::size_t index() const noexcept { return index_; }
    std::size_t total() const noexcept { return table().evaluations; }

    // What the UNet is told in the next evaluation, and what its input x_k is multiplied by.
    double timestep() const { return table().timesteps.at(index_); }
    float input_scale() const { return static_cast<float>(table().input_scale.at(index_)); }

    // Whether the next evaluation runs both halves of the UNet's batch.
    bool guided() const noexcept { return job_.guidance.at(index_, total()); }

    // x_k; once done, x_0.
    const std::vector<float>& latents() const noexcept { return latents_; }

    // Where the guided ε_k is written before advance().
    float* prediction() { return history_.data() + index_ * job_.shape.size(); }

    // Make the step.
    void advance() {
        if (done()) throw Error(ErrorCode::request, "the denoising is done");
        const StepTable& t = table();
        const std::size_t size = job_.shape.size();
        previous_.swap(latents_);
        ++index_;
        const double* row = t.rows.data() + index_ * (t.evaluations + 1);
        latents_.assign(size, 0.0F);
        add(row[0], job_.latents.data());
        for (std::size_t j = 0; j < index_; ++j) add(row[j + 1], history_.data() + j * size);
        for (std::size_t j = 0; j < t.draws; ++j)
            add(t.noise[index_ * t.draws + j], job_.noises.data() + j * size);
        const std::size_t changeable = t.evaluations > 1 ? t.evaluations - 1 : 0;
        for (const auto& [changed, change] : changes_)
            add(t.carried[index_ * changeable + changed], change.data());
        if (job_.inpainting)
            job_.inpainting->restore(latents_, job_.shape, static_cast<float>(t.levels[2 * index_]),
                                     static_cast<float>(t.levels[2 * index_ + 1]));
    }

    // x̂_0, the latents of the picture that the model saw behind the noise of the last evaluation.
    std::vector<float> denoised() const {
        if (index_ == 0) throw Error(ErrorCode::request, "no step has been made yet");
        const auto first = static_cast<float>(table().denoised[2 * (index_ - 1)]);
        const auto second = static_cast<float>(table().denoised[2 * (index_ - 1) + 1]);
        const float* told = history_.data() + (index_ - 1) * job_.shape.size();
        std::vector<float> seen(previous_.size());
        for (std::size_t i = 0; i < seen.size(); ++i)
            seen[i] = first * previous_[i] + second * told[i];
        return seen;
    }

    // Go on from other latents than the x_k that the last step led to.
    void change(std::vector<float> latents) {
        if (latents.size() != latents_.size())
            throw Error(ErrorCode::request, "latents are of another shape");
        if (index_ == 0) throw Error(ErrorCode::request, "no step has been made yet");
        if (!done()) {
            auto& change = changes_[index_ - 1];
            change.resize(latents.size());
            for (std::size_t i = 0; i < latents.size(); ++i) change[i] = latents[i] - latents_[i];
        }
        latents_ = std::move(latents);
    }

  private:
    void add(double weight, const float* column) {
        const auto w = static_cast<float>(weight);
        if (w == 0) return;
        float* to = latents_.data();
        const std::size_t size = latents_.size();
        for (std::size_t i = 0; i < size; ++i) to[i] += w * column[i];
    }

    Job job_;
    std::size_t index_ = 0;
    std::vector<float> latents_, previous_, history_;
    std::map<std::size_t, std::vector<float>> changes_;
};

}  // namespace bksdm
