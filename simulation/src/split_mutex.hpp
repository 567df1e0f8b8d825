// SPDX-License-Identifier: MIT
// A shared mutex without contention between shared holders: each thread that shares it has its own
// part, on its own cache lines; an exclusive holder takes all parts. The one counter of a
// std::shared_mutex would slow down the threads that share it.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

namespace asyncverbs::simulated {

// Locks a free mutex with try_lock, so that counters.hpp, which counts calls of pthread_mutex_lock,
// counts only contention in the simulation and the locks of the code under test.
class TriedMutex : public std::mutex {
public:
    void lock() {
        if (!try_lock()) std::mutex::lock();
    }
};

// For std::unique_lock and std::shared_lock. Each thread also has its own Local.
template <class Local>
class SplitMutex {
public:
    // Allocates the part of this thread, so that injected allocation failures hit the code under
    // test.
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

    // While shared: the Local of this thread.
    Local& local() { return mine().local; }

    // While exclusive.
    template <class Function>
    void for_each_local(Function function) const {
        for (std::size_t i = 0; i < used_; ++i) function(parts_[i]->local);
    }

private:
    struct alignas(64) Part {
        TriedMutex mutex;
        Local local{};
    };

    // More threads than this share parts: taking all parts takes time, and the thread sanitizer
    // supports no more than 64 held locks.
    static constexpr std::size_t max_parts = 32;

    static std::uint64_t next_id() {
        static std::atomic<std::uint64_t> last = 0;
        return ++last;
    }

    Part& mine() {
        // By number: a new mutex may have the address of a destroyed one.
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
    TriedMutex all_; // locked first; guards the members below
    std::size_t threads_ = 0;
    std::size_t used_ = 0;
    std::array<std::unique_ptr<Part>, max_parts> parts_;
};

} // namespace asyncverbs::simulated
