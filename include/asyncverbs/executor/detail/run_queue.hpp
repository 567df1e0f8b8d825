// SPDX-License-Identifier: MIT
// The part of an event loop that does not depend on how it waits for the kernel: work that is
// ready, work posted by other threads, and timers. EpollLoop and IoUringLoop derive from RunQueue.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cassert>
#include <cerrno>
#include <concepts>
#include <coroutine>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>

#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/executor/detail/timers.hpp>

namespace asyncverbs::detail {

/// A coroutine to resume or a function to call. It is embedded in the awaiter or allocated with the
/// function, so queueing never allocates.
struct WorkItem : ListNode {
    using Action = void (*)(WorkItem&);

    explicit WorkItem(Action on_run, Action on_discard = nullptr) noexcept
        : run(on_run), discard(on_discard) {}
    // An awaiter may be moved until it suspends; until then it is in no queue.
    WorkItem(WorkItem&& other) noexcept : WorkItem(other.run, other.discard) {}
    WorkItem& operator=(WorkItem&&) noexcept { return *this; }

    Action run;
    Action discard; // destroys an item that its queue owns; null: the awaiter owns it
    WorkItem* next_posted = nullptr;
};

/// A function that was posted. It and its WorkItem are one allocation.
template <class Function>
class PostedFunction : public WorkItem {
public:
    template <class F>
        requires std::constructible_from<Function, F>
    explicit PostedFunction(F&& function)
        : WorkItem(&call, &destroy), function_(std::forward<F>(function)) {}

private:
    static void call(WorkItem& item) {
        const std::unique_ptr<PostedFunction> self(static_cast<PostedFunction*>(&item));
        self->function_();
    }
    static void destroy(WorkItem& item) { delete static_cast<PostedFunction*>(&item); }

    Function function_;
};

/// A coroutine that sleeps or waits for a file descriptor. Readiness, the deadline and a stop
/// request compete; the first one that the loop processes wins.
struct Waiter : WorkItem, Timer {
    Waiter(Action on_complete, Deadline::Clock::time_point time, std::stop_token token) noexcept
        : WorkItem(on_complete), stop(std::move(token)) {
        deadline = time;
    }

    bool await_ready() noexcept {
        if (!stop.stop_requested()) return false;
        error = ECANCELED;
        return true;
    }
    std::error_code await_resume() const noexcept {
        if (error == 0) return {};
        return std::make_error_code(static_cast<std::errc>(error));
    }

    std::stop_token stop;
    std::coroutine_handle<> coroutine;
    int error = 0; // an errno value; until it is completed, the result when the deadline passes
};

/// Work that any thread hands to a loop: a lock-free stack. Its one atomic word also says whether
/// the loop sleeps, so that of many posts only the first one has to wake the loop. It has a cache
/// line of its own, so posting threads take only this line from the loop's thread.
class alignas(64) RemoteQueue {
public:
    // --- from any thread ---

    /// Returns true if the loop sleeps and must be woken. `item` may be destroyed by then.
    bool push(WorkItem& item) noexcept {
        WorkItem* head = head_.load(std::memory_order_relaxed);
        do {
            item.next_posted = head == &asleep_ ? nullptr : head;
        } while (!head_.compare_exchange_weak(head, &item, std::memory_order_seq_cst,
                                              std::memory_order_relaxed));
        return head == &asleep_;
    }

    /// Returns true if the loop sleeps and must be woken. Sequentially consistent with sleep(): a
    /// flag that is set before wake() is seen by a loop that reads it after sleep().
    bool wake() noexcept {
        WorkItem* expected = &asleep_;
        return head_.compare_exchange_strong(expected, nullptr);
    }

    // --- from the loop's thread ---

    /// Returns false if something was posted: do not sleep.
    bool sleep() noexcept {
        WorkItem* expected = nullptr;
        return head_.compare_exchange_strong(expected, &asleep_) || expected == &asleep_;
    }

    /// Moves what was posted to the end of `ready`, in the order of posting.
    void take(IntrusiveList<WorkItem>& ready) noexcept { move_to(ready, nullptr); }

    /// The same for a loop that does not run: the next post wakes it again.
    void take_asleep(IntrusiveList<WorkItem>& ready) noexcept { move_to(ready, &asleep_); }

private:
    void move_to(IntrusiveList<WorkItem>& ready, WorkItem* next_head) noexcept {
        WorkItem* newest = head_.exchange(next_head);
        if (newest == &asleep_) return;
        WorkItem* oldest = nullptr;
        while (newest != nullptr) {
            WorkItem* const older = newest->next_posted;
            newest->next_posted = oldest;
            oldest = newest;
            newest = older;
        }
        while (oldest != nullptr) {
            WorkItem& item = *oldest;
            oldest = item.next_posted;
            ready.push_back(item);
        }
    }

    // &asleep_: the loop sleeps or does not run, and must be woken when this changes.
    // Else the stack, newest first, perhaps empty: the loop runs or was woken, and takes the items
    // before it sleeps.
    std::atomic<WorkItem*> head_{&asleep_};
    WorkItem asleep_{nullptr};
};

class RunQueue {
public:
    RunQueue(const RunQueue&) = delete;
    RunQueue& operator=(const RunQueue&) = delete;

    // --- from any thread ---

    /// Runs `item` in the next iteration. It may be destroyed when this returns.
    void post(WorkItem& item) noexcept {
        if (remote_.push(item)) signal();
    }

    // --- from the thread that runs the loop, or from one thread at a time while none does ---

    /// Runs `waiter` in the next iteration, with the `error` of the last call until then.
    void complete(Waiter& waiter, int error) noexcept {
        waiter.error = error;
        if (waiter.linked()) return;
        ready_.push_back(waiter);
        if (!runs()) request_iteration();
    }

    /// Completes `waiter` when its deadline has passed, with the error that it has.
    void start_timer(Waiter& waiter) noexcept {
        if (waiter.deadline == Deadline::never) return;
        if (waiter.deadline == Deadline::next_iteration) return complete(waiter, waiter.error);
        timers_.insert(waiter);
        if (!runs()) timers_.arm();
    }
    void stop_timer(Waiter& waiter) noexcept { timers_.remove(waiter); }

    /// Moves posted items to the ready ones: afterwards each of them can be unlinked.
    void collect_posted() noexcept {
        if (runs()) {
            remote_.take(ready_);
        } else {
            remote_.take_asleep(ready_);
        }
    }

    /// Whether no other thread runs the loop.
    bool may_use() const noexcept {
        const std::thread::id thread = thread_.load(std::memory_order_relaxed);
        return thread == std::thread::id() || thread == std::this_thread::get_id();
    }
    void assert_thread() const noexcept {
        assert(may_use() &&
               "asyncverbs: used on another thread than the one that runs the EpollExecutor");
    }

protected:
    RunQueue() : event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd") {}
    ~RunQueue() = default;

    /// Makes the loop run an iteration although no descriptor is ready. Called only if !runs().
    virtual void request_iteration() noexcept = 0;

    bool runs() const noexcept {
        return thread_.load(std::memory_order_relaxed) != std::thread::id();
    }

    /// Makes event_ readable. From any thread.
    void signal() noexcept {
        constexpr std::uint64_t one = 1;
        // Would block only after 2^64 - 2 writes.
        [[maybe_unused]] const auto written = ::write(event_.get(), &one, sizeof one);
        assert(written == sizeof one);
    }

    /// To be called when the descriptor of timers_ was readable.
    void expire_timers() noexcept {
        timers_.expire([this](Timer& timer) {
            auto& waiter = static_cast<Waiter&>(timer);
            // Readable and due at once counts as readable.
            if (!waiter.linked()) ready_.push_back(waiter);
        });
    }

    /// Runs what is ready or posted by now, until stopped() is true. What becomes ready meanwhile
    /// is left for the next iteration (I9). If stopped() or an exception ends it early, the rest is
    /// first in the next iteration. Returns whether there was anything.
    template <class Stopped>
    bool run_ready(Stopped stopped) {
        struct Batch : IntrusiveList<WorkItem> {
            explicit Batch(RunQueue& owner) noexcept : queue(owner) {
                queue.collect_posted();
                append(queue.ready_);
            }
            ~Batch() {
                if (empty()) return;
                queue.ready_.prepend(*this);
                if (!queue.runs()) queue.request_iteration();
            }
            RunQueue& queue;
        } batch(*this);
        const bool found_work = !batch.empty();
        while (!batch.empty() && !stopped()) {
            WorkItem& item = batch.take_front();
            item.run(item); // may destroy anything but the loop
        }
        return found_work;
    }

    // --- touched by any thread ---
    RemoteQueue remote_;
    FileDescriptor event_; // written to wake the loop
    // The thread in EpollExecutor::run(); id() if none, and always on a loop that is not ours.
    std::atomic<std::thread::id> thread_{};

    // --- touched by the loop's thread ---
    TimerQueue timers_;
    IntrusiveList<WorkItem> ready_;
};

} // namespace asyncverbs::detail
