// Work that is enqueued, recorded and waited for.
#pragma once
#include <deque>
#include <functional>
#include <vector>

#include "memory.h"

struct Work {
    std::function<Result()> check;  // when it is enqueued, and when its recording is launched
    std::function<Result()> run;
    bool calls_host;
    struct Loop* loop = nullptr;  // if it is one, nothing is run but its body
    bool repeated = false;        // by a loop, which was enqueued and counted as a whole
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
    std::vector<struct Stream*> joined;
    std::vector<Loop*> loops;
    bool is_body = false;  // of a loop of another graph, which owns it
    int owners = 1;        // itself, and every executable one made of it

    void release();
    bool loops_call_host() const;
};

// Its address is the handle that kernels set.
struct Loop {
    unsigned condition, initial;
    Graph body;
};

void Graph::release() {
    if (--owners) return;
    for (Shared* object : shared) object->release(1);
    for (Loop* loop : loops) {
        for (Shared* object : loop->body.shared) object->release(1);
        delete loop;
    }
    delete this;
}

bool Graph::loops_call_host() const {
    for (Loop* loop : loops)
        for (const Work& work : loop->body.work)
            if (work.calls_host) return true;
    return false;
}

struct Stream {
    Context* context;
    std::deque<Work> queue;
    std::mutex running;
    uint64_t enqueued = 0, begun = 0;
    Graph* recording = nullptr;
    bool invalid = false;
    // Whether another stream's recording holds its work, and whether that does not wait for it yet.
    bool joined = false, unjoined = false;

    // Whether so many works have begun, and no loop of theirs goes on.
    bool has_run(uint64_t mark) const {
        return begun >= mark && (queue.empty() || !queue.front().repeated);
    }
    // Puts the body of a loop, and the loop again, before what comes after it.
    void repeat(Work loop) {
        if (!loop.loop->condition) return;
        loop.repeated = true;
        queue.push_front(loop);
        const std::vector<Work>& body = loop.loop->body.work;
        for (auto work = body.rbegin(); work != body.rend(); ++work) {
            queue.push_front(*work);
            queue.front().repeated = true;
        }
    }
};

// Follows what was enqueued in a stream when it was recorded there.
struct Event {
    Stream* stream = nullptr;
    Graph* graph = nullptr;
    uint64_t mark = 0;  // works that were enqueued before
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
    if (stream->recording) {
        stream->recording->work.push_back(work);
        stream->unjoined = stream->joined;
    } else {
        stream->queue.push_back(work);
        ++stream->enqueued;
    }
    return SUCCESS;
}

// What a stream that is recorded does not do; the recording is lost.
static bool refuses(Stream* stream) {
    if (stream->recording) stream->invalid = true;
    return stream->recording;
}

// Runs what was enqueued in a stream, or the first so many works of it.
static Result wait(Stream* stream, uint64_t mark = UINT64_MAX) {
    {
        ALONE;
        if (stream->has_run(mark)) return SUCCESS;
    }
    std::lock_guard<std::mutex> one_at_a_time(stream->running);
    Result first = SUCCESS;
    for (;;) {
        Work work;
        {
            ALONE;
            if (stream->queue.empty() || stream->has_run(mark)) return first;
            work = stream->queue.front();
            stream->queue.pop_front();
            if (!work.repeated) ++stream->begun;
            if (work.loop) {
                stream->repeat(work);
                continue;
            }
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
