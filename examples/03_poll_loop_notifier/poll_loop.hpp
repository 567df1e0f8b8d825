// SPDX-License-Identifier: MIT
// A bare poll(2) loop. It stands for the event loop that the program already has.
#pragma once

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <coroutine>
#include <cstddef>
#include <stop_token>
#include <system_error>
#include <vector>

// Resumes coroutines that wait for a file descriptor. Single-threaded, except for wake().
class PollLoop {
public:
    struct Waiter {
        int fd;
        std::stop_token stop; // when requested, the coroutine is resumed at once
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

    // Waits until a descriptor is readable, a stop is requested or the time in milliseconds is over
    // (-1: no limit), and resumes those that are ready.
    void run_once(int at_most = -1) {
        std::vector<pollfd> fds{{wake_fd_, POLLIN, 0}};
        for (const Waiter* waiter : waiters_) fds.push_back({waiter->fd, POLLIN, 0});
        if (::poll(fds.data(), fds.size(), at_most) < 0 && errno != EINTR) {
            throw std::system_error(errno, std::generic_category(), "poll");
        }
        eventfd_t ignored;
        ::eventfd_read(wake_fd_, &ignored);
        for (std::size_t i = 0; i < waiters_.size(); ++i) {
            // Errors and hang-ups count as readable: the read reports them.
            waiters_[i]->ready = fds[i + 1].revents != 0 || waiters_[i]->stop.stop_requested();
        }
        // Search again each time: a resumed coroutine may destroy other waiters.
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
