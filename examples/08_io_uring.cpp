// SPDX-License-Identifier: MIT
// Completions in a loop on io_uring. The ring and its loop are the program's own, and so are the
// requests that it makes beside: here, timeouts. IoUringPoller adds what an AsyncCq needs.
#include <asyncverbs/adapters/io_uring.hpp>
#include <asyncverbs/core/async_cq.hpp>
#include <asyncverbs/core/scope.hpp>
#include <asyncverbs/core/task.hpp>
#include <asyncverbs/verbs/memory_region.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

#include <array>
#include <cerrno>
#include <coroutine>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <optional>
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

// One side of the conversation.
struct Side {
    QueuePair& queue_pair;
    AsyncCq& cq;
    Slice text;
};

constexpr int messages = 5;

// One message each time that its own request of the ring has completed.
Task<> send_all(Ring& ring, Side side) {
    std::array<ibv_wc, 1> wcs;
    ibv_sge sge = side.text.sge();
    for (int i = 1; i <= messages; ++i) {
        co_await ring.sleep(10);
        std::snprintf(reinterpret_cast<char*>(side.text.address), side.text.length,
                      "message %d of %d", i, messages);
        ibv_send_wr request{};
        request.sg_list = &sge;
        request.num_sge = 1;
        request.opcode = IBV_WR_SEND;
        request.send_flags = IBV_SEND_SIGNALED;
        side.queue_pair.post_send(request);
        for (const ibv_wc& wc : co_await side.cq.poll(wcs)) {
            if (wc.status != IBV_WC_SUCCESS) throw std::system_error(make_wc_error(wc.status));
        }
    }
}

// Prints what arrives, until it is stopped.
Task<> receive_all(Side side, std::stop_token stop, std::function<void()> on_last) {
    std::array<ibv_wc, 1> wcs;
    std::error_code error;
    ibv_sge sge = side.text.sge();
    for (int received = 0; !error;) {
        side.queue_pair.post_recv({1, nullptr, &sge, 1});
        for (const ibv_wc& wc : co_await side.cq.poll(wcs, error, stop)) {
            if (wc.status != IBV_WC_SUCCESS) throw std::system_error(make_wc_error(wc.status));
            std::printf("received: %s\n", reinterpret_cast<const char*>(side.text.address));
            if (++received == messages) on_last();
        }
    }
    if (error != std::errc::operation_canceled) throw std::system_error(error);
    std::printf("stopped while waiting for one more\n");
}

Task<> converse(Ring& ring, Side alice, Side bob) {
    std::stop_source stop;
    std::jthread other;
    const auto stop_from_another_thread = [&] {
        other = std::jthread([&stop] { stop.request_stop(); });
    };
    Scope scope;
    scope.spawn(receive_all(bob, stop.get_token(), stop_from_another_thread));
    co_await send_all(ring, alice);
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

    const char* device = std::getenv("RDMA_DEVICE");
    const Context context = Context::open(device != nullptr ? device : "");
    const ProtectionDomain domain(context);
    std::array<std::byte, 128> bytes{};
    const MemoryRegion memory(domain, bytes);
    AsyncCq alice_cq = AsyncCq::create(context, 16, poller);
    AsyncCq bob_cq = AsyncCq::create(context, 16, poller);
    QueuePairOptions options;
    options.max_send_wr = options.max_recv_wr = 8;
    QueuePair alice(domain, alice_cq.completion_queue(), alice_cq.completion_queue(), options);
    QueuePair bob(domain, bob_cq.completion_queue(), bob_cq.completion_queue(), options);
    alice.connect(bob.local_address());
    bob.connect(alice.local_address());

    std::exception_ptr error;
    bool done = false;
    Scope scope;
    Task<> conversation =
        converse(ring, {alice, alice_cq, memory.slice(0, 64)}, {bob, bob_cq, memory.slice(64)});
    scope.spawn(run_to_end(std::move(conversation), error, done));
    run_loop(ring.get(), poller, done);
    if (error) std::rethrow_exception(error);
}

} // namespace

int main() try { run(); } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
