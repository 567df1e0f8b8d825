// SPDX-License-Identifier: MIT
// A CqNotifier that waits in a PollLoop. The awaiter is the loop's waiter, so that a coroutine
// which is destroyed while it waits leaves the loop.
#pragma once

#include <asyncverbs/cq/cq_notifier.hpp>

#include <cerrno>
#include <coroutine>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

#include "poll_loop.hpp"

// [readme:poll_notifier]
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

        // A stop only wakes the loop, which resumes the coroutine on its own thread.
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
// [/readme:poll_notifier]
static_assert(asyncverbs::CqNotifier<PollNotifier>);
