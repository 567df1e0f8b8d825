// SPDX-License-Identifier: MIT
// Ends a program that hangs inside the code under test, where nothing else can: a suite that is run
// unattended has to name the case, not to be killed for its time.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string_view>
#include <thread>

namespace asyncverbs::detail::conformance {

/// Aborts when progress() was not called for `limit`.
class Watchdog {
public:
    Watchdog(std::string_view name, std::chrono::milliseconds limit)
        : name_(name), limit_(limit), thread_([this] { watch(); }) {}
    Watchdog(const Watchdog&) = delete;
    Watchdog& operator=(const Watchdog&) = delete;
    ~Watchdog() {
        {
            const std::lock_guard lock(mutex_);
            ended_ = true;
        }
        changed_.notify_one();
        thread_.join();
    }

    void progress() noexcept { steps_.fetch_add(1, std::memory_order_relaxed); }

private:
    void watch() {
        std::unique_lock lock(mutex_);
        for (unsigned seen = steps_;; seen = steps_) {
            if (changed_.wait_for(lock, limit_, [this] { return ended_; })) return;
            if (steps_ != seen) continue;
            std::fprintf(stderr,
                         "%.*s: it hangs. No step of the suite has ended for %lld ms: either a "
                         "function of the notifier blocks, or turn() does not keep to its bound.\n",
                         static_cast<int>(name_.size()), name_.data(),
                         static_cast<long long>(limit_.count()));
            std::abort();
        }
    }

    const std::string_view name_;
    const std::chrono::milliseconds limit_;
    std::atomic<unsigned> steps_{0};
    std::mutex mutex_;
    std::condition_variable changed_;
    bool ended_ = false;
    std::thread thread_;
};

} // namespace asyncverbs::detail::conformance
