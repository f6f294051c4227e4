// Every failure is one exception.
#pragma once

#include <stdexcept>
#include <string>

namespace bksdm {

// What kind of failure it is; the numbers are those of the C interface.
enum class ErrorCode {
    request = 1,     // an option of a picture is wrong; says what it must be
    bundle = 2,      // a file of a bundle is missing or damaged; names it
    engine = 3,      // a network cannot be loaded or run
    non_finite = 4,  // a network produced NaN or infinity
    cancelled = 5,   // the caller stopped it
    failed = 6,      // anything else, as memory that is used up; only the C interface has it
};

class Error : public std::runtime_error {
  public:
    Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}

    ErrorCode code() const noexcept { return code_; }

  private:
    ErrorCode code_;
};

}  // namespace bksdm
