// A tokenizer's folder, read as the Python package reads it; see runtime/tokenizer_files.py.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bksdm/added_tokens.hpp"
#include "bksdm/files.hpp"
#include "bksdm/json.hpp"

namespace bksdm {

// What a folder says.
struct TokenizerFiles {
    std::unordered_map<std::string, std::int64_t> vocabulary;
    std::vector<std::pair<std::string, std::string>> merges;
    std::vector<AddedToken> added;             // in the order in which they get their numbers
    std::map<std::string, std::string> named;  // tokens that have a role, by its name
    std::size_t length = 77;                   // of a row, start and end included
    bool pads_left = false, cuts_left = false;

    static TokenizerFiles read(const std::filesystem::path& folder);
};

namespace detail {

class TokenizerReader {
  public:
    explicit TokenizerReader(std::filesystem::path folder) : folder_(std::move(folder)) {}

    TokenizerFiles read() {
        const bool whole = std::filesystem::exists(folder_ / "tokenizer.json");
        const Json content = whole ? json("tokenizer.json") : Json{};
        if (whole) {
            read_model(content);
        } else {
            read_vocabulary(json("vocab.json"));
            read_merges(read_file(folder_ / "merges.txt"));
        }
        const Json settings = optional("tokenizer_config.json");
        for (const auto* refused : {"model_specific_special_tokens", "split_special_tokens",
                                    "init_inputs", "fast_tokenizer_files"})
            if (const Json* value = settings.find(refused); value != nullptr && set(*value))
                fail("tokenizer_config.json", std::string(refused) + " is not supported");
        read_roles(settings);
        if (const Json* listed = settings.find("added_tokens_decoder")) {
            for (std::size_t i = 0; i < listed->size(); ++i)
                list(number(listed->name(i)), token_of(listed->value(i)));
        } else {
            read_roles(optional("special_tokens_map.json"));
            const Json texts = optional("added_tokens.json");
            for (std::size_t i = 0; i < texts.size(); ++i) {
                AddedToken token;
                token.text = unicode::decode(texts.name(i));
                token.normalized = !has_role(texts.name(i));
                list(static_cast<std::int64_t>(texts.value(i).number()), token);
            }
            if (const Json* added = content.find("added_tokens"))
                for (const Json& entry : added->array()) {
                    const Json* id = entry.find("id");
                    if (id == nullptr) fail("tokenizer.json", "an added token has no id");
                    list(static_cast<std::int64_t>(id->number()), token_of(entry));
                }
        }
        finish_added();
        read_sides(settings, content);
        return std::move(files_);
    }

  private:
    [[noreturn]] void fail(const std::string& file, const std::string& what) const {
        throw Error(ErrorCode::bundle, (folder_ / file).string() + ": " + what);
    }

    Json json(const char* name) const {
        try {
            return Json::parse(read_file(folder_ / name));
        } catch (const Error& error) {
            const std::string told = error.what();
            if (told.rfind("not valid", 0) == 0) fail(name, told);
            throw;
        }
    }

    Json optional(const char* name) const {
        return std::filesystem::exists(folder_ / name) ? json(name) : Json{};
    }

    static bool set(const Json& value) {
        switch (value.kind()) {
            case Json::Kind::null: return false;
            case Json::Kind::boolean: return value.boolean();
            case Json::Kind::string: return !value.string().empty();
            case Json::Kind::number: return value.number() != 0;
            default: return value.size() != 0;
        }
    }

    std::int64_t number(const std::string& text) const {
        std::int64_t value = 0;
        const char* end = text.data() + text.size();
        const auto [stopped, error] = std::from_chars(text.data(), end, value);
        if (error != std::errc{} || stopped != end)
            fail("tokenizer_config.json", "no number: " + text);
        return value;
    }

    void read_vocabulary(const Json& vocabulary) {
        if (!vocabulary.is(Json::Kind::object)) fail("vocab.json", "must hold an object");
        for (std::size_t i = 0; i < vocabulary.size(); ++i)
            files_.vocabulary[vocabulary.name(i)] =
                static_cast<std::int64_t>(vocabulary.value(i).number());
    }

    void read_model(const Json& content) {
        const Json* model = content.find("model");
        const Json* vocabulary = model == nullptr ? nullptr : model->find("vocab");
        const Json* merges = model == nullptr ? nullptr : model->find("merges");
        const Json* type = model == nullptr ? nullptr : model->find("type");
        if (vocabulary == nullptr || merges == nullptr ||
            (type != nullptr && type->string() != "BPE"))
            fail("tokenizer.json", "not a CLIP tokenizer: its model is no BPE");
        read_vocabulary(*vocabulary);
        for (const Json& merge : merges->array()) {
            if (merge.is(Json::Kind::string)) {
                add_merge("tokenizer.json", merge.string());
            } else if (merge.size() == 2) {
                files_.merges.emplace_back(merge.value(0).string(), merge.value(1).string());
            } else {
                fail("tokenizer.json", "every merge must have two tokens");
            }
        }
    }

    void add_merge(const char* file, std::string_view line) {
        const std::size_t gap = line.find(' ');
        if (gap == std::string_view::npos || line.find(' ', gap + 1) != std::string_view::npos)
            fail(file, "every merge must have two tokens");
        files_.merges.emplace_back(line.substr(0, gap), line.substr(gap + 1));
    }

    void read_merges(const std::string& text) {
        std::size_t at = 0;
        while (at < text.size()) {
            const std::size_t end = std::min(text.find_first_of("\r\n", at), text.size());
            const std::string_view line = std::string_view(text).substr(at, end - at);
            if (!line.empty() && line.rfind("#version", 0) != 0) add_merge("merges.txt", line);
            at = end + 1;
        }
    }

    // A token that a file gives as a text, or as an object with its flags.
    AddedToken token_of(const Json& value) const {
        AddedToken token;
        const Json* text = value.is(Json::Kind::object) ? value.find("content") : &value;
        if (text == nullptr || !text->is(Json::Kind::string))
            fail("tokenizer_config.json", "a token has no text");
        token.text = unicode::decode(text->string());
        const auto flag = [&value](const char* name) {
            const Json* found = value.find(name);
            return found != nullptr && found->boolean();
        };
        if (flag("single_word")) fail("tokenizer_config.json", "single_word is not supported");
        const Json* normalized = value.find("normalized");
        // A text alone is a special token, which is looked for as it is.
        token.normalized = normalized != nullptr ? normalized->boolean()
                                                 : value.is(Json::Kind::object) && !flag("special");
        token.strips_left = flag("lstrip");
        token.strips_right = flag("rstrip");
        return token;
    }

    void read_roles(const Json& settings) {
        for (std::size_t i = 0; i < settings.size(); ++i) {
            const std::string& name = settings.name(i);
            const Json& value = settings.value(i);
            const bool many = name == "additional_special_tokens" || name == "extra_special_tokens";
            if (many && value.is(Json::Kind::array)) {
                for (const Json& entry : value.array()) extra_.push_back(token_of(entry));
                continue;
            }
            if (many && set(value)) fail("tokenizer_config.json", name + " must be a list");
            const bool role = name.size() > 6 && name.compare(name.size() - 6, 6, "_token") == 0;
            if (!role || !(value.is(Json::Kind::string) || value.is(Json::Kind::object))) continue;
            AddedToken token = token_of(value);
            roles_[name] = token;
        }
    }

    bool has_role(const std::string& text) const {
        const std::u32string decoded = unicode::decode(text);
        for (const auto& [name, token] : roles_)
            if (token.text == decoded) return true;
        return false;
    }

    void list(std::int64_t id, const AddedToken& token) { listed_[id] = token; }

    void finish_added() {
        static constexpr const char* clip[][2] = {{"bos_token", "<|startoftext|>"},
                                                  {"eos_token", "<|endoftext|>"},
                                                  {"unk_token", "<|endoftext|>"},
                                                  {"pad_token", "<|endoftext|>"}};
        for (const auto& [name, text] : clip)
            if (roles_.find(name) == roles_.end()) {
                AddedToken token;
                token.text = unicode::decode(text);
                token.normalized = false;
                roles_[name] = token;
            }
        std::vector<AddedToken> all;
        const auto add = [&all](const AddedToken& token) {
            for (const auto& known : all)
                if (known.text == token.text) return;
            all.push_back(token);
        };
        for (const auto& [id, token] : listed_) add(token);
        for (const auto* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                                 "cls_token", "mask_token"})
            if (const auto found = roles_.find(name); found != roles_.end()) add(found->second);
        for (const auto& [name, token] : roles_) add(token);
        for (const auto& token : extra_) add(token);
        for (const auto& [name, token] : roles_) files_.named[name] = unicode::encode(token.text);
        // Those of the vocabulary keep their numbers, the others follow it.
        auto next = static_cast<std::int64_t>(files_.vocabulary.size());
        for (auto& token : all) {
            const auto known = files_.vocabulary.find(unicode::encode(token.text));
            token.id = known == files_.vocabulary.end() ? next : known->second;
            next = std::max(next, token.id + 1);
        }
        files_.added = std::move(all);
    }

    void read_sides(const Json& settings, const Json& content) {
        const Json* length = settings.find("model_max_length");
        if (length == nullptr) length = settings.find("max_len");
        // From here on it means no limit, which no text encoder has.
        if (length != nullptr && length->number() < 1e20 && !length->is(Json::Kind::null)) {
            if (!(length->number() > 2 && length->number() <= 4096))
                fail("tokenizer_config.json", "model_max_length must be from 3 to 4096");
            files_.length = static_cast<std::size_t>(length->number());
        }
        files_.pads_left = left(settings, "padding_side", content.find("padding"));
        files_.cuts_left = left(settings, "truncation_side", content.find("truncation"));
    }

    static bool left(const Json& settings, const char* name, const Json* section) {
        if (const Json* side = settings.find(name)) return side->string() == "left";
        const Json* direction = section == nullptr ? nullptr : section->find("direction");
        return direction != nullptr && direction->string() == "Left";
    }

    std::filesystem::path folder_;
    TokenizerFiles files_;
    std::map<std::string, AddedToken> roles_;
    std::map<std::int64_t, AddedToken> listed_;
    std::vector<AddedToken> extra_;
};

}  // namespace detail

inline TokenizerFiles TokenizerFiles::read(const std::filesystem::path& folder) {
    return detail::TokenizerReader(folder).read();
}

}  // namespace bksdm
