// The UNet with guidance, for one job or for many in one call.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "bksdm/engine.hpp"
#include "bksdm/sampling.hpp"

namespace bksdm {

// Predicts the noise in the next evaluation of any jobs, in as few UNet calls as possible; a job's
// prediction depends on none of the others. Threads share it where they may share the engine.
class NoisePredictor {
  public:
    explicit NoisePredictor(const Engine& unet)
        : unet_(&unet),
          sample_(unet.input("sample")),
          timestep_(unet.input("timestep")),
          text_(unet.input("encoder_hidden_states")) {
        for (const auto& [name, spec] : unet.inputs())
            if (name != "sample" && name != "timestep" && name != "encoder_hidden_states")
                throw Error(ErrorCode::bundle, "the UNet takes " + name + ", which is not known");
        // One timestep per image where its axis is the batch's, else one for all: a scalar, or an
        // axis of one.
        per_row_ = timestep_.shape.size() == 1 && timestep_.shape[0] != 1;
    }

    // Refuse what the UNet cannot be told.
    void check(const StepTable& table) const {
        if (timestep_.type != ElementType::int64 && timestep_.type != ElementType::int32) return;
        for (const double timestep : table.timesteps)
            if (timestep != std::nearbyint(timestep))
                throw Error(ErrorCode::request,
                            "the sampler has fractional timesteps, but this bundle's UNet takes "
                            "whole ones");
    }

    // Write the guided prediction of each job, none of them done, to its place.
    void operator()(const std::vector<Denoising*>& denoisings) const {
        std::map<Kind, std::vector<Denoising*>> groups;
        for (Denoising* each : denoisings) groups[kind(*each)].push_back(each);
        for (const auto& [kind, group] : groups) run(group);
    }

  private:
    // Equal for evaluations that one call can run.
    using Kind = std::tuple<std::size_t, std::size_t, std::size_t, std::size_t, double>;

    Kind kind(const Denoising& each) const {
        const auto& shape = each.job().shape;
        return {shape.channels, shape.height, shape.width, each.job().tokens,
                per_row_ ? 0 : each.timestep()};
    }

    static std::size_t rows(const Denoising& each) {
        return each.job().shape.images * (each.guided() ? 2 : 1);
    }

    void run(const std::vector<Denoising*>& group) const {
        const auto& shape = group.front()->job().shape;
        const std::size_t one = shape.of_one();
        std::size_t total = 0;
        for (const Denoising* each : group) total += rows(*each);
        const std::size_t tokens = group.front()->job().tokens;
        const std::size_t text = group.front()->job().conditional.size();
        const auto wide = [](std::size_t n) { return static_cast<std::int64_t>(n); };
        Tensor sample(sample_.type,
                      {wide(total), wide(shape.channels), wide(shape.height), wide(shape.width)});
        Tensor told(timestep_.type,
                    timestep_.shape.empty() ? Shape{} : Shape{per_row_ ? wide(total) : 1});
        Tensor states(text_.type, {wide(total), wide(tokens), wide(text / tokens)});
        std::size_t row = 0;
        std::vector<float> scaled(one);
        for (const Denoising* each : group) {
            const bool guided = each->guided();
            for (std::size_t i = 0; i < rows(*each); ++i, ++row) {
                const auto& job = each->job();
                const float* x = each->latents().data() + i % job.shape.images * one;
                for (std::size_t k = 0; k < one; ++k) scaled[k] = x[k] * each->input_scale();
                store_floats(scaled.data(), one, sample_.type,
                             sample.bytes() + row * one * bytes_of(sample_.type));
                const bool without = guided && i < job.shape.images;
                const auto& embedding = without ? job.unconditional : job.conditional;
                store_floats(embedding.data(), text, text_.type,
                             states.bytes() + row * text * bytes_of(text_.type));
                if (per_row_ || row == 0) store_timestep(each->timestep(), row, told);
            }
        }
        Tensors outputs = (*unet_)({{"sample", sample.view()},
                                    {"timestep", told.view()},
                                    {"encoder_hidden_states", states.view()}});
        const std::vector<float> noise = to_floats(take(outputs, "out_sample"));
        if (noise.size() != total * one)
            throw Error(ErrorCode::engine, "the UNet returned another shape than its input's");
        row = 0;
        for (Denoising* each : group) {
            finish(*each, noise.data() + row * one, one);
            row += rows(*each);
        }
    }

    void store_timestep(double value, std::size_t row, Tensor& told) const {
        if (timestep_.type == ElementType::int64 || timestep_.type == ElementType::int32) {
            store_whole(static_cast<std::int64_t>(value), timestep_.type, row, told.bytes());
            return;
        }
        const auto number = static_cast<float>(value);
        store_floats(&number, 1, timestep_.type, told.bytes() + row * bytes_of(timestep_.type));
    }

    static void finish(Denoising& each, const float* noise, std::size_t one) {
        const auto& guidance = each.job().guidance;
        const std::size_t images = each.job().shape.images, size = each.job().shape.size();
        float* prediction = each.prediction();
        if (!each.guided()) {
            std::memcpy(prediction, noise, size * sizeof(float));
        } else {
            for (std::size_t i = 0; i < images; ++i) {
                const float* conditional = noise + (images + i) * one;
                guide(noise + i * one, conditional, guidance.scale, one, prediction + i * one);
                if (guidance.rescale != 0)
                    rescale_deviation(conditional, guidance.rescale, one, prediction + i * one);
            }
        }
        require_finite(prediction, size, "noise prediction");
    }

    const Engine* unet_;
    TensorSpec sample_, timestep_, text_;
    bool per_row_ = false;
};

}  // namespace bksdm
