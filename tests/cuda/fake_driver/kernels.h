// The kernels of kernels.cu, compiled for the host.
#pragma once
#include <dlfcn.h>

#include "streams.h"

struct Kernel {
    const char* name;
    std::vector<int> alignments;  // of what each argument points to; 0 for a number
};

static const std::vector<Kernel> KERNELS = {
#include "kernel_arguments.inc"
};

extern "C" void run_kernel(void*, unsigned, unsigned, const uint64_t*);
extern "C" Result cuInit(unsigned);

static void* find_symbol(const char* name) {
    static void* self = [] {
        Dl_info info;
        dladdr((void*)cuInit, &info);
        return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    }();
    return dlsym(self, name);
}

static Result enqueue_kernel(
    const Kernel* kernel, unsigned blocks, unsigned threads, void* stream, void** arguments) {
    ALONE;
    if (!blocks || !threads || threads > 1024) return INVALID_VALUE;
    std::vector<Address> values;
    for (size_t i = 0; i < kernel->alignments.size(); ++i)
        values.push_back(*(Address*)arguments[i]);
    values.resize(8);
    void* function = find_symbol(kernel->name);
    return put(of(stream), {
        [] { return SUCCESS; },
        [=] {
            for (size_t i = 0; i < kernel->alignments.size(); ++i) {
                const Address value = values[i];
                if (!kernel->alignments[i] || !value) continue;
                if (!there(value, 1)) return ILLEGAL_ADDRESS;
                if (value % kernel->alignments[i]) return MISALIGNED_ADDRESS;
            }
            run_kernel(function, blocks, threads, values.data());
            return SUCCESS;
        },
        false,
    });
}

static const unsigned MAJOR = 8, MINOR = 9;

// A cubin runs on GPUs of its major version and at least its minor one.
static bool is_for_this_gpu(const uint8_t* elf) {
    uint32_t flags;
    memcpy(&flags, elf + 48, 4);
    const unsigned version = elf[8] >= 8 ? flags >> 8 & 0xFF : flags & 0xFF;
    return version / 10 == MAJOR && version % 10 <= MINOR;
}
