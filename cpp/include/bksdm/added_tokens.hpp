// Tokens that a folder of files adds to CLIP's vocabulary, found in a text before any other.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bksdm/unicode.hpp"

namespace bksdm {

struct AddedToken {
    std::u32string text;
    bool normalized = true;  // looked for in the text as it is normalized, and so itself
    bool strips_left = false, strips_right = false;
    std::int64_t id = 0;
};

// A part of a text: an added token with the spaces that it strips, or what lies between.
struct TextPart {
    std::optional<std::int64_t> token;
    std::u32string text;
};

// A set of tokens to look for; of those that begin at a place, the longest is taken.
class AddedTokens {
  public:
    void add(const AddedToken& token, std::u32string text) {
        if (text.empty()) return;
        tokens_[text.front()].push_back({std::move(text), token});
    }

    void sort() {
        for (auto& [first, entries] : tokens_)
            std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
                return a.first.size() > b.first.size();
            });
    }

    std::vector<TextPart> split(std::u32string_view text) const {
        std::vector<TextPart> parts;
        std::size_t begin = 0;
        for (std::size_t at = 0; at < text.size();) {
            const auto* found = longest(text.substr(at));
            if (found == nullptr) {
                ++at;
                continue;
            }
            std::size_t start = at, stop = at + found->first.size();
            if (found->second.strips_left)
                while (start > begin && unicode::is_space(text[start - 1])) --start;
            if (found->second.strips_right)
                while (stop < text.size() && unicode::is_space(text[stop])) ++stop;
            if (start > begin)
                parts.push_back({std::nullopt, std::u32string(text.substr(begin, start - begin))});
            parts.push_back({found->second.id, std::u32string(text.substr(start, stop - start))});
            begin = at = stop;
        }
        if (begin < text.size())
            parts.push_back({std::nullopt, std::u32string(text.substr(begin))});
        return parts;
    }

  private:
    using Entry = std::pair<std::u32string, AddedToken>;

    const Entry* longest(std::u32string_view text) const {
        const auto entries = tokens_.find(text.front());
        if (entries == tokens_.end()) return nullptr;
        for (const auto& entry : entries->second)
            if (text.substr(0, entry.first.size()) == entry.first) return &entry;
        return nullptr;
    }

    std::unordered_map<char32_t, std::vector<Entry>> tokens_;
};

}  // namespace bksdm
