// The parts below a model: parts_test TOKENIZER.
#include <cstring>
#include <string>
#include <vector>

#include "bksdm/bksdm.hpp"
#include "check.hpp"
#include "small_bundle.hpp"

namespace {

using namespace bksdm;

void test_half() {
    for (std::uint32_t half = 0; half < 0x10000U; ++half) {
        const auto bits = static_cast<std::uint16_t>(half);
        const float value = from_half(bits);
        CHECK(std::isnan(value) ? (bits & 0x7C00U) == 0x7C00U : to_half(value) == bits);
    }
    // Halfway between two numbers the even one is taken.
    CHECK(to_half(1.0F + 0x1p-11F) == 0x3C00U);
    CHECK(to_half(1.0F + 0x3p-11F) == 0x3C02U);
    CHECK(to_half(65519.0F) == 0x7BFFU);
    CHECK(to_half(65520.0F) == 0x7C00U);
    CHECK(to_half(0x1p-25F) == 0);
    CHECK(to_half(-0x3p-26F) == 0x8001U);
}

void test_json() {
    const Json json =
        Json::parse("{\"a\": [1, -2.5e3, true, null], \"b\": \"\\u00e9\\ud83d\\ude80\\n\"}");
    CHECK(json.find("a")->value(1).number() == -2500);
    CHECK(json.find("a")->value(2).boolean());
    CHECK(json.find("b")->string() == "é🚀\n");
    CHECK(json.find("c") == nullptr);
    for (const char* bad : {"", "{", "[1,]", "{\"a\" 1}", "tru", "\"\\ud800\"", "\"a", "1 2", "-",
                            "{\"a\":1,}", "\"\\x\"", "\"\n\""})
        CHECK(throws(ErrorCode::bundle, [bad] { Json::parse(bad); }));
    CHECK(throws(ErrorCode::bundle, [] { Json::parse(std::string(100000, '[')); }));
}

void test_table() {
    const std::string whole = TableWriter::file(4, {TableWriter::euler(1, 0, 4, 2)});
    const TableFile file = TableFile::parse(whole);
    const auto table = file.find(Start::noise, 0);
    CHECK(file.steps() == 4 && table && table->evaluations == 4 && table->draws == 2);
    CHECK(table->rows.size() == 25 && table->rows[1] == 0 && table->rows[6] == -2.5);
    CHECK(table->carried.size() == 15);
    CHECK(!file.find(Start::image, 0) && !file.find(Start::noise, 1));
    for (std::size_t kept = 0; kept < whole.size(); ++kept)
        CHECK(throws(ErrorCode::bundle, [&] { TableFile::parse(whole.substr(0, kept)); }));
    for (std::size_t at = 0; at < whole.size(); ++at) {
        std::string damaged = whole;
        damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
        // The last four bytes of the head are nobody's.
        if (at < 36 || at >= 40)
            CHECK(throws(ErrorCode::bundle, [&] { TableFile::parse(damaged); }));
    }
}

// Values of torch 2.13.0: torch.randn(n, generator=torch.Generator().manual_seed(seed)).
void test_noise() {
    const auto near = [](const std::vector<float>& found, const std::vector<float>& wanted) {
        CHECK(found.size() == wanted.size());
        for (std::size_t i = 0; i < wanted.size(); ++i)
            CHECK(std::abs(found[i] - wanted[i]) < 2e-6F);
    };
    near(TorchCpuGenerator(0).randn(4), {1.540996F, -0.2934289F, -2.178789F, 0.5684313F});
    near(TorchCpuGenerator(0).randn(20),
         {-1.12584F,  -1.15236F,   -0.2505786F, -0.4338788F, 0.5988395F, -1.555095F, -0.3413604F,
          1.853006F,  0.4680964F,  -0.1577124F, 1.44366F,    0.2660494F, 1.389366F,  1.586334F,
          0.9462984F, -0.8436767F, 0.9318266F,  1.259009F,   2.004981F,  0.0537369F});
    // One stream, in calls of 3, 2, 17 and 1: a value that is left over is kept.
    TorchCpuGenerator stream(3);
    near(stream.randn(3), {0.8032761F, 0.1748334F, 0.0889781F});
    near(stream.randn(2), {-0.613718F, 0.04618245F});
    near(stream.randn(17),
         {-0.3397902F, 0.4936536F, -0.07758075F, -1.805364F, -0.4760309F, -0.2929125F, -0.3480893F,
          0.3487464F, 0.03706688F, 0.01341648F, 0.7736732F, -0.1092435F, -0.2712146F, 0.1416285F,
          0.1295178F, 0.6814111F, -0.9583004F});
    near(stream.randn(1), {-1.368259F});
}

// Ids of the Python package.
void test_tokenizer(const char* folder) {
    const Tokenizer tokenizer = Tokenizer::load(folder);
    const auto begins = [&](const char* prompt, std::vector<std::int64_t> wanted) {
        const Tokens tokens = tokenizer(prompt);
        CHECK(tokens.ids.size() == 77 && tokens.mask.size() == 77);
        wanted.resize(77, 685);
        CHECK(tokens.ids == wanted);
    };
    begins("a red apple", {684, 320, 568, 575, 685});
    begins("A  CafÉ e\u0301", {684, 320, 549, 69, 127, 358, 127, 358, 685});
    begins("<|endoftext|>x", {684, 685, 343, 685});
    begins("日本", {684, 162, 245, 98, 162, 250, 361, 685});
    std::string many;
    for (int i = 0; i < 100; ++i) many += "a ";
    CHECK(tokenizer(many).cut == 25);
    CHECK(tokenizer(many).ids.back() == 685 && tokenizer(many).ids[75] == 320);
    for (const char* bad : {"\xff", "\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc0\x80"})
        CHECK(throws(ErrorCode::request, [&] { tokenizer(bad); }));
    CHECK(throws(ErrorCode::request, [&] { Tokenizer::load(folder, 500)("a red apple"); }));
    CHECK(throws(ErrorCode::bundle, [] { Tokenizer::load("no such folder"); }));
}

Job job_of(std::uint32_t n, std::uint32_t draws = 0) {
    Job job;
    job.shape = {1, 1, 2, 2};
    job.table = TableFile::parse(TableWriter::file(4, {TableWriter::euler(1, 0, n, draws)}))
                    .find(Start::noise, 0);
    job.latents = {1, 2, 3, 4};
    job.noises.assign(4 * draws, 1);
    return job;
}

void test_denoising() {
    Denoising denoising(job_of(4, 2));
    std::vector<float> wanted{1, 2, 3, 4};
    const float added[] = {0.1F, 0.2F, 0.2F, 0.0F};
    for (std::size_t k = 0; k < 4; ++k) {
        CHECK(!denoising.done() && denoising.index() == k && denoising.total() == 4);
        for (std::size_t i = 0; i < 4; ++i) denoising.prediction()[i] = static_cast<float>(i + k);
        denoising.advance();
        const auto seen = denoising.denoised();
        for (std::size_t i = 0; i < 4; ++i) {
            const auto told = static_cast<float>(i + k);
            const float before = wanted[i] + (k == 0 ? 0 : added[k - 1]);
            CHECK(std::abs(seen[i] - (before - 2.5F * static_cast<float>(4 - k) * told)) < 1e-4F);
            wanted[i] -= 2.5F * told;
            CHECK(std::abs(denoising.latents()[i] - (wanted[i] + added[k])) < 1e-4F);
        }
    }
    CHECK(denoising.done());
    CHECK(throws(ErrorCode::request, [&] { denoising.advance(); }));
    // Latents that are changed stay so, while the history stays what it was.
    Denoising changed(job_of(3));
    std::fill_n(changed.prediction(), 4, 0.0F);
    changed.advance();
    changed.change({11, 12, 13, 14});
    std::fill_n(changed.prediction(), 4, 0.0F);
    changed.advance();
    CHECK((changed.latents() == std::vector<float>{11, 12, 13, 14}));
    CHECK(throws(ErrorCode::request, [&] { changed.change({1}); }));
}

void test_png() {
    Picture picture{3, 2, 3, {}};
    for (std::uint8_t i = 0; i < 18; ++i) picture.pixels.push_back(i);
    const std::string png = encode_png(picture, {{"parameters", "ä"}});
    CHECK(png.substr(1, 3) == "PNG" && png.find("iTXt") != std::string::npos);
    picture.pixels.pop_back();
    CHECK(throws(ErrorCode::request, [&] { encode_png(picture); }));
    CHECK(crc32("123456789") == 0xCBF43926U);
    CHECK(adler32("Wikipedia") == 0x11E60398U);
    CHECK(detail::spelled(7.5) == "7.5" && detail::spelled(1) == "1.0");
    CHECK(detail::spelled(1e-5) == "1e-05" && detail::spelled(123456) == "123456.0");
    CHECK(detail::spelled(1e16) == "1e+16" && detail::spelled(0.0001) == "0.0001");
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 2) return 2;
    test_half();
    test_json();
    test_table();
    test_noise();
    test_tokenizer(arguments[1]);
    test_denoising();
    test_png();
    return failures == 0 ? 0 : 1;
}
