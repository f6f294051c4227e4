// PNG with text chunks, without zlib: pixels are stored, not compressed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bksdm/checksum.hpp"
#include "bksdm/images.hpp"

namespace bksdm {

// Text of a PNG, by keyword, in UTF-8.
using TextChunks = std::vector<std::pair<std::string, std::string>>;

namespace detail {

inline void append_u32(std::string& to, std::uint32_t value) {
    for (int shift = 24; shift >= 0; shift -= 8)
        to.push_back(static_cast<char>(static_cast<unsigned char>(value >> shift)));
}

inline void append_chunk(std::string& png, std::string_view kind, std::string_view content) {
    if (content.size() > 0x7FFFFFFFU)
        throw Error(ErrorCode::request, "a picture is too large for a PNG");
    append_u32(png, static_cast<std::uint32_t>(content.size()));
    std::string checked(kind);
    checked += content;
    png += checked;
    append_u32(png, crc32(checked));
}

// A zlib stream (RFC 1950) of blocks that are stored (RFC 1951, 3.2.4).
inline std::string stored(std::string_view raw) {
    std::string stream = "\x78\x01";
    std::size_t at = 0;
    do {
        const std::size_t count = std::min<std::size_t>(raw.size() - at, 0xFFFFU);
        const bool last = at + count == raw.size();
        const auto length = static_cast<std::uint32_t>(count);
        stream.push_back(last ? '\1' : '\0');
        for (const std::uint32_t value : {length, length >> 8, ~length, ~length >> 8})
            stream.push_back(static_cast<char>(static_cast<unsigned char>(value & 0xFFU)));
        stream += raw.substr(at, count);
        at += count;
    } while (at < raw.size());
    append_u32(stream, adler32(raw));
    return stream;
}

}  // namespace detail

// Return a PNG. Keywords are 1 to 79 Latin letters; their texts are written as iTXt.
inline std::string encode_png(const Picture& picture, const TextChunks& texts = {}) {
    const std::size_t line = picture.width * picture.channels;
    if (picture.width == 0 || picture.height == 0 || picture.width > 0x7FFFFFFFU ||
        picture.height > 0x7FFFFFFFU || (picture.channels != 1 && picture.channels != 3) ||
        picture.pixels.size() != line * picture.height)
        throw Error(ErrorCode::request, "a picture must be grey or RGB, and have all its pixels");
    std::string header;
    detail::append_u32(header, static_cast<std::uint32_t>(picture.width));
    detail::append_u32(header, static_cast<std::uint32_t>(picture.height));
    header += '\x08';
    header += picture.channels == 3 ? '\x02' : '\0';
    header.append(3, '\0');
    std::string raw;
    raw.reserve((line + 1) * picture.height);
    for (std::size_t y = 0; y < picture.height; ++y) {
        raw.push_back('\0');  // no filter
        const auto* row = reinterpret_cast<const char*>(picture.pixels.data()) + y * line;
        raw.append(row, line);
    }
    std::string png = "\x89PNG\r\n\x1a\n";
    detail::append_chunk(png, "IHDR", header);
    for (const auto& [keyword, text] : texts) {
        if (keyword.empty() || keyword.size() > 79 || keyword.find('\0') != std::string::npos)
            throw Error(ErrorCode::request, "a keyword of a PNG has 1 to 79 characters");
        std::string content = keyword;
        // Not compressed, in no language, not translated.
        content.append(5, '\0');
        content += text;
        detail::append_chunk(png, "iTXt", content);
    }
    detail::append_chunk(png, "IDAT", detail::stored(raw));
    detail::append_chunk(png, "IEND", "");
    return png;
}

}  // namespace bksdm
