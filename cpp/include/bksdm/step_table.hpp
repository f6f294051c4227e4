// A compiled sampler, as `bksdm info BUNDLE --table` writes it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bksdm/checksum.hpp"
#include "bksdm/json.hpp"

namespace bksdm {

// What a denoising may start from.
enum class Start : std::uint32_t { noise = 1, image = 2, masked_image = 4 };

// x_k = rows[k] · [x_T, ε_0 … ε_{N-1}] + noise[k] · [z_0, z_1 …]; see runtime/samplers/table.py.
// Matrices are row by row.
struct StepTable {
    std::size_t evaluations = 0;  // N
    std::size_t draws = 0;        // of noise, after the starting latents
    double init_noise_sigma = 1;
    std::vector<double> timesteps;    // [N]
    std::vector<double> input_scale;  // [N]
    std::vector<double> rows;         // [N + 1, N + 1]
    std::vector<double> noise;        // [N + 1, draws]
    std::vector<double> levels;       // [N + 1, 2]
    std::vector<double> denoised;     // [N, 2]
    std::vector<double> carried;      // [N + 1, max(N - 1, 0)]
};

// The tables of one sampler and number of steps; the format is in runtime/samplers/table_file.py.
class TableFile {
  public:
    struct Entry {
        std::uint32_t starts;
        std::uint32_t first_step;
        std::shared_ptr<const StepTable> table;
    };

    // Every length is checked before it is believed.
    static TableFile parse(std::string_view content);

    const Json& description() const noexcept { return description_; }
    const std::vector<Entry>& entries() const noexcept { return entries_; }

    // The number of steps that the sampler was compiled for.
    int steps() const noexcept { return steps_; }

    // The table for a start that leaves out the first steps; null where the file has none.
    std::shared_ptr<const StepTable> find(Start start, std::uint32_t first_step) const {
        for (const auto& entry : entries_)
            if ((entry.starts & static_cast<std::uint32_t>(start)) != 0 &&
                entry.first_step == first_step)
                return entry.table;
        return nullptr;
    }

  private:
    Json description_;
    int steps_ = 0;
    std::vector<Entry> entries_;
};

namespace detail {

// Reads little-endian numbers in whatever order of bytes the machine has.
class TableReader {
  public:
    explicit TableReader(std::string_view content) : content_(content) {}

    [[noreturn]] static void fail(const char* what) {
        throw Error(ErrorCode::bundle, "not a table of `bksdm info --table`: " + std::string(what));
    }

    std::string_view bytes(std::size_t count) {
        if (count > content_.size() - at_) fail("it is cut off");
        at_ += count;
        return content_.substr(at_ - count, count);
    }

    std::uint64_t whole(std::size_t count) {
        const auto from = bytes(count);
        std::uint64_t value = 0;
        for (std::size_t i = count; i-- > 0;)
            value = value << 8 | static_cast<unsigned char>(from[i]);
        return value;
    }

    std::uint32_t u32() { return static_cast<std::uint32_t>(whole(4)); }

    double number() {
        const std::uint64_t bits = whole(8);
        double value;
        static_assert(sizeof value == sizeof bits);
        std::memcpy(&value, &bits, sizeof value);
        if (!std::isfinite(value)) fail("it holds NaN or infinity");
        return value;
    }

    // Numbers of a matrix; both lengths come from 32 bits, so their product fits 64.
    std::vector<double> numbers(std::uint64_t tall, std::uint64_t wide = 1) {
        const std::uint64_t count = tall * wide;
        if (count > (content_.size() - at_) / 8) fail("it is cut off");
        std::vector<double> found(static_cast<std::size_t>(count));
        for (auto& value : found) value = number();
        return found;
    }

    bool at_end() const noexcept { return at_ == content_.size(); }

  private:
    std::string_view content_;
    std::size_t at_ = 0;
};

inline std::shared_ptr<const StepTable> read_table(TableReader& reader) {
    auto table = std::make_shared<StepTable>();
    const std::uint64_t n = reader.u32(), draws = reader.u32();
    table->evaluations = static_cast<std::size_t>(n);
    table->draws = static_cast<std::size_t>(draws);
    table->init_noise_sigma = reader.number();
    table->timesteps = reader.numbers(n);
    table->input_scale = reader.numbers(n);
    table->rows = reader.numbers(n + 1, n + 1);
    table->noise = reader.numbers(n + 1, draws);
    table->levels = reader.numbers(n + 1, 2);
    table->denoised = reader.numbers(n, 2);
    table->carried = reader.numbers(n + 1, n > 1 ? n - 1 : 0);
    return table;
}

}  // namespace detail

inline TableFile TableFile::parse(std::string_view content) {
    using detail::TableReader;
    TableReader reader(content);
    if (reader.bytes(8) != "bksdmtbl") TableReader::fail("it begins otherwise");
    if (reader.u32() != 1) TableReader::fail("its version is unknown; write it again");
    if (reader.u32() != 0x01020304U) TableReader::fail("its bytes are in another order");
    if (reader.whole(8) != content.size()) TableReader::fail("it is cut off");
    const std::uint32_t sum = reader.u32(), tables = reader.u32(), described = reader.u32();
    reader.u32();
    if (crc32(content.substr(40)) != sum) TableReader::fail("it is damaged");
    TableFile file;
    file.description_ = Json::parse(reader.bytes(described));
    const Json* steps = file.description_.find("steps");
    if (steps == nullptr || !(steps->number() >= 1 && steps->number() <= 1e6))
        TableReader::fail("it does not say its steps");
    file.steps_ = static_cast<int>(steps->number());
    for (std::uint32_t i = 0; i < tables; ++i) {
        const std::uint32_t starts = reader.u32(), first = reader.u32();
        file.entries_.push_back({starts, first, detail::read_table(reader)});
    }
    if (!reader.at_end()) TableReader::fail("something follows its end");
    return file;
}

}  // namespace bksdm
