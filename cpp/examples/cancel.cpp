// Draw in a worker thread, as a server does, and stop it from another: cancel BUNDLE PROMPT.
#include <chrono>
#include <cstdio>
#include <thread>

#include <bksdm/bksdm.hpp>
#include <bksdm/openvino.hpp>

int main(int count, char** arguments) {
    if (count < 3) {
        std::fprintf(stderr, "usage: cancel BUNDLE PROMPT\n");
        return 2;
    }
    try {
        bksdm::Model model(arguments[1], bksdm::openvino::open_networks(arguments[1]));
        bksdm::Request request;
        request.prompt = arguments[2];
        request.steps = 25;
        request.cancellation = bksdm::Cancellation();
        std::thread client([gone = *request.cancellation] {
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
            gone.cancel();
        });
        int code = 0;
        try {
            model.generate(request);
            std::puts("drawn before it was cancelled");
        } catch (const bksdm::Error& error) {
            code = error.code() == bksdm::ErrorCode::cancelled ? 0 : 1;
            std::puts(error.what());
        }
        client.join();
        return code;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "cancel: %s\n", error.what());
        return 1;
    }
}
