// SPDX-License-Identifier: MIT
// Ends a wait that is in progress, or else the next one, so that whoever waits looks around: a stop
// token that is renewed each time that its stop was heeded.
#pragma once

#include <atomic>
#include <mutex>
#include <stop_token>

#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

// One thread waits with token(); request() comes from any thread.
template <class Use>
class Interruption {
public:
    std::stop_token token() const noexcept { return stop_source_.get_token(); }

    void request() noexcept {
        std::stop_source source{std::nostopstate};
        {
            const std::lock_guard lock(mutex_);
            requested_.store(true, std::memory_order_relaxed);
            source = stop_source_;
        }
        // Calls the notifier, hence with no lock held (I8).
        // NOLINTNEXTLINE(clang-analyzer-cplusplus.Move): it was copied, by way of a temporary
        source.request_stop();
    }

    bool pending() const noexcept {
        // The flag is cheaper to ask, and says that the source will be stopped if it is not yet.
        return requested_.load(std::memory_order_relaxed) && stop_source_.stop_requested();
    }

    /// Heeds it: whoever raises a flag from now on interrupts the next wait. May throw bad_alloc.
    void renew() {
        const std::lock_guard lock(mutex_);
        stop_source_ = std::stop_source();
        requested_.store(false, std::memory_order_relaxed);
    }

private:
    Used<std::mutex, Use> mutex_; // stop_source_ is replaced while request() may copy it
    std::atomic<bool> requested_{false};
    std::stop_source stop_source_;
};

} // namespace asyncverbs::detail
