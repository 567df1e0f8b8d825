// SPDX-License-Identifier: MIT
// A file descriptor that Asio watches, and the coroutine that waits for it. Readiness, the time and
// a stop request compete; the first handler that runs wins. Handlers keep the watch alive, for Asio
// calls them some time after what they belong to has gone.
#pragma once

#include <poll.h>

#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/adapters/detail/asio_flavour.hpp>
#include <asyncverbs/adapters/detail/asio_resident.hpp>
#include <asyncverbs/adapters/detail/asio_scratch.hpp>
#include <asyncverbs/core/detail/deadline.hpp>

namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR {

template <class Executor>
class AsioReadable;

template <class Executor>
class AsioWatch final : public AsioResident,
                        public std::enable_shared_from_this<AsioWatch<Executor>> {
public:
    using Waiter = AsioReadable<Executor>;

    /// Throws std::system_error if Asio does not take `fd`.
    static std::shared_ptr<AsioWatch> create(const Executor& executor, int fd) {
        auto watch = std::make_shared<AsioWatch>();
        Objects& objects = watch->objects_.emplace(executor);
        AsioError error;
        objects.descriptor.assign(fd, error);
        if (error) {
            throw std::system_error(from_asio(error), "asio::posix::stream_descriptor::assign");
        }
        watch->enter(executor);
        return watch;
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

    // Says "look again" to the wait that it was made for, if that is still the current one.
    template <void (AsioWatch::*action)()>
    struct Handler {
        std::shared_ptr<AsioWatch> watch;
        std::uint64_t wait;
        void operator()(const AsioError& = {}) const {
            if (watch->waiter_ != nullptr && watch->wait_ == wait) ((*watch).*action)();
        }
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

    // One at a time, in room that is there.
    struct Event {
        std::shared_ptr<AsioWatch> watch;
        void operator()(const AsioError& error) const { watch->on_event(error); }

        using allocator_type = AsioScratchAllocator<std::byte>;
        allocator_type get_allocator() const noexcept { return allocator_type(*watch->scratch_); }
    };

    void watch() {
        if (watching_) return; // for a wait that was cancelled: on_event() begins again
        objects_->descriptor.async_wait(net::posix::descriptor_base::wait_read,
                                        Event{this->shared_from_this()});
        watching_ = true;
    }

    void on_event(const AsioError& error);
    void on_next_turn();
    void on_stop() { finish(std::make_error_code(std::errc::operation_canceled)); }
    void on_time() { finish(std::make_error_code(std::errc::timed_out)); }
    void finish(std::error_code result);

    std::optional<Objects> objects_; // until the notifier or the context ends
    Waiter* waiter_ = nullptr;
    std::uint64_t wait_ = 0; // counts waits
    bool watching_ = false;  // on_event() will be called
    std::unique_ptr<AsioScratch, EndScratch> scratch_{new AsioScratch};
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
        void operator()() const {
            using Stop = typename Watch::template Handler<&Watch::on_stop>;
            net::post(watch.objects_->executor, Stop{watch.shared_from_this(), watch.wait_});
        }
    };

    bool takes_one_turn() const noexcept { return deadline_ == Deadline::next_turn; }
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
        net::post(objects_->executor,
                  Handler<&AsioWatch::on_next_turn>{this->shared_from_this(), wait_});
    } else {
        watch();
        if (waiter.is_timed()) {
            objects_->timer.expires_at(waiter.deadline_);
            objects_->timer.async_wait(
                Handler<&AsioWatch::on_time>{this->shared_from_this(), wait_});
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
