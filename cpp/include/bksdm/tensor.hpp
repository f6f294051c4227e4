// Named tensors, as networks take and return them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bksdm/error.hpp"

namespace bksdm {

enum class ElementType { float32 = 0, float16 = 1, int64 = 2, int32 = 3 };

using Shape = std::vector<std::int64_t>;

inline std::size_t bytes_of(ElementType type) {
    switch (type) {
        case ElementType::float16: return 2;
        case ElementType::int64: return 8;
        default: return 4;
    }
}

// The number of elements; a shape with an open or negative length has none.
inline std::size_t count_of(const Shape& shape) {
    std::size_t count = 1;
    for (const auto length : shape) {
        if (length < 0) throw Error(ErrorCode::engine, "a tensor has a length below zero");
        const auto wide = static_cast<std::size_t>(length);
        if (wide != 0 && count > (std::size_t{1} << 48) / wide)
            throw Error(ErrorCode::engine, "a tensor has too many elements");
        count *= wide;
    }
    return count;
}

// What a network says of an input or output; -1 stands for any length.
struct TensorSpec {
    ElementType type = ElementType::float32;
    Shape shape;
};

using TensorSpecs = std::map<std::string, TensorSpec>;

// A tensor that belongs to somebody else, who keeps it alive while it is looked at.
struct TensorView {
    ElementType type = ElementType::float32;
    Shape shape;
    const void* data = nullptr;
};

// A tensor and its memory; it is moved, not copied.
class Tensor {
  public:
    Tensor() = default;
    Tensor(ElementType type, Shape shape)
        : type_(type), shape_(std::move(shape)), bytes_(count_of(shape_) * bytes_of(type)) {}
    Tensor(Tensor&&) noexcept = default;
    Tensor& operator=(Tensor&&) noexcept = default;
    Tensor(const Tensor&) = delete;
    Tensor& operator=(const Tensor&) = delete;
    ~Tensor() = default;

    ElementType type() const noexcept { return type_; }
    const Shape& shape() const noexcept { return shape_; }
    std::size_t count() const noexcept { return bytes_.size() / bytes_of(type_); }
    std::size_t size_in_bytes() const noexcept { return bytes_.size(); }
    std::byte* bytes() noexcept { return bytes_.data(); }
    const std::byte* bytes() const noexcept { return bytes_.data(); }
    TensorView view() const { return {type_, shape_, bytes_.data()}; }

  private:
    ElementType type_ = ElementType::float32;
    Shape shape_;
    std::vector<std::byte> bytes_;
};

using Feeds = std::map<std::string, TensorView>;
using Tensors = std::map<std::string, Tensor>;

// IEEE 754 binary16, rounded to nearest even.
inline std::uint16_t to_half(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const auto sign = static_cast<std::uint32_t>((bits >> 16) & 0x8000U);
    const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
    std::uint32_t half;
    if (magnitude > 0x7F800000U) {
        half = 0x7E00U;  // NaN
    } else if (magnitude >= 0x477FF000U) {
        half = 0x7C00U;  // infinity, also by rounding
    } else if (magnitude >= 0x38800000U) {
        const std::uint32_t kept = magnitude - 0x38000000U;
        half = (kept + 0x0FFFU + ((kept >> 13) & 1U)) >> 13;
    } else if (magnitude < 0x33000000U) {
        half = 0;
    } else {
        const std::uint32_t shift = 126U - (magnitude >> 23);
        const std::uint32_t mantissa = (magnitude & 0x7FFFFFU) | 0x800000U;
        const std::uint32_t middle = 1U << (shift - 1U);
        const std::uint32_t whole = mantissa >> shift;
        const std::uint32_t rest = mantissa & ((1U << shift) - 1U);
        half = whole + ((rest > middle || (rest == middle && (whole & 1U) != 0)) ? 1U : 0U);
    }
    return static_cast<std::uint16_t>(sign | half);
}

inline float from_half(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000U) << 16;
    const std::uint32_t exponent = (half >> 10) & 0x1FU;
    std::uint32_t mantissa = half & 0x3FFU;
    std::uint32_t bits;
    if (exponent == 0x1FU) {
        bits = 0x7F800000U | (mantissa << 13);
    } else if (exponent != 0) {
        bits = ((exponent + 112U) << 23) | (mantissa << 13);
    } else {
        const float value = static_cast<float>(mantissa) * 0x1p-24F;
        std::memcpy(&bits, &value, sizeof bits);
    }
    bits |= sign;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Copy float32 values into a tensor's memory, in its type.
inline void store_floats(const float* values, std::size_t count, ElementType type, void* to) {
    if (type == ElementType::float32) {
        if (count != 0) std::memcpy(to, values, count * sizeof(float));
    } else if (type == ElementType::float16) {
        auto* halves = static_cast<std::uint16_t*>(to);
        for (std::size_t i = 0; i < count; ++i) halves[i] = to_half(values[i]);
    } else {
        throw Error(ErrorCode::engine, "a network takes whole numbers where there are floats");
    }
}

inline void store_whole(std::int64_t value, ElementType type, std::size_t index, void* to) {
    if (type == ElementType::int64) {
        static_cast<std::int64_t*>(to)[index] = value;
    } else if (type == ElementType::int32) {
        static_cast<std::int32_t*>(to)[index] = static_cast<std::int32_t>(value);
    } else {
        const auto number = static_cast<float>(value);
        store_floats(&number, 1, type, static_cast<std::byte*>(to) + index * bytes_of(type));
    }
}

// The values of a tensor of floats, as float32.
inline std::vector<float> to_floats(const Tensor& tensor) {
    std::vector<float> values(tensor.count());
    if (tensor.type() == ElementType::float32) {
        if (!values.empty()) std::memcpy(values.data(), tensor.bytes(), tensor.size_in_bytes());
    } else if (tensor.type() == ElementType::float16) {
        for (std::size_t i = 0; i < values.size(); ++i) {
            std::uint16_t half;
            std::memcpy(&half, tensor.bytes() + 2 * i, sizeof half);
            values[i] = from_half(half);
        }
    } else {
        throw Error(ErrorCode::engine, "a network returned whole numbers in place of floats");
    }
    return values;
}

}  // namespace bksdm
