// SPDX-License-Identifier: MIT
// A TimedCqNotifier that waits in a loop of libuv. Its handles are active only while a coroutine
// waits: a CQ that nobody awaits does not keep uv_run() from returning.
#pragma once

#include <asyncverbs/cq/cq_notifier.hpp>

#include <poll.h>
#include <uv.h>

#include <chrono>
#include <coroutine>
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

// To be used, and destroyed, on the thread that runs the loop. libuv frees its handles in the next
// iteration: run the loop once more before uv_loop_close(), which fails with UV_EBUSY otherwise.
// The coroutines that it resumes must not let an exception escape: libuv is C.
class UvNotifier {
public:
    // Throws std::system_error, for example if another handle of the loop watches `fd`.
    UvNotifier(uv_loop_t* loop, int fd)
        : poll_(open<uv_poll_t>(uv_poll_init, loop, fd)),
          timer_(open<uv_timer_t>(uv_timer_init, loop)),
          wake_(open<uv_async_t>(uv_async_init, loop, &Readable::on_wake)), fd_(fd) {
        uv_unref(reinterpret_cast<uv_handle_t*>(wake_.get()));
    }

    auto readable(std::stop_token stop) { return Readable(*this, never, std::move(stop)); }
    auto readable(std::stop_token stop, std::chrono::nanoseconds max_wait) {
        return Readable(*this, std::chrono::ceil<Milliseconds>(max_wait), std::move(stop));
    }

private:
    using Milliseconds = std::chrono::milliseconds;
    static constexpr Milliseconds never{-1};
    static constexpr Milliseconds at_once{0};

    struct Readable {
        Readable(UvNotifier& n, Milliseconds w, std::stop_token s)
            : notifier(n), max_wait(w), stop(std::move(s)) {}
        Readable(const Readable&) = delete;
        Readable& operator=(const Readable&) = delete;
        ~Readable() { leave(); }

        bool await_ready() const { return stop.stop_requested(); }
        bool await_suspend(std::coroutine_handle<> waiting) {
            error = uv_poll_start(notifier.poll_.get(), UV_READABLE, &on_readable);
            if (error != 0) return false;
            coroutine = waiting; // until it leaves
            notifier.poll_->data = notifier.timer_->data = notifier.wake_->data = this;
            if (max_wait > at_once) {
                // libuv rounds the time of the loop down, so that a timer may be early.
                const auto wait = static_cast<std::uint64_t>(max_wait.count()) + 1;
                uv_update_time(notifier.timer_->loop);
                uv_timer_start(notifier.timer_.get(), &on_timeout, wait, 0);
            }
            // A timer of no time may run in the iteration that started it.
            if (max_wait == at_once) uv_async_send(notifier.wake_.get());
            on_stop.emplace(stop, Stop{notifier.wake_.get()});
            return true;
        }
        std::error_code await_resume() const {
            if (readable) return {}; // or an error, or a hang-up
            if (error != 0) return {-error, std::generic_category()};
            return std::make_error_code(stop.stop_requested() ? std::errc::operation_canceled
                                                              : std::errc::timed_out);
        }

        static void on_readable(uv_poll_t* handle, int, int) { resume(handle->data, true); }
        static void on_timeout(uv_timer_t* handle) { resume(handle->data, false); }
        static void on_wake(uv_async_t* handle) {
            const auto* const self = static_cast<Readable*>(handle->data);
            if (self == nullptr) return; // the wait has ended
            if (self->max_wait == at_once || self->stop.stop_requested()) {
                resume(handle->data, false);
            }
        }
        static void resume(void* data, bool is_readable) {
            auto& self = *static_cast<Readable*>(data);
            pollfd descriptor{self.notifier.fd_, POLLIN, 0};
            self.readable = is_readable || ::poll(&descriptor, 1, 0) > 0;
            const std::coroutine_handle<> waiting = self.coroutine;
            self.leave();
            waiting.resume(); // may destroy the notifier
        }
        void leave() {
            on_stop.reset(); // waits for a stop that runs on another thread
            if (!std::exchange(coroutine, nullptr)) return;
            notifier.poll_->data = notifier.timer_->data = notifier.wake_->data = nullptr;
            uv_poll_stop(notifier.poll_.get());
            uv_timer_stop(notifier.timer_.get());
        }

        // From any thread: libuv calls on_wake() on the loop's thread.
        struct Stop {
            uv_async_t* wake;
            void operator()() const noexcept { uv_async_send(wake); }
        };

        UvNotifier& notifier;
        Milliseconds max_wait;
        std::stop_token stop;
        std::coroutine_handle<> coroutine;
        int error = 0;
        bool readable = false;
        std::optional<std::stop_callback<Stop>> on_stop;
    };

    // Frees a handle when the loop has closed it.
    struct Close {
        template <class Handle>
        void operator()(Handle* handle) const {
            uv_close(reinterpret_cast<uv_handle_t*>(handle),
                     [](uv_handle_t* closed) { delete reinterpret_cast<Handle*>(closed); });
        }
    };
    template <class Handle, class Init, class... Arguments>
    static std::unique_ptr<Handle, Close> open(Init init, uv_loop_t* loop, Arguments... arguments) {
        auto handle = std::make_unique<Handle>();
        const int result = init(loop, handle.get(), arguments...);
        if (result < 0) throw std::system_error(-result, std::generic_category(), "UvNotifier");
        return std::unique_ptr<Handle, Close>(handle.release());
    }

    std::unique_ptr<uv_poll_t, Close> poll_;
    std::unique_ptr<uv_timer_t, Close> timer_;
    std::unique_ptr<uv_async_t, Close> wake_;
    int fd_;
};
static_assert(asyncverbs::TimedCqNotifier<UvNotifier>);
