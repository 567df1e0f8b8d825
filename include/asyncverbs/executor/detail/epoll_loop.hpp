// SPDX-License-Identifier: MIT
// A file descriptor in an epoll set, and who waits for it. It is registered once and stays so while
// nobody waits: a wait costs no system call.
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
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/executor/detail/run_queue.hpp>
#include <asyncverbs/executor/detail/timers.hpp>

namespace asyncverbs::detail {

class EpollEntry;

// What the loop has to know of an awaiter that sleeps or waits for a file descriptor.
struct EpollWaiter : WorkItem, Timer {
    EpollWaiter(typename WorkItem::Action on_decided, int error_after_timeout) noexcept
        : WorkItem(on_decided), timeout_error(error_after_timeout) {}

    std::error_code result() const noexcept {
        if (error == 0) return {};
        return std::make_error_code(static_cast<std::errc>(error));
    }

    EpollEntry* entry = nullptr; // the one that it is attached to
    int error = 0;               // an errno value; may change as long as the node is queued
    int timeout_error;           // what `error` becomes when the time has passed
};

/// What wakes: that something can be read, or that something new came. The kernel need not look
/// again after an edge, but whoever waits has to read all that he does not want to be without.
enum class EpollTrigger : std::uint32_t { level = EPOLLIN, edge = EPOLLIN | EPOLLET };

class EpollEntry {
public:
    EpollEntry(int epoll_fd, int fd, EpollTrigger trigger)
        : epoll_fd_(epoll_fd), fd_(fd), trigger_(trigger) {
        if (const int error = control(EPOLL_CTL_ADD, wanted())) {
            throw std::system_error(error, std::system_category(), "epoll_ctl(EPOLL_CTL_ADD)");
        }
    }
    EpollEntry(const EpollEntry&) = delete;
    EpollEntry& operator=(const EpollEntry&) = delete;
    ~EpollEntry() {
        if (interest_ != Interest::unregistered) control(EPOLL_CTL_DEL, 0);
    }

    /// 0, or the errno that says why `waiter` cannot wait.
    int attach(EpollWaiter& waiter) noexcept {
        if (waiter_ != nullptr) return EBUSY;
        if (interest_ != Interest::readable) {
            const int operation = interest_ == Interest::nothing ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
            if (const int error = control(operation, wanted())) return error;
            interest_ = Interest::readable;
        }
        waiter_ = &waiter;
        waiter.entry = this;
        return 0;
    }

    /// Somebody is attached. An edge that he was to be told of is the next one's.
    void detach() noexcept {
        EpollWaiter& waiter = *std::exchange(waiter_, nullptr);
        waiter.entry = nullptr;
        if (waiter.linked() && waiter.error == 0) missed_edge_ = trigger_ == EpollTrigger::edge;
    }

    /// Whether an edge came while nobody was attached. Asked once.
    bool take_missed_edge() noexcept {
        const bool missed = missed_edge_;
        missed_edge_ = false;
        return missed;
    }

    /// Returns whom the event is for. An edge for nobody is remembered. A level for nobody is kept
    /// from coming again at once, for ever: EPOLLIN is masked; EPOLLERR and EPOLLHUP cannot be, so
    /// the fd leaves the set. The next attach() undoes either, and finds the fd as it is then.
    EpollWaiter* on_event(std::uint32_t events) noexcept {
        if (waiter_ != nullptr) return waiter_;
        if (trigger_ == EpollTrigger::edge) {
            missed_edge_ = true;
            return nullptr;
        }
        const bool masked = (events & (EPOLLERR | EPOLLHUP)) == 0 && control(EPOLL_CTL_MOD, 0) == 0;
        if (!masked) control(EPOLL_CTL_DEL, 0);
        interest_ = masked ? Interest::nothing : Interest::unregistered;
        return nullptr;
    }

    EpollWaiter* waiter() const noexcept { return waiter_; }
    int fd() const noexcept { return fd_; }

private:
    enum class Interest { readable, nothing, unregistered };

    std::uint32_t wanted() const noexcept { return static_cast<std::uint32_t>(trigger_); }

    int control(int operation, std::uint32_t events) noexcept {
        epoll_event event{};
        event.events = events;
        event.data.ptr = this;
        return ::epoll_ctl(epoll_fd_, operation, fd_, &event) == 0 ? 0 : errno;
    }

    const int epoll_fd_;
    const int fd_;
    const EpollTrigger trigger_;
    bool missed_edge_ = false;
    Interest interest_ = Interest::readable;
    EpollWaiter* waiter_ = nullptr;
};

// What an EpollExecutor, its notifiers and its awaiters share: the epoll instance, the queues and
// the timers. It lives as long as any of them, so they may be destroyed in any order.

class EpollLoop {
public:
    EpollLoop();

    // From any thread.
    void post(WorkItem& node) noexcept {
        if (posted_.push(node)) signal();
    }
    enum End : unsigned { stopped = 1, task_done = 2 };
    void end_run(End reason) noexcept {
        ends_.fetch_or(reason);
        if (posted_.wake()) signal();
    }

    // From the thread that runs the loop, or from one thread at a time while none does.
    void decide(EpollWaiter& waiter, int error) noexcept;
    void start_timer(EpollWaiter& waiter, typename Deadline::Clock::time_point deadline) noexcept;
    void stop_timer(EpollWaiter& waiter) noexcept { timers_.remove(waiter); }
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

    RemoteQueue posted_; // first, for its alignment
    FileDescriptor epoll_;
    FileDescriptor event_; // written to wake the loop
    TimerQueue timers_;
    IntrusiveList<WorkItem> ready_;
    WorkItem mark_{nullptr};          // in ready_ while a turn resumes
    bool signalled_ = false;          // event_ was written for the sake of ready_
    std::atomic<pthread_t> thread_{}; // pthread_t(): nobody runs it
    std::atomic<unsigned> ends_{0};
};

inline EpollLoop::EpollLoop()
    : epoll_(::epoll_create1(EPOLL_CLOEXEC), "epoll_create1"),
      event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd") {
    watch(event_.get(), &event_);
    watch(timers_.fd(), &timers_);
}

// Edge-triggered, and never read: each write and each expiry is a new edge.
inline void EpollLoop::watch(int fd, void* tag) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLET;
    event.data.ptr = tag;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
        throw std::system_error(errno, std::system_category(), "epoll_ctl(EPOLL_CTL_ADD)");
    }
}

inline void EpollLoop::signal() noexcept {
    constexpr std::uint64_t one = 1;
    // Would block only after 2^64 - 2 writes.
    [[maybe_unused]] const auto written = ::write(event_.get(), &one, sizeof one);
    assert(written == sizeof one);
}

inline void EpollLoop::decide(EpollWaiter& waiter, int error) noexcept {
    waiter.error = error;
    if (waiter.linked()) return;
    ready_.push_back(waiter);
    if (!runs() && !signalled_) {
        signalled_ = true;
        signal();
    }
}

inline void EpollLoop::start_timer(EpollWaiter& waiter,
                                   typename Deadline::Clock::time_point deadline) noexcept {
    if (deadline == Deadline::never) return;
    if (deadline == Deadline::next_iteration) return decide(waiter, waiter.timeout_error);
    waiter.deadline = deadline;
    timers_.insert(waiter);
    if (!runs()) timers_.arm();
}

inline void EpollLoop::collect_posted() noexcept {
    if (runs()) {
        posted_.take(ready_);
    } else {
        posted_.take_asleep(ready_);
    }
}

inline void EpollLoop::discard_all() noexcept {
    for (;;) {
        collect_posted();
        if (ready_.empty()) return;
        WorkItem& node = ready_.take_front();
        if (node.discard != nullptr) node.discard(node);
    }
}

inline std::size_t EpollLoop::wait(epoll_event* events, int most, bool block) {
    for (;;) {
        const int count = ::epoll_wait(epoll_.get(), events, most, block ? -1 : 0);
        if (count >= 0) return static_cast<std::size_t>(count);
        if (errno != EINTR) throw std::system_error(errno, std::system_category(), "epoll_wait");
    }
}

inline void EpollLoop::walk(const epoll_event* events, std::size_t count) noexcept {
    bool timer_fired = false;
    for (std::size_t i = 0; i < count; ++i) {
        const epoll_event& event = events[i];
        if (event.data.ptr == &timers_) {
            timer_fired = true;
        } else if (event.data.ptr != &event_) {
            auto& entry = *static_cast<EpollEntry*>(event.data.ptr);
            if (EpollWaiter* const waiter = entry.on_event(event.events)) decide(*waiter, 0);
        }
    }
    if (!timer_fired) return;
    timers_.expire([this](Timer& timer) {
        auto& waiter = static_cast<EpollWaiter&>(timer);
        // Who is readable and out of time at once is readable.
        if (!waiter.linked()) decide(waiter, waiter.timeout_error);
    });
}

inline bool EpollLoop::turn(bool within_run) {
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
        WorkItem& node;
    };
    const bool found_work = !ready_.empty();
    const Mark mark(*this);
    while (&ready_.front() != &mark.node && !ended()) {
        WorkItem& node = ready_.take_front();
        node.run(node);
    }
    return found_work;
}

inline EpollLoop::Running::Running(EpollLoop& loop) : loop_(loop) {
    pthread_t nobody{};
    if (!loop_.thread_.compare_exchange_strong(nobody, ::pthread_self())) {
        throw std::logic_error("EpollExecutor: it is running already");
    }
}

inline EpollLoop::Running::~Running() {
    loop_.timers_.arm();
    if (!loop_.posted_.sleep() || !loop_.ready_.empty()) {
        loop_.signalled_ = true;
        loop_.signal();
    }
    loop_.thread_.store(pthread_t());
}

// What an EpollNotifier registers once, so that each of its waits costs next to nothing: the file
// descriptor with epoll, and a callback with the stop token of its waits.

class EpollRegistration {
public:
    EpollRegistration(std::shared_ptr<EpollLoop> loop, int fd, EpollTrigger trigger)
        : loop_(std::move(loop)), entry_(loop_->epoll_fd(), fd, trigger), stopped_(*this) {}
    EpollRegistration(const EpollRegistration&) = delete;
    EpollRegistration& operator=(const EpollRegistration&) = delete;

    /// Cancels the wait.
    ~EpollRegistration() {
        loop_->assert_thread();
        // Waits for a callback that runs on another thread, which itself blocks on nothing.
        on_stop_.reset();
        if (stopped_.posted.load() && !stopped_.linked()) loop_->collect_posted();
        if (EpollWaiter* const waiter = entry_.waiter()) {
            detach(*waiter);
            loop_->decide(*waiter, ECANCELED);
        }
    }

    /// Lets `waiter` wait until the fd is readable or `stop` is requested. Returns 0, or the errno
    /// that says why it cannot.
    [[gnu::always_inline]] int attach(EpollWaiter& waiter, const std::stop_token& stop) noexcept {
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

    void detach(EpollWaiter& waiter) noexcept {
        loop_->assert_thread();
        loop_->stop_timer(waiter);
        entry_.detach();
    }

    EpollLoop& loop() const noexcept { return *loop_; }
    int fd() const noexcept { return entry_.fd(); }

private:
    struct StopNode : WorkItem {
        explicit StopNode(EpollRegistration& owner) noexcept
            : WorkItem(&on_stopped), registration(owner) {}
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
    static void on_stopped(WorkItem& node) {
        auto& stopped = static_cast<StopNode&>(node);
        stopped.posted.store(false);
        EpollRegistration& self = stopped.registration;
        EpollWaiter* const waiter = self.entry_.waiter();
        if (waiter == nullptr || waiter->linked() || !self.stop_.stop_requested()) return;
        waiter->error = ECANCELED;
        waiter->run(*waiter);
    }

    std::shared_ptr<EpollLoop> loop_;
    EpollEntry entry_;
    StopNode stopped_;
    std::stop_token stop_;
    std::optional<std::stop_callback<OnStop>> on_stop_;
};

} // namespace asyncverbs::detail
