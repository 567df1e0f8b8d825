// SPDX-License-Identifier: MIT
// An edge-triggered notifier that meets the contract except for one chosen defect. There is one for
// each mistake that the conformance suite must find. None makes it touch freed memory.
#pragma once

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace asyncverbs::support {

enum class Defect {
    none,
    // readiness
    edge_without_waiter_is_lost,
    reads_the_descriptor,
    hang_up_is_ignored,
    error_is_ignored,
    never_waits,
    keeps_the_loop_busy,
    wakes_the_other_notifier,
    resumes_twice,
    resumes_on_own_thread,
    resumes_in_await_suspend,
    wait_within_the_resume_is_forgotten,
    throws,
    // stop
    stop_before_the_call_is_ignored,
    stop_while_suspending_is_ignored,
    stop_is_ignored,
    stop_does_not_wake,
    stop_resumes_at_once,
    stop_is_readable,
    stop_loses_the_edge,
    stop_affects_later_waits,
    stop_of_an_earlier_wait_counts,
    // lifetimes
    destroyed_is_resumed,
    destroyed_in_the_iteration_is_resumed,
    destroyed_loses_the_edge,
    closes_the_descriptor,
    keeps_registration_by_number,
    moving_forgets,
    // bounded waits
    no_bound,
    times_out_early,
    bound_overflows,
    bound_of_an_earlier_wait_counts,
    zero_bound_does_not_suspend,
    zero_bound_is_never_readable,
};

class DefectiveLoop {
public:
    using Clock = std::chrono::steady_clock;

    // A registered file descriptor and its waiter.
    struct Entry {
        int fd = -1;
        bool readable = false; // an edge that was not reported yet
        bool next_edge_is_lost = false;
        std::coroutine_handle<> waiting;
        std::stop_token stop;
        std::stop_token earlier_stop;
        std::atomic<bool> stopped{false};
        Clock::time_point deadline = Clock::time_point::max();
        std::error_code result;
    };

    explicit DefectiveLoop(Defect defect) : defect_(defect) {
        if (epoll_ < 0 || wake_ < 0) throw std::runtime_error("no epoll, or no eventfd");
        watch(wake_, EPOLLIN);
    }
    DefectiveLoop(const DefectiveLoop&) = delete;
    DefectiveLoop& operator=(const DefectiveLoop&) = delete;
    ~DefectiveLoop() {
        ::close(epoll_);
        ::close(wake_);
    }

    bool has(Defect defect) const noexcept { return defect_ == defect; }

    std::shared_ptr<Entry> add(int fd) {
        std::shared_ptr<Entry>& entry = entries_[fd];
        if (entry) return entry; // left by a destroyed notifier
        entry = std::make_shared<Entry>();
        entry->fd = fd;
        watch(fd, has(Defect::keeps_the_loop_busy) ? EPOLLIN : EPOLLIN | EPOLLET);
        return entry;
    }
    void remove(int fd) {
        if (has(Defect::keeps_registration_by_number)) return;
        ::epoll_ctl(epoll_, EPOLL_CTL_DEL, fd, nullptr);
        entries_.erase(fd);
        if (has(Defect::closes_the_descriptor)) ::close(fd);
    }

    void wake() noexcept { ::eventfd_write(wake_, 1); }

    void run_once(std::chrono::milliseconds at_most) {
        for (const auto& [fd, entry] : entries_) {
            if (!entry->waiting) continue;
            // An edge that was not reported does not come again.
            if (entry->readable) at_most = {};
            if (entry->deadline == Clock::time_point::max()) continue;
            const auto until = std::max(entry->deadline, Clock::time_point());
            const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now());
            at_most = std::clamp(left, std::chrono::milliseconds(0), at_most);
        }
        std::array<epoll_event, 8> events{};
        const int count = ::epoll_wait(epoll_, events.data(), 8, static_cast<int>(at_most.count()));
        for (int i = 0; i < count; ++i) {
            const auto& event = events[static_cast<std::size_t>(i)];
            on_event(event.data.fd, event.events);
        }
        resume_all();
    }

private:
    void watch(int fd, std::uint32_t events) const {
        epoll_event event{};
        event.events = events;
        event.data.fd = fd;
        ::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event);
    }

    void on_event(int fd, std::uint32_t events) {
        if (fd == wake_) {
            eventfd_t ignored = 0;
            ::eventfd_read(wake_, &ignored);
            return;
        }
        if (has(Defect::hang_up_is_ignored) && (events & EPOLLIN) == 0 && (events & EPOLLHUP)) {
            return;
        }
        if (has(Defect::error_is_ignored) && (events & EPOLLERR)) return;
        if (has(Defect::wakes_the_other_notifier)) fd = entries_.rbegin()->first;
        Entry& entry = *entries_.at(fd);
        if (has(Defect::edge_without_waiter_is_lost) && !entry.waiting) return;
        if (std::exchange(entry.next_edge_is_lost, false)) return;
        char byte = 0;
        if (has(Defect::reads_the_descriptor) && ::read(fd, &byte, 1) < 0) return;
        entry.readable = true;
    }

    // The result of the wait if it has ended.
    std::optional<std::error_code> outcome(Entry& entry) const {
        const bool earlier =
            has(Defect::stop_of_an_earlier_wait_counts) && entry.earlier_stop.stop_requested();
        const bool is_stopped = !has(Defect::stop_is_ignored) && (entry.stopped || earlier);
        if (is_stopped) {
            if (has(Defect::stop_loses_the_edge)) entry.readable = false;
            if (has(Defect::stop_is_readable)) return std::error_code();
            return std::make_error_code(std::errc::operation_canceled);
        }
        const bool out_of_time = Clock::now() >= entry.deadline;
        const bool no_time = entry.deadline == Clock::time_point::min();
        if (no_time && has(Defect::zero_bound_is_never_readable)) {
            return std::make_error_code(std::errc::timed_out);
        }
        if (std::exchange(entry.readable, false)) return std::error_code();
        if (out_of_time && !has(Defect::no_bound)) {
            return std::make_error_code(std::errc::timed_out);
        }
        return std::nullopt;
    }

    void resume_all() {
        std::vector<std::shared_ptr<Entry>> all;
        for (const auto& [fd, entry] : entries_) all.push_back(entry);
        if (has(Defect::destroyed_in_the_iteration_is_resumed)) return resume_without_recheck(all);
        for (const auto& entry : all) {
            if (!entry->waiting) continue;
            if (const auto result = outcome(*entry)) resume(*entry, *result);
        }
    }

    // Collects all that are ready, then resumes them, even if one was destroyed meanwhile.
    void resume_without_recheck(const std::vector<std::shared_ptr<Entry>>& all) {
        std::vector<std::coroutine_handle<>> ready;
        for (const auto& entry : all) {
            if (!entry->waiting) continue;
            if (const auto result = outcome(*entry)) {
                entry->result = *result;
                ready.push_back(std::exchange(entry->waiting, nullptr));
            }
        }
        for (const std::coroutine_handle<> coroutine : ready) coroutine.resume();
    }

    void resume(Entry& entry, std::error_code result) {
        entry.result = result;
        const std::coroutine_handle<> coroutine = std::exchange(entry.waiting, nullptr);
        if (has(Defect::resumes_on_own_thread)) {
            std::thread([coroutine] { coroutine.resume(); }).join();
        } else {
            coroutine.resume();
        }
        if (has(Defect::resumes_twice)) coroutine.resume();
        if (has(Defect::wait_within_the_resume_is_forgotten)) entry.waiting = nullptr;
    }

    const Defect defect_;
    int epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
    int wake_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    std::map<int, std::shared_ptr<Entry>> entries_;
};

class DefectiveNotifier {
    using Clock = DefectiveLoop::Clock;
    using Entry = DefectiveLoop::Entry;

public:
    DefectiveNotifier(DefectiveLoop& loop, int fd) : loop_(&loop), entry_(loop.add(fd)) {}
    DefectiveNotifier(DefectiveNotifier&& other) noexcept
        : loop_(other.loop_), entry_(std::move(other.entry_)) {
        if (loop_->has(Defect::moving_forgets)) entry_->readable = false;
    }
    ~DefectiveNotifier() {
        if (entry_) loop_->remove(entry_->fd);
    }

    class Readable {
    public:
        Readable(DefectiveLoop& loop, std::shared_ptr<Entry> entry, std::stop_token stop,
                 Clock::time_point deadline)
            : loop_(loop), entry_(std::move(entry)) {
            entry_->earlier_stop = std::exchange(entry_->stop, std::move(stop));
            if (!has(Defect::bound_of_an_earlier_wait_counts) ||
                deadline != Clock::time_point::max()) {
                entry_->deadline = deadline;
            }
            if (!has(Defect::stop_affects_later_waits)) entry_->stopped = false;
        }
        Readable(const Readable&) = delete;
        Readable& operator=(const Readable&) = delete;
        ~Readable() {
            on_stop_.reset();
            if (!has(Defect::destroyed_is_resumed)) entry_->waiting = nullptr;
            entry_->next_edge_is_lost = suspended_ && has(Defect::destroyed_loses_the_edge);
        }

        bool await_ready() {
            entry_->result = {};
            if (has(Defect::never_waits)) return true;
            if (has(Defect::zero_bound_does_not_suspend) &&
                entry_->deadline == Clock::time_point::min()) {
                entry_->result = std::make_error_code(std::errc::timed_out);
                return true;
            }
            if (!entry_->stop.stop_requested()) return false;
            if (has(Defect::stop_before_the_call_is_ignored)) {
                entry_->stop = {};
                return false;
            }
            if (!has(Defect::stop_is_readable)) {
                entry_->result = std::make_error_code(std::errc::operation_canceled);
            }
            return true;
        }
        void await_suspend(std::coroutine_handle<> coroutine) {
            suspended_ = true;
            entry_->waiting = coroutine;
            if (has(Defect::stop_while_suspending_is_ignored) && entry_->stop.stop_requested()) {
                return;
            }
            if (has(Defect::resumes_in_await_suspend) && entry_->readable) {
                entry_->readable = false;
                return std::exchange(entry_->waiting, nullptr).resume();
            }
            on_stop_.emplace(entry_->stop, OnStop{loop_, *entry_});
        }
        std::error_code await_resume() {
            suspended_ = false;
            if (has(Defect::throws)) throw std::runtime_error("thrown by the notifier");
            return entry_->result;
        }

    private:
        struct OnStop {
            DefectiveLoop& loop;
            Entry& entry;
            void operator()() const {
                if (loop.has(Defect::stop_resumes_at_once)) return entry.waiting.resume();
                entry.stopped = true;
                if (!loop.has(Defect::stop_does_not_wake)) loop.wake();
            }
        };

        bool has(Defect defect) const noexcept { return loop_.has(defect); }

        DefectiveLoop& loop_;
        std::shared_ptr<Entry> entry_;
        std::optional<std::stop_callback<OnStop>> on_stop_;
        bool suspended_ = false;
    };

    Readable readable(std::stop_token stop) {
        return {*loop_, entry_, std::move(stop), Clock::time_point::max()};
    }
    Readable readable(std::stop_token stop, std::chrono::nanoseconds bound) {
        return {*loop_, entry_, std::move(stop), deadline(bound)};
    }

private:
    Clock::time_point deadline(std::chrono::nanoseconds bound) const {
        if (bound.count() == 0) return Clock::time_point::min();
        if (loop_->has(Defect::times_out_early)) return Clock::now();
        const bool overflows = bound > Clock::time_point::max() - Clock::now();
        if (overflows && loop_->has(Defect::bound_overflows)) return Clock::now();
        return overflows ? Clock::time_point::max() : Clock::now() + bound;
    }

    DefectiveLoop* loop_;
    std::shared_ptr<Entry> entry_;
};

} // namespace asyncverbs::support
