// SPDX-License-Identifier: MIT
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
#include <asyncverbs/coro/detail/stop_callback.hpp>

namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR {

template <class Executor>
class AsioReadable;

// Waits for a file descriptor in Asio, for one operation at a time. Readiness, the deadline and a
// stop request compete; the first handler that runs completes the operation. Handlers share
// ownership of the waiter, because Asio may call them after the notifier was destroyed.
//
// Used only on the executor, except on_stop().
template <class Executor>
class AsioDescriptorWaiter final
    : public AsioServiceMember,
      public std::enable_shared_from_this<AsioDescriptorWaiter<Executor>> {
public:
    using Operation = AsioReadable<Executor>;

    /// Throws std::system_error if Asio rejects `fd`.
    static std::shared_ptr<AsioDescriptorWaiter> create(const Executor& executor, int fd) try {
        auto waiter = std::make_shared<AsioDescriptorWaiter>();
        // The first descriptor of a context creates its epoll.
        waiter->io_.emplace(executor).descriptor.assign(fd);
        waiter->join_service(executor);
        return waiter;
    } catch (const AsioSystemError& error) { // with Boost, not a std::system_error
        throw std::system_error(from_asio(error.code()), "asio::posix::stream_descriptor::assign");
    }

    /// Starts to wait for `operation`, or returns its result if that is known at once.
    std::optional<std::error_code> start(Operation& operation);

    /// Forgets the operation, if it is the current one.
    void leave(Operation& operation) noexcept;

    /// Releases the descriptor. The current operation completes as cancelled.
    void close() noexcept {
        leave_service();
        stop_callback_.reset(); // it posts to the executor
        io_.reset();
    }

    /// A stop was requested. From any thread: posts to the executor, unless that is under way
    /// already. One post serves all operations that are current when it arrives.
    void on_stop() noexcept {
        if (stop_posted_.exchange(true)) return;
        try {
            net::post(io_->executor, StopHandler{{this->shared_from_this(), stop_memory_.get()}});
        } catch (const std::bad_alloc&) { // of an any_io_executor: the next event finds the stop
            stop_posted_ = false;
        }
    }

private:
    struct IoObjects {
        explicit IoObjects(const Executor& ex) : executor(ex), descriptor(ex), timer(ex) {}
        IoObjects(const IoObjects&) = delete;
        ~IoObjects() {
            if (descriptor.is_open()) descriptor.release(); // the caller closes it
        }

        using Clock = Deadline::Clock;
        Executor executor;
        net::posix::basic_stream_descriptor<Executor> descriptor;
        net::basic_waitable_timer<Clock, net::wait_traits<Clock>, Executor> timer;
    };

    struct DeleteWhenUnused {
        void operator()(AsioHandlerMemory* memory) const noexcept {
            memory->when_unused(
                [](void* unused) { delete static_cast<AsioHandlerMemory*>(unused); }, memory);
        }
    };
    using Memory = std::unique_ptr<AsioHandlerMemory, DeleteWhenUnused>;

    // Base of handlers of which one at a time is outstanding in `memory`.
    struct Handler {
        std::shared_ptr<AsioDescriptorWaiter> waiter;
        AsioHandlerMemory* memory;

        using allocator_type = AsioHandlerAllocator<std::byte>;
        allocator_type get_allocator() const noexcept { return allocator_type(*memory); }
    };
    struct EventHandler : Handler {
        void operator()(const AsioError& error) const { this->waiter->on_event(error); }
    };
    struct StopHandler : Handler {
        void operator()() const { this->waiter->on_stop_arrived(); }
    };
    // The next two do nothing unless the operation that they were made for is still the current
    // one.
    struct NextIterationHandler : Handler {
        std::uint64_t number;
        void operator()() const {
            if (this->waiter->is_current(number)) this->waiter->on_next_iteration();
        }
    };
    struct TimerHandler {
        std::shared_ptr<AsioDescriptorWaiter> waiter;
        std::uint64_t number;
        void operator()(const AsioError&) const {
            if (waiter->is_current(number)) waiter->complete(std::errc::timed_out);
        }
    };

    bool is_current(std::uint64_t number) const noexcept {
        return operation_ != nullptr && number_ == number;
    }

    void shutdown() noexcept override {
        const std::shared_ptr<AsioDescriptorWaiter> alive = this->shared_from_this();
        operation_ = nullptr;
        stop_callback_.reset();
        io_.reset();
    }

    void wait_for_event() {
        // A cancelled operation may have left one pending: its on_event() starts the next.
        if (event_pending_) return;
        io_->descriptor.async_wait(net::posix::descriptor_base::wait_read,
                                   EventHandler{{this->shared_from_this(), memory_.get()}});
        event_pending_ = true;
    }

    void on_stop_arrived();
    void on_event(const AsioError& error);
    void on_next_iteration();
    void complete(std::errc error) { complete(std::make_error_code(error)); }
    void complete(std::error_code result);

    std::optional<IoObjects> io_; // until the notifier or the context is destroyed
    Operation* operation_ = nullptr;
    std::uint64_t number_ = 0;   // of the current operation
    bool event_pending_ = false; // on_event() will be called
    Memory memory_{new AsioHandlerMemory};
    std::atomic<bool> stop_posted_{false}; // on_stop_arrived() will be called
    Memory stop_memory_{new AsioHandlerMemory};
    StopCallback<AsioDescriptorWaiter> stop_callback_; // of the current operation
};

// The awaitable of AsioNotifier::readable(). Not movable: the waiter refers to it.
template <class Executor>
class [[nodiscard]] AsioReadable {
    using Waiter = AsioDescriptorWaiter<Executor>;

public:
    AsioReadable(std::shared_ptr<Waiter> waiter, Deadline::Clock::time_point deadline,
                 std::stop_token stop) noexcept
        : waiter_(std::move(waiter)), deadline_(deadline), stop_(std::move(stop)) {}
    AsioReadable(const AsioReadable&) = delete;
    AsioReadable& operator=(const AsioReadable&) = delete;
    ~AsioReadable() { waiter_->leave(*this); }

    bool await_ready() noexcept {
        if (!stop_.stop_requested()) return false;
        result_ = std::make_error_code(std::errc::operation_canceled);
        return true;
    }
    bool await_suspend(std::coroutine_handle<> coroutine) {
        coroutine_ = coroutine;
        const std::optional<std::error_code> result = waiter_->start(*this);
        if (result) result_ = *result;
        return !result;
    }
    std::error_code await_resume() const noexcept { return result_; }

private:
    friend Waiter;

    bool is_one_iteration() const noexcept { return deadline_ == Deadline::next_iteration; }
    bool is_timed() const noexcept { return !is_one_iteration() && deadline_ != Deadline::never; }

    std::shared_ptr<Waiter> waiter_;
    Deadline::Clock::time_point deadline_;
    std::stop_token stop_;
    std::coroutine_handle<> coroutine_;
    std::error_code result_;
};

template <class Executor>
std::optional<std::error_code> AsioDescriptorWaiter<Executor>::start(Operation& operation) {
    if (operation_ != nullptr) return std::make_error_code(std::errc::device_or_resource_busy);
    if (!io_) return std::nullopt; // the context was destroyed: it is never resumed
    ++number_;
    if (operation.is_one_iteration()) {
        net::post(io_->executor,
                  NextIterationHandler{{this->shared_from_this(), memory_.get()}, number_});
    } else {
        wait_for_event();
        if (operation.is_timed()) {
            io_->timer.expires_at(operation.deadline_);
            io_->timer.async_wait(TimerHandler{this->shared_from_this(), number_});
        }
    }
    operation_ = &operation;
    // Last: on_stop() may run inside set(), or at once on another thread. It only posts.
    stop_callback_.set(operation.stop_, *this);
    return std::nullopt;
}

template <class Executor>
void AsioDescriptorWaiter<Executor>::leave(Operation& operation) noexcept {
    if (operation_ != &operation) return;
    operation_ = nullptr;
    stop_callback_.reset();
    if (!io_) return;
    // Cancel what is outstanding, or it would keep the context running. The handlers are still
    // called, and do nothing.
    AsioError ignored;
    if (event_pending_) io_->descriptor.cancel(ignored);
    if (operation.is_timed()) io_->timer.cancel();
}

template <class Executor>
void AsioDescriptorWaiter<Executor>::on_stop_arrived() {
    // An exchange, not a store: it synchronizes with the on_stop() calls that found the flag set,
    // so that their stop requests are visible here.
    const bool stop = stop_posted_.exchange(false);
    if (stop && operation_ != nullptr && operation_->stop_.stop_requested()) {
        complete(std::errc::operation_canceled);
    }
}

template <class Executor>
void AsioDescriptorWaiter<Executor>::on_event(const AsioError& error) {
    event_pending_ = false;
    if (operation_ == nullptr || operation_->is_one_iteration()) return;
    if (!io_) return complete(std::errc::operation_canceled);
    if (error == net::error::operation_aborted) return wait_for_event(); // of an earlier operation
    complete(from_asio(error));
}

template <class Executor>
void AsioDescriptorWaiter<Executor>::on_next_iteration() {
    if (!io_) return complete(std::errc::operation_canceled);
    pollfd fd{io_->descriptor.native_handle(), POLLIN, 0};
    if (::poll(&fd, 1, 0) > 0) return complete(std::error_code());
    complete(std::errc::timed_out);
}

template <class Executor>
void AsioDescriptorWaiter<Executor>::complete(std::error_code result) {
    Operation& operation = *operation_;
    leave(operation);
    operation.result_ = result;
    operation.coroutine_.resume();
}

} // namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR
