// A stand-in for the NVIDIA driver, libcuda.so.1, in host memory: what bksdm calls of it through
// cuda-core. Whatever else is called says its name and fails.
//
// It refuses what the driver refuses, and is strict where the driver is lenient:
// - Work runs when the host waits and not before, so a missing wait shows stale data.
// - Memory starts as NaN, lies between bytes that must not change, and is not used again once freed.
// - Host memory that is copied has to be page-locked; it is NaN from the copy to the wait.
// - Nothing is allocated, freed or waited for in a stream that is recorded.
// An error of work that ran is told by the wait for it, and once: the next test begins anew.
#include <algorithm>
#include <cstdio>

#include "kernels.h"

extern "C" {

// For the tests.

void fake_set_present(int is) { present = is; }
void fake_set_limit(size_t bytes) { limit = bytes; }
size_t fake_in_use() { return in_use; }
int fake_recordings() { return recordings; }
void fake_set_strict_loops(int are) { strict_loops = are; }

// The driver.

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
    bool unjoined = false;
    for (Stream* other : found->recording->joined) {
        found->invalid |= other->invalid;
        unjoined |= other->unjoined;
        other->recording = nullptr;
        other->joined = other->unjoined = other->invalid = false;
    }
    const bool lost = found->invalid || unjoined;
    *graph = lost ? nullptr : found->recording;
    if (lost && !found->recording->is_body) found->recording->release();
    found->recording = nullptr;
    --recordings;
    if (found->invalid) return STREAM_CAPTURE_INVALIDATED;
    return unjoined ? STREAM_CAPTURE_UNJOINED : SUCCESS;
}
Result cuEventCreate(void** event, unsigned) {
    NEEDS_CONTEXT;
    return *event = new Event, SUCCESS;
}
Result cuEventDestroy(void* event) { return delete (Event*)event, SUCCESS; }
Result cuEventRecord(void* event, void* stream) {
    ALONE;
    NEEDS_CONTEXT;
    Stream* found = of(stream);
    return *(Event*)event = {found, found->recording, found->enqueued}, SUCCESS;
}
Result cuStreamWaitEvent(void* stream, void* event, unsigned) {
    ALONE;
    NEEDS_CONTEXT;
    Stream* later = of(stream);
    const Event found = *(Event*)event;
    if (!found.stream || found.stream == later) return SUCCESS;
    if (later->recording != found.graph) {
        // One that is not recorded joins the recording; a recorded one waits for nothing outside.
        if (later->recording) {
            later->invalid = true;
            return STREAM_CAPTURE_UNSUPPORTED;
        }
        later->recording = found.graph;
        later->joined = true;
        found.graph->joined.push_back(later);
        return SUCCESS;
    }
    if (found.graph) return found.stream->unjoined = false, SUCCESS;
    return put(later, {[] { return SUCCESS; }, [=] { return wait(found.stream, found.mark); }, true});
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
Result cuStreamBeginCaptureToGraph(
    void* stream, void* graph, const void*, const void*, size_t, int) {
    ALONE;
    Stream* found = of(stream);
    if (found->recording) return ILLEGAL_STATE;
    found->recording = (Graph*)graph;
    ++recordings;
    found->invalid = false;
    return SUCCESS;
}
// Work of a graph is one after the other here, whatever it is said to depend on.
Result cuStreamUpdateCaptureDependencies(void*, void*, const void*, size_t, unsigned) {
    return SUCCESS;
}
Result cuGraphConditionalHandleCreate(
    uint64_t* handle, void* graph, void*, unsigned initial, unsigned flags) {
    ALONE;
    const bool assigned_at_launch = flags & 1;
    if (!assigned_at_launch) return NOT_SUPPORTED;
    Loop* loop = new Loop{initial, initial};
    loop->body.is_body = true;
    ((Graph*)graph)->loops.push_back(loop);
    return *handle = (uint64_t)loop, SUCCESS;
}
struct Conditional {
    int type, unused[3];
    Loop* loop;
    int kind;
    unsigned size;
    void** bodies;
};
Result cuGraphAddNode(
    void** node, void* graph, const void*, const void*, size_t, Conditional* added) {
    ALONE;
    const bool is_while = added->type == 13 && added->kind == 1 && added->size == 1;
    if (!is_while) return NOT_SUPPORTED;
    Loop* loop = added->loop;
    ((Graph*)graph)->work.push_back({
        [=] {
            for (const Work& work : loop->body.work)
                if (Result refused = work.check()) return refused;
            return SUCCESS;
        },
        [] { return SUCCESS; },
        false,
        loop,
    });
    static thread_local void* body;
    added->bodies = &(body = &loop->body);
    return *node = loop, SUCCESS;
}
Result cuGraphInstantiateWithParams(void** executable, void* graph, void*) {
    ALONE;
    // The driver never takes host functions there, but networks are such in the tests.
    if (strict_loops && ((Graph*)graph)->loops_call_host()) return NOT_SUPPORTED;
    ++((Graph*)graph)->owners;
    return *executable = graph, SUCCESS;
}
Result cuGraphInstantiateWithFlags(void** executable, void* graph, uint64_t) {
    return cuGraphInstantiateWithParams(executable, graph, nullptr);
}
Result cuGraphLaunch(void* executable, void* stream) {
    ALONE;
    for (Loop* loop : ((Graph*)executable)->loops) {
        const auto begin = [=] { return loop->condition = loop->initial, SUCCESS; };
        if (Result refused = put(of(stream), {[] { return SUCCESS; }, begin, false}))
            return refused;
    }
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
    fprintf(stderr, "tests/cuda/fake_driver has no %s\n", name);
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
