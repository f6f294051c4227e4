// Memory between fences; addresses are given once.
#pragma once
#include <sys/mman.h>

#include <cstring>
#include <string>

#include "state.h"

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
