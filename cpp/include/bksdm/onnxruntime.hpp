// Networks in ONNX Runtime, by its C interface.
//
// Compiled against the headers of version 1.29 and run with the library of 1.32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <onnxruntime_c_api.h>

#include "bksdm/bundle.hpp"
#include "bksdm/engine.hpp"

namespace bksdm::onnxruntime {

struct Options {
    int threads = 0;                // 0 is one for each physical core
    std::filesystem::path weights;  // the folder from which the graph names files of weights; empty
                                    // is its own, and for what `bksdm build` stores, the bundle
};

namespace detail {

template <typename Object>
using Owned = std::unique_ptr<Object, std::function<void(Object*)>>;

inline ElementType element_type(ONNXTensorElementDataType type) {
    switch (type) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return ElementType::float32;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return ElementType::float16;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return ElementType::int64;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return ElementType::int32;
        default: throw Error(ErrorCode::engine, "ONNX Runtime: a tensor is of another type");
    }
}

inline ONNXTensorElementDataType onnx_type(ElementType type) {
    switch (type) {
        case ElementType::float16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
        case ElementType::int64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
        case ElementType::int32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
        default: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
}

inline const OrtApi& api() {
    const OrtApi* found = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (found == nullptr)
        throw Error(ErrorCode::engine, std::string("ONNX Runtime ") +
                                           OrtGetApiBase()->GetVersionString() +
                                           " is older than the header it was compiled with");
    return *found;
}

inline void check(OrtStatus* status) {
    if (status == nullptr) return;
    const std::string message = api().GetErrorMessage(status);
    api().ReleaseStatus(status);
    throw Error(ErrorCode::engine, "ONNX Runtime: " + message);
}

// What a function of the interface makes, and the one that releases it.
template <typename Object, typename Make, typename Release>
Owned<Object> made(Make make, Release release) {
    Object* object = nullptr;
    check(make(&object));
    return Owned<Object>(object, [release](Object* gone) { release(gone); });
}

// The process's environment, which every session keeps alive.
inline std::shared_ptr<OrtEnv> environment() {
    OrtEnv* env = nullptr;
    check(api().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "bksdm", &env));
    return std::shared_ptr<OrtEnv>(env, [](OrtEnv* gone) { api().ReleaseEnv(gone); });
}

// A network; threads share it.
class Network {
  public:
    Network(std::shared_ptr<OrtEnv> env, const std::filesystem::path& file, const Options& options)
        : env_(std::move(env)) {
        const auto settings = made<OrtSessionOptions>(
            [](auto** to) { return api().CreateSessionOptions(to); }, api().ReleaseSessionOptions);
        if (options.threads > 0) check(api().SetIntraOpNumThreads(settings.get(), options.threads));
        if (options.weights.empty()) {
            session_ = made<OrtSession>(
                [&](auto** to) {
                    return api().CreateSession(env_.get(), file.c_str(), settings.get(), to);
                },
                api().ReleaseSession);
        } else {
            const std::string content = read_file(file);
            check(api().AddSessionConfigEntry(
                settings.get(), "session.model_external_initializers_file_folder_path",
                options.weights.string().c_str()));
            session_ = made<OrtSession>(
                [&](auto** to) {
                    return api().CreateSessionFromArray(env_.get(), content.data(), content.size(),
                                                        settings.get(), to);
                },
                api().ReleaseSession);
        }
        memory_ = made<OrtMemoryInfo>(
            [](auto** to) {
                return api().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, to);
            },
            api().ReleaseMemoryInfo);
        const auto inputs = names(api().SessionGetInputCount, api().SessionGetInputName);
        for (std::size_t i = 0; i < inputs.size(); ++i) {
            const auto type = made<OrtTypeInfo>(
                [&](auto** to) { return api().SessionGetInputTypeInfo(session_.get(), i, to); },
                api().ReleaseTypeInfo);
            const OrtTensorTypeAndShapeInfo* shape = nullptr;
            check(api().CastTypeInfoToTensorInfo(type.get(), &shape));
            if (shape == nullptr)
                throw Error(ErrorCode::engine, "ONNX Runtime: " + inputs[i] + " is no tensor");
            inputs_[inputs[i]] = spec(shape);
        }
        output_names_ = names(api().SessionGetOutputCount, api().SessionGetOutputName);
    }

    const TensorSpecs& inputs() const noexcept { return inputs_; }

    Tensors run(const Feeds& feeds) const {
        std::vector<Owned<OrtValue>> values;
        std::vector<const char*> names;
        for (const auto& [name, view] : feeds) {
            names.push_back(name.c_str());
            values.push_back(made<OrtValue>(
                [&, &given = view](auto** to) {
                    // ONNX Runtime only reads its inputs.
                    return api().CreateTensorWithDataAsOrtValue(
                        memory_.get(), const_cast<void*>(given.data),
                        count_of(given.shape) * bytes_of(given.type), given.shape.data(),
                        given.shape.size(), onnx_type(given.type), to);
                },
                api().ReleaseValue));
        }
        std::vector<const OrtValue*> given;
        for (const auto& value : values) given.push_back(value.get());
        std::vector<const char*> wanted;
        for (const auto& name : output_names_) wanted.push_back(name.c_str());
        std::vector<OrtValue*> found(wanted.size(), nullptr);
        OrtStatus* status = api().Run(session_.get(), nullptr, names.data(), given.data(),
                                      given.size(), wanted.data(), wanted.size(), found.data());
        std::vector<Owned<OrtValue>> results;
        for (OrtValue* value : found)
            results.emplace_back(value, [](OrtValue* gone) { api().ReleaseValue(gone); });
        check(status);
        Tensors outputs;
        for (std::size_t i = 0; i < results.size(); ++i)
            outputs.emplace(output_names_[i], copy(results[i].get()));
        return outputs;
    }

  private:
    static TensorSpec spec(const OrtTensorTypeAndShapeInfo* info) {
        ONNXTensorElementDataType type{};
        std::size_t rank = 0;
        check(api().GetTensorElementType(info, &type));
        check(api().GetDimensionsCount(info, &rank));
        TensorSpec found{element_type(type), Shape(rank)};
        check(api().GetDimensions(info, found.shape.data(), rank));
        return found;
    }

    template <typename Count, typename Name>
    std::vector<std::string> names(Count count, Name name) const {
        OrtAllocator* allocator = nullptr;
        check(api().GetAllocatorWithDefaultOptions(&allocator));
        std::size_t total = 0;
        check(count(session_.get(), &total));
        std::vector<std::string> found;
        for (std::size_t i = 0; i < total; ++i) {
            char* text = nullptr;
            check(name(session_.get(), i, allocator, &text));
            found.emplace_back(text);
            check(api().AllocatorFree(allocator, text));
        }
        return found;
    }

    static Tensor copy(OrtValue* value) {
        const auto info = made<OrtTensorTypeAndShapeInfo>(
            [&](auto** to) { return api().GetTensorTypeAndShape(value, to); },
            api().ReleaseTensorTypeAndShapeInfo);
        const TensorSpec found = spec(info.get());
        Tensor tensor(found.type, found.shape);
        void* data = nullptr;
        check(api().GetTensorMutableData(value, &data));
        if (tensor.size_in_bytes() != 0) std::memcpy(tensor.bytes(), data, tensor.size_in_bytes());
        return tensor;
    }

    std::shared_ptr<OrtEnv> env_;
    Owned<OrtSession> session_;
    Owned<OrtMemoryInfo> memory_;
    TensorSpecs inputs_;
    std::vector<std::string> output_names_;
};

}  // namespace detail

// Open an ONNX graph.
inline Engine open(const std::filesystem::path& file, const Options& options = {}) {
    if (!std::filesystem::exists(file)) throw Error(ErrorCode::bundle, file.string() + ": missing");
    const auto network = std::make_shared<detail::Network>(detail::environment(), file, options);
    return Engine(network->inputs(), [network](const Feeds& feeds) { return network->run(feeds); });
}

// Open the networks of a bundle, as they were exported.
inline Networks open_networks(const std::filesystem::path& bundle, const Options& options = {}) {
    Bundle::open(bundle);
    const auto graph = [bundle](const char* name) { return bundle / name / "model.onnx"; };
    Networks networks;
    networks.name = "onnxruntime";
    networks.text_encoder = open(graph("text_encoder"), options);
    networks.unet = open(graph("unet"), options);
    networks.vae_decoder = open(graph("vae_decoder"), options);
    if (const auto file = graph("vae_encoder"); std::filesystem::exists(file))
        networks.vae_encoder = [file, options] { return open(file, options); };
    return networks;
}

}  // namespace bksdm::onnxruntime
