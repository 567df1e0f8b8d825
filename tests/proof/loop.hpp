// SPDX-License-Identifier: MIT
//
// The event loops under which AsyncCq is explored. The world runs them iteration by iteration and
// observes each wait.
#pragma once

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/cq/shared_channel.hpp>

#include <chrono>
#include <concepts>
#include <coroutine>
#include <cstddef>
#include <memory>
#include <stop_token>
#include <system_error>
#include <type_traits>
#include <utility>

#include "proof/configuration.hpp"

namespace asyncverbs::proof {

// Observes a loop; each call may take steps.
class Watcher {
public:
    // A wait for an event of `cq`; null: of any CQ on a SharedChannel.
    virtual void wait_begins(const ibv_cq* cq) = 0;
    virtual void wait_suspended(const ibv_cq* cq) = 0;
    virtual void wait_ends(const ibv_cq* cq, const std::error_code& result) = 0;
    // The loop knows what is ready and has not resumed it yet: other coroutines may run.
    virtual void loop_polled() = 0;
    virtual std::size_t choose(std::size_t options) = 0;
    virtual void not_deregistered(int error) = 0;

protected:
    ~Watcher() = default;
};

// A channel on which several AsyncCqs are made.
class Channel {
public:
    virtual ~Channel() = default;
    virtual const CompletionChannel& channel() const = 0;
    virtual AsyncCq adopt(CompletionQueue cq, const AsyncCqOptions& options) = 0;
};

class Loop {
public:
    virtual ~Loop() = default;

    // An AsyncCq whose channel this loop waits for.
    virtual AsyncCq adopt(CompletionQueue cq, const AsyncCqOptions& options) = 0;
    // A SharedChannel that this loop waits for.
    virtual std::unique_ptr<Channel> share(CompletionChannel channel) = 0;
    // Whether run_once() would resume anything.
    virtual bool pending() = 0;
    virtual void run_once() = 0;
    // Ends the iteration in progress, or the next one before it begins.
    virtual void stop() = 0;
    // Ends the outstanding bounded wait; false if there is none.
    virtual bool pass_time() { return false; }
    virtual bool bounded_wait() const { return false; }
};

std::unique_ptr<Loop> make_loop(const Configuration& configuration, Watcher& watcher);

// The notifier's operation, observed.
template <class Operation>
class WatchedWait {
public:
    template <class Make>
    WatchedWait(Watcher& watcher, const ibv_cq* cq, Make make)
        : watcher_(watcher), cq_(cq), operation_(make()),
          awaiter_(detail::get_awaiter(std::move(operation_))) {}

    bool await_ready() {
        watcher_.wait_begins(cq_);
        return awaiter_.await_ready();
    }
    auto await_suspend(std::coroutine_handle<> coroutine) {
        if constexpr (std::is_void_v<decltype(awaiter_.await_suspend(coroutine))>) {
            awaiter_.await_suspend(coroutine);
            watcher_.wait_suspended(cq_);
        } else {
            const auto next = awaiter_.await_suspend(coroutine);
            watcher_.wait_suspended(cq_);
            return next;
        }
    }
    std::error_code await_resume() {
        const std::error_code result = awaiter_.await_resume();
        watcher_.wait_ends(cq_, result);
        return result;
    }

private:
    Watcher& watcher_;
    const ibv_cq* cq_;
    Operation operation_;
    detail::awaiter_t<Operation> awaiter_; // may refer to the operation
};

// A notifier whose waits are observed.
template <class Notifier>
class Watched {
public:
    Watched(Watcher& watcher, const ibv_cq* cq, Notifier notifier)
        : watcher_(&watcher), cq_(cq), notifier_(std::move(notifier)) {}

    auto readable(std::stop_token stop) {
        const auto make = [&] { return notifier_.readable(std::move(stop)); };
        return WatchedWait<decltype(make())>(*watcher_, cq_, make);
    }
    auto readable(std::stop_token stop, std::chrono::nanoseconds bound) {
        const auto make = [&] { return notifier_.readable(std::move(stop), bound); };
        return WatchedWait<decltype(make())>(*watcher_, cq_, make);
    }
    unsigned take_events()
        requires detail::reads_events<Notifier>
    {
        return notifier_.take_events();
    }
    bool is_of(const CompletionQueue& cq) const noexcept
        requires detail::reads_events<Notifier>
    {
        return notifier_.is_of(cq);
    }

private:
    Watcher* watcher_;
    const ibv_cq* cq_;
    Notifier notifier_;
};

// `N` waits for the channel.
template <class N>
class WatchedChannel : public Channel {
public:
    WatchedChannel(Watcher& watcher, CompletionChannel channel, N notifier)
        : watcher_(watcher),
          channel_(std::move(channel), Watched<N>(watcher, nullptr, std::move(notifier))) {}

    const CompletionChannel& channel() const override { return channel_.channel(); }
    AsyncCq adopt(CompletionQueue cq, const AsyncCqOptions& options) override {
        Watched notifier(watcher_, cq.native_handle(), channel_.notifier(cq));
        return AsyncCq(std::move(cq), std::move(notifier), options);
    }

private:
    Watcher& watcher_;
    SharedChannel<Watched<N>> channel_;
};

} // namespace asyncverbs::proof
