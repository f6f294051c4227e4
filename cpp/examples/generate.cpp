// Draw a picture: generate BUNDLE PROMPT OUTPUT.png [STEPS [SEED]]
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <string>

#include <bksdm/bksdm.hpp>
#include <bksdm/openvino.hpp>

int main(int count, char** arguments) {
    if (count < 4) {
        std::fprintf(stderr, "usage: generate BUNDLE PROMPT OUTPUT.png [STEPS [SEED]]\n");
        return 2;
    }
    try {
        bksdm::Model model(arguments[1], bksdm::openvino::open_networks(arguments[1]));
        bksdm::Request request;
        request.prompt = arguments[2];
        request.steps = count > 4 ? std::atoi(arguments[4]) : 25;
        request.seeds = {count > 5 ? std::strtoull(arguments[5], nullptr, 10) : 7};
        request.on_step = [](bksdm::Denoising& denoising) {
            std::fprintf(stderr, "\r%zu of %zu", denoising.index(), denoising.total());
            return true;
        };
        const bksdm::Result result = model.generate(request);
        std::fprintf(stderr, "\r%.2f s\n", result.seconds);
        const std::string png = bksdm::encode_png(result.images[0], result.records[0]);
        std::ofstream(arguments[3], std::ios::binary) << png;
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "generate: %s\n", error.what());
        return 1;
    }
}
