// SPDX-License-Identifier: MIT
// A TimedCqNotifier that waits in a GMainContext. Each wait is a source of GLib, which calls back
// when the descriptor is readable or the ready time has come.
#pragma once

#include <asyncverbs/cq/cq_notifier.hpp>

#include <glib-unix.h>

#include <chrono>
#include <coroutine>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <system_error>
#include <utility>

// The coroutines that it resumes must not let an exception escape: GLib is C.
class GlibNotifier {
public:
    GlibNotifier(GMainContext* context, int fd) : context_(context), fd_(fd) {}

    auto readable(std::stop_token stop) { return Readable(*this, never, std::move(stop)); }
    auto readable(std::stop_token stop, std::chrono::nanoseconds max_wait) {
        const auto wait = std::chrono::ceil<std::chrono::microseconds>(max_wait);
        return Readable(*this, g_get_monotonic_time() + wait.count(), std::move(stop));
    }

private:
    static constexpr std::int64_t never = -1;
    static constexpr std::int64_t at_once = 0;

    struct Readable {
        Readable(GlibNotifier& n, std::int64_t d, std::stop_token s)
            : notifier(n), deadline(d), stop(std::move(s)) {}
        ~Readable() { leave(); }
        bool await_ready() const { return stop.stop_requested(); }
        void await_suspend(std::coroutine_handle<> waiting) {
            coroutine = waiting;
            source = g_unix_fd_source_new(notifier.fd_, G_IO_IN);
            // Like G_SOURCE_FUNC(&on_ready), without C casts.
            const auto callback = reinterpret_cast<void (*)()>(&on_ready);
            g_source_set_callback(source, reinterpret_cast<GSourceFunc>(callback), this, nullptr);
            g_source_set_ready_time(source, deadline);
            g_source_attach(source, notifier.context_);
            on_stop.emplace(stop, Stop{source});
        }
        std::error_code await_resume() const {
            if (condition != 0) return {}; // readable, an error, or a hang-up
            return std::make_error_code(stop.stop_requested() ? std::errc::operation_canceled
                                                              : std::errc::timed_out);
        }

        static gboolean on_ready(int, GIOCondition condition, gpointer data) {
            auto& self = *static_cast<Readable*>(data);
            self.condition = condition;
            self.leave();
            self.coroutine.resume();
            return G_SOURCE_REMOVE;
        }
        void leave() {
            on_stop.reset(); // waits for a stop that runs on another thread
            if (source == nullptr) return;
            g_source_destroy(source);
            g_source_unref(std::exchange(source, nullptr));
        }

        // From any thread: GLib wakes the loop, which resumes the coroutine on its own thread.
        struct Stop {
            GSource* source;
            void operator()() const noexcept { g_source_set_ready_time(source, at_once); }
        };

        GlibNotifier& notifier;
        std::int64_t deadline;
        std::stop_token stop;
        std::coroutine_handle<> coroutine;
        GSource* source = nullptr;
        int condition = 0;
        std::optional<std::stop_callback<Stop>> on_stop;
    };

    GMainContext* context_;
    int fd_;
};
static_assert(asyncverbs::TimedCqNotifier<GlibNotifier>);
