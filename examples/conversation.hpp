// SPDX-License-Identifier: MIT
// What the examples 03, 08, 09, 13 and 14 do in their loops: Alice sends five messages to Bob, who
// prints what he receives until another thread stops him.
#pragma once

#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/rdma.hpp>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>

namespace conversation {

using namespace asyncverbs;

constexpr int messages = 5;

inline char* characters(const Slice& text) { return reinterpret_cast<char*>(text.address); }

template <class Pause>
Task<> send_all(AsyncQp& alice, Slice text, Pause pause) {
    for (int i = 1; i <= messages; ++i) {
        co_await pause();
        std::snprintf(characters(text), text.length, "message %d of %d", i, messages);
        co_await alice.send(text);
    }
}

inline Task<> receive_all(AsyncQp& bob, Slice text) {
    std::stop_source stop;
    std::jthread other;
    std::error_code error;
    for (int received = 0; !error;) {
        co_await bob.recv(text, stop.get_token()).wait(error);
        if (error) break;
        std::printf("received: %s\n", characters(text));
        if (++received == messages) other = std::jthread([&stop] { stop.request_stop(); });
    }
    if (error != std::errc::operation_canceled) throw std::system_error(error);
    std::printf("stopped while waiting for one more\n");
}

/// The conversation on the queue of `router`. `pause()` is awaited before each message.
template <class Pause>
Task<> converse(const ProtectionDomain& domain, Router& router, Pause pause) {
    const MemoryRegion memory = MemoryRegion::allocate(domain, 128);
    constexpr QueuePairOptions options{.max_send_wr = 2, .max_recv_wr = 2};
    AsyncQp alice(router, domain, options);
    AsyncQp bob(router, domain, options);
    alice.queue_pair().connect(bob.queue_pair().local_address());
    bob.queue_pair().connect(alice.queue_pair().local_address());

    Scope scope;
    scope.spawn(receive_all(bob, memory.slice(64)));
    co_await send_all(alice, memory.slice(0, 64), pause);
    co_await scope.join();
}

/// The device that RDMA_DEVICE names, or the first active one.
inline Context open_device() {
    const char* const device = std::getenv("RDMA_DEVICE");
    return Context::open(device != nullptr ? device : "");
}

/// A task in an event loop, which runs until done().
class Running {
public:
    /// Starts the task, which runs up to its first wait.
    explicit Running(Task<> task) { scope_.spawn(run(*this, std::move(task))); }

    bool done() const noexcept { return done_; }

    /// Throws the exception that ended the task, if any.
    void rethrow() const {
        if (error_) std::rethrow_exception(error_);
    }

private:
    static Task<> run(Running& self, Task<> task) {
        try {
            co_await std::move(task);
        } catch (...) {
            self.error_ = std::current_exception();
        }
        self.done_ = true;
    }

    bool done_ = false;
    std::exception_ptr error_;
    Scope scope_;
};

} // namespace conversation
