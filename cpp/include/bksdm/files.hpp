// Whole files.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include "bksdm/error.hpp"

namespace bksdm {

// Return a file's bytes; a missing one is an error of the bundle that it belongs to.
inline std::string read_file(const std::filesystem::path& path) {
    std::error_code failed;
    if (!std::filesystem::is_regular_file(path, failed))
        throw Error(ErrorCode::bundle, path.string() + ": missing");
    const auto size = std::filesystem::file_size(path, failed);
    std::ifstream stream(path, std::ios::binary);
    std::string content(failed ? 0 : static_cast<std::size_t>(size), '\0');
    if (failed || !stream.read(content.data(), static_cast<std::streamsize>(content.size())))
        throw Error(ErrorCode::bundle, path.string() + ": cannot be read");
    return content;
}

}  // namespace bksdm
