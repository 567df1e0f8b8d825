// SPDX-License-Identifier: MIT
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <cassert>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>

#include <asyncverbs/executor/detail/awaiters.hpp>
#include <asyncverbs/executor/detail/run_queue.hpp>

namespace asyncverbs::detail {

/// The epoll loop that an EpollExecutor, its notifiers and its operations share. It lives as long
/// as any of them, so they may be destroyed in any order.
class EpollLoop final : public RunQueue {
public:
    EpollLoop() : epoll_(::epoll_create1(EPOLL_CLOEXEC), "epoll_create1") {
        watch(event_.get(), &event_);
        watch(timers_.fd(), &timers_);
    }

    /// The file descriptor of the epoll instance. While no Running exists, it is readable
    /// whenever an iteration would find work.
    int epoll_fd() const noexcept { return epoll_.get(); }

    // --- from any thread ---

    enum End : unsigned { stopped = 1, task_done = 2 };
    void end_run(End reason) noexcept {
        ends_.fetch_or(reason);
        if (remote_.wake()) signal();
    }

    /// The reasons to end the current run, or else the next one.
    unsigned ends() const noexcept { return ends_.load(); }

    // --- from the thread that runs the loop, or from one thread at a time while none does ---

    /// Held during iterations.
    class Running {
    public:
        explicit Running(EpollLoop& loop);
        Running(const Running&) = delete;
        Running& operator=(const Running&) = delete;
        ~Running();

    private:
        EpollLoop& loop_;
    };

    /// Held during iterations that end_run() ends. Resets ends().
    class Run : Running {
    public:
        explicit Run(EpollLoop& loop) : Running(loop), ends_(loop.ends_) {}
        ~Run() { ends_.store(0); }

    private:
        std::atomic<unsigned>& ends_;
    };

    /// One iteration has two phases: first it looks at descriptors, timers and posts, and resumes
    /// nothing; then it runs what is ready by then. Returns whether there was anything. Within a
    /// run it blocks until there is, and ends early with the run.
    bool iterate(bool within_run);

    /// Destroys posted functions; forgets coroutines without destroying them.
    void discard_all() noexcept;

    void assert_idle() const noexcept { assert(!runs() && "asyncverbs: EpollExecutor in use"); }

private:
    void request_iteration() noexcept override {
        if (!std::exchange(signalled_, true)) signal();
    }
    void watch(int fd, void* tag);
    std::size_t wait(epoll_event* events, int max_events, bool block);
    void dispatch(const epoll_event* events, std::size_t count) noexcept;

    // --- touched by any thread ---
    std::atomic<unsigned> ends_{0};

    // --- touched by the loop's thread ---
    FileDescriptor epoll_;
    bool signalled_ = false; // event_ was written for ready_
};

/// Whether readiness is reported until everything is read, or once. Edge-triggered is cheaper, as
/// the kernel does not look again, but the reader must read everything that it needs to see.
enum class EpollTrigger : std::uint32_t { level = EPOLLIN, edge = EPOLLIN | EPOLLET };

/// A file descriptor in the epoll set.
class EpollRegistration final : public Registration {
public:
    EpollRegistration(const std::shared_ptr<EpollLoop>& loop, int fd, EpollTrigger trigger)
        : Registration(loop, fd, trigger == EpollTrigger::edge), epoll_fd_(loop->epoll_fd()),
          trigger_(static_cast<std::uint32_t>(trigger)) {
        if (const int error = control(EPOLL_CTL_ADD, trigger_)) {
            throw std::system_error(error, std::system_category(), "epoll_ctl(EPOLL_CTL_ADD)");
        }
    }
    ~EpollRegistration() {
        if (interest_ != Interest::unregistered) control(EPOLL_CTL_DEL, 0);
    }

    void on_event(std::uint32_t events) noexcept {
        if (waiter_ != nullptr) return loop().complete(*waiter_, 0);
        if (edge_) {
            pending_edge_ = true;
            return;
        }
        // With no waiter, mask a level-triggered event, or epoll_wait would spin. EPOLLERR and
        // EPOLLHUP cannot be masked: remove the fd from the set.
        const bool masked = (events & (EPOLLERR | EPOLLHUP)) == 0 && control(EPOLL_CTL_MOD, 0) == 0;
        if (!masked) control(EPOLL_CTL_DEL, 0);
        interest_ = masked ? Interest::masked : Interest::unregistered;
    }

private:
    enum class Interest { readable, masked, unregistered };

    /// Undoes what on_event() did while there was no waiter.
    int watch() noexcept override {
        if (interest_ == Interest::readable) return 0;
        const int operation = interest_ == Interest::masked ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
        const int error = control(operation, trigger_);
        if (error == 0) interest_ = Interest::readable;
        return error;
    }

    int control(int operation, std::uint32_t events) noexcept {
        epoll_event event{};
        event.events = events;
        event.data.ptr = this;
        return ::epoll_ctl(epoll_fd_, operation, fd_, &event) == 0 ? 0 : errno;
    }

    const int epoll_fd_;
    const std::uint32_t trigger_;
    Interest interest_ = Interest::readable;
};

// Edge-triggered, and never read: each write and each expiry is a new edge.
inline void EpollLoop::watch(int fd, void* tag) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLET;
    event.data.ptr = tag;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
        throw std::system_error(errno, std::system_category(), "epoll_ctl(EPOLL_CTL_ADD)");
    }
}

inline bool EpollLoop::iterate(bool within_run) {
    const auto ended = [this, within_run] { return within_run && ends() != 0; };
    timers_.arm();
    // Look at ends() after sleep(): if the run is ended later than that, end_run() signals.
    const bool block = within_run && ready_.empty() && remote_.sleep() && !ended();
    constexpr int max_events = 64;
    epoll_event events[max_events];
    const std::size_t count = wait(events, max_events, block);
    signalled_ = false;
    dispatch(events, count);
    return run_ready(ended);
}

inline std::size_t EpollLoop::wait(epoll_event* events, int max_events, bool block) {
    for (;;) {
        const int count = ::epoll_wait(epoll_.get(), events, max_events, block ? -1 : 0);
        if (count >= 0) return static_cast<std::size_t>(count);
        if (errno != EINTR) throw std::system_error(errno, std::system_category(), "epoll_wait");
    }
}

inline void EpollLoop::dispatch(const epoll_event* events, std::size_t count) noexcept {
    bool timer_fired = false;
    for (std::size_t i = 0; i < count; ++i) {
        const epoll_event& event = events[i];
        if (event.data.ptr == &timers_) {
            timer_fired = true;
        } else if (event.data.ptr != &event_) {
            static_cast<EpollRegistration*>(event.data.ptr)->on_event(event.events);
        }
    }
    if (timer_fired) expire_timers(); // after the descriptors: readable and due is readable
}

inline void EpollLoop::discard_all() noexcept {
    for (;;) {
        collect_posted();
        if (ready_.empty()) return;
        WorkItem& item = ready_.take_front();
        if (item.discard != nullptr) item.discard(item);
    }
}

inline EpollLoop::Running::Running(EpollLoop& loop) : loop_(loop) {
    std::thread::id nobody;
    if (!loop_.thread_.compare_exchange_strong(nobody, std::this_thread::get_id())) {
        throw std::logic_error("EpollExecutor: it is running already");
    }
}

inline EpollLoop::Running::~Running() {
    loop_.timers_.arm();
    if (!loop_.remote_.sleep() || !loop_.ready_.empty()) loop_.request_iteration();
    loop_.thread_.store(std::thread::id());
}

} // namespace asyncverbs::detail
