// SPDX-License-Identifier: MIT
#include "proof/loop.hpp"

#include <asyncverbs/executor/epoll_executor.hpp>

#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <optional>
#include <stdexcept>

#include "support/coroutine.hpp"

namespace asyncverbs::proof {

namespace {

bool readable(int fd) {
    pollfd polled{.fd = fd, .events = POLLIN, .revents = 0};
    return ::poll(&polled, 1, 0) > 0;
}

} // namespace

// The simplest loop that models the concept: one descriptor, real epoll.
class SimpleLoop : public Loop {
public:
    SimpleLoop(Trigger trigger, Watcher& watcher)
        : trigger_(trigger), watcher_(watcher), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
        if (epoll_ < 0) throw std::runtime_error("epoll_create1 failed");
    }
    ~SimpleLoop() override { ::close(epoll_); }

    AsyncCq adopt(CompletionQueue cq, const AsyncCqOptions& options) override {
        Watched notifier(watcher_, cq.native_handle(), Notifier(*this, cq.channel().fd()));
        return AsyncCq(std::move(cq), std::move(notifier), options);
    }
    std::unique_ptr<Channel> share(CompletionChannel channel) override {
        Notifier notifier(*this, channel.fd());
        return std::make_unique<WatchedChannel<Notifier>>(watcher_, std::move(channel),
                                                          std::move(notifier));
    }
    bool pending() override {
        return waiting_ != nullptr &&
               (ready_ || timed_out_ || waiting_->stop.stop_requested() || proof::readable(epoll_));
    }
    void run_once() override;
    void stop() override { stopped_ = true; }
    bool bounded_wait() const override { return waiting_ != nullptr && waiting_->bounded; }
    bool pass_time() override { return timed_out_ = bounded_wait(); }

private:
    struct Wait {
        Wait(SimpleLoop& owner, std::stop_token token, bool is_bounded)
            : loop(owner), stop(std::move(token)), bounded(is_bounded) {}
        ~Wait() {
            if (loop.waiting_ == this) loop.waiting_ = nullptr;
        }
        Wait(const Wait&) = delete;
        Wait& operator=(const Wait&) = delete;

        bool await_ready() {
            if (stop.stop_requested()) {
                result = std::make_error_code(std::errc::operation_canceled);
                return true;
            }
            if (loop.trigger_ != Trigger::edge_at_once) return false;
            loop.poll_descriptor();
            return std::exchange(loop.ready_, false);
        }
        void await_suspend(std::coroutine_handle<> handle) {
            coroutine = handle;
            loop.timed_out_ = false;
            loop.waiting_ = this;
        }
        std::error_code await_resume() const { return result; }

        SimpleLoop& loop;
        std::stop_token stop;
        bool bounded;
        std::error_code result;
        std::coroutine_handle<> coroutine;
    };

    class Notifier {
    public:
        Notifier(SimpleLoop& loop, int fd) : loop_(&loop), fd_(fd) {
            loop.control(EPOLL_CTL_ADD, fd);
        }
        Notifier(Notifier&& other) noexcept
            : loop_(std::exchange(other.loop_, nullptr)), fd_(other.fd_) {}
        Notifier& operator=(Notifier&&) = delete;
        ~Notifier() {
            if (loop_ == nullptr) return;
            if (const int error = loop_->control(EPOLL_CTL_DEL, fd_)) {
                loop_->watcher_.not_deregistered(error);
            }
        }

        Wait readable(std::stop_token stop) { return Wait(*loop_, std::move(stop), false); }
        Wait readable(std::stop_token stop, std::chrono::nanoseconds) {
            return Wait(*loop_, std::move(stop), true);
        }

    private:
        SimpleLoop* loop_;
        int fd_;
    };

    int control(int operation, int fd) const {
        epoll_event event{};
        event.events = EPOLLIN | (trigger_ == Trigger::level ? 0u : std::uint32_t{EPOLLET});
        return ::epoll_ctl(epoll_, operation, fd, &event) == 0 ? 0 : errno;
    }

    // Level: the state now. Edge: an edge is remembered until it is reported.
    void poll_descriptor() {
        epoll_event event{};
        const bool seen = ::epoll_wait(epoll_, &event, 1, 0) == 1;
        ready_ = seen || (ready_ && trigger_ != Trigger::level);
    }

    std::error_code choose_result(const Wait& wait);

    const Trigger trigger_;
    Watcher& watcher_;
    const int epoll_;
    Wait* waiting_ = nullptr;
    bool ready_ = false;
    bool timed_out_ = false;
    bool stopped_ = false;
};

void SimpleLoop::run_once() {
    if (!stopped_) {
        poll_descriptor();
        watcher_.loop_polled();
    }
    if (std::exchange(stopped_, false)) return;
    if (waiting_ == nullptr) return; // destroyed meanwhile
    if (!ready_ && !timed_out_ && !waiting_->stop.stop_requested()) return;
    Wait& wait = *std::exchange(waiting_, nullptr);
    wait.result = choose_result(wait);
    wait.coroutine.resume();
}

// If more than one thing has happened, a notifier may report any of them.
std::error_code SimpleLoop::choose_result(const Wait& wait) {
    std::array<std::error_code, 3> results;
    std::size_t count = 0;
    if (ready_) results[count++] = {};
    if (wait.stop.stop_requested()) {
        results[count++] = std::make_error_code(std::errc::operation_canceled);
    }
    if (timed_out_) results[count++] = std::make_error_code(std::errc::timed_out);
    const std::error_code result = results[count == 1 ? 0 : watcher_.choose(count)];
    if (!result) ready_ = false;
    return result;
}

// An EpollNotifier whose bound never passes, because the kernel's timers do not follow the clock of
// the explorer. Zero, one iteration of the loop, stays.
class Unhurried {
public:
    explicit Unhurried(EpollNotifier notifier) : notifier_(std::move(notifier)) {}

    auto readable(std::stop_token stop) { return notifier_.readable(std::move(stop)); }
    auto readable(std::stop_token stop, std::chrono::nanoseconds max_wait) {
        return max_wait.count() > 0 ? notifier_.readable(std::move(stop))
                                    : notifier_.readable(std::move(stop), max_wait);
    }

private:
    EpollNotifier notifier_;
};

// EpollExecutor, which waits for the channel as AsyncCq::create() sets it up.
class ShippedLoop : public Loop {
public:
    ShippedLoop(bool may_stop, Watcher& watcher) : may_stop_(may_stop), watcher_(watcher) {}

    AsyncCq adopt(CompletionQueue cq, const AsyncCqOptions& options) override {
        Watched notifier(watcher_, cq.native_handle(), Unhurried(executor_.notifier(cq.channel())));
        return AsyncCq(std::move(cq), std::move(notifier), options);
    }
    std::unique_ptr<Channel> share(CompletionChannel channel) override {
        Unhurried notifier(executor_.notifier(channel));
        return std::make_unique<WatchedChannel<Unhurried>>(watcher_, std::move(channel),
                                                           std::move(notifier));
    }
    bool pending() override { return readable(executor_.native_handle()); }
    void run_once() override;
    void stop() override { executor_.stop(); }

private:
    // Is ready before the iteration, so it is resumed before what the iteration finds ready.
    static support::Coroutine neighbour(ShippedLoop& loop) {
        co_await loop.executor_.sleep_for(std::chrono::seconds(0));
        loop.watcher_.loop_polled();
    }

    const bool may_stop_;
    Watcher& watcher_;
    bool end_posted_ = false;
    EpollExecutor executor_;
    std::optional<support::Coroutine> neighbour_;
};

void ShippedLoop::run_once() {
    if (!neighbour_ || neighbour_->done()) neighbour_ = neighbour(*this);
    if (!may_stop_) {
        executor_.run_once();
        return;
    }
    // A run that ends itself, unless it is stopped before.
    if (!std::exchange(end_posted_, true)) {
        executor_.post([this] {
            end_posted_ = false;
            executor_.stop();
        });
    }
    executor_.run();
}

std::unique_ptr<Loop> make_loop(const Configuration& configuration, Watcher& watcher) {
    if (configuration.trigger == Trigger::executor) {
        return std::make_unique<ShippedLoop>(configuration.count(Step::stop_loop) > 0, watcher);
    }
    return std::make_unique<SimpleLoop>(configuration.trigger, watcher);
}

} // namespace asyncverbs::proof
