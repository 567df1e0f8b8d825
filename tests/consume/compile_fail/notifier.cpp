// SPDX-License-Identifier: MIT
// Does not compile: NOTIFIER is one of the types below, none of which is a CqNotifier.
#include <asyncverbs/cq/async_cq.hpp>

struct NoReadable {};

struct NotAwaitable {
    int readable(std::stop_token) { return 0; }
};

struct WrongResult {
    struct Awaiter {
        bool await_ready() { return true; }
        void await_suspend(std::coroutine_handle<>) {}
        int* await_resume() { return nullptr; }
    };
    Awaiter readable(std::stop_token) { return {}; }
};

asyncverbs::AsyncCq make(asyncverbs::CompletionQueue cq) {
    return asyncverbs::AsyncCq(std::move(cq), NOTIFIER());
}
