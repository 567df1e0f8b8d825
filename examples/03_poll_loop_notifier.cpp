// SPDX-License-Identifier: MIT
// Plug in your own loop: a CqNotifier for a bare poll(2) loop, such as many programs have. PollLoop
// stands for the loop that is there already; PollNotifier is what an AsyncCq needs to live in it.
#include <asyncverbs/core/async_cq.hpp>
#include <asyncverbs/core/scope.hpp>
#include <asyncverbs/core/task.hpp>
#include <asyncverbs/verbs/memory_region.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

using namespace asyncverbs;

// A loop that calls whoever waits for a file descriptor. Everything on one thread, but wake().
class PollLoop {
public:
    struct Waiter {
        int fd;
        std::stop_token stop; // requested: called although the fd is not readable
        std::coroutine_handle<> coroutine{};
        bool ready = false;
    };

    PollLoop() : wake_fd_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
        if (wake_fd_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
    }
    PollLoop(const PollLoop&) = delete;
    PollLoop& operator=(const PollLoop&) = delete;
    ~PollLoop() { ::close(wake_fd_); }

    void add(Waiter& waiter) { waiters_.push_back(&waiter); }
    void remove(Waiter& waiter) { std::erase(waiters_, &waiter); }
    void wake() noexcept { ::eventfd_write(wake_fd_, 1); } // from any thread

    void run_once() {
        std::vector<pollfd> fds{{wake_fd_, POLLIN, 0}};
        for (const Waiter* waiter : waiters_) fds.push_back({waiter->fd, POLLIN, 0});
        if (::poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR) {
            throw std::system_error(errno, std::generic_category(), "poll");
        }
        eventfd_t ignored;
        ::eventfd_read(wake_fd_, &ignored);
        for (std::size_t i = 0; i < waiters_.size(); ++i) {
            // Errors and hang-ups count as readable: whoever reads finds out.
            waiters_[i]->ready = fds[i + 1].revents != 0 || waiters_[i]->stop.stop_requested();
        }
        // One at a time, for a coroutine that is resumed may destroy others that wait.
        const auto is_ready = [](const Waiter* waiter) { return waiter->ready; };
        for (;;) {
            const auto next = std::find_if(waiters_.begin(), waiters_.end(), is_ready);
            if (next == waiters_.end()) return;
            Waiter& waiter = **next;
            waiters_.erase(next);
            waiter.coroutine.resume();
        }
    }

private:
    int wake_fd_;
    std::vector<Waiter*> waiters_;
};

// The notifier. The awaiter is the waiter, so that a coroutine that is destroyed leaves the loop; a
// stop only wakes the loop, which then resumes the coroutine on its own thread.
class PollNotifier {
public:
    PollNotifier(PollLoop& loop, int fd) : loop_(loop), fd_(fd) {}
    auto readable(std::stop_token stop) { return Readable(loop_, fd_, std::move(stop)); }

private:
    struct Readable : PollLoop::Waiter {
        Readable(PollLoop& l, int f, std::stop_token s) : Waiter{f, std::move(s)}, loop(l) {}
        ~Readable() { loop.remove(*this); }
        bool await_ready() const { return stop.stop_requested(); }
        void await_suspend(std::coroutine_handle<> waiting) {
            coroutine = waiting;
            loop.add(*this);
            on_stop.emplace(stop, Wake{loop});
        }
        std::error_code await_resume() const {
            return std::error_code(stop.stop_requested() ? ECANCELED : 0, std::generic_category());
        }

        struct Wake {
            PollLoop& loop;
            void operator()() const noexcept { loop.wake(); }
        };
        PollLoop& loop;
        std::optional<std::stop_callback<Wake>> on_stop;
    };

    PollLoop& loop_;
    int fd_;
};
static_assert(CqNotifier<PollNotifier>);

namespace {

// Runs a task in the loop.
Task<> run_to_end(Task<> task, std::optional<std::exception_ptr>& end) {
    try {
        co_await std::move(task);
        end = nullptr;
    } catch (...) {
        end = std::current_exception();
    }
}

void run(PollLoop& loop, Task<> task) {
    std::optional<std::exception_ptr> end;
    Scope scope;
    scope.spawn(run_to_end(std::move(task), end)); // starts it, up to its first wait
    while (!end) loop.run_once();
    if (*end) std::rethrow_exception(*end);
}

// One side of the conversation.
struct Side {
    QueuePair& queue_pair;
    AsyncCq& cq;
    Slice text;
};

constexpr int messages = 5;

Task<> send_all(Side side) {
    std::array<ibv_wc, 1> wcs;
    ibv_sge sge = side.text.sge();
    for (int i = 1; i <= messages; ++i) {
        auto* text = reinterpret_cast<char*>(side.text.address);
        std::snprintf(text, side.text.length, "message %d of %d", i, messages);
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
        ibv_recv_wr request{1, nullptr, &sge, 1};
        side.queue_pair.post_recv(request);
        for (const ibv_wc& wc : co_await side.cq.poll(wcs, error, stop)) {
            if (wc.status != IBV_WC_SUCCESS) throw std::system_error(make_wc_error(wc.status));
            std::printf("received: %s\n", reinterpret_cast<const char*>(side.text.address));
            if (++received == messages) on_last();
        }
    }
    if (error != std::errc::operation_canceled) throw std::system_error(error);
    std::printf("stopped while waiting for one more\n");
}

Task<> converse(Side alice, Side bob) {
    std::stop_source stop;
    std::jthread other;
    const auto stop_from_another_thread = [&] {
        other = std::jthread([&stop] { stop.request_stop(); });
    };
    Scope scope;
    scope.spawn(receive_all(bob, stop.get_token(), stop_from_another_thread));
    co_await send_all(alice);
    co_await scope.join();
}

AsyncCq make_cq(const Context& context, PollLoop& loop) {
    CompletionQueue cq(context, 16);
    const int fd = cq.channel().fd();
    return AsyncCq(std::move(cq), PollNotifier(loop, fd));
}

void run() {
    const char* device = std::getenv("RDMA_DEVICE");
    const Context context = Context::open(device != nullptr ? device : "");
    const ProtectionDomain domain(context);
    std::array<std::byte, 128> bytes{};
    const MemoryRegion memory(domain, bytes);

    PollLoop loop;
    AsyncCq alice_cq = make_cq(context, loop);
    AsyncCq bob_cq = make_cq(context, loop);
    QueuePairOptions options;
    options.max_send_wr = options.max_recv_wr = 8;
    QueuePair alice(domain, alice_cq.completion_queue(), alice_cq.completion_queue(), options);
    QueuePair bob(domain, bob_cq.completion_queue(), bob_cq.completion_queue(), options);
    alice.connect(bob.local_address());
    bob.connect(alice.local_address());

    run(loop, converse({alice, alice_cq, memory.slice(0, 64)}, {bob, bob_cq, memory.slice(64)}));
}

} // namespace

int main() try { run(); } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
