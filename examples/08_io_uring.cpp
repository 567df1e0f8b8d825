// SPDX-License-Identifier: MIT
// Completions in an event loop on io_uring. The program owns the ring, its loop and other requests
// on it: here, timeouts. IoUringPoller adds what an AsyncCq needs to wait in that loop.
#include <asyncverbs/adapters/io_uring.hpp>
#include <asyncverbs/rdma.hpp>

#include "conversation.hpp"

#include <cerrno>
#include <coroutine>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <system_error>

using namespace asyncverbs;

namespace {

// The program's ring. The user_data of its requests is the waiting coroutine.
class Ring {
public:
    Ring() {
        const int result = io_uring_queue_init(64, &ring_, 0);
        // A sandbox or the sysctl kernel.io_uring_disabled may forbid it.
        if (result < 0) fail(result, "io_uring is not available: io_uring_queue_init");
    }
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;
    ~Ring() { io_uring_queue_exit(&ring_); }

    io_uring& get() { return ring_; }

    // `co_await ring.sleep(milliseconds)`
    auto sleep(long milliseconds) {
        struct Sleep {
            bool await_ready() const { return false; }
            void await_suspend(std::coroutine_handle<> waiting) {
                io_uring_sqe* const sqe = io_uring_get_sqe(&ring);
                if (sqe == nullptr) fail(-EBUSY, "io_uring_get_sqe");
                io_uring_prep_timeout(sqe, &time, 0, 0);
                io_uring_sqe_set_data(sqe, waiting.address());
            }
            void await_resume() const {}
            io_uring& ring;
            __kernel_timespec time;
        };
        return Sleep{ring_, {0, milliseconds * 1'000'000}};
    }

    [[noreturn]] static void fail(int result, const char* what) {
        throw std::system_error(-result, std::system_category(), what);
    }

private:
    io_uring ring_{};
};

// The program's loop. The poller takes the completions of its own requests.
void run_loop(io_uring& ring, IoUringPoller& poller, const conversation::Running& task) {
    while (!task.done()) {
        const int result = io_uring_submit_and_wait(&ring, 1);
        if (result < 0 && result != -EINTR) Ring::fail(result, "io_uring_submit_and_wait");
        io_uring_cqe* next = nullptr;
        while (io_uring_peek_cqe(&ring, &next) == 0) {
            const io_uring_cqe cqe = *next;
            io_uring_cqe_seen(&ring, next);
            if (poller.complete(cqe)) continue;
            std::coroutine_handle<>::from_address(io_uring_cqe_get_data(&cqe)).resume();
        }
    }
}

void run() {
    const ProtectionDomain domain(conversation::open_device());
    Ring ring;
    IoUringPoller poller(ring.get());
    Router router = Router::create(domain.context(), 16, poller);
    const auto pause = [&ring] { return ring.sleep(10); };
    const conversation::Running task(conversation::converse(domain, router, pause));
    run_loop(ring.get(), poller, task);
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
