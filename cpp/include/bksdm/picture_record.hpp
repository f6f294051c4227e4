// What a picture's file says of how it was made: the entries that the Python package writes, and
// A1111's line beside them.
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bksdm/bundle.hpp"
#include "bksdm/png.hpp"
#include "bksdm/request.hpp"
#include "bksdm/step_table.hpp"
#include "bksdm/version.hpp"

namespace bksdm {

namespace detail {

// A number as Python's repr has it: the fewest digits that give it back.
inline std::string spelled(double value) {
    char digits[32];
    const auto end =
        std::to_chars(digits, digits + sizeof digits, value, std::chars_format::scientific).ptr;
    const std::string_view text(digits, static_cast<std::size_t>(end - digits));
    const std::size_t e = text.find('e');
    const std::string_view power = text.substr(text[e + 1] == '+' ? e + 2 : e + 1);
    int exponent = 0;
    std::from_chars(power.data(), power.data() + power.size(), exponent);
    // Python writes these with an exponent, and all others without.
    if (exponent < -4 || exponent >= 16) return std::string(text);
    const auto fixed =
        std::to_chars(digits, digits + sizeof digits, value, std::chars_format::fixed).ptr;
    std::string found(digits, fixed);
    return found.find('.') == std::string::npos ? found + ".0" : found;
}

inline std::string quoted(const std::string& value) {
    if (value.find_first_of(",:\n") == std::string::npos) return value;
    std::string text = "\"";
    for (const char c : value) {
        switch (c) {
            case '"': text += "\\\""; break;
            case '\\': text += "\\\\"; break;
            case '\n': text += "\\n"; break;
            case '\r': text += "\\r"; break;
            case '\t': text += "\\t"; break;
            default: text += c;
        }
    }
    return text + "\"";
}

inline std::string text_of(const Json& description, const char* name) {
    const Json* found = description.find(name);
    return found != nullptr && found->is(Json::Kind::string) ? found->string() : std::string();
}

}  // namespace detail

// The text chunks of one image of a batch; size in pixels.
inline TextChunks picture_record(const Request& request, const Bundle& bundle,
                                 const Json& description, const std::string& engine,
                                 const std::string& precision, std::size_t height,
                                 std::size_t width, std::size_t index) {
    using detail::spelled;
    using detail::text_of;
    const std::string sampler = text_of(description, "sampler");
    std::string seeds;
    for (const auto seed : request.seeds)
        seeds += (seeds.empty() ? "" : ",") + std::to_string(seed);
    const Guidance& guidance = request.guidance;
    TextChunks own{
        {"prompt", request.prompt},
        {"negative_prompt", request.negative_prompt},
        {"height", std::to_string(height)},
        {"width", std::to_string(width)},
        {"num_inference_steps", std::to_string(request.steps)},
        {"guidance_scale", spelled(guidance.scale)},
        {"num_images_per_prompt", std::to_string(request.images)},
        {"seed", seeds},
        {"noise", "cpu"},
    };
    if (!sampler.empty()) own.emplace_back("sampler", sampler);
    own.emplace_back("eta", "0.0");
    own.emplace_back("guidance_rescale", spelled(guidance.rescale));
    own.emplace_back("guidance_interval", spelled(guidance.start) + ":" + spelled(guidance.end));
    if (request.image) own.emplace_back("strength", spelled(strength_of(request)));
    own.insert(own.end(),
               {{"prompt_weights", "False"},
                {"long_prompt", "False"},
                {"clip_skip", "0"},
                {"fast", "0"},
                {"vae", "full"},
                {"scheduler", text_of(description, "scheduler")},
                {"model", text_of(description, "model")},
                {"model_digest", text_of(description, "model_digest")},
                {"version", BKSDM_VERSION},
                {"safety_checker", bundle.has_safety_checker ? "off" : "the model has none"},
                {"precision", precision},
                {"engine", engine},
                {"index", std::to_string(index)}});
    std::string a1111 = request.prompt;
    if (!request.negative_prompt.empty()) a1111 += "\nNegative prompt: " + request.negative_prompt;
    std::string line;
    const auto say = [&line](const char* name, const std::string& value) {
        line += (line.empty() ? "" : ", ") + std::string(name) + ": " + detail::quoted(value);
    };
    const Json* words = description.find("a1111");
    const Json none;
    const Json& names = words == nullptr ? none : *words;
    std::string scale = spelled(guidance.scale);
    if (scale.size() > 2 && scale.compare(scale.size() - 2, 2, ".0") == 0)
        scale.resize(scale.size() - 2);
    std::string model = text_of(description, "model");
    for (const char gone : {',', ':', '\n'})
        model.erase(std::remove(model.begin(), model.end(), gone), model.end());
    say("Steps", std::to_string(request.steps));
    say("Sampler", text_of(names, "Sampler"));
    if (const auto spacing = text_of(names, "Schedule type"); !spacing.empty())
        say("Schedule type", spacing);
    say("CFG scale", scale);
    const bool each = request.seeds.size() > 1;
    say("Seed", std::to_string(request.seeds[each ? index : 0]));
    say("Size", std::to_string(width) + "x" + std::to_string(height));
    say("Model", model);
    if (request.image) say("Denoising strength", spelled(strength_of(request)));
    if (request.images > 1 && !each) {
        say("Batch size", std::to_string(request.images));
        say("Batch pos", std::to_string(index));
    }
    say("RNG", "CPU");
    if ((request.prompt + request.negative_prompt).find_first_of("()[]") != std::string::npos)
        say("Emphasis", "None");
    say("Version", "bksdm-runtime " BKSDM_VERSION);
    TextChunks chunks;
    for (auto& [name, value] : own) chunks.emplace_back("bksdm:" + name, std::move(value));
    chunks.emplace_back("parameters", a1111 + "\n" + line);
    return chunks;
}

}  // namespace bksdm
