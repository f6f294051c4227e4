// Any bytes are a table or an Error of code bundle.
#include <cstdint>
#include <cstring>
#include <string>

#include "bksdm/step_table.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::string content(reinterpret_cast<const char*>(data), size);
    // The magic, length and checksum would keep the fuzzer out of everything behind them.
    if (size > 40) {
        std::memcpy(content.data(), "bksdmtbl\1\0\0\0\4\3\2\1", 16);
        const auto put = [&content](std::size_t at, std::uint64_t value, int bytes) {
            for (int i = 0; i < bytes; ++i)
                content[at + static_cast<std::size_t>(i)] =
                    static_cast<char>(static_cast<unsigned char>(value >> (8 * i)));
        };
        put(16, size, 8);
        put(24, bksdm::crc32(std::string_view(content).substr(40)), 4);
    }
    try {
        const auto file = bksdm::TableFile::parse(content);
        for (const auto& entry : file.entries())
            if (entry.table->levels.size() != 2 * (entry.table->evaluations + 1)) __builtin_trap();
    } catch (const bksdm::Error& error) {
        if (error.code() != bksdm::ErrorCode::bundle) __builtin_trap();
    }
    return 0;
}
