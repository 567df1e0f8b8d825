// SPDX-License-Identifier: MIT
#pragma once

#include <poll.h>

#include <atomic>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <stop_token>
#include <system_error>
#include <type_traits>
#include <utility>

#include <asyncverbs/adapters/detail/asio_support.hpp>
#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/coro/detail/stop_callback.hpp>

namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR {

class AsioDescriptorWaiter;
class AsioReadable;

// Base of the handlers of a waiter of which one at a time is outstanding in `memory`.
struct AsioWaiterHandler {
    std::shared_ptr<AsioDescriptorWaiter> waiter;
    AsioHandlerMemory* memory;

    using allocator_type = AsioHandlerAllocator<std::byte>;
    allocator_type get_allocator() const noexcept { return allocator_type(*memory); }
};
struct AsioEventHandler : AsioWaiterHandler {
    void operator()(const AsioError& error) const;
};
struct AsioStopHandler : AsioWaiterHandler {
    void operator()() const;
};
// The next two do nothing unless the operation with this number is still the current one.
struct AsioNextIterationHandler : AsioWaiterHandler {
    std::uint64_t number;
    void operator()() const;
};
struct AsioTimerHandler {
    std::shared_ptr<AsioDescriptorWaiter> waiter;
    std::uint64_t number;
    void operator()(const AsioError& error) const;
};

// A descriptor and a timer, on an executor of any type.
class AsioIo {
public:
    AsioIo() = default;
    AsioIo(const AsioIo&) = delete;
    AsioIo& operator=(const AsioIo&) = delete;
    virtual ~AsioIo() = default;

    virtual void post(AsioStopHandler handler) = 0; // from any thread
    virtual void post(AsioNextIterationHandler handler) = 0;
    virtual void wait(AsioEventHandler handler) = 0;
    virtual void wait_until(Deadline::Clock::time_point deadline, AsioTimerHandler handler) = 0;

    /// The handlers are still called.
    virtual void cancel_wait() noexcept = 0;
    virtual void cancel_timer() noexcept = 0;

    virtual int fd() noexcept = 0;
};

template <class Executor>
class AsioIoOn final : public AsioIo {
    using Clock = Deadline::Clock;

public:
    /// The first descriptor of a context creates its epoll.
    AsioIoOn(const Executor& executor, int fd)
        : executor_(executor), descriptor_(executor, fd), timer_(executor) {}
    ~AsioIoOn() override { descriptor_.release(); } // the caller closes it

    void post(AsioStopHandler handler) override { net::post(executor_, std::move(handler)); }
    void post(AsioNextIterationHandler handler) override {
        net::post(executor_, std::move(handler));
    }
    void wait(AsioEventHandler handler) override {
        descriptor_.async_wait(net::posix::descriptor_base::wait_read, std::move(handler));
    }
    void wait_until(Clock::time_point deadline, AsioTimerHandler handler) override {
        timer_.expires_at(deadline);
        timer_.async_wait(std::move(handler));
    }
    void cancel_wait() noexcept override {
        AsioError ignored;
        descriptor_.cancel(ignored);
    }
    void cancel_timer() noexcept override { timer_.cancel(); }
    int fd() noexcept override { return descriptor_.native_handle(); }

private:
    Executor executor_;
    net::posix::basic_stream_descriptor<Executor> descriptor_;
    net::basic_waitable_timer<Clock, net::wait_traits<Clock>, Executor> timer_;
};

// Waits for a file descriptor in Asio, for one operation at a time. Readiness, the deadline and a
// stop request compete; the first handler that runs completes the operation. Handlers share
// ownership of the waiter, because Asio may call them after the notifier was destroyed.
//
// Used only on the executor, except on_stop().
class AsioDescriptorWaiter final : public AsioServiceMember,
                                   public std::enable_shared_from_this<AsioDescriptorWaiter> {
public:
    /// Throws std::system_error if Asio rejects `fd`.
    template <class Executor>
    static std::shared_ptr<AsioDescriptorWaiter> create(const Executor& any, int fd) try {
        auto waiter = std::make_shared<AsioDescriptorWaiter>();
        with_concrete_executor(any, [&](const auto& executor) {
            using Io = AsioIoOn<std::remove_cvref_t<decltype(executor)>>;
            waiter->io_ = std::make_unique<Io>(executor, fd);
        });
        waiter->join_service(any);
        return waiter;
    } catch (const AsioSystemError& error) { // with Boost, not a std::system_error
        throw std::system_error(from_asio(error.code()), "asio::posix::stream_descriptor::assign");
    }

    /// Starts to wait for `operation`, or returns its result if that is known at once.
    std::optional<std::error_code> start(AsioReadable& operation);

    /// Forgets the operation, if it is the current one.
    void leave(AsioReadable& operation) noexcept;

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
            io_->post(AsioStopHandler{{shared_from_this(), stop_memory_.get()}});
        } catch (const std::bad_alloc&) { // of a foreign executor: the next event finds the stop
            stop_posted_ = false;
        }
    }

private:
    friend AsioEventHandler;
    friend AsioStopHandler;
    friend AsioNextIterationHandler;
    friend AsioTimerHandler;

    struct DeleteWhenUnused {
        void operator()(AsioHandlerMemory* memory) const noexcept {
            memory->when_unused(
                [](void* unused) { delete static_cast<AsioHandlerMemory*>(unused); }, memory);
        }
    };
    using Memory = std::unique_ptr<AsioHandlerMemory, DeleteWhenUnused>;

    bool is_current(std::uint64_t number) const noexcept {
        return operation_ != nullptr && number_ == number;
    }

    void shutdown() noexcept override {
        const std::shared_ptr<AsioDescriptorWaiter> alive = weak_from_this().lock();
        operation_ = nullptr;
        stop_callback_.reset();
        io_.reset();
    }

    void wait_for_event() {
        // A cancelled operation may have left one pending: its on_event() starts the next.
        if (event_pending_) return;
        io_->wait(AsioEventHandler{{shared_from_this(), memory_.get()}});
        event_pending_ = true;
    }

    void on_stop_arrived();
    void on_event(const AsioError& error);
    void on_next_iteration();
    void complete(std::errc error) { complete(std::make_error_code(error)); }
    void complete(std::error_code result);

    std::unique_ptr<AsioIo> io_; // until the notifier or the context is destroyed
    AsioReadable* operation_ = nullptr;
    std::uint64_t number_ = 0;   // of the current operation
    bool event_pending_ = false; // on_event() will be called
    Memory memory_{new AsioHandlerMemory};
    std::atomic<bool> stop_posted_{false}; // on_stop_arrived() will be called
    Memory stop_memory_{new AsioHandlerMemory};
    StopCallback<AsioDescriptorWaiter> stop_callback_; // of the current operation
};

// The awaitable of AsioNotifier::readable(). Not movable: the waiter refers to it.
class [[nodiscard]] AsioReadable {
public:
    AsioReadable(std::shared_ptr<AsioDescriptorWaiter> waiter, Deadline::Clock::time_point deadline,
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
    friend AsioDescriptorWaiter;

    bool is_one_iteration() const noexcept { return deadline_ == Deadline::next_iteration; }
    bool is_timed() const noexcept { return !is_one_iteration() && deadline_ != Deadline::never; }

    std::shared_ptr<AsioDescriptorWaiter> waiter_;
    Deadline::Clock::time_point deadline_;
    std::stop_token stop_;
    std::coroutine_handle<> coroutine_;
    std::error_code result_;
};

inline std::optional<std::error_code> AsioDescriptorWaiter::start(AsioReadable& operation) {
    if (operation_ != nullptr) return std::make_error_code(std::errc::device_or_resource_busy);
    if (!io_) return std::nullopt; // the context was destroyed: it is never resumed
    ++number_;
    if (operation.is_one_iteration()) {
        io_->post(AsioNextIterationHandler{{shared_from_this(), memory_.get()}, number_});
    } else {
        // First what may fail for lack of memory.
        if (operation.is_timed()) {
            io_->wait_until(operation.deadline_, AsioTimerHandler{shared_from_this(), number_});
        }
        wait_for_event();
    }
    operation_ = &operation;
    // Last: on_stop() may run inside set(), or at once on another thread. It only posts.
    stop_callback_.set(operation.stop_, *this);
    return std::nullopt;
}

inline void AsioDescriptorWaiter::leave(AsioReadable& operation) noexcept {
    if (operation_ != &operation) return;
    operation_ = nullptr;
    stop_callback_.reset();
    if (!io_) return;
    // Cancel what is outstanding, or it would keep the context running. The handlers are still
    // called, and do nothing.
    if (event_pending_) io_->cancel_wait();
    if (operation.is_timed()) io_->cancel_timer();
}

inline void AsioDescriptorWaiter::on_stop_arrived() {
    // An exchange, not a store: it synchronizes with the on_stop() calls that found the flag set,
    // so that their stop requests are visible here.
    const bool stop = stop_posted_.exchange(false);
    if (stop && operation_ != nullptr && operation_->stop_.stop_requested()) {
        complete(std::errc::operation_canceled);
    }
}

inline void AsioDescriptorWaiter::on_event(const AsioError& error) {
    event_pending_ = false;
    if (operation_ == nullptr || operation_->is_one_iteration()) return;
    if (!io_) return complete(std::errc::operation_canceled);
    if (error == net::error::operation_aborted) return wait_for_event(); // of an earlier operation
    complete(from_asio(error));
}

inline void AsioDescriptorWaiter::on_next_iteration() {
    if (!io_) return complete(std::errc::operation_canceled);
    pollfd fd{io_->fd(), POLLIN, 0};
    if (::poll(&fd, 1, 0) > 0) return complete(std::error_code());
    complete(std::errc::timed_out);
}

inline void AsioDescriptorWaiter::complete(std::error_code result) {
    AsioReadable& operation = *operation_;
    leave(operation);
    operation.result_ = result;
    operation.coroutine_.resume();
}

inline void AsioEventHandler::operator()(const AsioError& error) const { waiter->on_event(error); }
inline void AsioStopHandler::operator()() const { waiter->on_stop_arrived(); }
inline void AsioNextIterationHandler::operator()() const {
    if (waiter->is_current(number)) waiter->on_next_iteration();
}
inline void AsioTimerHandler::operator()(const AsioError&) const {
    if (waiter->is_current(number)) waiter->complete(std::errc::timed_out);
}

} // namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR
