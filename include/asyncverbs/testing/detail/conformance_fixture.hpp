// SPDX-License-Identifier: MIT
// What the conformance cases are written with: a loop that is watched, coroutines that may be
// resumed at any time, and waits that a case performs step by step.
#pragma once

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <concepts>
#include <condition_variable>
#include <coroutine>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/detail/coroutine.hpp>
#include <asyncverbs/testing/conformance_case.hpp>

namespace asyncverbs::detail::conformance {

[[noreturn]] inline void fail(const std::string& what) { throw ConformanceFailure(what); }

inline void expect(bool holds, const char* otherwise) {
    if (!holds) fail(otherwise);
}

// Keeps the first violation, and what the thread of the loop is doing, which decides whether a
// coroutine may be resumed now.
class Recorder {
public:
    enum class Place { elsewhere, in_run_once, in_request_stop, in_await_suspend };

    // The thread of the loop is at `place` as long as this object exists.
    class At {
    public:
        At(Recorder& recorder, Place place) noexcept
            : recorder_(recorder), before_(std::exchange(recorder.place_, place)) {}
        At(const At&) = delete;
        At& operator=(const At&) = delete;
        ~At() { recorder_.place_ = before_; }

    private:
        Recorder& recorder_;
        Place before_;
    };

    Place place() const noexcept { return place_; }

    /// To be called by a coroutine that was resumed. Records violations, and returns whether this
    /// is the thread of the loop.
    bool resumed() noexcept {
        if (std::this_thread::get_id() != thread_) {
            record("it was resumed on another thread than the loop's");
            return false;
        }
        if (place_ == Place::in_request_stop) record("it was resumed inside request_stop()");
        return true;
    }

    /// From any thread. `violation` is a literal.
    void record(const char* violation) noexcept {
        const char* none = nullptr;
        violation_.compare_exchange_strong(none, violation);
    }
    void record(std::exception_ptr exception) noexcept {
        if (!exception_) exception_ = std::move(exception);
    }

    /// Throws what was recorded.
    void check() {
        if (const char* violation = violation_.load()) fail(violation);
        if (exception_) std::rethrow_exception(std::exchange(exception_, nullptr));
    }

private:
    std::thread::id thread_ = std::this_thread::get_id();
    Place place_ = Place::elsewhere;
    std::atomic<const char*> violation_{nullptr};
    std::exception_ptr exception_;
};

// The coroutine that a notifier resumes. It survives being resumed twice, too late, inside
// request_stop() or on another thread, and records that. Kept until the loop has been destroyed.
class ProbeCoroutine {
public:
    ProbeCoroutine(Recorder& recorder, std::function<void()> on_resumed)
        : recorder_(recorder), on_resumed_(std::move(on_resumed)), coroutine_(run(*this)) {}
    ProbeCoroutine(const ProbeCoroutine&) = delete;
    ProbeCoroutine& operator=(const ProbeCoroutine&) = delete;

    std::coroutine_handle<> handle() const noexcept { return coroutine_.handle(); }

    /// From now on, a resume is the violation `why_not`.
    void close(const char* why_not) noexcept {
        why_not_ = why_not;
        on_resumed_ = nullptr;
    }

private:
    static BackgroundCoroutine run(ProbeCoroutine& self) {
        for (;;) {
            co_await std::suspend_always{};
            self.resumed();
        }
    }

    void resumed() noexcept {
        using Place = Recorder::Place;
        if (!recorder_.resumed()) return; // on another thread, touch nothing else
        if (!on_resumed_) return recorder_.record(why_not_);
        if (recorder_.place() == Place::in_await_suspend) {
            recorder_.record("it was resumed before await_suspend() had returned");
        } else if (recorder_.place() != Place::in_run_once) {
            recorder_.record("it was not resumed by the loop");
        }
        try {
            const auto on_resumed = std::move(on_resumed_);
            close("it was resumed twice");
            on_resumed();
        } catch (...) {
            recorder_.record(std::current_exception());
        }
    }

    Recorder& recorder_;
    std::function<void()> on_resumed_;
    const char* why_not_ = "";
    BackgroundCoroutine coroutine_;
};

// Aborts the program if progress() is not called for `limit`. Nothing else can end a program that
// hangs inside the code under test, and an unattended run has to name the case.
class Watchdog {
public:
    Watchdog(std::string name, std::chrono::milliseconds limit)
        : name_(std::move(name)), limit_(limit),
          thread_([this](const std::stop_token& stop) { watch(stop); }) {}

    void progress() noexcept { steps_.fetch_add(1, std::memory_order_relaxed); }

private:
    void watch(const std::stop_token& stop) {
        std::mutex mutex;
        std::unique_lock lock(mutex);
        std::condition_variable_any stopped;
        for (unsigned seen = steps_;; seen = steps_) {
            stopped.wait_for(lock, stop, limit_, [] { return false; });
            if (stop.stop_requested()) return;
            if (steps_ != seen) continue;
            std::fprintf(stderr,
                         "%s: it hangs. No step of the suite has ended for %lld ms: either a "
                         "function of the notifier blocks, or run_once() exceeds its limit.\n",
                         name_.c_str(), static_cast<long long>(limit_.count()));
            std::abort();
        }
    }

    const std::string name_;
    const std::chrono::milliseconds limit_;
    std::atomic<unsigned> steps_{0};
    std::jthread thread_; // destroyed first
};

// Spins for 0 to 63 µs, another time in each round, so that two threads meet at every point.
inline void spin_for(int round) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point end = Clock::now() + std::chrono::microseconds(round % 64);
    while (Clock::now() < end) {
    }
}

// The loop of a harness, and what watches it. All waiting of the suite is here, and is bounded.
template <class Harness>
class Fixture {
    using Clock = std::chrono::steady_clock;

public:
    using Notifier = decltype(std::declval<Harness&>().notifier(0));

    Fixture(const std::string& name, std::chrono::milliseconds patience)
        : patience_(patience), watchdog_(name, 2 * patience + std::chrono::seconds(20)) {}

    Notifier notifier(int fd) { return harness_.notifier(fd); }
    Harness& harness() noexcept { return harness_; }
    Recorder& recorder() noexcept { return recorder_; }

    ProbeCoroutine& make_probe(std::function<void()> on_resumed) {
        probes_.push_back(std::make_unique<ProbeCoroutine>(recorder_, std::move(on_resumed)));
        return *probes_.back();
    }

    /// One iteration of the loop. Throws if it violates the contract.
    void run_once(std::chrono::milliseconds at_most = std::chrono::milliseconds(0)) {
        {
            const Recorder::At at(recorder_, Recorder::Place::in_run_once);
            harness_.run_once(at_most);
        }
        watchdog_.progress();
        recorder_.check();
    }

    /// Runs the loop long enough for a wrong resume to happen.
    void settle() {
        for (int i = 0; i < 5; ++i) run_once(std::chrono::milliseconds(1));
    }

    /// Whether the loop sleeps: of 20 iterations, at least half give up the CPU. A loop that spins
    /// loses it at most when its time slice ends, which the kernel counts separately.
    bool sleeps() {
        const auto count = [] {
            rusage usage{};
            ::getrusage(RUSAGE_THREAD, &usage);
            return usage.ru_nvcsw;
        };
        const long before = count();
        for (int i = 0; i < 20; ++i) run_once(std::chrono::milliseconds(1));
        return count() - before >= 10;
    }

    /// Runs the loop until `done`, which is expected. The loop may sleep: the event has to wake it.
    template <class Predicate>
    void run_until(Predicate done, const std::string& expected,
                   std::chrono::milliseconds longest = std::chrono::milliseconds::max()) {
        const Clock::time_point end = Clock::now() + patience_;
        while (!done()) {
            const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now());
            if (left.count() > 0) run_once(std::min(left, longest));
            // Also if it is done now: then the end of the sleep, not a wake, has led here.
            if (Clock::now() >= end) {
                fail("timeout: " + expected + " was expected within " +
                     std::to_string(patience_.count()) + " ms, and to wake the loop");
            }
            std::this_thread::yield(); // run_once() may be one that never sleeps
        }
    }

    /// Requests the stop on the thread of the loop.
    void request_stop(std::stop_source& source) {
        const Recorder::At at(recorder_, Recorder::Place::in_request_stop);
        source.request_stop();
    }

private:
    const std::chrono::milliseconds patience_;
    Watchdog watchdog_;
    Recorder recorder_;
    std::vector<std::unique_ptr<ProbeCoroutine>> probes_; // outlive the loop, which may resume them
    Harness harness_;
};

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

// When an event comes, seen from the wait that it ends.
enum class Moment { before_the_call, while_nobody_waits, while_it_suspends, while_it_waits };

// A channel, its notifier, and one coroutine that awaits the notifier. The co_await is performed by
// hand, so that a stop or an event can come between any two of its steps.
template <class Harness>
class Waiter {
public:
    using Notifier = typename Fixture<Harness>::Notifier;

    explicit Waiter(Fixture<Harness>& fixture, Channel::Kind kind = Channel::Kind::pipe)
        : loop(fixture), channel(kind) {
        watch(channel.reader());
    }
    Waiter(const Waiter&) = delete;
    Waiter& operator=(const Waiter&) = delete;
    ~Waiter() { destroy(); }

    /// Replaces the notifier.
    void watch(int fd) {
        notifier.reset();
        notifier.emplace(loop.notifier(fd));
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
        probe_ = &loop.make_probe([this] { end(); });
        const std::coroutine_handle<> coroutine = probe_->handle();
        std::coroutine_handle<> next;
        {
            const Recorder::At at(loop.recorder(), Recorder::Place::in_await_suspend);
            next = suspend_(coroutine);
        }
        loop.recorder().check();
        if (next == coroutine) { // it does not suspend
            probe_->close("it was resumed although await_suspend() had not suspended it");
            end();
        } else {
            next.resume();
        }
    }

    /// begin(), with `event` at `moment`.
    template <class Event, class... Arguments>
    void begin_with(const Event& event, Moment moment, const Arguments&... arguments) {
        if (moment == Moment::before_the_call || moment == Moment::while_nobody_waits) event();
        if (moment == Moment::while_nobody_waits) loop.settle();
        call(arguments...);
        if (moment == Moment::while_it_suspends) event();
        suspend();
        if (moment != Moment::while_it_waits) return;
        expect_suspended();
        event();
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
        loop.run_until([this] { return done(); }, expected);
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
            loop.settle();
            if (!done()) return;
            if (*result_) fail("a wait that nothing ends gave " + result_->message());
            repeat();
        }
        fail("nothing can be read, but the wait ends each time: its user spins");
    }

    Fixture<Harness>& loop;
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

    std::unique_ptr<AwaitedBase> awaited_;
    std::function<std::coroutine_handle<>(std::coroutine_handle<>)> suspend_;
    std::function<std::error_code()> resume_;
    std::function<void()> repeat_;
    ProbeCoroutine* probe_ = nullptr;
    std::optional<std::error_code> result_;
};

template <class Harness>
class CaseList {
public:
    explicit CaseList(ConformanceOptions options) : options_(std::move(options)) {}

    /// `body` is called with a Fixture, or with a Waiter. What it throws becomes a
    /// ConformanceFailure that names the case and `clause`, the sentence of the contract that it
    /// tries.
    template <class Body>
    void add(const std::string& name, const char* clause, Body body) {
        if (name.find(options_.filter) == std::string::npos) return;
        cases_.push_back({name, clause, [name, clause, body, patience = options_.patience] {
                              std::string what;
                              try {
                                  Fixture<Harness> fixture(name, patience);
                                  return run(body, fixture);
                              } catch (const ConformanceFailure& failure) {
                                  what = failure.what();
                              } catch (const std::exception& error) {
                                  what = std::string("an exception: ") + error.what();
                              } catch (...) {
                                  what = "an exception that is not a std::exception";
                              }
                              fail(name + ": " + what + "\n        the contract: " + clause);
                          }});
    }

    std::vector<ConformanceCase> take() { return std::move(cases_); }

private:
    template <class Body>
    static void run(const Body& body, Fixture<Harness>& fixture) {
        if constexpr (std::invocable<const Body&, Fixture<Harness>&>) {
            body(fixture);
        } else {
            Waiter<Harness> waiter(fixture);
            body(waiter);
        }
    }

    const ConformanceOptions options_;
    std::vector<ConformanceCase> cases_;
};

} // namespace asyncverbs::detail::conformance
