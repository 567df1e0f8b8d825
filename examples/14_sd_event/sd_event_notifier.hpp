// SPDX-License-Identifier: MIT
// A TimedCqNotifier that waits in a loop of sd-event, the event loop of systemd. Its sources for
// the descriptor and for the time are enabled only while a coroutine waits.
#pragma once

#include <asyncverbs/cq/cq_notifier.hpp>

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <systemd/sd-event.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <coroutine>
#include <cstdint>
#include <ctime>
#include <memory>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

// To be used, and destroyed, on the thread that runs the loop. The coroutines that it resumes must
// not let an exception escape: sd-event is C.
class SdEventNotifier {
public:
    // Throws std::system_error.
    SdEventNotifier(sd_event* event, int fd)
        : fd_(fd), readable_(add(sd_event_add_io, event, fd, EPOLLIN, &Readable::on_readable)),
          time_(add(sd_event_add_time, event, CLOCK_MONOTONIC, std::uint64_t{0}, std::uint64_t{1},
                    &Readable::on_time)),
          wake_(add_wake(event, ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC))) {
        check(sd_event_source_set_enabled(readable_.get(), SD_EVENT_OFF));
        check(sd_event_source_set_enabled(time_.get(), SD_EVENT_OFF));
    }

    auto readable(std::stop_token stop) { return Readable(*this, never, std::move(stop)); }
    auto readable(std::stop_token stop, std::chrono::nanoseconds max_wait) {
        using std::chrono::ceil;
        const auto now = ceil<Time>(std::chrono::steady_clock::now().time_since_epoch());
        return Readable(*this, now + ceil<Time>(max_wait), std::move(stop));
    }

private:
    using Time = std::chrono::duration<std::uint64_t, std::micro>; // of CLOCK_MONOTONIC
    static constexpr Time never = Time::max();

    struct Readable {
        Readable(SdEventNotifier& n, Time d, std::stop_token s)
            : notifier(n), deadline(d), stop(std::move(s)) {}
        Readable(const Readable&) = delete;
        Readable& operator=(const Readable&) = delete;
        ~Readable() { leave(); }

        bool await_ready() const { return stop.stop_requested(); }
        bool await_suspend(std::coroutine_handle<> waiting) {
            coroutine = waiting; // until it leaves
            set_userdata(this);
            error = sd_event_source_set_enabled(notifier.readable_.get(), SD_EVENT_ONESHOT);
            if (error >= 0 && deadline != never) {
                sd_event_source_set_time(notifier.time_.get(), deadline.count());
                error = sd_event_source_set_enabled(notifier.time_.get(), SD_EVENT_ONESHOT);
            }
            if (error >= 0) {
                on_stop.emplace(stop, Stop{sd_event_source_get_io_fd(notifier.wake_.get())});
                return true;
            }
            leave();
            return false;
        }
        std::error_code await_resume() const {
            if (readable) return {}; // or an error, or a hang-up
            if (error < 0) return {-error, std::generic_category()};
            return std::make_error_code(stop.stop_requested() ? std::errc::operation_canceled
                                                              : std::errc::timed_out);
        }

        static int on_readable(sd_event_source*, int, std::uint32_t, void* data) {
            return resume(data, true);
        }
        static int on_time(sd_event_source*, std::uint64_t, void* data) {
            return resume(data, false);
        }
        static int on_wake(sd_event_source*, int fd, std::uint32_t, void* data) {
            eventfd_t ignored;
            ::eventfd_read(fd, &ignored);
            // Without data, or a stop, the wait that was to be woken has ended.
            const auto* const self = static_cast<Readable*>(data);
            return self != nullptr && self->stop.stop_requested() ? resume(data, false) : 0;
        }
        static int resume(void* data, bool is_readable) {
            auto& self = *static_cast<Readable*>(data);
            pollfd descriptor{self.notifier.fd_, POLLIN, 0};
            self.readable = is_readable || ::poll(&descriptor, 1, 0) > 0;
            const std::coroutine_handle<> waiting = self.coroutine;
            self.leave();
            waiting.resume(); // may destroy the notifier
            return 0;
        }
        void leave() {
            on_stop.reset(); // waits for a stop that runs on another thread
            if (!std::exchange(coroutine, nullptr)) return;
            sd_event_source_set_enabled(notifier.readable_.get(), SD_EVENT_OFF);
            sd_event_source_set_enabled(notifier.time_.get(), SD_EVENT_OFF);
            set_userdata(nullptr);
        }
        void set_userdata(void* data) const {
            sd_event_source_set_userdata(notifier.readable_.get(), data);
            sd_event_source_set_userdata(notifier.time_.get(), data);
            sd_event_source_set_userdata(notifier.wake_.get(), data);
        }

        // From any thread. The functions of sd-event are not.
        struct Stop {
            int wake_fd;
            void operator()() const noexcept { ::eventfd_write(wake_fd, 1); }
        };

        SdEventNotifier& notifier;
        Time deadline;
        std::stop_token stop;
        std::coroutine_handle<> coroutine;
        int error = 0;
        bool readable = false;
        std::optional<std::stop_callback<Stop>> on_stop;
    };

    struct Release {
        void operator()(sd_event_source* source) const { sd_event_source_disable_unref(source); }
    };
    using Source = std::unique_ptr<sd_event_source, Release>;

    template <class Add, class... Arguments>
    static Source add(Add add_source, sd_event* event, Arguments... arguments) {
        sd_event_source* source = nullptr;
        check(add_source(event, &source, arguments..., nullptr));
        return Source(source);
    }
    static Source add_wake(sd_event* event, int fd) try {
        check(fd < 0 ? -errno : 0);
        Source source = add(sd_event_add_io, event, fd, EPOLLIN, &Readable::on_wake);
        check(sd_event_source_set_io_fd_own(source.get(), 1)); // closes it with the source
        return source;
    } catch (...) {
        if (fd >= 0) ::close(fd);
        throw;
    }
    static void check(int result) {
        if (result < 0) {
            throw std::system_error(-result, std::generic_category(), "SdEventNotifier");
        }
    }

    int fd_;
    Source readable_;
    Source time_;
    Source wake_;
};
static_assert(asyncverbs::TimedCqNotifier<SdEventNotifier>);
