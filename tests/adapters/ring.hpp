// SPDX-License-Identifier: MIT
// A ring for tests, and an iteration of the loop of the program that owns it.
#pragma once

#include <asyncverbs/adapters/io_uring.hpp>

#include <chrono>
#include <cstdint>
#include <string>
#include <system_error>
#include <vector>

namespace asyncverbs::support {

class Ring {
public:
    explicit Ring(unsigned entries = 64, unsigned flags = 0) {
        const int result = io_uring_queue_init(entries, &ring_, flags);
        if (result < 0) {
            throw std::system_error(-result, std::system_category(), "io_uring_queue_init");
        }
    }
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;
    ~Ring() { io_uring_queue_exit(&ring_); }

    io_uring& get() noexcept { return ring_; }

    // Submits, sleeps until there is a completion, but not longer than `at_most`, and passes all
    // completions to `poller`. Returns how many there were.
    template <class Poller>
    int run_once(Poller& poller, std::chrono::milliseconds at_most = {}) {
        const auto seconds = std::chrono::floor<std::chrono::seconds>(at_most);
        const std::chrono::nanoseconds rest = at_most - seconds;
        __kernel_timespec time{seconds.count(), rest.count()};
        io_uring_cqe* next = nullptr;
        // Zero would be an unbounded sleep.
        const int result = at_most.count() == 0
                               ? io_uring_submit_and_get_events(&ring_)
                               : io_uring_submit_and_wait_timeout(&ring_, &next, 1, &time, nullptr);
        if (result < 0 && result != -ETIME && result != -EINTR) {
            throw std::system_error(-result, std::system_category(), "io_uring_enter");
        }
        return take(poller);
    }

    template <class Poller>
    int take(Poller& poller) {
        int taken = 0;
        io_uring_cqe* next = nullptr;
        for (; io_uring_peek_cqe(&ring_, &next) == 0; ++taken) {
            const io_uring_cqe cqe = *next;
            io_uring_cqe_seen(&ring_, next);
            if (!poller.complete(cqe)) foreign.push_back(cqe);
        }
        return taken;
    }

    // A request of the program, which completes at once.
    void queue_nop(std::uint64_t user_data) {
        io_uring_sqe* const sqe = io_uring_get_sqe(&ring_);
        io_uring_prep_nop(sqe);
        io_uring_sqe_set_data64(sqe, user_data);
    }

    std::vector<io_uring_cqe> foreign; // not of the poller

private:
    io_uring ring_{};
};

// Why there is no io_uring, as the kernel or the sandbox forbids it; empty if there is.
inline std::string why_no_io_uring() {
    try {
        const Ring ring;
        return "";
    } catch (const std::system_error& error) {
        return error.what();
    }
}

} // namespace asyncverbs::support
