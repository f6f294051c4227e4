// What the tests are written with.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>

#include "bksdm/error.hpp"

inline int failures = 0;

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            ++failures;                                                          \
        }                                                                        \
    } while (false)

// Whether something throws an Error of a code.
template <typename Work>
bool throws(bksdm::ErrorCode code, Work work) {
    try {
        work();
    } catch (const bksdm::Error& error) {
        return error.code() == code;
    }
    return false;
}
