// SPDX-License-Identifier: MIT
// What an EpollNotifier registers once, so that each of its waits costs next to nothing: the file
// descriptor with epoll, and a callback with the stop token of its waits.
#pragma once

#include <atomic>
#include <cerrno>
#include <stop_token>
#include <utility>

#include <asyncverbs/core/detail/epoll_entry.hpp>
#include <asyncverbs/core/detail/epoll_loop.hpp>
#include <asyncverbs/core/detail/maybe.hpp>
#include <asyncverbs/core/detail/ready_node.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>

namespace asyncverbs::detail {

template <class Use>
class EpollRegistration {
public:
    EpollRegistration(std::shared_ptr<EpollLoop<Use>> loop, int fd, EpollTrigger trigger)
        : loop_(std::move(loop)), entry_(loop_->epoll_fd(), fd, trigger), stopped_(*this) {}
    EpollRegistration(const EpollRegistration&) = delete;
    EpollRegistration& operator=(const EpollRegistration&) = delete;

    /// Cancels the wait.
    ~EpollRegistration() {
        loop_->assert_thread();
        // Waits for a callback that runs on another thread, which itself blocks on nothing.
        on_stop_.reset();
        if (stopped_.posted.load() && !stopped_.linked()) loop_->collect_posted();
        if (EpollWaiter<Use>* const waiter = entry_.waiter()) {
            detach(*waiter);
            loop_->decide(*waiter, ECANCELED);
        }
    }

    /// Lets `waiter` wait until the fd is readable or `stop` is requested. Returns 0, or the errno
    /// that says why it cannot.
    [[gnu::always_inline]] int attach(EpollWaiter<Use>& waiter,
                                      const std::stop_token& stop) noexcept {
        loop_->assert_thread();
        if (const int error = entry_.attach(waiter)) return error;
        if (entry_.take_missed_edge()) loop_->decide(waiter, 0);
        // Registering a callback costs more than the rest of a wait. It stays, for the next wait
        // with the same token, and says nothing while nobody waits.
        if (stop == stop_) return 0;
        on_stop_.reset();
        stop_ = stop;
        // Last. It may run before this returns, here or on another thread, but only posts.
        if (stop_.stop_possible()) on_stop_.emplace(stop_, OnStop{*this});
        return 0;
    }

    void detach(EpollWaiter<Use>& waiter) noexcept {
        loop_->assert_thread();
        loop_->stop_timer(waiter);
        entry_.detach();
    }

    EpollLoop<Use>& loop() const noexcept { return *loop_; }
    int fd() const noexcept { return entry_.fd(); }

private:
    struct StopNode : ReadyNode<Use> {
        explicit StopNode(EpollRegistration& owner) noexcept
            : ReadyNode<Use>(&on_stopped), registration(owner) {}
        EpollRegistration& registration;
        std::atomic<bool> posted{false}; // it is in the queue, or on the way
    };

    struct OnStop {
        EpollRegistration& registration;
        void operator()() const noexcept {
            StopNode& node = registration.stopped_;
            if (!node.posted.exchange(true)) registration.loop_->post(node);
        }
    };

    // In a turn of the loop. The wait that was to stop may have ended, and another one begun.
    static void on_stopped(ReadyNode<Use>& node) {
        auto& stopped = static_cast<StopNode&>(node);
        stopped.posted.store(false);
        EpollRegistration& self = stopped.registration;
        EpollWaiter<Use>* const waiter = self.entry_.waiter();
        if (waiter == nullptr || waiter->linked() || !self.stop_.stop_requested()) return;
        waiter->error = ECANCELED;
        waiter->run(*waiter);
    }

    std::shared_ptr<EpollLoop<Use>> loop_;
    EpollEntry<Use> entry_;
    StopNode stopped_;
    std::stop_token stop_;
    Maybe<std::stop_callback<OnStop>> on_stop_;
};

} // namespace asyncverbs::detail
