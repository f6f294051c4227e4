// A bundle of nothing but configuration, and networks that are a line of arithmetic each.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "bksdm/bksdm.hpp"

// The bytes of a table, as the Python package writes it.
class TableWriter {
  public:
    static std::string file(int steps, const std::vector<std::string>& tables) {
        std::string text = "{\"sampler\": null, \"steps\": " + std::to_string(steps) +
                           ", \"scheduler\": \"Test\", \"model\": \"small\"}";
        text.append((8 - text.size() % 8) % 8, ' ');
        std::string content = text;
        for (const auto& table : tables) content += table;
        TableWriter head;
        head.bytes_ = "bksdmtbl";
        head.whole(1, 4).whole(0x01020304, 4).whole(40 + content.size(), 8);
        head.whole(bksdm::crc32(content), 4)
            .whole(tables.size(), 4)
            .whole(text.size(), 4)
            .whole(0, 4);
        return head.bytes_ + content;
    }

    // Euler's method on noise levels that fall in equal steps from 10 to 0: in ε it is a sum.
    static std::string euler(std::uint32_t starts, std::uint32_t first, std::uint32_t n,
                             std::uint32_t draws = 0) {
        TableWriter table;
        table.whole(starts, 4).whole(first, 4).whole(n, 4).whole(draws, 4).number(10);
        const auto sigma = [n](std::uint32_t k) { return n == 0 ? 0.0 : 10.0 * (n - k) / n; };
        for (std::uint32_t k = 0; k < n; ++k) table.number(100.0 * (n - k));
        for (std::uint32_t k = 0; k < n; ++k) table.number(1 / std::sqrt(sigma(k) * sigma(k) + 1));
        for (std::uint32_t k = 0; k <= n; ++k)
            for (std::uint32_t j = 0; j <= n; ++j)
                table.number(j == 0 ? 1 : j <= k ? sigma(j) - sigma(j - 1) : 0);
        for (std::uint32_t k = 0; k <= n; ++k)
            for (std::uint32_t j = 0; j < draws; ++j) table.number(j < k && k < n ? 0.1 : 0);
        for (std::uint32_t k = 0; k <= n; ++k) table.number(1).number(sigma(k));
        for (std::uint32_t k = 0; k < n; ++k) table.number(1).number(-sigma(k));
        for (std::uint32_t k = 0; k <= n; ++k)
            for (std::uint32_t j = 0; j + 1 < n; ++j) table.number(j + 1 < k ? 1 : 0);
        return table.bytes_;
    }

  private:
    TableWriter& whole(std::uint64_t value, int bytes) {
        for (int i = 0; i < bytes; ++i)
            bytes_.push_back(static_cast<char>(static_cast<unsigned char>(value >> (8 * i))));
        return *this;
    }

    TableWriter& number(double value) {
        std::uint64_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        return whole(bits, 8);
    }

    std::string bytes_;
};

inline void write(const std::filesystem::path& file, const std::string& content) {
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << content;
}

// Write a bundle whose pictures are of 64 pixels; the tokenizer is copied from a folder.
inline void write_bundle(const std::filesystem::path& bundle,
                         const std::filesystem::path& tokenizer) {
    write(bundle / "model_index.json", "{\"_class_name\": \"StableDiffusionPipeline\"}");
    write(bundle / "unet" / "config.json", "{\"in_channels\": 4, \"sample_size\": 8}");
    write(bundle / "vae_decoder" / "config.json",
          "{\"latent_channels\": 4, \"block_out_channels\": [8, 8, 8, 8]}");
    write(bundle / "text_encoder" / "config.json", "{\"vocab_size\": 686}");
    std::filesystem::copy(tokenizer, bundle / "tokenizer",
                          std::filesystem::copy_options::recursive |
                              std::filesystem::copy_options::overwrite_existing);
    std::vector<std::string> tables{TableWriter::euler(1, 0, 5, 2)};
    for (std::uint32_t first = 0; first <= 5; ++first)
        tables.push_back(TableWriter::euler(6, first, 5 - first));
    write(bundle / "tables" / "default-5.table", TableWriter::file(5, tables));
}

// Networks whose outputs depend on all that they are given.
inline bksdm::Networks small_networks() {
    using namespace bksdm;
    const auto floats = [](const Feeds& feeds, const char* name) {
        return static_cast<const float*>(feeds.at(name).data);
    };
    Networks networks;
    networks.name = "own";
    networks.text_encoder =
        Engine({{"input_ids", {ElementType::int64, {-1, 77}}}}, [](const Feeds& feeds) {
            const auto& ids = feeds.at("input_ids");
            Tensor hidden(ElementType::float32, {ids.shape[0], ids.shape[1], 2});
            const auto* from = static_cast<const std::int64_t*>(ids.data);
            std::vector<float> values(hidden.count());
            for (std::size_t i = 0; i < values.size(); ++i)
                values[i] = static_cast<float>(from[i / 2]) * 1e-3F;
            store_floats(values.data(), values.size(), ElementType::float32, hidden.bytes());
            Tensors outputs;
            outputs.emplace("last_hidden_state", std::move(hidden));
            return outputs;
        });
    networks.unet =
        Engine({{"sample", {ElementType::float32, {-1, 4, -1, -1}}},
                {"timestep", {ElementType::float32, {-1}}},
                {"encoder_hidden_states", {ElementType::float32, {-1, -1, 2}}}},
               [floats](const Feeds& feeds) {
                   const auto& sample = feeds.at("sample");
                   const auto& text = feeds.at("encoder_hidden_states").shape;
                   const auto rows = static_cast<std::size_t>(sample.shape[0]);
                   Tensor noise(ElementType::float32, sample.shape);
                   const std::size_t one = noise.count() / rows;
                   const auto words = static_cast<std::size_t>(text[1] * text[2]);
                   std::vector<float> values(noise.count());
                   for (std::size_t row = 0; row < rows; ++row) {
                       float told = floats(feeds, "timestep")[row] * 1e-3F;
                       for (std::size_t i = 0; i < words; ++i)
                           told += floats(feeds, "encoder_hidden_states")[row * words + i] * 1e-2F;
                       for (std::size_t i = 0; i < one; ++i)
                           values[row * one + i] = floats(feeds, "sample")[row * one + i] * told;
                   }
                   store_floats(values.data(), values.size(), ElementType::float32, noise.bytes());
                   Tensors outputs;
                   outputs.emplace("out_sample", std::move(noise));
                   return outputs;
               });
    networks.vae_decoder = Engine(
        {{"latent_sample", {ElementType::float32, {-1, 4, -1, -1}}}}, [floats](const Feeds& feeds) {
            const auto& shape = feeds.at("latent_sample").shape;
            const auto tall = static_cast<std::size_t>(shape[2]);
            const auto wide = static_cast<std::size_t>(shape[3]);
            Tensor pixels(ElementType::float32, {1, 3, 8 * shape[2], 8 * shape[3]});
            std::vector<float> values(pixels.count());
            for (std::size_t i = 0; i < values.size(); ++i) {
                const std::size_t x = i % (8 * wide), y = i / (8 * wide) % (8 * tall);
                const std::size_t c = i / (64 * wide * tall);
                values[i] =
                    floats(feeds, "latent_sample")[(c * tall + y / 8) * wide + x / 8] * 0.1F;
            }
            store_floats(values.data(), values.size(), ElementType::float32, pixels.bytes());
            Tensors outputs;
            outputs.emplace("sample", std::move(pixels));
            return outputs;
        });
    networks.vae_encoder = [floats] {
        return Engine(
            {{"sample", {ElementType::float32, {1, 3, -1, -1}}}}, [floats](const Feeds& feeds) {
                const auto& shape = feeds.at("sample").shape;
                const std::int64_t tall = shape[2] / 8, wide = shape[3] / 8;
                Tensor latents(ElementType::float32, {1, 8, tall, wide});
                std::vector<float> values(latents.count());
                for (std::size_t i = 0; i < values.size(); ++i)
                    values[i] = floats(feeds, "sample")[i] - (i * 2 < values.size() ? 0.F : 3.F);
                store_floats(values.data(), values.size(), ElementType::float32, latents.bytes());
                Tensors outputs;
                outputs.emplace("latent_parameters", std::move(latents));
                return outputs;
            });
    };
    return networks;
}
