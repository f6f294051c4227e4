// Networks in TensorRT or TensorRT RTX, from the plans of `bksdm build`.
//
// Compiled against the headers of TensorRT 11.1 and CUDA 13.0; never run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include "bksdm/engine.hpp"
#include "bksdm/files.hpp"

namespace bksdm::tensorrt {

namespace detail {

inline void check(cudaError_t code) {
    if (code != cudaSuccess)
        throw Error(ErrorCode::engine, std::string("CUDA: ") + cudaGetErrorString(code));
}

inline ElementType element_type(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT: return ElementType::float32;
        case nvinfer1::DataType::kHALF: return ElementType::float16;
        case nvinfer1::DataType::kINT64: return ElementType::int64;
        case nvinfer1::DataType::kINT32: return ElementType::int32;
        default: throw Error(ErrorCode::engine, "TensorRT: a tensor is of another type");
    }
}

// Keeps the last error, for the exception that follows it.
class Logger : public nvinfer1::ILogger {
  public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kERROR) return;
        try {
            const std::lock_guard<std::mutex> lock(mutex_);
            last_ = message;
        } catch (...) {  // then the exception says less
        }
    }

    std::string last() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return last_.empty() ? "refused" : last_;
    }

  private:
    std::mutex mutex_;
    std::string last_;
};

// Memory of the GPU that grows.
class DeviceMemory {
  public:
    DeviceMemory() = default;
    DeviceMemory(DeviceMemory&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;
    ~DeviceMemory() { cudaFree(data_); }

    void* at_least(std::size_t size) {
        if (size > size_) {
            check(cudaFree(std::exchange(data_, nullptr)));
            size_ = 0;
            check(cudaMalloc(&data_, size));
            size_ = size;
        }
        return data_;
    }

  private:
    void* data_ = nullptr;
    std::size_t size_ = 0;
};

// A plan between host memory; calls run one after the other, in a stream of its own.
class Network {
  public:
    explicit Network(const std::filesystem::path& file) : name_(file.string()) {
        const std::string plan = read_file(file);
        runtime_.reset(nvinfer1::createInferRuntime(logger_));
        if (!runtime_) fail();
        engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
        if (!engine_) fail();
        // Plans of TensorRT RTX that CUDA graphs may hold want their scratch memory given.
        context_.reset(engine_->createExecutionContext(
            nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
        if (!context_) fail();
        const std::int64_t scratch = engine_->getDeviceMemorySizeV2();
        context_->setDeviceMemoryV2(scratch_.at_least(static_cast<std::size_t>(scratch)), scratch);
        for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
            const char* name = engine_->getIOTensorName(i);
            TensorSpec spec{element_type(engine_->getTensorDataType(name)),
                            lengths(engine_->getTensorShape(name))};
            const bool input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
            (input ? inputs_ : outputs_)[name] = std::move(spec);
        }
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    }
    Network(const Network&) = delete;
    Network& operator=(const Network&) = delete;
    ~Network() {
        if (stream_ != nullptr) cudaStreamDestroy(stream_);
    }

    const TensorSpecs& inputs() const noexcept { return inputs_; }

    Tensors run(const Feeds& feeds) {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (const auto& [name, view] : feeds) {
            nvinfer1::Dims shape{};
            shape.nbDims = static_cast<std::int32_t>(view.shape.size());
            if (view.shape.size() > static_cast<std::size_t>(nvinfer1::Dims::MAX_DIMS)) fail();
            for (std::size_t i = 0; i < view.shape.size(); ++i) shape.d[i] = view.shape[i];
            if (!context_->setInputShape(name.c_str(), shape)) fail();
            const std::size_t bytes = count_of(view.shape) * bytes_of(view.type);
            void* place = memory_[name].at_least(bytes);
            check(cudaMemcpyAsync(place, view.data, bytes, cudaMemcpyHostToDevice, stream_));
            if (!context_->setTensorAddress(name.c_str(), place)) fail();
        }
        Tensors found;
        for (const auto& [name, spec] : outputs_) {
            Tensor tensor(spec.type, lengths(context_->getTensorShape(name.c_str())));
            void* place = memory_[name].at_least(tensor.size_in_bytes());
            if (!context_->setTensorAddress(name.c_str(), place)) fail();
            found.emplace(name, std::move(tensor));
        }
        if (!context_->enqueueV3(stream_)) fail();
        for (auto& [name, tensor] : found)
            check(cudaMemcpyAsync(tensor.bytes(), memory_[name].at_least(0), tensor.size_in_bytes(),
                                  cudaMemcpyDeviceToHost, stream_));
        check(cudaStreamSynchronize(stream_));
        return found;
    }

  private:
    [[noreturn]] void fail() {
        throw Error(ErrorCode::engine, name_ + ": TensorRT: " + logger_.last());
    }

    static Shape lengths(const nvinfer1::Dims& shape) {
        return Shape(shape.d, shape.d + std::max(shape.nbDims, 0));
    }

    std::string name_;
    Logger logger_;
    std::mutex mutex_;
    // Each outlives what follows it.
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    DeviceMemory scratch_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::map<std::string, DeviceMemory> memory_;
    TensorSpecs inputs_, outputs_;
    cudaStream_t stream_ = nullptr;
};

}  // namespace detail

// Open a plan.
inline Engine open(const std::filesystem::path& file) {
    const auto network = std::make_shared<detail::Network>(file);
    return Engine(network->inputs(), [network](const Feeds& feeds) { return network->run(feeds); });
}

// Open the networks that `bksdm build` has compiled into a folder of the bundle's engines.
inline Networks open_networks(const std::filesystem::path& folder) {
    const auto plan = [folder](const char* name) { return folder / (std::string(name) + ".plan"); };
    Networks networks;
    networks.name = "tensorrt";
    networks.text_encoder = open(plan("text_encoder"));
    networks.unet = open(plan("unet"));
    networks.vae_decoder = open(plan("vae_decoder"));
    if (const auto file = plan("vae_encoder"); std::filesystem::exists(file))
        networks.vae_encoder = [file] { return open(file); };
    return networks;
}

}  // namespace bksdm::tensorrt
