// SPDX-License-Identifier: MIT
// A coroutine that waits for the file descriptor of a registration. Readiness, the time and a stop
// request compete; the first in the queue wins. The hot path of AsyncCq.
#pragma once

#include <cerrno>
#include <coroutine>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/core/detail/deadline.hpp>
#include <asyncverbs/core/detail/epoll_registration.hpp>

namespace asyncverbs::detail {

template <class Use>
class EpollReadableAwaiter;

// Movable as long as nobody awaits it.
template <class Use>
class EpollReadableOperation {
public:
    EpollReadableOperation(EpollRegistration<Use>& registration,
                           typename Deadline<Use>::Clock::time_point deadline,
                           std::stop_token stop) noexcept
        : registration_(&registration), deadline_(deadline), stop_(std::move(stop)) {}

    EpollReadableAwaiter<Use> operator co_await() && noexcept;

private:
    friend EpollReadableAwaiter<Use>;

    EpollRegistration<Use>* registration_;
    typename Deadline<Use>::Clock::time_point deadline_;
    std::stop_token stop_;
};

// Pinned: the entry and the loop's queues point to it. The operation outlives it: both live until
// the end of the expression that awaits.
template <class Use>
class EpollReadableAwaiter : EpollWaiter<Use> {
public:
    explicit EpollReadableAwaiter(EpollReadableOperation<Use>& operation) noexcept
        : EpollWaiter<Use>(&on_decided, ETIMEDOUT), operation_(operation) {}
    ~EpollReadableAwaiter() { leave(); }

    bool await_ready() noexcept {
        if (!operation_.stop_.stop_requested()) return false;
        this->error = ECANCELED;
        return true;
    }

    [[gnu::always_inline]] bool await_suspend(std::coroutine_handle<> coroutine) noexcept {
        EpollRegistration<Use>& registration = *operation_.registration_;
        coroutine_ = coroutine;
        this->error = registration.attach(*this, operation_.stop_);
        if (this->error != 0) return false;
        if (operation_.deadline_ != Deadline<Use>::never && !this->linked()) {
            registration.loop().start_timer(*this, operation_.deadline_);
        }
        return true;
    }

    std::error_code await_resume() const noexcept { return this->result(); }

private:
    static void on_decided(ReadyNode<Use>& node) {
        auto& self = static_cast<EpollReadableAwaiter&>(node);
        self.leave();
        self.coroutine_.resume();
    }

    // Afterwards nothing refers to the awaiter but, if it is destroyed, the queue that it is in,
    // which a node leaves when it ends. A registration that was destroyed has let go of it.
    void leave() noexcept {
        if (this->entry != nullptr) operation_.registration_->detach(*this);
    }

    EpollReadableOperation<Use>& operation_;
    std::coroutine_handle<> coroutine_;
};

template <class Use>
inline EpollReadableAwaiter<Use> EpollReadableOperation<Use>::operator co_await() && noexcept {
    return EpollReadableAwaiter<Use>(*this);
}

} // namespace asyncverbs::detail
