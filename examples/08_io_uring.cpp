// SPDX-License-Identifier: MIT
// Completions in a loop on io_uring. The ring and its loop are the program's own, and so are the
// requests that it makes beside: here, timeouts. IoUringPoller adds what a completion queue needs.
#include <asyncverbs/adapters/io_uring.hpp>
#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/router.hpp>
#include <asyncverbs/verbs/memory.hpp>

#include <cerrno>
#include <coroutine>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>

using namespace asyncverbs;

namespace {

// The ring of the program. The user_data of its requests is the coroutine that waits.
class Ring {
public:
    Ring() {
        const int result = io_uring_queue_init(64, &ring_, 0);
        // As where a sandbox, or the sysctl kernel.io_uring_disabled, forbids it.
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

// The loop of the program. What is not its own belongs to the poller.
void run_loop(io_uring& ring, IoUringPoller& poller, const bool& done) {
    while (!done) {
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

constexpr int messages = 5;

char* characters(const Slice& text) { return reinterpret_cast<char*>(text.address); }

// One message each time that its own request of the ring has completed.
Task<> send_all(Ring& ring, AsyncQp& queue_pair, Slice text) {
    for (int i = 1; i <= messages; ++i) {
        co_await ring.sleep(10);
        std::snprintf(characters(text), text.length, "message %d of %d", i, messages);
        co_await queue_pair.send(text);
    }
}

// Prints what arrives, until it is stopped: by another thread, when all has come.
Task<> receive_all(AsyncQp& queue_pair, Slice text) {
    std::stop_source stop;
    std::jthread other;
    std::error_code error;
    for (int received = 0; !error;) {
        co_await queue_pair.recv(text, stop.get_token()).wait(error);
        if (error) break;
        std::printf("received: %s\n", characters(text));
        if (++received == messages) other = std::jthread([&stop] { stop.request_stop(); });
    }
    if (error != std::errc::operation_canceled) throw std::system_error(error);
    std::printf("stopped while waiting for one more\n");
}

Task<> converse(Ring& ring, IoUringPoller& poller) {
    const char* device = std::getenv("RDMA_DEVICE");
    const ProtectionDomain domain(Context::open(device != nullptr ? device : ""));
    const MemoryRegion memory = MemoryRegion::allocate(domain, 128);
    Router router = Router::create(domain.context(), 16, poller);
    constexpr QueuePairOptions options{.max_send_wr = 2, .max_recv_wr = 2};
    AsyncQp alice(router, domain, options);
    AsyncQp bob(router, domain, options);
    alice.queue_pair().connect(bob.queue_pair().local_address());
    bob.queue_pair().connect(alice.queue_pair().local_address());

    Scope scope;
    scope.spawn(receive_all(bob, memory.slice(64)));
    co_await send_all(ring, alice, memory.slice(0, 64));
    co_await scope.join();
}

Task<> run_to_end(Task<> task, std::exception_ptr& error, bool& done) {
    try {
        co_await std::move(task);
    } catch (...) {
        error = std::current_exception();
    }
    done = true;
}

void run() {
    Ring ring;
    IoUringPoller poller(ring.get());
    std::exception_ptr error;
    bool done = false;
    Scope scope;
    scope.spawn(run_to_end(converse(ring, poller), error, done));
    run_loop(ring.get(), poller, done);
    if (error) std::rethrow_exception(error);
}

} // namespace

int main() try { run(); } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
