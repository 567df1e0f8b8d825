// SPDX-License-Identifier: MIT
// What the conformance suite waits for: the end of a pipe or of a socket, which it makes readable,
// reads, and hangs up.
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
#include <string_view>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/testing/detail/conformance_fixture.hpp>

namespace asyncverbs::detail::conformance {

/// Two connected descriptors, both non-blocking, as a completion channel is.
class Channel {
public:
    enum class Kind { pipe, socket };

    explicit Channel(Kind kind = Kind::pipe) {
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

    /// From any thread.
    void put() const noexcept {
        const char byte = 'x';
        while (::write(writer_, &byte, 1) < 0 && errno == EINTR) {
        }
    }

    /// Takes one byte; false: there was none.
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

// A coroutine that waits with a notifier, as the conformance suite plays it: step by step, so that
// a stop or an event can fall between any two of them, and tolerant of what the contract tolerates.

template <class Harness>
class Wait {
    using Notifier = typename Bench<Harness>::Notifier;

public:
    explicit Wait(Bench<Harness>& bench) : bench_(bench) {}
    Wait(const Wait&) = delete;
    Wait& operator=(const Wait&) = delete;
    ~Wait() { destroy(); }

    /// `co_await notifier.readable(arguments...)`
    template <class... Arguments>
    void begin(Notifier& notifier, const Arguments&... arguments) {
        call(notifier, arguments...);
        suspend();
    }

    /// The same in two steps: up to await_ready(), and await_suspend().
    template <class... Arguments>
    void call(Notifier& notifier, const Arguments&... arguments) {
        destroy();
        result_.reset();
        using Call = Awaited<Arguments...>;
        auto awaited = std::make_unique<Call>(notifier, arguments...);
        const bool ready = static_cast<bool>(awaited->awaiter.await_ready());
        suspend_ = [&call = *awaited](std::coroutine_handle<> coroutine) {
            return Call::suspend(call.awaiter, coroutine);
        };
        resume_ = [&call = *awaited]() -> std::error_code { return call.awaiter.await_resume(); };
        awaited_ = std::move(awaited);
        if (ready) end();
    }
    void suspend() {
        if (done()) return;
        passage_ = &bench_.passages().add(bench_.witness(), [this] { end(); });
        const std::coroutine_handle<> coroutine = passage_->handle();
        std::coroutine_handle<> next;
        {
            const Witness::At at(bench_.witness(), Witness::Place::in_await_suspend);
            next = suspend_(coroutine);
        }
        bench_.witness().check();
        if (next == coroutine) { // it does not suspend
            passage_->close("it was resumed although await_suspend() had not suspended it");
            end();
        } else {
            next.resume();
        }
    }

    /// The coroutine goes, and with it the awaiter.
    void destroy() noexcept {
        if (passage_ != nullptr) passage_->close("it was resumed after it was destroyed");
        passage_ = nullptr;
        awaited_.reset();
    }

    bool done() const noexcept { return result_.has_value(); }

    /// Runs the loop until it is done, for whatever reason.
    std::error_code result(const char* awaited = "the end of the wait") {
        bench_.run_until([this] { return done(); }, awaited);
        return *result_;
    }

    /// Runs the loop until it is done, which is because the descriptor is readable.
    void expect_readable(const char* awaited = "that the wait ends with {}") {
        const std::error_code error = result(awaited);
        if (error) fail("expected {} of a readable descriptor, got " + error.message());
    }

    /// The same for a wait that ends with `expected`. It may be spuriously readable, and then is
    /// begun again.
    template <class... Arguments>
    void expect_error(std::errc expected, Notifier& notifier, const Arguments&... arguments) {
        const std::string name = std::make_error_code(expected).message();
        for (int i = 0; i < enough; ++i) {
            const std::error_code error = result(("that the wait ends with " + name).c_str());
            if (error == expected) return;
            if (error) fail("expected " + name + ", got " + error.message());
            begin(notifier, arguments...);
        }
        fail("expected " + name + ", got {} each time");
    }

    /// Begins, with nothing to read, and is left waiting, after as many spurious wakes as it takes.
    template <class... Arguments>
    void park(Notifier& notifier, const Arguments&... arguments) {
        begin(notifier, arguments...);
        stay(notifier, arguments...);
    }

    /// It is still waiting, or has been woken spuriously and then is begun again.
    template <class... Arguments>
    void stay(Notifier& notifier, const Arguments&... arguments) {
        for (int i = 0; i < enough; ++i) {
            bench_.settle();
            if (!done()) return;
            if (*result_) fail("a wait that nothing ends gave " + result_->message());
            begin(notifier, arguments...);
        }
        fail("nothing can be read, but the wait ends each time: whoever relies on it spins");
    }

    /// What the coroutine does when it is resumed, or did not suspend. It may begin again.
    std::function<void()> then;

private:
    static constexpr int enough = 100; // spurious wakes in a row

    struct Anything {
        virtual ~Anything() = default;
    };

    // The objects that live in a coroutine's frame during co_await, on the heap as that is.
    template <class... Arguments>
    struct Awaited : Anything {
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

    // As the compiler does it: the result first, then the awaiter goes, then the coroutine goes on.
    void end() {
        result_ = resume_();
        passage_ = nullptr;
        awaited_.reset();
        if (const std::function<void()> next = then) next();
    }

    Bench<Harness>& bench_;
    std::unique_ptr<Anything> awaited_;
    std::function<std::coroutine_handle<>(std::coroutine_handle<>)> suspend_;
    std::function<std::error_code()> resume_;
    Passage* passage_ = nullptr;
    std::optional<std::error_code> result_;
};

// The conformance suite: a wait ends when the descriptor is readable, whenever that happened, and
// no wake is lost in however many rounds.

// A harness of edge-triggered notifiers says so: what was told of once need not wake again.
template <class Harness>
constexpr bool is_edge_triggered() {
    if constexpr (requires { Harness::edge_triggered; }) {
        return Harness::edge_triggered;
    } else {
        return false;
    }
}

template <class Harness>
struct ReadinessCases {
    using Bench = conformance::Bench<Harness>;
    using Wait = conformance::Wait<Harness>;
    using Notifier = typename Bench::Notifier;
    static constexpr int many = 10'000;

    // What most cases begin with.
    struct Setup {
        explicit Setup(Bench& bench, Channel::Kind kind = Channel::Kind::pipe)
            : channel(kind), notifier(bench.notifier(channel.reader())), wait(bench) {}

        // One byte, one wake, and the byte is still there.
        void round() {
            wait.expect_readable();
            expect(channel.take(), "it ended with {}, but the byte has gone: who waits reads");
        }

        // After a wait that a stop and a byte have both ended: its result is that of the one or the
        // other. What it was not told of is told to the next.
        void take_after(std::error_code result, bool readable) {
            if (result && result != std::errc::operation_canceled) {
                fail("expected {} or operation_canceled, got " + result.message());
            }
            if (!readable) return;
            if (result) {
                wait.begin(notifier, std::stop_token());
                wait.expect_readable("that a byte ends the wait after the one that was stopped");
            }
            expect(channel.take(), "the byte has gone: who waits reads");
        }

        Channel channel;
        Notifier notifier;
        Wait wait;
    };

    static void nothing_to_read(Bench& bench) {
        Setup s(bench);
        s.wait.park(s.notifier, std::stop_token());
    }

    static void before_the_call(Bench& bench) {
        Setup s(bench);
        s.channel.put();
        s.wait.begin(s.notifier, std::stop_token());
        s.round();
    }

    static void after_the_call(Bench& bench) {
        Setup s(bench);
        s.wait.park(s.notifier, std::stop_token());
        s.channel.put();
        s.round();
    }

    static void while_it_suspends(Bench& bench) {
        Setup s(bench);
        s.wait.call(s.notifier, std::stop_token());
        s.channel.put();
        s.wait.suspend();
        s.round();
    }

    static void while_nobody_waits(Bench& bench) {
        Setup s(bench);
        for (int i = 0; i < 3; ++i) {
            s.channel.put();
            bench.settle();
            s.wait.begin(s.notifier, std::stop_token());
            s.round();
        }
    }

    static void taken_before_the_call(Bench& bench) {
        Setup s(bench);
        s.channel.put();
        bench.settle();
        expect(s.channel.take(), "the byte has gone, though nobody waited");
        s.wait.park(s.notifier, std::stop_token());
        s.channel.put();
        s.round();
    }

    static void bursts(Bench& bench) {
        Setup s(bench);
        for (int burst = 1; burst <= 5; ++burst) {
            for (int i = 0; i < burst; ++i) s.channel.put();
            s.wait.begin(s.notifier, std::stop_token());
            s.wait.expect_readable();
            for (int i = 0; i < burst; ++i) expect(s.channel.take(), "a byte has gone");
        }
        s.wait.park(s.notifier, std::stop_token());
        s.channel.put();
        s.round();
    }

    static void left_unread(Bench& bench) {
        Setup s(bench);
        s.channel.put();
        s.channel.put();
        for (int i = 0; i < 3; ++i) {
            s.wait.begin(s.notifier, std::stop_token());
            s.wait.expect_readable("that what was not read ends the next wait");
            if (i == 1) expect(s.channel.take(), "a byte has gone");
        }
    }

    static void hung_up(Bench& bench) {
        for (const auto kind : {Channel::Kind::pipe, Channel::Kind::socket}) {
            for (const bool before : {true, false}) {
                Setup s(bench, kind);
                if (before) {
                    s.channel.close_writer();
                    bench.settle();
                    s.wait.begin(s.notifier, std::stop_token());
                } else {
                    s.wait.park(s.notifier, std::stop_token());
                    s.channel.close_writer();
                }
                s.wait.expect_readable("that a hang-up ends the wait");
            }
        }
    }

    static void error(Bench& bench) {
        for (const bool before : {true, false}) {
            Channel channel;
            Notifier notifier = bench.notifier(channel.writer());
            Wait wait(bench);
            if (before) {
                channel.close_reader();
                bench.settle();
                wait.begin(notifier, std::stop_token());
            } else {
                wait.park(notifier, std::stop_token());
                channel.close_reader();
            }
            wait.expect_readable("that EPOLLERR ends the wait");
        }
    }

    static void two_notifiers(Bench& bench) {
        Setup a(bench);
        Setup b(bench);
        for (Setup* readable : {&b, &a, &b}) {
            a.wait.park(a.notifier, std::stop_token());
            b.wait.park(b.notifier, std::stop_token());
            readable->channel.put();
            readable->round();
        }
        a.wait.park(a.notifier, std::stop_token());
        b.wait.park(b.notifier, std::stop_token());
        a.channel.put();
        b.channel.put();
        a.round();
        b.round();
    }

    static void within_the_resume(Bench& bench) {
        Setup s(bench);
        int rounds = 0;
        int depth = 0;
        s.wait.then = [&] {
            if (s.channel.take()) ++rounds;
            expect(++depth < 100, "it completes at once, although nothing can be read");
            s.wait.begin(s.notifier, std::stop_token());
            --depth;
        };
        s.wait.begin(s.notifier, std::stop_token());
        for (int expected = 1; expected <= 100; ++expected) {
            s.channel.put();
            bench.run_until([&] { return rounds == expected; },
                            "the end of a wait that began inside the resume of the last one");
        }
    }

    static void many_rounds(Bench& bench) {
        Setup s(bench);
        for (int round = 0; round < many; ++round) {
            const bool before = round % 2 == 0;
            if (before) s.channel.put();
            s.wait.begin(s.notifier, std::stop_token());
            if (!before) s.channel.put();
            s.round();
        }
    }

    static void from_another_thread(Bench& bench) {
        Setup s(bench);
        OtherThread other;
        for (int round = 0; round < many / 10; ++round) {
            other.start([&s, round] {
                dawdle(round);
                s.channel.put();
            });
            dawdle(round / 64);
            do { // a spurious wake may come first
                s.wait.begin(s.notifier, std::stop_token());
                s.wait.expect_readable("that a byte of another thread ends the wait");
            } while (!s.channel.take());
            other.wait();
        }
    }

    static void add_to(CaseList<Harness>& cases) {
        constexpr std::string_view readable =
            "It must complete when something can be read, whether that came before or after the "
            "call.";
        constexpr std::string_view edge =
            "An edge-triggered notifier remembers an edge that nobody waited for.";
        constexpr std::string_view hint =
            "A wake is a hint: it may complete with {} although nothing can be read, but not "
            "every time.";
        constexpr std::string_view error_counts = "EPOLLERR and EPOLLHUP count as readable.";
        constexpr std::string_view again = "A coroutine that it resumes may wait again at once.";

        cases.add("readable: before the call", readable, before_the_call);
        cases.add("readable: after the call", readable, after_the_call);
        cases.add("readable: between await_ready() and await_suspend()", readable,
                  while_it_suspends);
        cases.add("readable: while nobody waits", edge, while_nobody_waits);
        cases.add("readable: while nobody waits, but read before the call", edge,
                  taken_before_the_call);
        cases.add("readable: bursts, of which all is read", readable, bursts);
        if (!is_edge_triggered<Harness>()) {
            cases.add("readable: as long as it is not read", readable, left_unread);
        }
        cases.add("spurious: does not spin with nothing to read", hint, nothing_to_read);
        cases.add("error: a hang-up", error_counts, hung_up);
        cases.add("error: without anything to read", error_counts, error);
        cases.add("two notifiers: each its own descriptor", readable, two_notifiers);
        cases.add("many rounds: each begins within the resume of the last", again,
                  within_the_resume);
        cases.add("many rounds: 10,000 without a lost wake", readable, many_rounds);
        cases.add("many rounds: readable from another thread", readable, from_another_thread);
    }
};

} // namespace asyncverbs::detail::conformance
