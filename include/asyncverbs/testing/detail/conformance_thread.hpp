// SPDX-License-Identifier: MIT
// The other thread of the conformance suite: it requests stops and makes descriptors readable while
// the loop does something else.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

namespace asyncverbs::detail::conformance {

class OtherThread {
public:
    OtherThread() : thread_([this] { serve(); }) {}
    OtherThread(const OtherThread&) = delete;
    OtherThread& operator=(const OtherThread&) = delete;
    ~OtherThread() {
        wait();
        {
            const std::lock_guard lock(mutex_);
            ended_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }

    /// Starts `action`, which does not throw; what was started before has ended.
    void start(std::function<void()> action) {
        {
            const std::lock_guard lock(mutex_);
            action_ = std::move(action);
        }
        changed_.notify_all();
    }

    /// Until the action has ended.
    void wait() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return !action_; });
    }

private:
    void serve() {
        std::unique_lock lock(mutex_);
        for (;;) {
            changed_.wait(lock, [this] { return action_ || ended_; });
            if (!action_) return;
            lock.unlock();
            action_();
            lock.lock();
            action_ = nullptr;
            changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::function<void()> action_;
    bool ended_ = false;
    std::thread thread_;
};

/// Passes a time that is another one in each round, so that two threads meet everywhere.
inline void dawdle(int round) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point end = Clock::now() + std::chrono::microseconds(round % 64);
    while (Clock::now() < end) {
    }
}

} // namespace asyncverbs::detail::conformance
