// SPDX-License-Identifier: MIT
// A descriptor that a conformance case makes readable, and a co_await of its notifier that the case
// performs step by step.
#pragma once

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <concepts>
#include <coroutine>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/testing/detail/conformance_fixture.hpp>

namespace asyncverbs::detail::conformance {

// Two connected descriptors, both non-blocking, as a completion channel is.
class Channel {
public:
    enum class Kind { pipe, socket };

    explicit Channel(Kind kind) {
        int fds[2];
        const int result =
            kind == Kind::pipe
                ? ::pipe2(fds, O_CLOEXEC | O_NONBLOCK)
                : ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds);
        if (result != 0) throw std::system_error(errno, std::system_category(), "pipe2");
        reader_ = fds[0];
        writer_ = fds[1];
    }
    Channel(const Channel&) = delete;
    Channel& operator=(const Channel&) = delete;
    ~Channel() {
        close_reader();
        close_writer();
    }

    int reader() const noexcept { return reader_; }
    int writer() const noexcept { return writer_; }

    /// Writes one byte. From any thread.
    void put() const noexcept {
        const char byte = 'x';
        while (::write(writer_, &byte, 1) < 0 && errno == EINTR) {
        }
    }

    /// Reads one byte; false if there is none.
    bool take() const {
        char byte = 0;
        ssize_t count = 0;
        do {
            count = ::read(reader_, &byte, 1);
        } while (count < 0 && errno == EINTR);
        if (count >= 0) return count == 1;
        if (errno == EAGAIN) return false;
        throw std::system_error(errno, std::system_category(), "reading what the notifier watches");
    }

    void close_writer() noexcept { close(writer_); }
    void close_reader() noexcept { close(reader_); }

private:
    static void close(int& fd) noexcept {
        if (fd >= 0) ::close(std::exchange(fd, -1));
    }

    int reader_ = -1;
    int writer_ = -1;
};

// A channel, its notifier, and one coroutine that awaits the notifier. The co_await is performed by
// hand, so that a stop or an event can come between any two of its steps.
template <class Harness>
class Waiter {
public:
    using Notifier = typename Fixture<Harness>::Notifier;

    explicit Waiter(Fixture<Harness>& fixture, Channel::Kind kind = Channel::Kind::pipe)
        : channel(kind), fixture_(fixture) {
        watch(channel.reader());
    }
    Waiter(const Waiter&) = delete;
    Waiter& operator=(const Waiter&) = delete;
    ~Waiter() { destroy(); }

    /// Replaces the notifier.
    void watch(int fd) {
        notifier.reset();
        notifier.emplace(fixture_.notifier(fd));
    }

    /// Performs `co_await notifier.readable(arguments...)` until it suspends or completes. Without
    /// arguments: with an empty stop token.
    template <class... Arguments>
    void begin(const Arguments&... arguments) {
        call(arguments...);
        suspend();
    }

    /// The two steps of begin(): until await_ready() has returned, and await_suspend().
    void call() { call(std::stop_token()); }
    template <class... Arguments>
    void call(const Arguments&... arguments) {
        destroy();
        result_.reset();
        using Call = Awaited<Arguments...>;
        auto awaited = std::make_unique<Call>(*notifier, arguments...);
        const bool ready = static_cast<bool>(awaited->awaiter.await_ready());
        suspend_ = [&call = *awaited](std::coroutine_handle<> coroutine) {
            return Call::suspend(call.awaiter, coroutine);
        };
        resume_ = [&call = *awaited]() -> std::error_code { return call.awaiter.await_resume(); };
        repeat_ = [this, arguments...] { begin(arguments...); };
        awaited_ = std::move(awaited);
        if (ready) end();
    }
    void suspend() {
        if (done()) return;
        probe_ = &fixture_.make_probe([this] { end(); });
        const std::coroutine_handle<> coroutine = probe_->handle();
        std::coroutine_handle<> next;
        {
            const Recorder::At at(fixture_.recorder(), Recorder::Place::in_await_suspend);
            next = suspend_(coroutine);
        }
        fixture_.recorder().check();
        if (next == coroutine) { // it does not suspend
            probe_->close("it was resumed although await_suspend() had not suspended it");
            end();
        } else {
            next.resume();
        }
    }

    /// Destroys the coroutine, and with it the awaiter.
    void destroy() noexcept {
        if (probe_ != nullptr) probe_->close("it was resumed after it was destroyed");
        probe_ = nullptr;
        awaited_.reset();
    }

    bool done() const noexcept { return result_.has_value(); }

    /// Runs the loop until the wait has ended.
    std::error_code result(const std::string& expected = "the end of the wait") {
        fixture_.run_until([this] { return done(); }, expected);
        return *result_;
    }

    /// Runs the loop until the wait has ended because the descriptor is readable.
    void expect_readable(const char* expected = "the end of the wait with {}") {
        const std::error_code error = result(expected);
        if (error) fail("expected {} of a readable descriptor, got " + error.message());
    }

    /// expect_readable(), and reads the one byte that is there.
    void expect_byte() {
        expect_readable();
        expect(channel.take(), "it ended with {}, but the byte is gone: only the waiter may read");
    }

    /// Runs the loop until the wait has ended with `expected`; repeats it after a spurious wake.
    void expect_error(std::errc expected) {
        const std::string name = std::make_error_code(expected).message();
        for (int i = 0; i < max_spurious; ++i) {
            const std::error_code error = result("the end of the wait with " + name);
            if (error == expected) return;
            if (error) fail("expected " + name + ", got " + error.message());
            repeat();
        }
        fail("expected " + name + ", got {} each time");
    }

    /// After a wait that a stop and, if `readable`, a byte have ended: its result is that of
    /// either. If it is not that of the byte, the next wait has to report the byte.
    void expect_canceled_or_byte(std::error_code error, bool readable) {
        if (error && error != std::errc::operation_canceled) {
            fail("expected {} or operation_canceled, got " + error.message());
        }
        if (!readable) return;
        if (error) begin();
        expect_byte();
    }

    /// begin() with nothing to read, and expect_suspended().
    template <class... Arguments>
    void begin_suspended(const Arguments&... arguments) {
        begin(arguments...);
        expect_suspended();
    }

    /// Expects that nothing ends the wait; repeats it after a spurious wake.
    void expect_suspended() {
        for (int i = 0; i < max_spurious; ++i) {
            fixture_.settle();
            if (!done()) return;
            if (*result_) fail("a wait that nothing ends gave " + result_->message());
            repeat();
        }
        fail("nothing can be read, but the wait ends each time: its user spins");
    }

    Channel channel;
    std::optional<Notifier> notifier;
    std::function<void()> then; ///< what the coroutine does after the wait; it may begin again

private:
    static constexpr int max_spurious = 100; // wakes in a row

    struct AwaitedBase {
        virtual ~AwaitedBase() = default;
    };

    // What lives in a coroutine's frame during co_await; on the heap, as a frame is.
    template <class... Arguments>
    struct Awaited : AwaitedBase {
        using Operation =
            decltype(std::declval<Notifier&>().readable(std::declval<const Arguments&>()...));

        Awaited(Notifier& notifier, const Arguments&... arguments)
            : operation(notifier.readable(arguments...)),
              awaiter(detail::get_awaiter(static_cast<Operation&&>(operation))) {}

        static std::coroutine_handle<> suspend(auto& awaiter, std::coroutine_handle<> coroutine) {
            using Result = decltype(awaiter.await_suspend(coroutine));
            if constexpr (std::same_as<Result, void>) {
                awaiter.await_suspend(coroutine);
                return std::noop_coroutine();
            } else if constexpr (std::same_as<Result, bool>) {
                if (!awaiter.await_suspend(coroutine)) return coroutine;
                return std::noop_coroutine();
            } else {
                return awaiter.await_suspend(coroutine);
            }
        }

        Operation operation;
        awaiter_t<Operation> awaiter;
    };

    void repeat() {
        const std::function<void()> again = repeat_; // which replaces itself
        again();
    }

    // In the order of a compiled co_await: the result, the end of the awaiter, the continuation.
    void end() {
        result_ = resume_();
        probe_ = nullptr;
        awaited_.reset();
        if (const std::function<void()> next = then) next();
    }

    Fixture<Harness>& fixture_;
    std::unique_ptr<AwaitedBase> awaited_;
    std::function<std::coroutine_handle<>(std::coroutine_handle<>)> suspend_;
    std::function<std::error_code()> resume_;
    std::function<void()> repeat_;
    ProbeCoroutine* probe_ = nullptr;
    std::optional<std::error_code> result_;
};

} // namespace asyncverbs::detail::conformance
