// Any text is a tokenizer.json that encodes a prompt, or an Error.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include <unistd.h>

#include "bksdm/tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const auto folder = [] {
        auto made =
            std::filesystem::temp_directory_path() / ("bksdm-fuzz-" + std::to_string(getpid()));
        std::filesystem::create_directories(made);
        return made;
    }();
    std::ofstream(folder / "tokenizer.json", std::ios::binary)
        << std::string(reinterpret_cast<const char*>(data), size);
    try {
        const auto tokenizer = bksdm::Tokenizer::load(folder);
        if (tokenizer("a <cat> photo's 1 ½").ids.size() != tokenizer.length()) __builtin_trap();
    } catch (const bksdm::Error&) {
    }
    return 0;
}
