// The checksums of PNG, zlib and tables.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace bksdm {

namespace detail {

constexpr std::array<std::uint32_t, 256> crc_table() {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t n = 0; n < 256; ++n) {
        std::uint32_t c = n;
        for (int k = 0; k < 8; ++k) c = (c & 1U) != 0 ? 0xEDB88320U ^ (c >> 1) : c >> 1;
        table[n] = c;
    }
    return table;
}

}  // namespace detail

// CRC-32 of ISO 3309, as in PNG.
inline std::uint32_t crc32(std::string_view bytes) {
    static constexpr auto table = detail::crc_table();
    std::uint32_t c = 0xFFFFFFFFU;
    for (const char byte : bytes)
        c = table[(c ^ static_cast<unsigned char>(byte)) & 0xFFU] ^ (c >> 8);
    return c ^ 0xFFFFFFFFU;
}

// Adler-32 of RFC 1950.
inline std::uint32_t adler32(std::string_view bytes) {
    std::uint32_t a = 1, b = 0;
    std::size_t left = 0;
    for (const char byte : bytes) {
        a += static_cast<unsigned char>(byte);
        b += a;
        // So many fit before the sums exceed 32 bits.
        if (++left == 5552) {
            a %= 65521U;
            b %= 65521U;
            left = 0;
        }
    }
    return (b % 65521U) << 16 | a % 65521U;
}

}  // namespace bksdm
