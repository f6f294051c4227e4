// Byte-pair encoding (Sennrich et al. 2016) of one word, as CLIP has it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <queue>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bksdm/error.hpp"
#include "bksdm/unicode.hpp"

namespace bksdm {

// A vocabulary and its merges.
class BytePairs {
  public:
    using Id = std::int64_t;

    // Merges in the order of their rank. The unknown token stands for a byte that has none.
    BytePairs(std::unordered_map<std::string, Id> vocabulary,
              const std::vector<std::pair<std::string, std::string>>& merges,
              const std::string& unknown)
        : vocabulary_(std::move(vocabulary)), unknown_(id(unknown)) {
        std::size_t rank = 0;
        for (const auto& [first, second] : merges) {
            const auto a = id(first), b = id(second), both = id(first + second);
            if (!a || !b || !both)
                throw Error(ErrorCode::bundle, "tokenizer: a merge of " + first + " and " + second +
                                                   " is of tokens that the vocabulary lacks");
            merges_[{*a, *b}] = {rank++, *both};
        }
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            std::string text;
            unicode::append_utf8(text, letter(byte));
            inner_[byte] = id(text);
            last_[byte] = id(text + "</w>");
        }
    }

    std::optional<Id> id(const std::string& token) const {
        const auto found = vocabulary_.find(token);
        return found == vocabulary_.end() ? std::nullopt : std::optional<Id>(found->second);
    }

    std::size_t size() const noexcept { return vocabulary_.size(); }

    // Append the tokens of a word, which is not empty.
    void encode(std::string_view word, std::vector<Id>& to) const {
        std::vector<Symbol> symbols;
        for (std::size_t i = 0; i < word.size(); ++i) {
            const auto byte = static_cast<unsigned char>(word[i]);
            const auto& known = i + 1 == word.size() ? last_[byte] : inner_[byte];
            if (!known && !unknown_)
                throw Error(ErrorCode::request, "a prompt has a byte that the tokenizer lacks");
            symbols.push_back({known ? *known : *unknown_, i == 0 ? none : i - 1,
                               i + 1 == word.size() ? none : i + 1});
        }
        // The lowest rank first, of equal ones the leftmost.
        std::priority_queue<Merge, std::vector<Merge>, std::greater<>> waiting;
        const auto look = [&](std::size_t at) {
            if (at == none || symbols[at].next == none) return;
            const auto found = merges_.find({symbols[at].id, symbols[symbols[at].next].id});
            if (found != merges_.end())
                waiting.push({found->second.first, at, found->first.first, found->first.second,
                              found->second.second});
        };
        for (std::size_t i = 0; i < symbols.size(); ++i) look(i);
        while (!waiting.empty()) {
            const auto [rank, at, first, second, both] = waiting.top();
            waiting.pop();
            Symbol& here = symbols[at];
            // One of the two may be merged by now.
            if (here.id != first || here.next == none || symbols[here.next].id != second) continue;
            Symbol& gone = symbols[here.next];
            here.id = both;
            here.next = gone.next;
            gone.id = -1;
            if (here.next != none) symbols[here.next].previous = at;
            look(here.previous);
            look(at);
        }
        for (std::size_t at = 0; at != none; at = symbols[at].next) to.push_back(symbols[at].id);
    }

  private:
    static constexpr auto none = static_cast<std::size_t>(-1);

    struct Symbol {
        Id id;
        std::size_t previous, next;
    };

    // Rank, where, the two that it is of, and what they become.
    using Merge = std::tuple<std::size_t, std::size_t, Id, Id, Id>;

    struct PairHash {
        std::size_t operator()(const std::pair<Id, Id>& pair) const noexcept {
            const auto mixed = static_cast<std::uint64_t>(pair.first) << 32 ^
                               static_cast<std::uint64_t>(pair.second);
            return std::hash<std::uint64_t>{}(mixed * 0x9E3779B97F4A7C15ULL);
        }
    };

    // The letter that stands for a byte: itself where it can be seen, the others from 256 on.
    static char32_t letter(std::uint32_t byte) {
        const auto seen = [](std::uint32_t b) {
            return (b >= 0x21U && b <= 0x7EU) || (b >= 0xA1U && b != 0xADU);
        };
        if (seen(byte)) return byte;
        char32_t next = 256;
        for (std::uint32_t b = 0; b < byte; ++b)
            if (!seen(b)) ++next;
        return next;
    }

    std::unordered_map<std::string, Id> vocabulary_;
    std::unordered_map<std::pair<Id, Id>, std::pair<std::size_t, Id>, PairHash> merges_;
    std::optional<Id> unknown_;
    std::array<std::optional<Id>, 256> inner_, last_;
};

}  // namespace bksdm
