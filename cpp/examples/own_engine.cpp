// Any callable is an engine: a "UNet" that sees a grey picture behind all noise.
//
//     own_engine BUNDLE OUTPUT.png
#include <cstdio>
#include <exception>
#include <fstream>

#include <bksdm/bksdm.hpp>

namespace {

using bksdm::ElementType;
using bksdm::Feeds;
using bksdm::Tensor;
using bksdm::Tensors;

bksdm::Engine returning(const char* output, bksdm::TensorSpecs inputs,
                        bksdm::Shape (*shape)(const Feeds&)) {
    return {std::move(inputs), [output, shape](const Feeds& feeds) {
                Tensors outputs;
                outputs.emplace(output, Tensor(ElementType::float32, shape(feeds)));
                return outputs;
            }};
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 3) {
        std::fprintf(stderr, "usage: own_engine BUNDLE OUTPUT.png\n");
        return 2;
    }
    try {
        bksdm::Networks networks;
        networks.name = "own";
        networks.text_encoder =
            returning("last_hidden_state", {{"input_ids", {ElementType::int64, {-1, -1}}}},
                      [](const Feeds& feeds) {
                          const auto& ids = feeds.at("input_ids").shape;
                          return bksdm::Shape{ids[0], ids[1], 8};
                      });
        networks.unet = returning("out_sample",
                                  {{"sample", {}},
                                   {"timestep", {ElementType::float32, {-1}}},
                                   {"encoder_hidden_states", {}}},
                                  [](const Feeds& feeds) { return feeds.at("sample").shape; });
        networks.vae_decoder = returning("sample", {{"latent_sample", {}}}, [](const Feeds& feeds) {
            const auto& latents = feeds.at("latent_sample").shape;
            return bksdm::Shape{1, 3, 8 * latents[2], 8 * latents[3]};
        });
        bksdm::Model model(arguments[1], std::move(networks));
        bksdm::Request request;
        request.prompt = "anything";
        request.steps = 25;
        const bksdm::Result result = model.generate(request);
        std::ofstream(arguments[2], std::ios::binary)
            << bksdm::encode_png(result.images[0], result.records[0]);
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "own_engine: %s\n", error.what());
        return 1;
    }
}
