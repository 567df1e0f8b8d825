// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <chrono>
#include <memory>
#include <stop_token>
#include <system_error>
#include <type_traits>
#include <utility>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>

namespace asyncverbs {

/// Waits until one file descriptor, given to its constructor, is readable. Any event loop can model
/// it, so that completions are awaited in the loop that a program already has.
///
/// `co_await n.readable(st)` gives a std::error_code: {} when the fd is readable,
/// errc::operation_canceled when `st` was stopped first, any other value for an error after which
/// waiting is pointless.
///
/// Semantic requirements, which check_notifier() of testing/notifier_conformance.hpp tests:
///  - The coroutine is resumed by the notifier's loop, on the thread that runs the loop, and only
///    there; or the wait completes at once, without suspending.
///  - A wake is a hint: the wait may complete with {} although there is nothing to read, but not
///    every time. It must complete if there is something to read, which may have arrived before or
///    after the call: an edge-triggered notifier remembers an edge that arrived without a waiter.
///    EPOLLERR and EPOLLHUP count as readable.
///  - Destroying the suspended awaiter cancels the wait: its coroutine is not resumed afterwards,
///    and a wake that was on the way belongs to the next wait.
///  - A stop may be requested from any thread, also before the call and while it suspends. The
///    coroutine is never resumed inside request_stop(), but later, by the loop.
///  - AsyncCq has at most one readable() outstanding. The resumed coroutine may wait again, or
///    destroy the notifier, at once.
///  - While no readable() is outstanding, a readable fd does not keep the loop busy.
///  - The fd stays open until the notifier is destroyed. The notifier must not read or close it.
///  - A notifier may be moved while no readable() is outstanding.
///
/// A model, for a loop with three functions: `watch` resumes a coroutine when an fd is readable,
/// `unwatch` forgets a coroutine, `wake` (from any thread) resumes one that is still watched:
///
///     class MyNotifier {
///     public:
///         MyNotifier(MyLoop& loop, int fd) : loop_(&loop), fd_(fd) {}
///
///         struct Readable {
///             struct Wake {
///                 Readable& self;
///                 void operator()() const { self.loop.wake(self.waiting); }
///             };
///             Readable(MyLoop& l, int f, std::stop_token st) : loop(l), fd(f), stop(st) {}
///             ~Readable() {
///                 on_stop.reset();
///                 if (waiting) loop.unwatch(waiting);
///             }
///             bool await_ready() const { return stop.stop_requested(); }
///             void await_suspend(std::coroutine_handle<> coroutine) {
///                 waiting = coroutine;
///                 loop.watch(fd, waiting);
///                 on_stop.emplace(stop, Wake{*this});
///             }
///             std::error_code await_resume() const {
///                 if (!stop.stop_requested()) return {};
///                 return std::make_error_code(std::errc::operation_canceled);
///             }
///             MyLoop& loop;
///             int fd;
///             std::stop_token stop;
///             std::coroutine_handle<> waiting;
///             std::optional<std::stop_callback<Wake>> on_stop;
///         };
///         Readable readable(std::stop_token stop) { return {*loop_, fd_, stop}; }
///
///     private:
///         MyLoop* loop_;
///         int fd_;
///     };
template <class N>
concept CqNotifier = requires(N& n, std::stop_token st) {
    { n.readable(st) } -> awaitable_of<std::error_code>;
};

/// A notifier that can also bound the wait: `co_await n.readable(st, max_wait)` gives
/// errc::timed_out when `max_wait` has passed. Zero resumes after one iteration of the loop, with
/// {} if the fd is readable: a coroutine that never has to wait lets others run this way. Required
/// for max_wait, and for devices that may lose an arm after a spurious wake (mana, rdma-core
/// #1796): with it an AsyncCq looks again after 100 ms.
template <class N>
concept TimedCqNotifier =
    CqNotifier<N> && requires(N& n, std::stop_token st, std::chrono::nanoseconds max_wait) {
        { n.readable(st, max_wait) } -> awaitable_of<std::error_code>;
    };

namespace detail {

template <class N>
concept has_readable = requires(N& n, std::stop_token st) { n.readable(st); };

template <class N>
concept has_awaitable_readable = requires(N& n, std::stop_token st) {
    { n.readable(st) } -> awaitable;
};

// Gives one error that names the cause, where an unsatisfied constraint gives a page without it.
template <class N>
consteval void check_cq_notifier() {
    if constexpr (!has_readable<N>) {
        static_assert(has_readable<N>,
                      "AsyncCq: the notifier has no member readable(std::stop_token)");
    } else if constexpr (!has_awaitable_readable<N>) {
        static_assert(has_awaitable_readable<N>,
                      "AsyncCq: the notifier's readable(std::stop_token) is not awaitable");
    } else {
        static_assert(CqNotifier<N>,
                      "AsyncCq: co_await readable(std::stop_token) of the notifier does not give a "
                      "std::error_code");
    }
}

// Whether this thread may use what waits with a notifier. For assertions; only notifiers that have
// a loop() with may_use() can tell, such as EpollNotifier.
class ThreadCheck {
public:
    template <class N>
    explicit ThreadCheck(const N& notifier) {
        if constexpr (requires { notifier.thread_check(); }) {
            *this = notifier.thread_check();
        } else if constexpr (requires { notifier.loop()->may_use(); }) {
            using Loop = std::remove_reference_t<decltype(*notifier.loop())>;
            loop_ = notifier.loop();
            may_use_ = [](const void* loop) { return static_cast<const Loop*>(loop)->may_use(); };
        }
    }

    bool passes() const { return may_use_ == nullptr || may_use_(loop_.get()); }

private:
    std::shared_ptr<const void> loop_;
    bool (*may_use_)(const void* loop) = nullptr;
};

// A SharedChannel, whose notifiers are for the completion queues on it.
template <class Loop>
concept has_channel = requires(Loop& loop) { loop.channel(); };

// The notifier that an event loop makes: for a completion channel, if the loop accepts one, else
// for its file descriptor.
template <class Loop>
auto loop_notifier(Loop& loop, const CompletionChannel& channel) {
    if constexpr (requires { loop.notifier(channel); }) {
        return loop.notifier(channel);
    } else {
        return loop.notifier(channel.fd());
    }
}

template <class Loop>
using loop_notifier_t =
    decltype(loop_notifier(std::declval<Loop&>(), std::declval<const CompletionChannel&>()));

} // namespace detail
} // namespace asyncverbs
