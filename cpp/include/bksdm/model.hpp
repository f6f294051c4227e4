// A bundle with its networks: what programs use.
//
//     bksdm::Model model("bundle", bksdm::openvino::open_networks("bundle"));
//     bksdm::Result result = model.generate(request);
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "bksdm/bundle.hpp"
#include "bksdm/engine.hpp"
#include "bksdm/noise.hpp"
#include "bksdm/noise_predictor.hpp"
#include "bksdm/picture_record.hpp"
#include "bksdm/prompt_encoder.hpp"
#include "bksdm/request.hpp"
#include "bksdm/sampling.hpp"
#include "bksdm/vae_encoder.hpp"

namespace bksdm {

// Finished pictures. Seconds are wall time.
struct Result {
    std::vector<Picture> images;
    std::vector<TextChunks> records;  // of each image, for encode_png
    std::size_t cut_tokens = 0;       // of the prompt, beyond what the text encoder takes
    double seconds = 0;
};

// A request on its way, for programs that drive the steps themselves. One thread at a time uses it.
class Run {
  public:
    bool done() const noexcept { return denoising_.done(); }
    Denoising& denoising() noexcept { return denoising_; }
    const Request& request() const noexcept { return request_; }

  private:
    friend class Model;

    Run(Request request, Denoising denoising, std::shared_ptr<const TableFile> tables)
        : request_(std::move(request)),
          denoising_(std::move(denoising)),
          tables_(std::move(tables)) {}

    Request request_;
    Denoising denoising_;
    std::shared_ptr<const TableFile> tables_;
    std::size_t cut_ = 0;
    std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
};

// A bundle and its networks. Threads share it. It owns the engines, and is neither copied nor
// moved.
class Model {
  public:
    Model(const std::filesystem::path& bundle, Networks networks)
        : bundle_(Bundle::open(bundle)),
          networks_(std::move(networks)),
          encode_(Tokenizer::load(bundle / "tokenizer", bundle_.text_embeddings),
                  networks_.text_encoder, bundle_.masks_padding),
          predict_(networks_.unet) {
        networks_.vae_decoder.input("latent_sample");
    }
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    const Bundle& bundle() const noexcept { return bundle_; }
    const Tokenizer& tokenizer() const noexcept { return encode_.tokenizer(); }

    // Draw. The callback of the request is called after every step; it, or the cancellation, ends
    // the drawing with an Error of code cancelled.
    Result generate(Request request) {
        Run run = start(std::move(request));
        while (!run.done()) step({&run});
        return finish(run);
    }

    // Begin a request: its text is encoded, its noise drawn, and no step made.
    Run start(Request request) {
        const auto began = std::chrono::steady_clock::now();
        check(request);
        stop_where_cancelled(request);
        const LatentShape shape = shape_of(request);
        auto tables = tables_for(request.sampler, request.steps);
        Job job;
        job.shape = shape;
        job.guidance = request.guidance;
        job.table = table_for(request, *tables);
        predict_.check(*job.table);
        begin(request, job);
        std::vector<std::string> texts{request.prompt};
        if (job.guidance.on()) texts.push_back(request.negative_prompt);
        const auto encoded = encode_(texts);
        job.conditional = encoded[0]->values;
        job.tokens = encoded[0]->tokens;
        if (job.guidance.on()) job.unconditional = encoded[1]->values;
        stop_where_cancelled(request);
        Run run(std::move(request), Denoising(std::move(job)), std::move(tables));
        run.cut_ = encoded[0]->cut;
        run.began_ = began;
        return run;
    }

    // Make the next step of every run, none of them done, in as few calls of the UNet as possible.
    // A cancellation of one of them is noticed before any has made it, a callback's after all have.
    void step(const std::vector<Run*>& runs) {
        for (Run* run : runs) stop_where_cancelled(run->request_);
        std::vector<Denoising*> denoisings;
        for (Run* run : runs) denoisings.push_back(&run->denoising_);
        predict_(denoisings);
        for (Denoising* denoising : denoisings) denoising->advance();
        bool stopped = false;
        for (Run* run : runs)
            if (run->request_.on_step && !run->request_.on_step(run->denoising_)) stopped = true;
        if (stopped) throw Error(ErrorCode::cancelled, "cancelled by the callback");
    }

    // Decode the pictures of a run that is done.
    Result finish(Run& run) {
        if (!run.done()) throw Error(ErrorCode::request, "the run is not done");
        const LatentShape& shape = run.denoising_.job().shape;
        Result result;
        result.images = decode(run.denoising_.latents(), shape, &run.request_);
        result.cut_tokens = run.cut_;
        for (std::size_t i = 0; i < result.images.size(); ++i)
            result.records.push_back(picture_record(
                run.request_, bundle_, run.tables_->description(), networks_.name,
                precision(), shape.height * bundle_.vae_scale, shape.width * bundle_.vae_scale, i));
        result.seconds =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - run.began_).count();
        return result;
    }

    // What the UNet computes in, as a picture's record has it.
    std::string precision() const {
        if (!networks_.precision.empty()) return networks_.precision;
        if (!bundle_.quantized.empty()) return bundle_.quantized;
        const bool half = networks_.unet.input("sample").type == ElementType::float16;
        return half ? "float16" : "float32";
    }

    // Pictures of latents [images, channels, height, width], which may be those of any step.
    std::vector<Picture> decode(const std::vector<float>& latents, const LatentShape& shape,
                                const Request* request = nullptr) const {
        if (latents.size() != shape.size())
            throw Error(ErrorCode::request, "latents are of another shape");
        const Engine& decoder = networks_.vae_decoder;
        const ElementType type = decoder.input("latent_sample").type;
        const std::size_t one = shape.of_one();
        const std::size_t height = shape.height * bundle_.vae_scale;
        const std::size_t width = shape.width * bundle_.vae_scale;
        const auto scaling = static_cast<float>(bundle_.scaling_factor);
        const auto wide = [](std::size_t n) { return static_cast<std::int64_t>(n); };
        std::vector<Picture> pictures;
        std::vector<float> scaled(one);
        // One at a time: the VAE's activations, not its weights, fill memory.
        for (std::size_t i = 0; i < shape.images; ++i) {
            if (request != nullptr) stop_where_cancelled(*request);
            for (std::size_t k = 0; k < one; ++k) scaled[k] = latents[i * one + k] / scaling;
            Tensor sample(type, {1, wide(shape.channels), wide(shape.height), wide(shape.width)});
            store_floats(scaled.data(), one, type, sample.bytes());
            Tensors outputs = decoder({{"latent_sample", sample.view()}});
            const std::vector<float> pixels = to_floats(take(outputs, "sample"));
            if (pixels.size() != 3 * height * width)
                throw Error(ErrorCode::engine, "the VAE decoder returned another shape");
            require_finite(pixels.data(), pixels.size(), "pixels of the VAE decoder");
            pictures.push_back(to_picture(pixels.data(), height, width));
        }
        return pictures;
    }

  private:
    static void stop_where_cancelled(const Request& request) {
        if (request.cancellation && request.cancellation->cancelled())
            throw Error(ErrorCode::cancelled, "cancelled");
    }

    LatentShape shape_of(const Request& request) const {
        const auto side = [&](std::size_t asked, std::size_t image, std::size_t own,
                              const char* name) {
            const std::size_t found = asked != 0 ? asked : request.image ? image : own;
            if (found == 0 || found > 8192 || found % bundle_.vae_scale != 0)
                throw Error(ErrorCode::request, std::string(name) + " must be a multiple of " +
                                                    std::to_string(bundle_.vae_scale));
            const auto fits = [&](const std::optional<Picture>& picture, bool tall) {
                return !picture || (tall ? picture->height : picture->width) == found;
            };
            const bool tall = name[0] == 'h';
            if (!fits(request.image, tall) || !fits(request.mask, tall))
                throw Error(ErrorCode::request,
                            std::string("image and mask must be of the ") + name + " to draw");
            return found / bundle_.vae_scale;
        };
        const std::size_t tall = request.image ? request.image->height : 0;
        const std::size_t wide = request.image ? request.image->width : 0;
        return {request.images, bundle_.latent_channels,
                side(request.height, tall, bundle_.height, "height"),
                side(request.width, wide, bundle_.width, "width")};
    }

    // The tables of a sampler, from the bundle, read once.
    std::shared_ptr<const TableFile> tables_for(const std::string& sampler, int steps) {
        const std::string name = sampler.empty() ? "default" : sampler;
        for (const char c : name)
            if (c == '/' || c == '\\' || c == '\0')
                throw Error(ErrorCode::request, "sampler must be a name");
        const std::string file = name + "-" + std::to_string(steps) + ".table";
        const std::lock_guard<std::mutex> lock(mutex_);
        auto& known = tables_[file];
        if (!known) {
            const auto path = bundle_.path / "tables" / file;
            if (!std::filesystem::exists(path))
                throw Error(ErrorCode::request,
                            path.string() +
                                ": no such table; write it with `bksdm info BUNDLE "
                                "--table " +
                                name + ":" + std::to_string(steps) + " -o FILE`");
            known = std::make_shared<const TableFile>(TableFile::parse(read_file(path)));
            if (known->steps() != steps)
                throw Error(ErrorCode::bundle, path.string() + ": is of other steps");
        }
        return known;
    }

    static std::shared_ptr<const StepTable> table_for(const Request& request,
                                                      const TableFile& tables) {
        const Start start = !request.image ? Start::noise
                            : request.mask ? Start::masked_image
                                           : Start::image;
        auto found = tables.find(start, first_step(request));
        if (!found)
            throw Error(ErrorCode::request,
                        "the sampler's file has no table for this strength and mask; write it with "
                        "`bksdm info BUNDLE --table SAMPLER:STEPS:image`, or start from noise");
        return found;
    }

    // Draw all the noise, in the order in which torch draws it, and encode what is started from.
    void begin(const Request& request, Job& job) {
        const StepTable& table = *job.table;
        const std::size_t one = job.shape.of_one(), size = job.shape.size();
        BatchNoise source(request.seeds, request.images);
        if (!request.image) {
            job.latents = source.draw(one);
            for (float& value : job.latents) value *= static_cast<float>(table.init_noise_sigma);
        } else {
            begin_from_image(request, job, source);
        }
        job.noises.reserve(table.draws * size);
        for (std::size_t i = 0; i < table.draws; ++i) {
            const auto drawn = source.draw(one);
            job.noises.insert(job.noises.end(), drawn.begin(), drawn.end());
        }
    }

    // x = α x_0 + σ z, where x_0 is drawn from the encoder's distribution.
    void begin_from_image(const Request& request, Job& job, BatchNoise& source) {
        const StepTable& table = *job.table;
        const std::size_t one = job.shape.of_one(), size = job.shape.size();
        if (request.mask && job.shape.channels != 4)
            throw Error(ErrorCode::request, "mask needs a model of 4 latent channels");
        const auto [mean, deviation] =
            encode_picture(vae_encoder(), *request.image, bundle_.scaling_factor, one);
        // With a seed for each, images draw for themselves; a picture to inpaint is drawn once.
        const std::size_t drawn = !request.mask && source.each() ? request.images : 1;
        const auto unit = source.draw(one, drawn);
        std::vector<float> clean(size);
        for (std::size_t i = 0; i < size; ++i)
            clean[i] = mean[i % one] + deviation[i % one] * unit[i % unit.size()];
        std::vector<float> noise = source.draw(one);
        // diffusers encodes what the mask leaves as well, for UNets that are shown it.
        if (request.mask) source.draw(one, 1);
        job.latents.resize(size);
        if (request.mask && first_step(request) == 0) {
            for (std::size_t i = 0; i < size; ++i)
                job.latents[i] = noise[i] * static_cast<float>(table.init_noise_sigma);
        } else {
            const auto alpha = static_cast<float>(table.levels[0]);
            const auto sigma = static_cast<float>(table.levels[1]);
            for (std::size_t i = 0; i < size; ++i)
                job.latents[i] = alpha * clean[i] + sigma * noise[i];
        }
        if (!request.mask) return;
        const std::vector<bool> mask = to_mask(*request.mask, bundle_.vae_scale);
        std::vector<bool> masks;
        for (std::size_t i = 0; i < request.images; ++i)
            masks.insert(masks.end(), mask.begin(), mask.end());
        job.inpainting = Inpainting{std::move(clean), std::move(noise), std::move(masks)};
    }

    // The VAE encoder, loaded with the first picture to start from.
    const Engine& vae_encoder() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!vae_encoder_) {
            if (!networks_.vae_encoder)
                throw Error(ErrorCode::request, "there is no VAE encoder, which an image needs");
            vae_encoder_ = networks_.vae_encoder();
        }
        return vae_encoder_;
    }

    Bundle bundle_;
    Networks networks_;
    Engine vae_encoder_;
    PromptEncoder encode_;
    NoisePredictor predict_;
    std::mutex mutex_;
    std::map<std::string, std::shared_ptr<const TableFile>> tables_;
};

}  // namespace bksdm
