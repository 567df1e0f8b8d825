// SPDX-License-Identifier: MIT
// A file descriptor that Asio watches, and the coroutine that waits for it. Readiness, the time and
// a stop request compete; the first handler that runs wins. Handlers keep the watch alive, for Asio
// calls them some time after what they belong to has gone.
#pragma once

#include <poll.h>

#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/adapters/detail/asio_support.hpp>
#include <asyncverbs/coro/detail/deadline.hpp>

namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR {

template <class Executor>
class AsioReadable;

template <class Executor>
class AsioWatch final : public AsioResident,
                        public std::enable_shared_from_this<AsioWatch<Executor>> {
public:
    using Waiter = AsioReadable<Executor>;

    /// Throws std::system_error if Asio does not take `fd`.
    static std::shared_ptr<AsioWatch> create(const Executor& executor, int fd) try {
        auto watch = std::make_shared<AsioWatch>();
        // The first one of a context opens its epoll.
        watch->objects_.emplace(executor).descriptor.assign(fd);
        watch->enter(executor);
        return watch;
    } catch (const AsioSystemError& error) { // in Boost no std::system_error
        throw std::system_error(from_asio(error.code()), "asio::posix::stream_descriptor::assign");
    }

    /// Lets `waiter` wait. Returns its outcome instead if that is known at once.
    std::optional<std::error_code> begin(Waiter& waiter);

    /// Nothing happens to the waiter any more.
    void leave(Waiter& waiter) noexcept;

    /// Gives the descriptor back. Who waits learns that it was cancelled.
    void close() noexcept {
        AsioResident::leave();
        if (waiter_ != nullptr) waiter_->on_stop_.reset(); // it posts to the executor
        objects_.reset();
    }

private:
    friend Waiter;

    struct Objects {
        explicit Objects(const Executor& ex) : executor(ex), descriptor(ex), timer(ex) {}
        Objects(const Objects&) = delete;
        ~Objects() {
            if (descriptor.is_open()) descriptor.release(); // not ours to close
        }

        using Clock = Deadline::Clock;
        Executor executor;
        net::posix::basic_stream_descriptor<Executor> descriptor;
        net::basic_waitable_timer<Clock, net::wait_traits<Clock>, Executor> timer;
    };

    void evict() noexcept override {
        const std::shared_ptr<AsioWatch> alive = this->shared_from_this();
        if (waiter_ != nullptr) std::exchange(waiter_, nullptr)->on_stop_.reset();
        objects_.reset();
    }

    struct EndScratch {
        void operator()(AsioScratch* scratch) const noexcept {
            scratch->when_free([](void* free) { delete static_cast<AsioScratch*>(free); }, scratch);
        }
    };

    using Scratch = std::unique_ptr<AsioScratch, EndScratch>;

    // Handlers of which one is outstanding at a time, in room that is there.
    struct InPlace {
        std::shared_ptr<AsioWatch> watch;
        AsioScratch* room;

        using allocator_type = AsioScratchAllocator<std::byte>;
        allocator_type get_allocator() const noexcept { return allocator_type(*room); }
    };
    struct Event : InPlace {
        void operator()(const AsioError& error) const { this->watch->on_event(error); }
    };
    struct Stop : InPlace {
        void operator()() const { this->watch->on_stop(); }
    };

    // These two are for the wait that they were made for, if that is still the current one.
    struct Turn : InPlace {
        std::uint64_t wait;
        void operator()() const {
            if (this->watch->is_current(wait)) this->watch->on_next_turn();
        }
    };
    struct Time {
        std::shared_ptr<AsioWatch> watch;
        std::uint64_t wait;
        void operator()(const AsioError&) const {
            if (watch->is_current(wait)) watch->finish(std::make_error_code(std::errc::timed_out));
        }
    };
    bool is_current(std::uint64_t wait) const noexcept {
        return waiter_ != nullptr && wait_ == wait;
    }

    void watch() {
        if (watching_) return; // for a wait that was cancelled: on_event() begins again
        objects_->descriptor.async_wait(net::posix::descriptor_base::wait_read,
                                        Event{{this->shared_from_this(), scratch_.get()}});
        watching_ = true;
    }

    // From any thread. One that is on its way says so for all who wait by the time that it comes.
    void stop() noexcept {
        if (stopping_.exchange(true)) return;
        try {
            net::post(objects_->executor, Stop{{this->shared_from_this(), stop_scratch_.get()}});
        } catch (const std::bad_alloc&) { // of an any_io_executor: it is seen at the next event
            stopping_ = false;
        }
    }
    void on_stop() {
        // Not only written: whoever found it set has requested the stop before that.
        const bool stopping = stopping_.exchange(false);
        if (stopping && waiter_ != nullptr && waiter_->stop_.stop_requested()) {
            finish(std::make_error_code(std::errc::operation_canceled));
        }
    }

    void on_event(const AsioError& error);
    void on_next_turn();
    void finish(std::error_code result);

    std::optional<Objects> objects_; // until the notifier or the context ends
    Waiter* waiter_ = nullptr;
    std::uint64_t wait_ = 0; // counts waits
    bool watching_ = false;  // on_event() will be called
    Scratch scratch_{new AsioScratch};
    std::atomic<bool> stopping_{false}; // on_stop() will be called
    Scratch stop_scratch_{new AsioScratch};
};

// Pinned: the watch and the stop callback point to it.
template <class Executor>
class [[nodiscard]] AsioReadable {
    using Watch = AsioWatch<Executor>;

public:
    AsioReadable(std::shared_ptr<Watch> watch, Deadline::Clock::time_point deadline,
                 std::stop_token stop) noexcept
        : watch_(std::move(watch)), deadline_(deadline), stop_(std::move(stop)) {}
    AsioReadable(const AsioReadable&) = delete;
    AsioReadable& operator=(const AsioReadable&) = delete;
    ~AsioReadable() { watch_->leave(*this); }

    bool await_ready() noexcept {
        if (!stop_.stop_requested()) return false;
        result_ = std::make_error_code(std::errc::operation_canceled);
        return true;
    }
    bool await_suspend(std::coroutine_handle<> coroutine) {
        coroutine_ = coroutine;
        const std::optional<std::error_code> outcome = watch_->begin(*this);
        if (outcome) result_ = *outcome;
        return !outcome;
    }
    std::error_code await_resume() const noexcept { return result_; }

private:
    friend Watch;

    struct OnStop {
        Watch& watch;
        void operator()() const noexcept { watch.stop(); }
    };

    bool takes_one_turn() const noexcept { return deadline_ == Deadline::next_iteration; }
    bool is_timed() const noexcept { return !takes_one_turn() && deadline_ != Deadline::never; }

    std::shared_ptr<Watch> watch_;
    Deadline::Clock::time_point deadline_;
    std::stop_token stop_;
    std::coroutine_handle<> coroutine_;
    std::error_code result_;
    std::optional<std::stop_callback<OnStop>> on_stop_;
};

template <class Executor>
std::optional<std::error_code> AsioWatch<Executor>::begin(Waiter& waiter) {
    if (waiter_ != nullptr) return std::make_error_code(std::errc::device_or_resource_busy);
    if (!objects_) return std::nullopt; // for ever
    ++wait_;
    if (waiter.takes_one_turn()) {
        net::post(objects_->executor, Turn{{this->shared_from_this(), scratch_.get()}, wait_});
    } else {
        watch();
        if (waiter.is_timed()) {
            objects_->timer.expires_at(waiter.deadline_);
            objects_->timer.async_wait(Time{this->shared_from_this(), wait_});
        }
    }
    waiter_ = &waiter;
    // Last. It may run before this returns, here or on another thread, but only posts.
    if (waiter.stop_.stop_possible())
        waiter.on_stop_.emplace(waiter.stop_, typename Waiter::OnStop{*this});
    return std::nullopt;
}

template <class Executor>
void AsioWatch<Executor>::leave(Waiter& waiter) noexcept {
    if (waiter_ != &waiter) return;
    waiter_ = nullptr;
    waiter.on_stop_.reset();
    if (!objects_) return;
    // What is left outstanding would keep the context at work. Its handlers come, and do nothing.
    AsioError ignored;
    if (watching_) objects_->descriptor.cancel(ignored);
    if (waiter.is_timed()) objects_->timer.cancel();
}

template <class Executor>
void AsioWatch<Executor>::on_event(const AsioError& error) {
    watching_ = false;
    if (waiter_ == nullptr || waiter_->takes_one_turn()) return;
    if (!objects_) return finish(std::make_error_code(std::errc::operation_canceled));
    if (error == net::error::operation_aborted) return watch(); // it was of an earlier wait
    finish(from_asio(error));
}

template <class Executor>
void AsioWatch<Executor>::on_next_turn() {
    if (!objects_) return finish(std::make_error_code(std::errc::operation_canceled));
    pollfd fd{objects_->descriptor.native_handle(), POLLIN, 0};
    const bool readable = ::poll(&fd, 1, 0) > 0;
    finish(readable ? std::error_code() : std::make_error_code(std::errc::timed_out));
}

template <class Executor>
void AsioWatch<Executor>::finish(std::error_code result) {
    Waiter& waiter = *waiter_;
    leave(waiter);
    waiter.result_ = result;
    waiter.coroutine_.resume();
}

} // namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR
