// A bundle on disk: the configuration that a picture needs, opened and checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>

#include "bksdm/files.hpp"
#include "bksdm/json.hpp"

namespace bksdm {

// The folder that `bksdm export` made.
struct Bundle {
    std::filesystem::path path;
    std::size_t latent_channels = 4;
    std::size_t height = 512, width = 512;  // of a picture whose size is not asked for
    std::size_t vae_scale = 8;              // pixels per latent pixel along each side
    double scaling_factor = 0.18215;        // latents are divided by it before the VAE decoder
    std::int64_t text_embeddings = 49408;   // tokens that the text encoder knows
    bool masks_padding = false;             // the text encoder is told which tokens are padding
    bool has_safety_checker = false;
    std::string quantized;  // "int8" or "fp8" of what `bksdm quantize` made, else empty

    static Bundle open(const std::filesystem::path& path);
};

namespace detail {

inline Json bundle_json(const std::filesystem::path& file) {
    const std::string content = read_file(file);
    try {
        return Json::parse(content);
    } catch (const Error& error) {
        throw Error(ErrorCode::bundle, file.string() + ": " + error.what());
    }
}

inline double bundle_number(const std::filesystem::path& file, const Json& value,
                            const std::string& name, double lowest, double highest) {
    if (!value.is(Json::Kind::number) || !(value.number() >= lowest && value.number() <= highest))
        throw Error(ErrorCode::bundle, file.string() + ": " + name + " is missing or out of range");
    return value.number();
}

inline std::size_t bundle_count(const std::filesystem::path& file, const Json& config,
                                const std::string& name, double highest) {
    const Json* value = config.find(name);
    return static_cast<std::size_t>(
        bundle_number(file, value == nullptr ? Json{} : *value, name, 1, highest));
}

}  // namespace detail

inline Bundle Bundle::open(const std::filesystem::path& path) {
    using namespace detail;
    Bundle bundle;
    bundle.path = path;
    if (!std::filesystem::exists(path / "model_index.json"))
        throw Error(ErrorCode::bundle,
                    path.string() + ": not a bundle; model_index.json is missing");
    const auto unet_file = path / "unet" / "config.json";
    const auto vae_file = path / "vae_decoder" / "config.json";
    const auto text_file = path / "text_encoder" / "config.json";
    const Json unet = bundle_json(unet_file), vae = bundle_json(vae_file);
    const Json text = bundle_json(text_file);
    const Json* blocks = vae.find("block_out_channels");
    if (blocks == nullptr || blocks->size() < 1 || blocks->size() > 8)
        throw Error(ErrorCode::bundle, vae_file.string() + ": block_out_channels is no list");
    bundle.vae_scale = std::size_t{1} << (blocks->size() - 1);
    bundle.latent_channels = bundle_count(unet_file, unet, "in_channels", 64);
    if (bundle.latent_channels != bundle_count(vae_file, vae, "latent_channels", 64))
        throw Error(ErrorCode::bundle,
                    unet_file.string() + ": in_channels differs from the VAE's latent_channels");
    if (const Json* scaling = vae.find("scaling_factor"))
        bundle.scaling_factor = bundle_number(vae_file, *scaling, "scaling_factor", 1e-6, 1e6);
    const Json* size = unet.find("sample_size");
    if (size != nullptr && size->is(Json::Kind::array) && size->size() == 2) {
        const auto side = [&](std::size_t i) {
            return static_cast<std::size_t>(
                bundle_number(unet_file, size->value(i), "sample_size", 1, 1024));
        };
        bundle.height = side(0) * bundle.vae_scale;
        bundle.width = side(1) * bundle.vae_scale;
    } else {
        const std::size_t side = bundle_count(unet_file, unet, "sample_size", 1024);
        bundle.height = bundle.width = side * bundle.vae_scale;
    }
    if (text.find("vocab_size") != nullptr)
        bundle.text_embeddings =
            static_cast<std::int64_t>(bundle_count(text_file, text, "vocab_size", 2147483648.0));
    const Json* masked = text.find("use_attention_mask");
    bundle.masks_padding = masked != nullptr && masked->boolean();
    const auto index_file = path / "model_index.json";
    const Json index = bundle_json(index_file);
    if (const Json* made = index.find("_quantized")) {
        const Json* precision = made->is(Json::Kind::object) ? made->find("precision") : nullptr;
        if (precision == nullptr || !precision->is(Json::Kind::string))
            throw Error(ErrorCode::bundle, index_file.string() + ": _quantized is no object");
        bundle.quantized = precision->string();
    }
    bundle.has_safety_checker = std::filesystem::exists(path / "safety_checker" / "model.onnx");
    return bundle;
}

}  // namespace bksdm
