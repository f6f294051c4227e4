// A stand-in for the NVIDIA driver, libcuda.so.1, in host memory: what bksdm calls of it through
// cuda-core. Whatever else is called says its name and fails.
//
// It refuses what the driver refuses, and is strict where the driver is lenient:
// - Work runs when the host waits and not before, so a missing wait shows stale data.
// - Memory starts as NaN, lies between bytes that must not change, and is not used again once freed.
// - Host memory that is copied has to be page-locked; it is NaN from the copy to the wait.
// - Nothing is allocated, freed or waited for in a stream that is recorded.
// An error of work that ran is told by the wait for it, and once: the next test begins anew.
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

typedef uint64_t Address;

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    MISALIGNED_ADDRESS = 716,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
};

static const std::map<int, const char*> NAMES = {
    {SUCCESS, "CUDA_SUCCESS"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
    {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
    {MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
    {STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
};

// The state that all threads share, but for their current contexts.
static std::recursive_mutex state;
#define ALONE std::lock_guard<std::recursive_mutex> alone(state)

static const int DEVICES = 2;
// What was made while it was is freed afterwards, too.
static bool present = false;
static int recordings = 0;
struct Context {
    int device;
};
static Context contexts[DEVICES] = {{0}, {1}};
static thread_local Context* current = nullptr;

#define NEEDS_CONTEXT \
    if (!current) return INVALID_CONTEXT

// ---- memory ----------------------------------------------------------------------------------

static const Address ARENA = 64ull << 30, ALIGNMENT = 512, FENCE = 256;
static const int FENCE_BYTE = 0xFE, UNSET_BYTE = 0xFF;  // both are NaN in every float type

struct Allocation {
    size_t size;
    bool pinned;
    bool freed;  // nothing may be enqueued that uses it; what was before may run
};

// Addresses are not used again.
static std::map<Address, Allocation> allocations;
static Address arena = 0, unused = 0;
static size_t in_use = 0, limit = 16ull << 30;

static Allocation* find(Address address, size_t size) {
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return nullptr;
    auto found = std::prev(after);
    return address + size <= found->first + found->second.size ? &found->second : nullptr;
}

static bool usable(Address address, size_t size) {
    const Allocation* found = find(address, size);
    return found && !found->freed;
}

static bool there(Address address, size_t size) { return find(address, size); }

static void fence(Address first) { memset((void*)first, FENCE_BYTE, FENCE); }

// Mended where it was not, so that it is told once.
static bool fence_is_whole(Address first) {
    static const std::string whole(FENCE, (char)FENCE_BYTE);
    const bool is = !memcmp((void*)first, whole.data(), FENCE);
    if (!is) fence(first);
    return is;
}

static bool fences_are_whole() {
    bool whole = true;
    for (auto& [address, allocation] : allocations)
        whole = fence_is_whole(address - FENCE) & fence_is_whole(address + allocation.size) & whole;
    return whole;
}

static Result allocate(Address* address, size_t size, bool pinned) {
    ALONE;
    NEEDS_CONTEXT;
    if (!size) return INVALID_VALUE;
    if (size > limit - in_use) return OUT_OF_MEMORY;
    if (!arena) {
        void* room = mmap(nullptr, ARENA, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (room == MAP_FAILED) return OUT_OF_MEMORY;
        arena = unused = (Address)room;
    }
    const Address first = (unused + FENCE + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (first + size + FENCE > arena + ARENA) return OUT_OF_MEMORY;
    unused = first + size + FENCE;
    fence(first - FENCE);
    memset((void*)first, UNSET_BYTE, size);
    fence(first + size);
    allocations[first] = {size, pinned, false};
    in_use += size;
    *address = first;
    return SUCCESS;
}

static void free_now(Address address) {
    const size_t size = allocations[address].size;
    memset((void*)address, UNSET_BYTE, size);
    in_use -= size;
    allocations.erase(address);
}

static Allocation* to_free(Address address) {
    auto found = allocations.find(address);
    return found == allocations.end() || found->second.freed ? nullptr : &found->second;
}

// ---- streams and what is recorded in them ------------------------------------------------------

struct Work {
    std::function<Result()> check;  // when it is enqueued, and when its recording is launched
    std::function<Result()> run;
    bool calls_host;
};

// What lives as long as the graphs that use it.
struct Shared {
    void (*destroy)(void*);
    void* data;
    unsigned uses;

    void release(unsigned count) {
        if ((uses -= count)) return;
        destroy(data);
        delete this;
    }
};

struct Graph {
    std::vector<Work> work;
    std::vector<Shared*> shared;
    int owners = 1;  // itself, and every executable one made of it

    void release() {
        if (--owners) return;
        for (Shared* object : shared) object->release(1);
        delete this;
    }
};

struct Stream {
    Context* context;
    std::deque<Work> queue;
    std::mutex running;
    Graph* recording = nullptr;
    bool invalid = false;
};

static Stream* of(void* stream) {
    static Stream defaults[DEVICES] = {{&contexts[0]}, {&contexts[1]}};
    return (Address)stream > 2 ? (Stream*)stream : &defaults[current ? current->device : 0];
}

static Result put(Stream* stream, const Work& work) {
    NEEDS_CONTEXT;
    if (stream->context != current) return INVALID_HANDLE;
    if (Result refused = work.check()) {
        if (stream->recording) stream->invalid = true;
        return refused;
    }
    if (stream->recording)
        stream->recording->work.push_back(work);
    else
        stream->queue.push_back(work);
    return SUCCESS;
}

// What a stream that is recorded does not do; the recording is lost.
static bool refuses(Stream* stream) {
    if (stream->recording) stream->invalid = true;
    return stream->recording;
}

static Result wait(Stream* stream) {
    std::lock_guard<std::mutex> one_at_a_time(stream->running);
    Result first = SUCCESS;
    for (;;) {
        Work work;
        {
            ALONE;
            if (stream->queue.empty()) return first;
            work = stream->queue.front();
            stream->queue.pop_front();
            if (!work.calls_host) {
                Result found = work.run();
                if (!found && !fences_are_whole()) found = ILLEGAL_ADDRESS;
                if (!first) first = found;
                continue;
            }
        }
        // It may need Python's lock, which a thread that waits for this state may hold.
        work.run();
    }
}

static Result enqueue_copy(Address target, Address source, size_t size, void* stream) {
    ALONE;
    const Work work = {
        [=] { return usable(target, size) && usable(source, size) ? SUCCESS : INVALID_VALUE; },
        [=] {
            if (!there(target, size) || !there(source, size)) return ILLEGAL_ADDRESS;
            memmove((void*)target, (void*)source, size);
            return SUCCESS;
        },
        false,
    };
    Stream* goal = of(stream);
    const bool idle = !goal->recording && goal->queue.empty();
    const Result refused = put(goal, work);
    // Nothing that was enqueued before reads it.
    if (!refused && idle && find(target, size)->pinned) memset((void*)target, UNSET_BYTE, size);
    return refused;
}

// ---- kernels -----------------------------------------------------------------------------------

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

extern "C" {

// ---- for the tests -----------------------------------------------------------------------------

void fake_set_present(int is) { present = is; }
void fake_set_limit(size_t bytes) { limit = bytes; }
size_t fake_in_use() { return in_use; }
int fake_recordings() { return recordings; }

// ---- the driver --------------------------------------------------------------------------------

Result cuInit(unsigned) { return present ? SUCCESS : NO_DEVICE; }
Result cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
Result cuDeviceGetCount(int* count) { return *count = present ? DEVICES : 0, SUCCESS; }
Result cuDeviceGet(int* device, int index) {
    *device = index;
    return present && index < DEVICES ? SUCCESS : INVALID_DEVICE;
}
Result cuDeviceGetName(char* name, int room, int) {
    return strncpy(name, "host memory", room), SUCCESS;
}
Result cuDeviceGetUuid(char* uuid, int device) { return memset(uuid, device, 16), SUCCESS; }
Result cuDeviceGetAttribute(int* value, int attribute, int) {
    return *value = attribute == 75 ? MAJOR : attribute == 76 ? MINOR : 1, SUCCESS;
}
Result cuDevicePrimaryCtxRetain(void** context, int device) {
    return *context = &contexts[device], SUCCESS;
}
Result cuDevicePrimaryCtxRelease(int) { return SUCCESS; }
Result cuCtxGetCurrent(void** context) { return *context = current, SUCCESS; }
Result cuCtxSetCurrent(void* context) {
    return current = (Context*)context, SUCCESS;
}
Result cuCtxGetDevice(int* device) {
    NEEDS_CONTEXT;
    return *device = current->device, SUCCESS;
}
Result cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    return *least = 0, *greatest = -5, SUCCESS;
}

Result cuStreamCreateWithPriority(void** stream, unsigned, int) {
    NEEDS_CONTEXT;
    if (!present) return NO_DEVICE;
    return *stream = new Stream{current}, SUCCESS;
}
Result cuStreamDestroy(void*) { return SUCCESS; }
Result cuStreamGetCtx(void* stream, void** context) {
    return *context = of(stream)->context, SUCCESS;
}
Result cuStreamGetDevice(void* stream, int* device) {
    return *device = of(stream)->context->device, SUCCESS;
}
Result cuStreamSynchronize(void* stream) {
    NEEDS_CONTEXT;
    {
        ALONE;
        if (refuses(of(stream))) return STREAM_CAPTURE_UNSUPPORTED;
    }
    return wait(of(stream));
}
Result cuStreamBeginCapture(void* stream, int) {
    ALONE;
    Stream* found = of(stream);
    if (found->recording) return ILLEGAL_STATE;
    found->recording = new Graph;
    ++recordings;
    found->invalid = false;
    return SUCCESS;
}
Result cuStreamEndCapture(void* stream, void** graph) {
    ALONE;
    Stream* found = of(stream);
    if (!found->recording) return ILLEGAL_STATE;
    *graph = found->invalid ? nullptr : found->recording;
    if (found->invalid) found->recording->release();
    found->recording = nullptr;
    --recordings;
    return found->invalid ? STREAM_CAPTURE_INVALIDATED : SUCCESS;
}
Result cuStreamIsCapturing(void* stream, int* status) {
    ALONE;
    return *status = of(stream)->recording ? 1 + of(stream)->invalid : 0, SUCCESS;
}
Result cuStreamGetCaptureInfo(
    void* stream, int* status, uint64_t* id, void** graph, void** nodes, void** edges,
    size_t* count) {
    ALONE;
    *status = of(stream)->recording ? 1 + of(stream)->invalid : 0;
    if (id) *id = 1;
    if (graph) *graph = of(stream)->recording;
    if (nodes) *nodes = nullptr;
    if (edges) *edges = nullptr;
    if (count) *count = 0;
    return SUCCESS;
}
Result cuGraphInstantiateWithParams(void** executable, void* graph, void*) {
    ALONE;
    ++((Graph*)graph)->owners;
    return *executable = graph, SUCCESS;
}
Result cuGraphInstantiateWithFlags(void** executable, void* graph, uint64_t) {
    return cuGraphInstantiateWithParams(executable, graph, nullptr);
}
Result cuGraphLaunch(void* executable, void* stream) {
    ALONE;
    for (const Work& work : ((Graph*)executable)->work)
        if (Result refused = put(of(stream), work)) return refused;
    return SUCCESS;
}
Result cuGraphDestroy(void* graph) {
    ALONE;
    return ((Graph*)graph)->release(), SUCCESS;
}
Result cuGraphExecDestroy(void* executable) { return cuGraphDestroy(executable); }
Result cuUserObjectCreate(
    void** object, void* data, void (*destroy)(void*), unsigned uses, unsigned) {
    return *object = new Shared{destroy, data, uses}, SUCCESS;
}
Result cuUserObjectRelease(void* object, unsigned count) {
    ALONE;
    return ((Shared*)object)->release(count), SUCCESS;
}
Result cuGraphRetainUserObject(void* graph, void* object, unsigned count, unsigned flags) {
    ALONE;
    ((Graph*)graph)->shared.insert(((Graph*)graph)->shared.end(), count, (Shared*)object);
    const bool moved = flags & 1;
    if (!moved) ((Shared*)object)->uses += count;
    return SUCCESS;
}
Result cuGraphReleaseUserObject(void* graph, void* object, unsigned count) {
    ALONE;
    auto& shared = ((Graph*)graph)->shared;
    for (unsigned i = 0; i < count; ++i)
        shared.erase(std::find(shared.begin(), shared.end(), (Shared*)object));
    return ((Shared*)object)->release(count), SUCCESS;
}

Result cuDeviceGetMemPool(void** pool, int) { return *pool = &arena, SUCCESS; }
Result cuDeviceGetDefaultMemPool(void** pool, int) { return *pool = &arena, SUCCESS; }
Result cuMemPoolGetAttribute(void*, int attribute, void* value) {
    // The first three are flags, the others numbers of bytes.
    if (attribute <= 3)
        *(int*)value = 1;
    else
        *(uint64_t*)value = 0;
    return SUCCESS;
}
Result cuMemPoolSetAttribute(void*, int, void*) { return SUCCESS; }
Result cuMemAllocFromPoolAsync(Address* address, size_t size, void*, void* stream) {
    ALONE;
    if (refuses(of(stream))) return STREAM_CAPTURE_UNSUPPORTED;
    return allocate(address, size, false);
}
Result cuMemAllocAsync(Address* address, size_t size, void* stream) {
    return cuMemAllocFromPoolAsync(address, size, nullptr, stream);
}
Result cuMemAllocHost(Address* address, size_t size) { return allocate(address, size, true); }
Result cuMemFreeAsync(Address address, void* stream) {
    ALONE;
    NEEDS_CONTEXT;
    if (refuses(of(stream))) return STREAM_CAPTURE_UNSUPPORTED;
    Allocation* found = to_free(address);
    if (!found) return INVALID_VALUE;
    found->freed = true;
    return put(of(stream), {[] { return SUCCESS; },
                            [=] { return free_now(address), SUCCESS; },
                            false});
}
Result cuMemFreeHost(Address address) {
    ALONE;
    NEEDS_CONTEXT;
    if (!to_free(address)) return INVALID_VALUE;
    return free_now(address), SUCCESS;
}
Result cuMemGetInfo(size_t* free, size_t* total) {
    ALONE;
    NEEDS_CONTEXT;
    return *free = limit - in_use, *total = limit, SUCCESS;
}
Result cuMemcpyAsync(Address target, Address source, size_t size, void* stream) {
    return enqueue_copy(target, source, size, stream);
}
Result cuMemsetD8Async(Address target, unsigned char value, size_t size, void* stream) {
    ALONE;
    return put(of(stream), {
        [=] { return usable(target, size) ? SUCCESS : INVALID_VALUE; },
        [=] { return memset((void*)target, value, size), SUCCESS; },
        false,
    });
}
Result cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
    ALONE;
    return put(of(stream), {
        [] { return SUCCESS; },
        [=] { return function(data), SUCCESS; },
        true,
    });
}

// Code is a library, and its kernels are those of kernels.cu that were compiled for the host.
Result cuLibraryLoadData(
    void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned) {
    NEEDS_CONTEXT;
    if (memcmp(code, "\x7f" "ELF", 4)) return INVALID_VALUE;
    if (!is_for_this_gpu((const uint8_t*)code)) return NO_BINARY_FOR_GPU;
    return *library = &contexts, SUCCESS;
}
Result cuLibraryUnload(void*) { return SUCCESS; }
Result cuLibraryGetKernel(void** kernel, void*, const char* name) {
    for (const Kernel& known : KERNELS)
        if (!strcmp(known.name, name)) return *kernel = (void*)&known, SUCCESS;
    return NOT_FOUND;
}
Result cuKernelGetFunction(void** function, void* kernel) {
    return *function = kernel, SUCCESS;
}
Result cuKernelGetLibrary(void** library, void*) { return *library = &contexts, SUCCESS; }
Result cuLaunchKernel(
    void* function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned,
    unsigned, void* stream, void** arguments, void**) {
    return enqueue_kernel((Kernel*)function, blocks, threads, stream, arguments);
}
struct Launch {
    unsigned grid[3], block[3], shared;
    void* stream;
};
Result cuLaunchKernelEx(const Launch* launch, void* function, void** arguments, void**) {
    return enqueue_kernel(
        (Kernel*)function, launch->grid[0], launch->block[0], launch->stream, arguments);
}

Result cuGetErrorName(int error, const char** name) {
    auto found = NAMES.find(error);
    *name = found == NAMES.end() ? "CUDA_ERROR_UNKNOWN" : found->second;
    return SUCCESS;
}
Result cuGetErrorString(int error, const char** text) { return cuGetErrorName(error, text); }
static Result absent(const char* name) {
    fprintf(stderr, "tests/cuda/driver.cpp has no %s\n", name);
    return NOT_SUPPORTED;
}
#include "absent_functions.inc"
// NVRTC asks for tables that are nobody else's business, and does without.
Result cuGetExportTable(const void**, const void*) { return NOT_FOUND; }
Result cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* status) {
    *function = find_symbol(name);
    if (!*function) *function = find_symbol((std::string("absent_") + name).c_str());
    if (status) *status = *function ? 0 : 1;
    return SUCCESS;
}
Result cuGetProcAddress(const char* name, void** function, int version, uint64_t flags, int* s) {
    return cuGetProcAddress_v2(name, function, version, flags, s);
}

}
