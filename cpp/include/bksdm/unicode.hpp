// Unicode text: UTF-8, classes of characters, lower case and normalisation form C.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

#include "bksdm/error.hpp"
#include "bksdm/unicode_data.hpp"

namespace bksdm::unicode {

// Decode UTF-8. Whatever is no valid UTF-8, lone surrogates included, is refused.
inline std::u32string decode(std::string_view text) {
    std::u32string decoded;
    decoded.reserve(text.size());
    std::size_t at = 0;
    const auto fail = [] { throw Error(ErrorCode::request, "a text is not valid UTF-8"); };
    while (at < text.size()) {
        const auto lead = static_cast<unsigned char>(text[at++]);
        std::size_t more = 0;
        std::uint32_t code = lead, least = 0;
        if (lead >= 0xF0U) {
            more = 3, code = lead & 0x07U, least = 0x10000U;
        } else if (lead >= 0xE0U) {
            more = 2, code = lead & 0x0FU, least = 0x800U;
        } else if (lead >= 0xC0U) {
            more = 1, code = lead & 0x1FU, least = 0x80U;
        } else if (lead >= 0x80U) {
            fail();
        }
        if (lead >= 0xF8U || more > text.size() - at) fail();
        for (; more > 0; --more) {
            const auto byte = static_cast<unsigned char>(text[at++]);
            if ((byte & 0xC0U) != 0x80U) fail();
            code = code << 6 | (byte & 0x3FU);
        }
        if (code < least || code > 0x10FFFFU || (code >= 0xD800U && code < 0xE000U)) fail();
        decoded.push_back(static_cast<char32_t>(code));
    }
    return decoded;
}

inline void append_utf8(std::string& to, char32_t character) {
    const auto code = static_cast<std::uint32_t>(character);
    const auto byte = [&to](std::uint32_t value) {
        to.push_back(static_cast<char>(static_cast<unsigned char>(value)));
    };
    if (code < 0x80U) {
        byte(code);
    } else if (code < 0x800U) {
        byte(0xC0U | code >> 6);
    } else if (code < 0x10000U) {
        byte(0xE0U | code >> 12);
        byte(0x80U | (code >> 6 & 0x3FU));
    } else {
        byte(0xF0U | code >> 18);
        byte(0x80U | (code >> 12 & 0x3FU));
        byte(0x80U | (code >> 6 & 0x3FU));
    }
    if (code >= 0x80U) byte(0x80U | (code & 0x3FU));
}

inline std::string encode(std::u32string_view text) {
    std::string encoded;
    encoded.reserve(text.size());
    for (const char32_t character : text) append_utf8(encoded, character);
    return encoded;
}

namespace detail {

template <std::size_t N>
bool within(const unicode_data::Range (&ranges)[N], char32_t character) {
    const auto* next =
        std::upper_bound(std::begin(ranges), std::end(ranges), character,
                         [](char32_t c, const auto& range) { return c < range.first; });
    return next != std::begin(ranges) && character <= std::prev(next)->last;
}

template <std::size_t N>
const unicode_data::Mapping* mapped(const unicode_data::Mapping (&mappings)[N], char32_t from) {
    const auto* found =
        std::lower_bound(std::begin(mappings), std::end(mappings), from,
                         [](const auto& mapping, char32_t c) { return mapping.from < c; });
    return found != std::end(mappings) && found->from == from ? found : nullptr;
}

inline std::uint8_t combining_class(char32_t character) {
    const auto* found = std::lower_bound(
        std::begin(unicode_data::classes), std::end(unicode_data::classes), character,
        [](const auto& entry, char32_t c) { return entry.character < c; });
    const bool known = found != std::end(unicode_data::classes) && found->character == character;
    return known ? found->value : std::uint8_t{0};
}

// Hangul syllables are composed by arithmetic: section 3.12 of the Unicode standard.
constexpr char32_t syllables = 0xAC00, leads = 0x1100, vowels = 0x1161, trails = 0x11A7;
constexpr char32_t lead_count = 19, vowel_count = 21, trail_count = 28;
constexpr char32_t syllable_count = lead_count * vowel_count * trail_count;

inline void decompose(std::u32string& to, char32_t character) {
    if (character - syllables < syllable_count) {
        const char32_t index = character - syllables;
        to.push_back(leads + index / (vowel_count * trail_count));
        to.push_back(vowels + index / trail_count % vowel_count);
        if (index % trail_count != 0) to.push_back(trails + index % trail_count);
        return;
    }
    const auto* step = mapped(unicode_data::decompositions, character);
    if (step == nullptr) {
        to.push_back(character);
        return;
    }
    for (const std::uint32_t part : step->to)
        if (part != 0) decompose(to, part);
}

// What two characters are composed to; 0 where they are not.
inline char32_t composed(char32_t first, char32_t second) {
    if (first - leads < lead_count && second - vowels < vowel_count)
        return syllables + ((first - leads) * vowel_count + (second - vowels)) * trail_count;
    if (first - syllables < syllable_count && (first - syllables) % trail_count == 0 &&
        second - trails - 1 < trail_count - 1)
        return first + (second - trails);
    const auto key =
        std::make_pair(static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(second));
    const auto* found = std::lower_bound(std::begin(unicode_data::compositions),
                                         std::end(unicode_data::compositions), key,
                                         [](const auto& entry, const auto& k) {
                                             return std::make_pair(entry.to[0], entry.to[1]) < k;
                                         });
    const bool known = found != std::end(unicode_data::compositions) &&
                       std::make_pair(found->to[0], found->to[1]) == key;
    return known ? found->from : 0;
}

}  // namespace detail

inline bool is_letter(char32_t c) { return detail::within(unicode_data::letters, c); }
inline bool is_number(char32_t c) { return detail::within(unicode_data::numbers, c); }
inline bool is_space(char32_t c) { return detail::within(unicode_data::spaces, c); }

// Normalisation form C (Unicode Standard Annex 15).
inline std::u32string nfc(std::u32string_view text) {
    std::u32string out;
    out.reserve(text.size());
    for (const char32_t character : text) detail::decompose(out, character);
    // Marks in the order of their classes, those of one class as they stand.
    for (std::size_t i = 0; i < out.size();) {
        std::size_t end = i;
        while (end < out.size() && detail::combining_class(out[end]) != 0) ++end;
        std::stable_sort(out.begin() + static_cast<std::ptrdiff_t>(i),
                         out.begin() + static_cast<std::ptrdiff_t>(end),
                         [](char32_t a, char32_t b) {
                             return detail::combining_class(a) < detail::combining_class(b);
                         });
        i = end + 1;
    }
    // Compose each starter with what follows it, unless something of the same class stands between.
    constexpr auto none = static_cast<std::size_t>(-1);
    std::size_t starter = none, kept = 0;
    int last = -1;
    for (std::size_t i = 0; i < out.size(); ++i) {
        const char32_t character = out[i];
        const int rank = detail::combining_class(character);
        if (starter != none && last < rank) {
            if (const char32_t both = detail::composed(out[starter], character); both != 0) {
                out[starter] = both;
                continue;
            }
        }
        if (rank == 0) {
            starter = kept;
            last = -1;
        } else {
            last = rank;
        }
        out[kept++] = character;
    }
    out.resize(kept);
    return out;
}

// Every character by itself, as Rust's char::to_lowercase.
inline std::u32string lowercase(std::u32string_view text) {
    std::u32string out;
    out.reserve(text.size());
    for (const char32_t character : text) {
        const auto* lower = detail::mapped(unicode_data::lowercase, character);
        if (lower == nullptr) {
            out.push_back(character);
            continue;
        }
        for (const std::uint32_t part : lower->to)
            if (part != 0) out.push_back(part);
    }
    return out;
}

// Replace every run of spaces by one.
inline std::u32string one_space(std::u32string_view text) {
    std::u32string out;
    out.reserve(text.size());
    bool before = false;
    for (const char32_t character : text) {
        const bool space = is_space(character);
        if (!space) out.push_back(character);
        if (space && !before) out.push_back(U' ');
        before = space;
    }
    return out;
}

}  // namespace bksdm::unicode
