// Prompts to embeddings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "bksdm/engine.hpp"
#include "bksdm/job.hpp"
#include "bksdm/tokenizer.hpp"

namespace bksdm {

// The text encoder's output for one text.
struct Embedding {
    std::vector<float> values;  // [tokens, width]
    std::size_t tokens = 0;
    std::size_t cut = 0;  // tokens of the text that did not fit
};

// A tokenizer and a text encoder; remembers what it has encoded last. Threads share it.
class PromptEncoder {
  public:
    PromptEncoder(Tokenizer tokenizer, const Engine& encoder, bool masked)
        : tokenizer_(std::move(tokenizer)), encoder_(&encoder), masked_(masked) {
        const auto& shape = encoder.input("input_ids").shape;
        if (shape.size() == 2 && shape[1] >= 0 &&
            static_cast<std::size_t>(shape[1]) != tokenizer_.length())
            throw Error(ErrorCode::bundle,
                        "the text encoder takes another number of tokens than "
                        "the tokenizer's model_max_length");
        for (const auto& [name, spec] : encoder.inputs())
            if (name != "input_ids" && name != "attention_mask")
                throw Error(ErrorCode::bundle,
                            "the text encoder takes " + name + ", which is not known");
    }

    const Tokenizer& tokenizer() const noexcept { return tokenizer_; }

    // Embeddings of texts, in their order; new ones are encoded in one run.
    std::vector<std::shared_ptr<const Embedding>> operator()(
        const std::vector<std::string>& texts) {
        std::vector<std::shared_ptr<const Embedding>> found(texts.size());
        std::vector<std::string> fresh;
        for (std::size_t i = 0; i < texts.size(); ++i) {
            found[i] = known(texts[i]);
            if (!found[i] && std::find(fresh.begin(), fresh.end(), texts[i]) == fresh.end())
                fresh.push_back(texts[i]);
        }
        const auto encoded = encode(fresh);
        for (std::size_t i = 0; i < texts.size(); ++i)
            for (std::size_t j = 0; j < fresh.size(); ++j)
                if (!found[i] && texts[i] == fresh[j]) found[i] = encoded[j];
        for (std::size_t j = 0; j < fresh.size(); ++j) keep(fresh[j], encoded[j]);
        return found;
    }

  private:
    static constexpr std::size_t remembered = 256;

    std::vector<std::shared_ptr<const Embedding>> encode(
        const std::vector<std::string>& texts) const {
        if (texts.empty()) return {};
        const std::size_t length = tokenizer_.length();
        const Shape shape{static_cast<std::int64_t>(texts.size()),
                          static_cast<std::int64_t>(length)};
        const ElementType type = encoder_->input("input_ids").type;
        Tensor ids(type, shape);
        const auto masks = encoder_->inputs().find("attention_mask");
        const bool asks = masks != encoder_->inputs().end();
        Tensor mask(asks ? masks->second.type : type, shape);
        std::vector<std::size_t> cut;
        for (std::size_t row = 0; row < texts.size(); ++row) {
            const Tokens tokens = tokenizer_(texts[row]);
            for (std::size_t i = 0; i < length; ++i) {
                store_whole(tokens.ids[i], type, row * length + i, ids.bytes());
                store_whole(masked_ ? tokens.mask[i] : 1, mask.type(), row * length + i,
                            mask.bytes());
            }
            cut.push_back(tokens.cut);
        }
        Feeds feeds{{"input_ids", ids.view()}};
        if (asks) feeds["attention_mask"] = mask.view();
        Tensors outputs = (*encoder_)(feeds);
        const std::vector<float> hidden = to_floats(take(outputs, "last_hidden_state"));
        require_finite(hidden.data(), hidden.size(), "embeddings of the text encoder");
        const std::size_t one = hidden.size() / texts.size();
        std::vector<std::shared_ptr<const Embedding>> found;
        for (std::size_t row = 0; row < texts.size(); ++row) {
            const auto begin = hidden.begin() + static_cast<std::ptrdiff_t>(row * one);
            found.push_back(std::make_shared<Embedding>(
                Embedding{{begin, begin + static_cast<std::ptrdiff_t>(one)}, length, cut[row]}));
        }
        return found;
    }

    std::shared_ptr<const Embedding> known(const std::string& text) {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (auto entry = recent_.begin(); entry != recent_.end(); ++entry)
            if (entry->first == text) {
                recent_.splice(recent_.begin(), recent_, entry);
                return recent_.front().second;
            }
        return nullptr;
    }

    void keep(const std::string& text, std::shared_ptr<const Embedding> embedding) {
        const std::lock_guard<std::mutex> lock(mutex_);
        recent_.emplace_front(text, std::move(embedding));
        if (recent_.size() > remembered) recent_.pop_back();
    }

    Tokenizer tokenizer_;
    const Engine* encoder_;
    bool masked_;
    std::mutex mutex_;
    std::list<std::pair<std::string, std::shared_ptr<const Embedding>>> recent_;
};

}  // namespace bksdm
