// A model and its requests: model_test FOLDER TOKENIZER, which leaves a bundle in the folder.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "check.hpp"
#include "small_bundle.hpp"

namespace {

using namespace bksdm;

Request request_of(const char* prompt, std::uint64_t seed) {
    Request request;
    request.prompt = prompt;
    request.steps = 5;
    request.seeds = {seed};
    return request;
}

Picture grey(std::size_t side, std::size_t channels, std::uint8_t level) {
    return {side, side, channels, std::vector<std::uint8_t>(side * side * channels, level)};
}

void test_refusals(Model& model) {
    const auto refused = [&](auto change) {
        Request request = request_of("a", 1);
        change(request);
        return throws(ErrorCode::request, [&] { model.generate(request); });
    };
    CHECK(refused([](Request& r) { r.steps = 0; }));
    CHECK(refused([](Request& r) { r.steps = 6; }));
    CHECK(refused([](Request& r) { r.sampler = "../default"; }));
    CHECK(refused([](Request& r) { r.height = 60; }));
    CHECK(refused([](Request& r) { r.seeds.clear(); }));
    CHECK(refused([](Request& r) { r.seeds = {1, 2}; }));
    CHECK(refused([](Request& r) { r.images = 0; }));
    CHECK(refused([](Request& r) { r.mask = grey(64, 1, 0); }));
    CHECK(refused([](Request& r) { r.strength = 0.5; }));
    CHECK(refused([](Request& r) { r.image = grey(64, 1, 0); }));
    CHECK(refused([](Request& r) { r.image = grey(60, 3, 0); }));
    CHECK(refused([](Request& r) { r.guidance.rescale = 2; }));
    CHECK(refused([](Request& r) { r.guidance.scale = NAN; }));
    CHECK(refused([](Request& r) {
        r.image = grey(64, 3, 9);
        r.strength = 0.1;
    }));
}

void test_networks(const char* bundle) {
    const auto refused = [bundle](ErrorCode code, auto change) {
        Networks networks = small_networks();
        change(networks);
        return throws(code, [&] {
            Model model(bundle, std::move(networks));
            model.generate(request_of("a", 1));
        });
    };
    CHECK(refused(ErrorCode::bundle, [](Networks& n) { std::swap(n.unet, n.vae_decoder); }));
    CHECK(refused(ErrorCode::engine, [](Networks& n) {
        n.vae_decoder = Engine(n.vae_decoder.inputs(), [](const Feeds&) { return Tensors(); });
    }));
    CHECK(refused(ErrorCode::non_finite, [](Networks& n) {
        n.unet = Engine(n.unet.inputs(), [](const Feeds& feeds) {
            Tensors outputs;
            Tensor noise(ElementType::float32, feeds.at("sample").shape);
            const std::vector<float> nan(noise.count(), NAN);
            store_floats(nan.data(), nan.size(), ElementType::float32, noise.bytes());
            outputs.emplace("out_sample", std::move(noise));
            return outputs;
        });
    }));
    CHECK(throws(ErrorCode::bundle, [] { Model("no such folder", small_networks()); }));
}

void test_cancelling(const char* bundle, Model& model) {
    Request request = request_of("a", 1);
    std::size_t calls = 0;
    request.on_step = [&](Denoising& denoising) {
        CHECK(denoising.index() == ++calls);
        return calls < 2;
    };
    CHECK(throws(ErrorCode::cancelled, [&] { model.generate(request); }));
    CHECK(calls == 2);
    // From another thread, while the UNet runs: no other evaluation begins.
    std::mutex mutex;
    std::condition_variable changed;
    int evaluations = 0;
    bool gone = false;
    Networks networks = small_networks();
    auto inner = std::make_shared<Engine>(std::move(networks.unet));
    networks.unet = Engine(inner->inputs(), [&, inner](const Feeds& feeds) {
        std::unique_lock<std::mutex> lock(mutex);
        ++evaluations;
        changed.notify_all();
        if (evaluations == 2) changed.wait(lock, [&] { return gone; });
        return (*inner)(feeds);
    });
    Model slow(bundle, std::move(networks));
    Request watched = request_of("a", 1);
    watched.cancellation = Cancellation();
    std::thread other([&, handle = *watched.cancellation] {
        std::unique_lock<std::mutex> lock(mutex);
        // Whatever goes wrong, the test ends.
        changed.wait_for(lock, std::chrono::seconds(60), [&] { return evaluations == 2; });
        handle.cancel();
        gone = true;
        changed.notify_all();
    });
    CHECK(throws(ErrorCode::cancelled, [&] { slow.generate(watched); }));
    other.join();
    CHECK(evaluations == 2);
}

// Pictures do not depend on what they are drawn with.
void test_batches_and_threads(Model& model) {
    std::vector<std::vector<std::uint8_t>> alone;
    for (std::uint64_t seed = 0; seed < 4; ++seed)
        alone.push_back(model.generate(request_of("a red apple", seed)).images[0].pixels);
    CHECK(alone[0] != alone[1]);
    std::vector<Run> runs;
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
        runs.push_back(model.start(request_of("a red apple", seed)));
        std::vector<Run*> joined;
        for (Run& run : runs) joined.push_back(&run);
        model.step(joined);
    }
    for (std::size_t i = 0; i < runs.size(); ++i) {
        while (!runs[i].done()) model.step({&runs[i]});
        CHECK(model.finish(runs[i]).images[0].pixels == alone[i]);
    }
    Request each = request_of("a red apple", 0);
    each.images = 4;
    each.seeds = {0, 1, 2, 3};
    const Result batch = model.generate(each);
    for (std::size_t i = 0; i < 4; ++i) CHECK(batch.images[i].pixels == alone[i]);
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (std::uint64_t t = 0; t < 8; ++t)
        threads.emplace_back([&, t] {
            for (int i = 0; i < 5; ++i)
                if (model.generate(request_of("a red apple", t % 4)).images[0].pixels !=
                    alone[t % 4])
                    ++wrong;
        });
    for (auto& thread : threads) thread.join();
    CHECK(wrong == 0);
}

void test_images(Model& model) {
    Request request = request_of("a", 1);
    request.image = grey(64, 3, 200);
    request.strength = 0;
    const Result kept = model.generate(request);
    CHECK(kept.images[0].width == 64);
    request.strength = 0.8;
    CHECK(model.generate(request).images[0].pixels != kept.images[0].pixels);
    // What a black mask keeps is the picture itself, whatever the seed; a white one keeps nothing.
    request.strength.reset();
    request.mask = grey(64, 1, 0);
    const auto black = model.generate(request).images[0].pixels;
    request.mask = grey(64, 1, 255);
    CHECK(model.generate(request).images[0].pixels != black);
    request.image.reset();
    request.mask.reset();
    CHECK(model.generate(request).images[0].pixels != black);
}

// 10,000 calls: resident memory stays what it was after the first thousand.
std::size_t resident() {
    std::ifstream status("/proc/self/statm");
    std::size_t total = 0, pages = 0;
    status >> total >> pages;
    return pages * 4096;
}

void test_growth(Model& model, int calls) {
    std::size_t before = 0;
    for (int i = 0; i < calls; ++i) {
        if (i == calls / 10) before = resident();
        Request request =
            request_of(i % 3 == 0 ? "a red apple" : "a", static_cast<std::uint64_t>(i));
        if (i % 5 == 0) request.on_step = [](Denoising&) { return false; };
        try {
            model.generate(request);
        } catch (const Error& error) {
            CHECK(error.code() == ErrorCode::cancelled);
        }
    }
    const std::size_t after = resident();
    std::printf("%d calls: %zu bytes resident, then %zu\n", calls, before, after);
    CHECK(after < before + (std::size_t{1} << 20));
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 3) return 2;
    write_bundle(arguments[1], arguments[2]);
    Model model(arguments[1], small_networks());
    test_refusals(model);
    test_networks(arguments[1]);
    test_cancelling(arguments[1], model);
    test_batches_and_threads(model);
    test_images(model);
    if (count > 3) test_growth(model, std::atoi(arguments[3]));
    return failures == 0 ? 0 : 1;
}
