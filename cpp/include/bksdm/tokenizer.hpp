// CLIP's byte-pair tokenizer (Radford et al. 2021): prompts to token ids, equal to Python's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bksdm/byte_pairs.hpp"
#include "bksdm/tokenizer_files.hpp"

namespace bksdm {

// A prompt as a text encoder takes it.
struct Tokens {
    std::vector<std::int64_t> ids;   // start token, text, end token, padding
    std::vector<std::int64_t> mask;  // 1 where a token stands, 0 where there is padding
    std::size_t cut = 0;             // tokens of the text that did not fit
};

// Threads may share it.
class Tokenizer {
  public:
    using Id = BytePairs::Id;

    // The number of tokens that the text encoder knows may be given, to refuse others.
    explicit Tokenizer(TokenizerFiles files, std::optional<Id> known = std::nullopt)
        : pairs_(std::move(files.vocabulary), files.merges, files.named.at("unk_token")),
          known_(known),
          length_(files.length),
          pads_left_(files.pads_left),
          cuts_left_(files.cuts_left) {
        for (const auto& token : files.added) {
            ids_[unicode::encode(token.text)] = token.id;
            if (token.normalized)
                normalized_.add(token, normalize(token.text));
            else
                raw_.add(token, token.text);
        }
        raw_.sort();
        normalized_.sort();
        find_vectors(files.added);
        start_ = id_of(files, "bos_token");
        end_ = id_of(files, "eos_token");
        pad_ = id_of(files, "pad_token");
    }

    static Tokenizer load(const std::filesystem::path& folder,
                          std::optional<Id> known = std::nullopt) {
        return Tokenizer(TokenizerFiles::read(folder), known);
    }

    std::size_t length() const noexcept { return length_; }

    Tokens operator()(std::string_view prompt) const {
        std::u32string text = unicode::decode(prompt);
        std::vector<std::u32string> added;
        std::vector<Id> ids = encode(text, added);
        if (replace(text, added)) ids = encode(text, added);
        for (const Id id : ids)
            if (known_ && id >= *known_)
                throw Error(ErrorCode::request, "prompt has token number " + std::to_string(id) +
                                                    ", but the text encoder knows only " +
                                                    std::to_string(*known_));
        Tokens tokens;
        const std::size_t room = length_ - 2;
        if (ids.size() > room) {
            tokens.cut = ids.size() - room;
            const auto gone = static_cast<std::ptrdiff_t>(tokens.cut);
            if (cuts_left_)
                ids.erase(ids.begin(), ids.begin() + gone);
            else
                ids.resize(room);
        }
        ids.insert(ids.begin(), start_);
        ids.push_back(end_);
        tokens.mask.assign(ids.size(), 1);
        const std::size_t padding = length_ - ids.size();
        ids.insert(pads_left_ ? ids.begin() : ids.end(), padding, pad_);
        tokens.mask.insert(pads_left_ ? tokens.mask.begin() : tokens.mask.end(), padding, 0);
        tokens.ids = std::move(ids);
        return tokens;
    }

  private:
    static std::u32string normalize(std::u32string_view text) {
        return unicode::lowercase(unicode::one_space(unicode::nfc(text)));
    }

    Id id_of(const TokenizerFiles& files, const char* role) const {
        const auto found = ids_.find(files.named.at(role));
        return found->second;
    }

    // Ids of a text, and the added tokens in it as they stand there.
    std::vector<Id> encode(std::u32string_view text, std::vector<std::u32string>& added) const {
        std::vector<Id> ids;
        const auto take = [&](const TextPart& part) {
            if (!part.token) return false;
            ids.push_back(*part.token);
            added.push_back(part.text);
            return true;
        };
        for (const auto& outer : raw_.split(text)) {
            if (take(outer)) continue;
            for (const auto& inner : normalized_.split(normalize(outer.text)))
                if (!take(inner)) encode_words(inner.text, ids);
        }
        return ids;
    }

    // Split as CLIP's regular expression does: 's 't 're 've 'm 'll 'd, a run of letters, a number,
    // or a run of anything but letters, numbers and spaces.
    void encode_words(std::u32string_view text, std::vector<Id>& ids) const {
        static constexpr std::u32string_view whole[] = {U"<|startoftext|>",
                                                        U"<|endoftext|>",
                                                        U"'s",
                                                        U"'t",
                                                        U"'re",
                                                        U"'ve",
                                                        U"'m",
                                                        U"'ll",
                                                        U"'d"};
        const auto other = [](char32_t c) {
            return !unicode::is_space(c) && !unicode::is_letter(c) && !unicode::is_number(c);
        };
        std::size_t at = 0;
        const auto emit = [&](std::size_t count) {
            pairs_.encode(unicode::encode(text.substr(at, count)), ids);
            at += count;
        };
        const auto run = [&](const auto& is) {
            std::size_t end = at;
            while (end < text.size() && is(text[end])) ++end;
            return end - at;
        };
        while (at < text.size()) {
            const auto rest = text.substr(at);
            const auto* fixed = std::begin(whole);
            while (fixed != std::end(whole) && rest.substr(0, fixed->size()) != *fixed) ++fixed;
            if (fixed < whole + 2) {
                // The pre-tokenizer of bytes takes such a word apart once more.
                emit(2);
                emit(fixed->size() - 4);
                emit(2);
            } else if (fixed != std::end(whole)) {
                emit(fixed->size());
            } else if (unicode::is_letter(text[at])) {
                emit(run(unicode::is_letter));
            } else if (unicode::is_number(text[at])) {
                emit(1);
            } else if (const std::size_t count = run(other); count != 0) {
                emit(count);
            } else {
                ++at;
            }
        }
    }

    // Textual inversion with several vectors: <cat> stands for <cat> <cat>_1 <cat>_2 ...
    void find_vectors(const std::vector<AddedToken>& added) {
        for (const auto& token : added) {
            std::string whole = unicode::encode(token.text);
            std::u32string text = token.text;
            for (int i = 1;; ++i) {
                const std::string next = whole + "_" + std::to_string(i);
                if (ids_.find(next) == ids_.end()) break;
                text += U' ' + unicode::decode(next);
            }
            if (text != token.text) vectors_[token.text] = text;
        }
    }

    // Put all vectors of such tokens into a text, once of each; say whether there are any.
    bool replace(std::u32string& text, const std::vector<std::u32string>& added) const {
        std::vector<std::u32string> done;
        for (const auto& old : added) {
            const auto found = vectors_.find(old);
            if (found == vectors_.end() || std::find(done.begin(), done.end(), old) != done.end())
                continue;
            done.push_back(old);
            const auto& made = found->second;
            for (std::size_t at = text.find(old); at != std::u32string::npos;
                 at = text.find(old, at + made.size()))
                text.replace(at, old.size(), made);
        }
        return !done.empty();
    }

    BytePairs pairs_;
    std::optional<Id> known_;
    std::size_t length_;
    bool pads_left_, cuts_left_;
    AddedTokens raw_, normalized_;
    std::map<std::string, Id> ids_;
    std::map<std::u32string, std::u32string> vectors_;
    Id start_ = 0, end_ = 0, pad_ = 0;
};

}  // namespace bksdm
