// SPDX-License-Identifier: MIT
// What an EpollExecutor, its notifiers and its awaiters share: the epoll instance, the queues and
// the timers. It lives as long as any of them, so they may be destroyed in any order.
#pragma once

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cassert>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <system_error>

#include <asyncverbs/core/detail/deadline.hpp>
#include <asyncverbs/core/detail/epoll_entry.hpp>
#include <asyncverbs/core/detail/file_descriptor.hpp>
#include <asyncverbs/core/detail/intrusive_list.hpp>
#include <asyncverbs/core/detail/post_queue.hpp>
#include <asyncverbs/core/detail/ready_node.hpp>
#include <asyncverbs/core/detail/timer_queue.hpp>

namespace asyncverbs::detail {

template <class Use>
class EpollLoop {
public:
    EpollLoop();

    // From any thread.
    void post(ReadyNode<Use>& node) noexcept {
        if (posted_.push(node)) signal();
    }
    enum End : unsigned { stopped = 1, task_done = 2 };
    void end_run(End reason) noexcept {
        ends_.fetch_or(reason);
        if (posted_.wake()) signal();
    }

    // From the thread that runs the loop, or from one thread at a time while none does.
    void decide(EpollWaiter<Use>& waiter, int error) noexcept;
    void start_timer(EpollWaiter<Use>& waiter,
                     typename Deadline<Use>::Clock::time_point deadline) noexcept;
    void stop_timer(EpollWaiter<Use>& waiter) noexcept { timers_.remove(waiter); }
    void collect_posted() noexcept; // afterwards every posted node is linked
    void discard_all() noexcept;    // coroutines are forgotten, not destroyed
    void assert_thread() const noexcept {
        assert(may_touch() &&
               "asyncverbs: used on another thread than the one that runs the EpollExecutor");
    }
    void assert_idle() const noexcept { assert(!runs() && "asyncverbs: EpollExecutor in use"); }

    int epoll_fd() const noexcept { return epoll_.get(); }

    // Held while turns are taken. While nobody holds it, the epoll descriptor is readable whenever
    // a turn would find work.
    class Running {
    public:
        explicit Running(EpollLoop& loop);
        Running(const Running&) = delete;
        Running& operator=(const Running&) = delete;
        ~Running();

    private:
        EpollLoop& loop_;
    };

    // The same until end_run(), which is used up by the run that it ends.
    class Run : Running {
    public:
        explicit Run(EpollLoop& loop) : Running(loop), ends_(loop.ends_) {}
        ~Run() { ends_.store(0); }

    private:
        std::atomic<unsigned>& ends_;
    };
    unsigned ends() const noexcept { return ends_.load(); }

    // One turn in two phases: first descriptors, timers and posts, of which nothing is resumed yet;
    // then what is ready by now, and no more, or nobody else would ever get a turn. Returns whether
    // there was anything. Within a run it blocks until there is, and ends early with the run.
    bool turn(bool within_run);

private:
    bool may_touch() const noexcept {
        const pthread_t thread = thread_.load(std::memory_order_relaxed);
        return thread == pthread_t() || thread == ::pthread_self();
    }
    bool runs() const noexcept { return thread_.load(std::memory_order_relaxed) != pthread_t(); }
    void watch(int fd, void* tag);
    void signal() noexcept;
    std::size_t wait(epoll_event* events, int most, bool block);
    void walk(const epoll_event* events, std::size_t count) noexcept;

    PostQueue<Use> posted_; // first, for its alignment
    FileDescriptor epoll_;
    FileDescriptor event_; // written to wake the loop
    TimerQueue<Use> timers_;
    IntrusiveList<ReadyNode<Use>> ready_;
    ReadyNode<Use> mark_{nullptr};    // in ready_ while a turn resumes
    bool signalled_ = false;          // event_ was written for the sake of ready_
    std::atomic<pthread_t> thread_{}; // pthread_t(): nobody runs it
    std::atomic<unsigned> ends_{0};
};

template <class Use>
inline EpollLoop<Use>::EpollLoop()
    : epoll_(::epoll_create1(EPOLL_CLOEXEC), "epoll_create1"),
      event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd") {
    watch(event_.get(), &event_);
    watch(timers_.fd(), &timers_);
}

// Edge-triggered, and never read: each write and each expiry is a new edge.
template <class Use>
inline void EpollLoop<Use>::watch(int fd, void* tag) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLET;
    event.data.ptr = tag;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
        throw std::system_error(errno, std::system_category(), "epoll_ctl(EPOLL_CTL_ADD)");
    }
}

template <class Use>
inline void EpollLoop<Use>::signal() noexcept {
    constexpr std::uint64_t one = 1;
    // Would block only after 2^64 - 2 writes.
    [[maybe_unused]] const auto written = ::write(event_.get(), &one, sizeof one);
    assert(written == sizeof one);
}

template <class Use>
inline void EpollLoop<Use>::decide(EpollWaiter<Use>& waiter, int error) noexcept {
    waiter.error = error;
    if (waiter.linked()) return;
    ready_.push_back(waiter);
    if (!runs() && !signalled_) {
        signalled_ = true;
        signal();
    }
}

template <class Use>
inline void
EpollLoop<Use>::start_timer(EpollWaiter<Use>& waiter,
                            typename Deadline<Use>::Clock::time_point deadline) noexcept {
    if (deadline == Deadline<Use>::never) return;
    if (deadline == Deadline<Use>::next_turn) return decide(waiter, waiter.timeout_error);
    waiter.deadline = deadline;
    timers_.insert(waiter);
    if (!runs()) timers_.arm();
}

template <class Use>
inline void EpollLoop<Use>::collect_posted() noexcept {
    if (runs()) {
        posted_.take(ready_);
    } else {
        posted_.take_asleep(ready_);
    }
}

template <class Use>
inline void EpollLoop<Use>::discard_all() noexcept {
    for (;;) {
        collect_posted();
        if (ready_.empty()) return;
        ReadyNode<Use>& node = ready_.take_front();
        if (node.discard != nullptr) node.discard(node);
    }
}

template <class Use>
inline std::size_t EpollLoop<Use>::wait(epoll_event* events, int most, bool block) {
    for (;;) {
        const int count = ::epoll_wait(epoll_.get(), events, most, block ? -1 : 0);
        if (count >= 0) return static_cast<std::size_t>(count);
        if (errno != EINTR) throw std::system_error(errno, std::system_category(), "epoll_wait");
    }
}

template <class Use>
inline void EpollLoop<Use>::walk(const epoll_event* events, std::size_t count) noexcept {
    bool timer_fired = false;
    for (std::size_t i = 0; i < count; ++i) {
        const epoll_event& event = events[i];
        if (event.data.ptr == &timers_) {
            timer_fired = true;
        } else if (event.data.ptr != &event_) {
            auto& entry = *static_cast<EpollEntry<Use>*>(event.data.ptr);
            if (EpollWaiter<Use>* const waiter = entry.on_event(event.events)) decide(*waiter, 0);
        }
    }
    if (!timer_fired) return;
    timers_.expire([this](TimerNode<Use>& timer) {
        auto& waiter = static_cast<EpollWaiter<Use>&>(timer);
        // Who is readable and out of time at once is readable.
        if (!waiter.linked()) decide(waiter, waiter.timeout_error);
    });
}

template <class Use>
inline bool EpollLoop<Use>::turn(bool within_run) {
    const auto ended = [this, within_run] { return within_run && ends() != 0; };
    timers_.arm();
    // Asked after the queue was told of the sleep: who ends the run later, wakes.
    const bool block = within_run && ready_.empty() && posted_.sleep() && !ended();
    constexpr int most = 64;
    epoll_event events[most];
    const std::size_t count = wait(events, most, block);
    signalled_ = false;
    walk(events, count);
    posted_.take(ready_);

    // What becomes ready from here on is behind the mark. What is before it when an exception or
    // the end of the run ends the turn comes first in the next one.
    struct Mark {
        explicit Mark(EpollLoop& loop) noexcept : node(loop.mark_) { loop.ready_.push_back(node); }
        ~Mark() { node.unlink(); }
        ReadyNode<Use>& node;
    };
    const bool found_work = !ready_.empty();
    const Mark mark(*this);
    while (&ready_.front() != &mark.node && !ended()) {
        ReadyNode<Use>& node = ready_.take_front();
        node.run(node);
    }
    return found_work;
}

template <class Use>
inline EpollLoop<Use>::Running::Running(EpollLoop& loop) : loop_(loop) {
    pthread_t nobody{};
    if (!loop_.thread_.compare_exchange_strong(nobody, ::pthread_self())) {
        throw std::logic_error("EpollExecutor: it is running already");
    }
}

template <class Use>
inline EpollLoop<Use>::Running::~Running() {
    loop_.timers_.arm();
    if (!loop_.posted_.sleep() || !loop_.ready_.empty()) {
        loop_.signalled_ = true;
        loop_.signal();
    }
    loop_.thread_.store(pthread_t());
}

} // namespace asyncverbs::detail
