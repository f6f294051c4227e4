// Networks in OpenVINO.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <openvino/core/model.hpp>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/infer_request.hpp>

#include "bksdm/bundle.hpp"
#include "bksdm/engine.hpp"

namespace bksdm::openvino {

struct Options {
    std::string device = "CPU";
    int threads = 0;  // 0 is one for each physical core
    // "f32" or "bf16", which the text encoder does not take. Empty is "f32", and of what
    // `bksdm quantize` made "bf16" around the products in int8, where the processor computes it.
    std::string precision;
};

namespace detail {

inline ElementType element_type(const ov::element::Type& type) {
    if (type == ov::element::f32) return ElementType::float32;
    if (type == ov::element::f16) return ElementType::float16;
    if (type == ov::element::i64) return ElementType::int64;
    if (type == ov::element::i32) return ElementType::int32;
    throw Error(ErrorCode::engine, "OpenVINO: a tensor is of type " + type.get_type_name());
}

inline ov::element::Type openvino_type(ElementType type) {
    switch (type) {
        case ElementType::float16: return ov::element::f16;
        case ElementType::int64: return ov::element::i64;
        case ElementType::int32: return ov::element::i32;
        default: return ov::element::f32;
    }
}

template <typename Ports>
TensorSpecs specs(const Ports& ports) {
    TensorSpecs found;
    for (const auto& port : ports) {
        TensorSpec spec{element_type(port.get_element_type()), {}};
        for (const auto& length : port.get_partial_shape())
            spec.shape.push_back(length.is_static() ? length.get_length() : -1);
        found[port.get_any_name()] = std::move(spec);
    }
    return found;
}

// A network. Calls run one after the other, for a request has one set of tensors. A large network
// is compiled once for every shape; a small one for each of the last few, which runs faster.
class Network {
  public:
    Network(ov::Core core, std::shared_ptr<ov::Model> model, std::size_t bytes,
            const Options& options)
        : core_(std::move(core)), model_(std::move(model)), device_(options.device) {
        properties_ = {{"PERFORMANCE_HINT", "LATENCY"},
                       {"INFERENCE_PRECISION_HINT", exact(options) ? "f32" : options.precision}};
        if (options.threads > 0) properties_["INFERENCE_NUM_THREADS"] = options.threads;
        for (const auto& output : model_->outputs()) outputs_.push_back(output.get_any_name());
        if (bytes > large && exact(options)) whole_ = compile();
    }

    Tensors run(const Feeds& feeds) {
        const std::lock_guard<std::mutex> lock(mutex_);
        ov::InferRequest& request = whole_ ? whole_ : compiled_for(feeds);
        for (const auto& [name, view] : feeds) {
            const ov::Shape shape(view.shape.begin(), view.shape.end());
            // OpenVINO only reads its inputs.
            request.set_tensor(
                name, ov::Tensor(openvino_type(view.type), shape, const_cast<void*>(view.data)));
        }
        request.infer();
        Tensors outputs;
        for (const auto& name : outputs_) {
            const ov::Tensor found = request.get_tensor(name);
            const auto& shape = found.get_shape();
            Tensor copy(element_type(found.get_element_type()), Shape(shape.begin(), shape.end()));
            if (copy.size_in_bytes() != 0)
                std::memcpy(copy.bytes(), found.data(), copy.size_in_bytes());
            outputs.emplace(name, std::move(copy));
        }
        return outputs;
    }

  private:
    // Above so many bytes a network that is compiled for one shape is hardly faster in float32.
    static constexpr std::size_t large = std::size_t{128} << 20;
    static constexpr std::size_t kept = 4;

    using Key = std::vector<std::pair<std::string, Shape>>;

    static bool exact(const Options& options) {
        return options.precision.empty() || options.precision == "f32";
    }

    ov::InferRequest compile() {
        return core_.compile_model(model_, device_, properties_).create_infer_request();
    }

    ov::InferRequest& compiled_for(const Feeds& feeds) {
        Key key;
        std::map<std::string, ov::PartialShape> shapes;
        for (const auto& [name, view] : feeds) {
            key.emplace_back(name, view.shape);
            shapes[name] =
                ov::PartialShape(std::vector<ov::Dimension>(view.shape.begin(), view.shape.end()));
        }
        for (auto entry = requests_.begin(); entry != requests_.end(); ++entry)
            if (entry->first == key) {
                requests_.splice(requests_.begin(), requests_, entry);
                return requests_.front().second;
            }
        if (requests_.size() == kept) requests_.pop_back();
        model_->reshape(shapes);
        requests_.emplace_front(std::move(key), compile());
        return requests_.front().second;
    }

    ov::Core core_;
    std::shared_ptr<ov::Model> model_;
    std::string device_;
    ov::AnyMap properties_;
    std::vector<std::string> outputs_;
    std::mutex mutex_;
    ov::InferRequest whole_;
    std::list<std::pair<Key, ov::InferRequest>> requests_;
};

}  // namespace detail

namespace detail {

inline bool computes_bfloat16(const ov::Core& core, const std::string& device) {
    const auto able = core.get_property(device, ov::device::capabilities);
    return std::find(able.begin(), able.end(), "BF16") != able.end();
}

}  // namespace detail

// Open a network: OpenVINO's own format, as `bksdm build BUNDLE --engine openvino --save` writes
// it, or ONNX.
inline Engine open(const ov::Core& core, const std::filesystem::path& file,
                   const Options& options = {}) {
    const auto guarded = [name = file.string()](auto&& work) {
        try {
            return work();
        } catch (const Error&) {
            throw;
        } catch (const std::exception& error) {
            throw Error(ErrorCode::engine, name + ": " + error.what());
        }
    };
    return guarded([&] {
        if (!std::filesystem::exists(file))
            throw Error(ErrorCode::bundle, file.string() + ": missing");
        ov::Core shared = core;
        auto model = shared.read_model(file.string());
        std::size_t bytes = 0;
        for (const auto& entry : std::filesystem::directory_iterator(file.parent_path()))
            if (entry.path().stem() == file.stem() && entry.is_regular_file())
                bytes += static_cast<std::size_t>(entry.file_size());
        TensorSpecs inputs = detail::specs(model->inputs());
        auto network =
            std::make_shared<detail::Network>(std::move(shared), std::move(model), bytes, options);
        return Engine(std::move(inputs), [network, guarded](const Feeds& feeds) {
            return guarded([&] { return network->run(feeds); });
        });
    });
}

// Open the networks of a bundle, which `bksdm build BUNDLE --engine openvino --save` has rewritten
// into a folder: that of the bundle's own unless it is given.
inline Networks open_networks(const std::filesystem::path& bundle, const Options& options = {},
                              std::filesystem::path folder = {}) {
    const std::string quantized = Bundle::open(bundle).quantized;
    if (folder.empty()) folder = bundle / "engines" / "openvino";
    const auto graph = [bundle, folder](const std::string& name) {
        const auto saved = folder / (name + ".xml");
        return std::filesystem::exists(saved) ? saved : bundle / name / "model.onnx";
    };
    const ov::Core core;
    Options exact = options, chosen = options;
    // Its errors would be in every step, and it takes a hundredth of the time.
    exact.precision = "f32";
    if (chosen.precision.empty())
        chosen.precision = !quantized.empty() && detail::computes_bfloat16(core, options.device)
                               ? "bf16"
                               : "f32";
    Networks networks;
    networks.name = "openvino";
    if (quantized.empty() && chosen.precision == "bf16") networks.precision = "bfloat16";
    networks.text_encoder = open(core, graph("text_encoder"), exact);
    networks.unet = open(core, graph("unet"), chosen);
    networks.vae_decoder = open(core, graph("vae_decoder"), chosen);
    if (const auto file = graph("vae_encoder"); std::filesystem::exists(file))
        networks.vae_encoder = [core, file, chosen] { return open(core, file, chosen); };
    return networks;
}

}  // namespace bksdm::openvino
