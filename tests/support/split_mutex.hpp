// SPDX-License-Identifier: MIT
//
// A shared mutex whose holders do not meet: each thread that shares it has a part of its own, on
// its own cache lines, and whoever wants it alone takes all parts. So threads that share it run
// side by side as if there were none, which a std::shared_mutex with its one count cannot do.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

namespace asyncverbs::simulated {

// Taken by trying where it is free: so who counts the calls of pthread_mutex_lock, as counters.hpp
// does, sees those who have to wait for each other, and the locks of the code under test.
class TriedMutex : public std::mutex {
public:
    void lock() {
        if (!try_lock()) std::mutex::lock();
    }
};

// For std::unique_lock and std::shared_lock. Beside its part of the mutex each thread has a Local.
template <class Local>
class SplitMutex {
public:
    // With a part for this thread, so that a test's failing allocations are those of its subject.
    SplitMutex() { mine(); }

    void lock() {
        all_.lock();
        for (std::size_t i = 0; i < used_; ++i) parts_[i]->mutex.lock();
    }
    void unlock() {
        for (std::size_t i = 0; i < used_; ++i) parts_[i]->mutex.unlock();
        all_.unlock();
    }

    void lock_shared() { mine().mutex.lock(); }
    void unlock_shared() { mine().mutex.unlock(); }

    // While shared: what no other thread touches meanwhile.
    Local& local() { return mine().local; }

    // While alone.
    template <class Function>
    void for_each_local(Function function) const {
        for (std::size_t i = 0; i < used_; ++i) function(parts_[i]->local);
    }

private:
    struct alignas(64) Part {
        TriedMutex mutex;
        Local local{};
    };

    // The more parts, the longer it takes to take all; threads beyond these share. The thread
    // sanitizer, too, wants no more than 64 locks to be held at a time.
    static constexpr std::size_t max_parts = 32;

    static std::uint64_t next_id() {
        static std::atomic<std::uint64_t> last = 0;
        return ++last;
    }

    Part& mine() {
        // By number: another mutex may be at the address that this one had.
        thread_local std::uint64_t of = 0;
        thread_local Part* part = nullptr;
        if (of != id_) {
            part = &add();
            of = id_;
        }
        return *part;
    }

    Part& add() {
        const std::lock_guard lock(all_);
        const std::size_t index = threads_++ % max_parts;
        if (index == used_) {
            parts_[index] = std::make_unique<Part>();
            ++used_;
        }
        return *parts_[index];
    }

    const std::uint64_t id_ = next_id();
    TriedMutex all_; // taken first; guards what follows
    std::size_t threads_ = 0;
    std::size_t used_ = 0;
    std::array<std::unique_ptr<Part>, max_parts> parts_;
};

} // namespace asyncverbs::simulated
