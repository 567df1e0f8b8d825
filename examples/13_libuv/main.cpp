// SPDX-License-Identifier: MIT
// Completions in libuv's event loop, which the program runs with its own handles: here, a timer.
// UvNotifier is all that an AsyncCq needs to wait in that loop.
#include "uv_notifier.hpp"

#include "../conversation.hpp"

#include <uv.h>

#include <coroutine>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <system_error>
#include <utility>

using namespace asyncverbs;

namespace {

// The program's loop, and a timer that a coroutine can await.
class Loop {
public:
    Loop() {
        const int result = uv_loop_init(&loop_);
        if (result < 0) throw std::system_error(-result, std::generic_category(), "uv_loop_init");
        uv_timer_init(&loop_, &timer_);
    }
    Loop(const Loop&) = delete;
    Loop& operator=(const Loop&) = delete;
    ~Loop() {
        uv_close(reinterpret_cast<uv_handle_t*>(&timer_), nullptr);
        uv_run(&loop_, UV_RUN_DEFAULT); // frees the handles that are closed, the notifier's, too
        uv_loop_close(&loop_);
    }

    uv_loop_t* get() { return &loop_; }

    // `co_await loop.sleep(milliseconds)`
    auto sleep(std::uint64_t milliseconds) {
        struct Sleep {
            bool await_ready() const { return false; }
            void await_suspend(std::coroutine_handle<> waiting) const {
                timer.data = waiting.address();
                const auto resume = [](uv_timer_t* expired) {
                    std::coroutine_handle<>::from_address(expired->data).resume();
                };
                uv_timer_start(&timer, resume, duration, 0);
            }
            void await_resume() const {}
            uv_timer_t& timer;
            std::uint64_t duration;
        };
        return Sleep{timer_, milliseconds};
    }

private:
    uv_loop_t loop_{};
    uv_timer_t timer_{};
};

void run() {
    const ProtectionDomain domain(conversation::open_device());
    Loop loop;
    CompletionQueue queue(domain.context(), 16);
    UvNotifier notifier(loop.get(), queue.channel().fd());
    Router router(AsyncCq(std::move(queue), std::move(notifier)));

    const auto pause = [&loop] { return loop.sleep(10); };
    const conversation::Running task(conversation::converse(domain, router, pause));
    while (!task.done()) uv_run(loop.get(), UV_RUN_ONCE);
    task.rethrow();
}

} // namespace

int main() try {
    run();
    if (std::fflush(stdout) != 0) throw std::runtime_error("standard output cannot be written");
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
