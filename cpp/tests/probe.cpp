// Shows to the tests of the Python package what the parts do:
//
//     probe tokens FOLDER < TEXTS, each ended by a zero byte
//     probe noise SEED COUNT...
//     probe table FILE
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>

#include "bksdm/bksdm.hpp"

namespace {

int tokens(const char* folder) {
    const auto tokenizer = bksdm::Tokenizer::load(folder);
    for (std::string text; std::getline(std::cin, text, '\0');) {
        for (const auto id : tokenizer(text).ids) std::printf("%lld ", static_cast<long long>(id));
        std::puts("");
    }
    return 0;
}

int noise(int count, char** arguments) {
    bksdm::TorchCpuGenerator stream(std::strtoull(arguments[0], nullptr, 10));
    for (int i = 1; i < count; ++i)
        for (const float value : stream.randn(std::strtoull(arguments[i], nullptr, 10)))
            std::printf("%a\n", static_cast<double>(value));
    return 0;
}

int table(const char* path) {
    const auto file = bksdm::TableFile::parse(bksdm::read_file(path));
    for (const auto& [starts, first, found] : file.entries()) {
        std::printf("%u %u %zu %zu %a\n", starts, first, found->evaluations, found->draws,
                    found->init_noise_sigma);
        for (const auto* array :
             {&found->timesteps, &found->input_scale, &found->rows, &found->noise, &found->levels,
              &found->denoised, &found->carried}) {
            for (const double value : *array) std::printf("%a ", value);
            std::puts("");
        }
    }
    return 0;
}

}  // namespace

int main(int count, char** arguments) {
    const std::string what = count > 2 ? arguments[1] : "";
    try {
        if (what == "tokens") return tokens(arguments[2]);
        if (what == "noise") return noise(count - 2, arguments + 2);
        if (what == "table") return table(arguments[2]);
    } catch (const bksdm::Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 2;
}
