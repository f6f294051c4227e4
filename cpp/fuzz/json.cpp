// Any bytes are JSON or an Error of code bundle.
#include <cstdint>
#include <string_view>

#include "bksdm/json.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        bksdm::Json::parse({reinterpret_cast<const char*>(data), size});
    } catch (const bksdm::Error& error) {
        if (error.code() != bksdm::ErrorCode::bundle) __builtin_trap();
    }
    return 0;
}
