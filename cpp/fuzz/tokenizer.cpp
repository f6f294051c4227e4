// Any bytes are a prompt of 77 tokens, or an Error of code request.
#include <cstdint>
#include <string_view>

#include "bksdm/tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const auto tokenizer = bksdm::Tokenizer::load(BKSDM_TOKENIZER);
    try {
        const auto tokens = tokenizer({reinterpret_cast<const char*>(data), size});
        if (tokens.ids.size() != 77 || tokens.mask.size() != 77) __builtin_trap();
        for (const auto id : tokens.ids)
            if (id < 0 || id >= 686) __builtin_trap();
    } catch (const bksdm::Error& error) {
        if (error.code() != bksdm::ErrorCode::request) __builtin_trap();
    }
    return 0;
}
