// A network that runs: any callable from named tensors to named tensors.
#pragma once

#include <functional>
#include <string>
#include <utility>

#include "bksdm/tensor.hpp"

namespace bksdm {

// A network. Whoever gives it a callable that one thread at a time may use puts a lock into it:
// threads share engines. Feeds are only looked at during the call.
class Engine {
  public:
    using Run = std::function<Tensors(const Feeds&)>;

    Engine() = default;
    Engine(TensorSpecs inputs, Run run) : inputs_(std::move(inputs)), run_(std::move(run)) {}
    Engine(Engine&&) noexcept = default;
    Engine& operator=(Engine&&) noexcept = default;
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;
    ~Engine() = default;

    explicit operator bool() const noexcept { return static_cast<bool>(run_); }
    const TensorSpecs& inputs() const noexcept { return inputs_; }

    const TensorSpec& input(const std::string& name) const {
        const auto found = inputs_.find(name);
        if (found == inputs_.end())
            throw Error(ErrorCode::bundle, "a network has no input " + name + ": it is another's");
        return found->second;
    }

    Tensors operator()(const Feeds& feeds) const {
        for (const auto& [name, spec] : inputs_)
            if (feeds.find(name) == feeds.end())
                throw Error(ErrorCode::engine, "a network takes " + name + ", which is not given");
        return run_(feeds);
    }

  private:
    TensorSpecs inputs_;
    Run run_;
};

// Take one output out of those of a network.
inline Tensor take(Tensors& outputs, const std::string& name) {
    const auto found = outputs.find(name);
    if (found == outputs.end()) throw Error(ErrorCode::engine, "a network returned no " + name);
    return std::move(found->second);
}

// The networks of a bundle. The VAE encoder is for pictures to start from, and may be missing; the
// function is asked for it with the first of them.
struct Networks {
    Engine text_encoder, unet, vae_decoder;
    std::function<Engine()> vae_encoder;
    std::string name;       // of the engine, for a picture's record
    std::string precision;  // that the UNet computes in; empty: as the bundle and its input say
};

}  // namespace bksdm
