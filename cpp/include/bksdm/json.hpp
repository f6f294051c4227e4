// JSON (RFC 8259), as much as a bundle's files need: read, never written.
#pragma once

#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bksdm/error.hpp"
#include "bksdm/unicode.hpp"

namespace bksdm {

// A value. Objects keep their order; of a name that stands twice the last one counts.
class Json {
  public:
    enum class Kind { null, boolean, number, string, array, object };

    static Json parse(std::string_view text);

    Kind kind() const noexcept { return kind_; }
    bool is(Kind kind) const noexcept { return kind_ == kind; }
    bool boolean() const noexcept { return number_ != 0; }
    double number() const noexcept { return number_; }
    const std::string& string() const noexcept { return string_; }
    const std::vector<Json>& array() const noexcept { return values_; }
    std::size_t size() const noexcept { return values_.size(); }
    const std::string& name(std::size_t index) const { return names_[index]; }
    const Json& value(std::size_t index) const { return values_[index]; }

    // A member of an object; null where there is none.
    const Json* find(std::string_view name) const noexcept {
        for (std::size_t i = names_.size(); i-- > 0;)
            if (names_[i] == name) return &values_[i];
        return nullptr;
    }

  private:
    friend class JsonReader;

    Kind kind_ = Kind::null;
    double number_ = 0;
    std::string string_;
    std::vector<std::string> names_;
    std::vector<Json> values_;
};

class JsonReader {
  public:
    explicit JsonReader(std::string_view text) : text_(text) {}

    Json document() {
        Json value = read(0);
        space();
        if (at_ != text_.size()) fail("something follows its end");
        return value;
    }

  private:
    static constexpr int deepest = 64;

    [[noreturn]] void fail(const char* what) const {
        throw Error(ErrorCode::bundle,
                    "not valid JSON: " + std::string(what) + ", at byte " + std::to_string(at_));
    }

    void space() {
        while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' ||
                                      text_[at_] == '\r' || text_[at_] == '\t'))
            ++at_;
    }

    char peek() {
        space();
        if (at_ == text_.size()) fail("it ends too early");
        return text_[at_];
    }

    void expect(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) fail("unknown word");
        at_ += word.size();
    }

    Json read(int depth) {
        if (depth > deepest) fail("nested too deeply");
        Json value;
        switch (peek()) {
            case '{': read_object(value, depth); break;
            case '[': read_array(value, depth); break;
            case '"':
                value.kind_ = Json::Kind::string;
                value.string_ = read_string();
                break;
            case 't':
                expect("true");
                value.kind_ = Json::Kind::boolean;
                value.number_ = 1;
                break;
            case 'f':
                expect("false");
                value.kind_ = Json::Kind::boolean;
                break;
            case 'n': expect("null"); break;
            default: value.kind_ = Json::Kind::number; value.number_ = read_number();
        }
        return value;
    }

    void read_object(Json& value, int depth) {
        value.kind_ = Json::Kind::object;
        ++at_;
        if (peek() == '}') {
            ++at_;
            return;
        }
        for (;;) {
            if (peek() != '"') fail("a name is missing");
            value.names_.push_back(read_string());
            if (peek() != ':') fail("a colon is missing");
            ++at_;
            value.values_.push_back(read(depth + 1));
            const char next = peek();
            ++at_;
            if (next == '}') return;
            if (next != ',') fail("a comma is missing");
        }
    }

    void read_array(Json& value, int depth) {
        value.kind_ = Json::Kind::array;
        ++at_;
        if (peek() == ']') {
            ++at_;
            return;
        }
        for (;;) {
            value.values_.push_back(read(depth + 1));
            const char next = peek();
            ++at_;
            if (next == ']') return;
            if (next != ',') fail("a comma is missing");
        }
    }

    double read_number() {
        const std::size_t begin = at_;
        const auto digits = [this] {
            const std::size_t first = at_;
            while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
            if (at_ == first) fail("a number or another value is missing");
        };
        if (text_[at_] == '-') ++at_;
        digits();
        if (at_ < text_.size() && text_[at_] == '.') {
            ++at_;
            digits();
        }
        if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
            ++at_;
            if (at_ < text_.size() && (text_[at_] == '+' || text_[at_] == '-')) ++at_;
            digits();
        }
        double number = 0;
        // Whatever the program's locale; out of range leaves 0 or the nearest.
        std::from_chars(text_.data() + begin, text_.data() + at_, number);
        return number;
    }

    std::uint32_t read_hex() {
        std::uint32_t code = 0;
        const char* begin = text_.data() + at_;
        if (text_.size() - at_ < 4) fail("an escape is cut off");
        const auto [end, error] = std::from_chars(begin, begin + 4, code, 16);
        if (error != std::errc{} || end != begin + 4) fail("an escape is damaged");
        at_ += 4;
        return code;
    }

    std::string read_string() {
        std::string text;
        ++at_;
        for (;;) {
            if (at_ == text_.size()) fail("a text has no end");
            const char c = text_[at_++];
            if (c == '"') return text;
            if (static_cast<unsigned char>(c) < 0x20U) fail("a control character in a text");
            if (c != '\\') {
                text.push_back(c);
                continue;
            }
            if (at_ == text_.size()) fail("a text has no end");
            switch (text_[at_++]) {
                case '"': text.push_back('"'); break;
                case '\\': text.push_back('\\'); break;
                case '/': text.push_back('/'); break;
                case 'b': text.push_back('\b'); break;
                case 'f': text.push_back('\f'); break;
                case 'n': text.push_back('\n'); break;
                case 'r': text.push_back('\r'); break;
                case 't': text.push_back('\t'); break;
                case 'u': read_escape(text); break;
                default: fail("an unknown escape");
            }
        }
    }

    void read_escape(std::string& text) {
        std::uint32_t code = read_hex();
        if (code >= 0xD800U && code < 0xDC00U && text_.substr(at_, 2) == "\\u") {
            at_ += 2;
            const std::uint32_t low = read_hex();
            if (low < 0xDC00U || low >= 0xE000U) fail("half a character");
            code = 0x10000U + ((code - 0xD800U) << 10) + (low - 0xDC00U);
        }
        if (code >= 0xD800U && code < 0xE000U) fail("half a character");
        unicode::append_utf8(text, code);
    }

    std::string_view text_;
    std::size_t at_ = 0;
};

inline Json Json::parse(std::string_view text) { return JsonReader(text).document(); }

}  // namespace bksdm
