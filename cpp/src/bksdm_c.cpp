// The C interface: bksdm.h on the headers.
#include "bksdm.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "bksdm/bksdm.hpp"
#ifdef BKSDM_WITH_OPENVINO
#include "bksdm/openvino.hpp"
#endif
#ifdef BKSDM_WITH_ONNXRUNTIME
#include "bksdm/onnxruntime.hpp"
#endif
#ifdef BKSDM_WITH_TENSORRT
#include "bksdm/tensorrt.hpp"
#endif

struct bksdm_error {
    std::int32_t code;
    std::string message;
};

struct bksdm_model {
    bksdm_model(const std::string& bundle, bksdm::Networks networks)
        : model(bundle, std::move(networks)) {}
    bksdm::Model model;
};

struct bksdm_run {
    bksdm::Run run;
};

struct bksdm_result {
    bksdm::Result result;
    std::vector<std::string> pngs;
};

struct bksdm_cancellation {
    bksdm::Cancellation cancellation;
};

struct bksdm_outputs {
    bksdm::Tensors tensors;
};

namespace {

// Run what may throw, and return its code.
template <typename Work>
std::int32_t guarded(bksdm_error** error, Work work) noexcept {
    if (error != nullptr) *error = nullptr;
    const auto tell = [error](std::int32_t code, const char* message) {
        try {
            if (error != nullptr) *error = new bksdm_error{code, message};
        } catch (const std::bad_alloc&) {  // then there is a code and no message
        }
        return code;
    };
    try {
        work();
        return BKSDM_OK;
    } catch (const bksdm::Error& failed) {
        return tell(static_cast<std::int32_t>(failed.code()), failed.what());
    } catch (const std::exception& failed) {
        return tell(BKSDM_FAILED, failed.what());
    } catch (...) {
        return tell(BKSDM_FAILED, "unknown");
    }
}

[[noreturn]] void refuse(const char* what) { throw bksdm::Error(bksdm::ErrorCode::request, what); }

std::string text(const char* given) { return given == nullptr ? std::string() : given; }

// A struct as this library knows it: what an older header lacks has its default, and what a newer
// one has beyond it is refused, as nothing here could do it.
template <typename Struct>
Struct known(const Struct* given, void (*init)(Struct*, std::size_t)) {
    if (given == nullptr) refuse("a struct is NULL");
    if (given->struct_size < sizeof(std::size_t) || given->struct_size > sizeof(Struct))
        refuse("struct_size is not that of this library's header, or of an older one");
    Struct found;
    init(&found, sizeof found);
    std::memcpy(&found, given, given->struct_size);
    found.struct_size = sizeof found;
    return found;
}

template <typename Struct>
void fill(Struct* to, const Struct& defaults, std::size_t size) {
    if (to == nullptr) return;
    const std::size_t written = std::min(size, sizeof(Struct));
    std::memcpy(to, &defaults, written);
    to->struct_size = written;
}

bksdm::Picture picture(const bksdm_picture& given) {
    if (given.pixels == nullptr || given.width > 65536 || given.height > 65536 ||
        given.channels > 4)
        refuse("a picture has no pixels, or is too large");
    const std::size_t count = given.width * given.height * given.channels;
    return {given.width, given.height, given.channels, {given.pixels, given.pixels + count}};
}

bksdm::Request request_of(const bksdm_request* pointer) {
    const bksdm_request given = known(pointer, bksdm_request_init);
    bksdm::Request request;
    request.prompt = text(given.prompt);
    request.negative_prompt = text(given.negative_prompt);
    request.sampler = text(given.sampler);
    request.width = given.width;
    request.height = given.height;
    request.steps = static_cast<int>(std::min(given.steps, std::uint32_t{1000000}));
    request.images = given.images;
    request.guidance = {given.guidance_scale, given.guidance_rescale, given.guidance_start,
                        given.guidance_end};
    if (given.seeds != nullptr) request.seeds.assign(given.seeds, given.seeds + given.seed_count);
    if (given.image != nullptr) request.image = picture(*given.image);
    if (given.mask != nullptr) request.mask = picture(*given.mask);
    if (given.strength >= 0) request.strength = given.strength;
    if (given.on_step != nullptr)
        request.on_step = [call = given.on_step, user = given.user](bksdm::Denoising& denoising) {
            return call(user, denoising.index(), denoising.total()) != 0;
        };
    if (given.cancellation != nullptr) request.cancellation = given.cancellation->cancellation;
    return request;
}

bksdm::ElementType element_type(std::int32_t type) {
    if (type < BKSDM_FLOAT32 || type > BKSDM_INT32) refuse("a tensor is of an unknown type");
    return static_cast<bksdm::ElementType>(type);
}

bksdm::Shape shape_of(const bksdm_tensor& tensor) {
    if (tensor.rank > 8 || (tensor.shape == nullptr && tensor.rank != 0))
        refuse("a tensor has no shape");
    return tensor.rank == 0 ? bksdm::Shape{}
                            : bksdm::Shape(tensor.shape, tensor.shape + tensor.rank);
}

bksdm::Engine engine_of(const bksdm_network& network, const char* name) {
    if (network.run == nullptr || (network.inputs == nullptr && network.input_count != 0))
        refuse("a network has no function or no inputs");
    bksdm::TensorSpecs inputs;
    for (std::size_t i = 0; i < network.input_count; ++i) {
        const bksdm_tensor& input = network.inputs[i];
        inputs[text(input.name)] = {element_type(input.type), shape_of(input)};
    }
    const auto run = [network, told = std::string(name)](const bksdm::Feeds& feeds) {
        std::vector<bksdm_tensor> given;
        for (const auto& [input, view] : feeds)
            given.push_back({input.c_str(), static_cast<std::int32_t>(view.type), view.shape.size(),
                             view.shape.data(), view.data});
        bksdm_outputs outputs;
        if (network.run(network.user, given.data(), given.size(), &outputs) != 0)
            throw bksdm::Error(bksdm::ErrorCode::engine, told + ": its function has failed");
        return std::move(outputs.tensors);
    };
    return bksdm::Engine(std::move(inputs), run);
}

bksdm::Networks open_engine([[maybe_unused]] const std::string& bundle,
                            const bksdm_model_options& options) {
    const std::string engine = text(options.engine);
#ifdef BKSDM_WITH_OPENVINO
    if (engine == "openvino")
        return bksdm::openvino::open_networks(
            bundle, {text(options.device), options.threads, text(options.precision)},
            text(options.folder));
#endif
#ifdef BKSDM_WITH_ONNXRUNTIME
    if (engine == "onnxruntime")
        return bksdm::onnxruntime::open_networks(bundle, {options.threads, text(options.folder)});
#endif
#ifdef BKSDM_WITH_TENSORRT
    if (engine == "tensorrt") return bksdm::tensorrt::open_networks(text(options.folder));
#endif
    throw bksdm::Error(bksdm::ErrorCode::engine,
                       "this library was built without the engine " + engine);
}

}  // namespace

extern "C" {

const char* bksdm_version(void) { return BKSDM_VERSION; }

int32_t bksdm_error_code(const bksdm_error* error) {
    return error == nullptr ? static_cast<int32_t>(BKSDM_OK) : error->code;
}

const char* bksdm_error_message(const bksdm_error* error) {
    return error == nullptr ? "" : error->message.c_str();
}

void bksdm_error_free(bksdm_error* error) { delete error; }

bksdm_cancellation* bksdm_cancellation_new(void) {
    bksdm_cancellation* made = nullptr;
    guarded(nullptr, [&] { made = new bksdm_cancellation; });
    return made;
}

void bksdm_cancel(const bksdm_cancellation* cancellation) {
    if (cancellation != nullptr) cancellation->cancellation.cancel();
}

void bksdm_cancellation_free(bksdm_cancellation* cancellation) { delete cancellation; }

void bksdm_request_init(bksdm_request* request, size_t size) {
    bksdm_request defaults{};
    defaults.steps = 50;
    defaults.images = 1;
    defaults.guidance_scale = 7.5;
    defaults.guidance_end = 1;
    defaults.strength = -1;
    fill(request, defaults, size);
}

void bksdm_model_options_init(bksdm_model_options* options, size_t size) {
    bksdm_model_options defaults{};
    defaults.engine = "openvino";
    defaults.device = "CPU";
    fill(options, defaults, size);
}

void bksdm_networks_init(bksdm_networks* networks, size_t size) {
    bksdm_networks defaults{};
    defaults.name = "own";
    fill(networks, defaults, size);
}

int32_t bksdm_model_open(const char* bundle, const bksdm_model_options* options,
                         bksdm_model** model, bksdm_error** error) {
    return guarded(error, [&] {
        const auto given = known(options, bksdm_model_options_init);
        *model = new bksdm_model(text(bundle), open_engine(text(bundle), given));
    });
}

int32_t bksdm_outputs_add(bksdm_outputs* outputs, const bksdm_tensor* tensor) {
    return guarded(nullptr, [&] {
        bksdm::Tensor copy(element_type(tensor->type), shape_of(*tensor));
        if (copy.size_in_bytes() != 0)
            std::memcpy(copy.bytes(), tensor->data, copy.size_in_bytes());
        outputs->tensors.insert_or_assign(text(tensor->name), std::move(copy));
    });
}

int32_t bksdm_model_open_with(const char* bundle, const bksdm_networks* networks,
                              bksdm_model** model, bksdm_error** error) {
    return guarded(error, [&] {
        const auto given = known(networks, bksdm_networks_init);
        bksdm::Networks made;
        made.name = text(given.name);
        made.text_encoder = engine_of(given.text_encoder, "text_encoder");
        made.unet = engine_of(given.unet, "unet");
        made.vae_decoder = engine_of(given.vae_decoder, "vae_decoder");
        if (given.vae_encoder.run != nullptr) {
            // Engines are moved, functions copied.
            auto encoder =
                std::make_shared<bksdm::Engine>(engine_of(given.vae_encoder, "vae_encoder"));
            made.vae_encoder = [encoder] { return std::move(*encoder); };
        }
        *model = new bksdm_model(text(bundle), std::move(made));
    });
}

void bksdm_model_free(bksdm_model* model) { delete model; }

int32_t bksdm_tokenize(bksdm_model* model, const char* prompt, int64_t* ids, size_t capacity,
                       size_t* count, size_t* cut, bksdm_error** error) {
    return guarded(error, [&] {
        const bksdm::Tokens tokens = model->model.tokenizer()(text(prompt));
        const std::size_t written = std::min(capacity, tokens.ids.size());
        if (ids != nullptr) std::copy_n(tokens.ids.begin(), written, ids);
        if (count != nullptr) *count = tokens.ids.size();
        if (cut != nullptr) *cut = tokens.cut;
    });
}

int32_t bksdm_generate(bksdm_model* model, const bksdm_request* request, bksdm_result** result,
                       bksdm_error** error) {
    return guarded(
        error, [&] { *result = new bksdm_result{model->model.generate(request_of(request)), {}}; });
}

int32_t bksdm_run_start(bksdm_model* model, const bksdm_request* request, bksdm_run** run,
                        bksdm_error** error) {
    return guarded(error, [&] { *run = new bksdm_run{model->model.start(request_of(request))}; });
}

int32_t bksdm_run_step(bksdm_model* model, bksdm_run* const* runs, size_t count,
                       bksdm_error** error) {
    return guarded(error, [&] {
        std::vector<bksdm::Run*> joined;
        for (std::size_t i = 0; i < count; ++i) joined.push_back(&runs[i]->run);
        model->model.step(joined);
    });
}

int32_t bksdm_run_is_done(const bksdm_run* run) { return run->run.done() ? 1 : 0; }

int32_t bksdm_run_finish(bksdm_model* model, bksdm_run* run, bksdm_result** result,
                         bksdm_error** error) {
    return guarded(error, [&] { *result = new bksdm_result{model->model.finish(run->run), {}}; });
}

void bksdm_run_free(bksdm_run* run) { delete run; }

size_t bksdm_result_count(const bksdm_result* result) { return result->result.images.size(); }

int32_t bksdm_result_picture(const bksdm_result* result, size_t index, bksdm_picture* picture) {
    if (index >= result->result.images.size()) return BKSDM_REQUEST;
    const auto& found = result->result.images[index];
    *picture = {found.pixels.data(), found.width, found.height, found.channels};
    return BKSDM_OK;
}

int32_t bksdm_result_png(bksdm_result* result, size_t index, const uint8_t** bytes, size_t* count,
                         bksdm_error** error) {
    return guarded(error, [&] {
        if (index >= result->result.images.size()) refuse("there is no such picture");
        result->pngs.resize(result->result.images.size());
        std::string& png = result->pngs[index];
        if (png.empty())
            png = bksdm::encode_png(result->result.images[index], result->result.records[index]);
        *bytes = reinterpret_cast<const uint8_t*>(png.data());
        *count = png.size();
    });
}

size_t bksdm_result_cut_tokens(const bksdm_result* result) { return result->result.cut_tokens; }

double bksdm_result_seconds(const bksdm_result* result) { return result->result.seconds; }

void bksdm_result_free(bksdm_result* result) { delete result; }

}  // extern "C"
