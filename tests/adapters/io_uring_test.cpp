// SPDX-License-Identifier: MIT
// IoUringPoller on rings that are full, overflow, refuse, are old, or are used by others as well.
#include <asyncverbs/adapters/io_uring.hpp>

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <coroutine>
#include <csignal>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <asyncverbs/cq/cq_notifier.hpp>

#include "adapters/edge_notifier.hpp"
#include "adapters/io_uring_harnesses.hpp"
#include "adapters/ring.hpp"
#include "adapters/submit_failures.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/escaping.hpp"
#include "support/pipe.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::support::contains;
using asyncverbs::support::Coroutine;
using asyncverbs::support::EdgeNotifier;
using asyncverbs::support::Escaping;
using asyncverbs::support::fail_submits;
using asyncverbs::support::failed_submits;
using asyncverbs::support::Pipe;
using asyncverbs::support::Ring;

static_assert(TimedCqNotifier<IoUringNotifier>);
static_assert(std::movable<IoUringNotifier> && !std::copyable<IoUringNotifier>);
static_assert(std::is_nothrow_move_constructible_v<IoUringNotifier>);
static_assert(!std::movable<IoUringPoller>);

namespace {

using Result = std::optional<std::error_code>;
const std::error_code ok;

Coroutine wait(IoUringNotifier& notifier, Result& result, std::stop_token stop = {}) {
    result = co_await notifier.readable(stop);
}
Coroutine wait_for(IoUringNotifier& notifier, std::chrono::nanoseconds time, Result& result) {
    result = co_await notifier.readable({}, time);
}

Coroutine wait(EdgeNotifier& notifier, Result& result, std::stop_token stop = {}) {
    result = co_await notifier.readable(stop);
}

struct Fixture {
    explicit Fixture(unsigned entries = 64, unsigned flags = 0) : ring(entries, flags) {}

    void turns(int count = 5) {
        for (int i = 0; i < count; ++i) ring.turn(poller);
    }
    void turn_until(const Result& done) {
        for (int i = 0; i < 1000 && !done; ++i) ring.turn(poller, 10ms);
    }
    void fill() {
        while (io_uring_sq_space_left(&ring.get()) > 0) ring.queue_nop(++nops);
    }

    Ring ring;
    IoUringPoller poller{ring.get()};
    Pipe pipe;
    std::optional<IoUringNotifier> notifier{poller.notifier(pipe.reader())};
    Result result;
    std::uint64_t nops = 0;
};

struct EdgeFixture {
    explicit EdgeFixture(unsigned entries = 64) : ring(entries) {}
    ~EdgeFixture() { loop->requests.close(); }

    void turns(int count = 5) {
        for (int i = 0; i < count; ++i) ring.turn(*loop);
    }
    unsigned requests() const { return ring_tail() - first_request; }
    unsigned ring_tail() const { return const_cast<Ring&>(ring).get().sq.sqe_tail; }

    Ring ring;
    std::shared_ptr<detail::IoUringLoop> loop =
        std::make_shared<detail::IoUringLoop>(ring.get(), IoUringPoller::default_tag);
    Pipe pipe;
    EdgeNotifier notifier{loop, pipe.reader()};
    Result result;
    unsigned first_request = ring_tail();
};

// Whether nobody refers to the reader of `pipe` any more, which is closed.
bool kernel_let_go(Pipe& pipe) {
    pipe.close_reader();
    std::signal(SIGPIPE, SIG_IGN);
    return ::write(pipe.writer(), "x", 1) == -1 && errno == EPIPE;
}

std::string construction_error(io_uring& ring, std::uint16_t tag, std::errc expected) {
    try {
        const IoUringPoller poller(ring, tag);
    } catch (const std::system_error& error) {
        CHECK(error.code() == expected);
        return error.what();
    }
    return "no error";
}

} // namespace

TEST_CASE("IoUringPoller: a ring that could not be made is an error, not a crash") {
    io_uring none{};
    CHECK_THAT(construction_error(none, 1, std::errc::bad_file_descriptor),
               contains("io_uring_queue_init must have failed"));
}

TEST_CASE("IoUringPoller: says what it cannot work with", "[ring]") {
    Ring ring;
    CHECK_THAT(construction_error(ring.get(), 0, std::errc::invalid_argument), contains("tags 0"));
    CHECK_THAT(construction_error(ring.get(), 0xffff, std::errc::invalid_argument),
               contains("0xffff"));
    Ring busy(8, IORING_SETUP_IOPOLL);
    CHECK_THAT(construction_error(busy.get(), 1, std::errc::not_supported),
               contains("IORING_SETUP_IOPOLL"));
}

TEST_CASE("IoUringPoller: leaves what is not its own to the loop", "[ring]") {
    Fixture f;
    const auto user_data = GENERATE(as<std::uint64_t>{}, 0, 1, 0x7fff'ffff'ffff, ~0ULL << 48);
    f.ring.queue_nop(user_data);
    f.turns();
    REQUIRE(f.ring.foreign.size() == 1);
    CHECK(f.ring.foreign[0].user_data == user_data);
}

TEST_CASE("IoUringPoller: two on one ring, each with a tag of its own", "[ring]") {
    Fixture f;
    IoUringPoller other(f.ring.get(), 7);
    struct Both {
        bool complete(const io_uring_cqe& cqe) { return a.complete(cqe) || b.complete(cqe); }
        IoUringPoller& a;
        IoUringPoller& b;
    } both{f.poller, other};
    Pipe pipe;
    IoUringNotifier notifier = other.notifier(pipe.reader());
    Result result;
    const Coroutine first = wait(*f.notifier, f.result);
    const Coroutine second = wait(notifier, result);
    pipe.put();
    for (int i = 0; i < 5; ++i) f.ring.turn(both);
    CHECK(!f.result);
    CHECK(result == ok);
    CHECK(f.ring.foreign.empty());
}

TEST_CASE("IoUringNotifier: errors of the kernel are those of readable()", "[ring]") {
    Fixture f;
    SECTION("no descriptor") {
        IoUringNotifier none = f.poller.notifier(-1);
        const Coroutine waiter = wait(none, f.result);
        f.turns();
        CHECK(f.result == std::errc::bad_file_descriptor);
    }
    SECTION("somebody waits already") {
        const Coroutine first = wait(*f.notifier, f.result);
        Result second;
        const Coroutine waiter = wait(*f.notifier, second);
        CHECK(second == std::errc::device_or_resource_busy);
        f.pipe.put();
        f.turns();
        CHECK(f.result == ok);
    }
}

TEST_CASE("IoUringNotifier: a ring that refuses polls fails all who wait, at once", "[ring]") {
    Ring ring(64, IORING_SETUP_R_DISABLED);
    io_uring_restriction allowed{};
    allowed.opcode = IORING_RESTRICTION_SQE_OP;
    allowed.sqe_op = IORING_OP_NOP;
    // liburing 2.3 declares functions for these, but does not export them.
    const auto control = [&](unsigned operation, void* argument, unsigned count) {
        return ::syscall(SYS_io_uring_register, ring.get().ring_fd, operation, argument, count);
    };
    REQUIRE(control(IORING_REGISTER_RESTRICTIONS, &allowed, 1) == 0);
    REQUIRE(control(IORING_REGISTER_ENABLE_RINGS, nullptr, 0) == 0);
    IoUringPoller poller(ring.get());
    Pipe pipe;
    IoUringNotifier notifier = poller.notifier(pipe.reader());
    Result first;
    Coroutine waiter = wait(notifier, first);
    for (int i = 0; i < 5; ++i) ring.turn(poller);
    CHECK(first == std::errc::permission_denied);
    Result second;
    waiter = wait(notifier, second);
    CHECK(second == std::errc::permission_denied);
}

TEST_CASE("IoUringNotifier: a full submission queue is submitted", "[ring]") {
    Fixture f(4);
    f.fill();
    const Coroutine waiter = wait(*f.notifier, f.result);
    f.pipe.put();
    f.turns();
    CHECK(f.result == ok);
    CHECK(f.ring.foreign.size() == f.nops);
}

TEST_CASE("IoUringNotifier: a submission queue that the kernel does not empty", "[ring]") {
    Fixture f(4);
    f.turns();
    SECTION("for the moment") {
        const int error = GENERATE(EAGAIN, EBUSY, EINTR);
        f.fill();
        fail_submits(error, 2);
        const Coroutine waiter = wait(*f.notifier, f.result);
        f.pipe.put();
        f.turns(10);
        CHECK(failed_submits() > 0);
        CHECK(f.result == ok);
    }
    SECTION("for the moment, and nothing else wakes the loop") {
        Pipe quiet;
        while (io_uring_sq_space_left(&f.ring.get()) > 0) {
            io_uring_sqe* const sqe = io_uring_get_sqe(&f.ring.get());
            io_uring_prep_poll_add(sqe, quiet.reader(), POLLIN);
            io_uring_sqe_set_data64(sqe, 1);
        }
        fail_submits(EAGAIN, 1);
        const Coroutine waiter = wait(*f.notifier, f.result);
        f.turns();
        CHECK(failed_submits() == 1);
        f.pipe.put();
        f.turn_until(f.result);
        CHECK(f.result == ok);
        CHECK(f.ring.foreign.empty());
    }
    SECTION("because of a mistake") {
        f.fill();
        fail_submits(EEXIST, 1); // IORING_SETUP_SINGLE_ISSUER: another thread is the one
        const Coroutine waiter = wait(*f.notifier, f.result);
        CHECK(f.result == std::errc::file_exists);
    }
    SECTION("when a poll is cancelled") {
        Coroutine waiter = wait(*f.notifier, f.result);
        f.turns();
        waiter.destroy();
        f.fill();
        fail_submits(EAGAIN, 1);
        f.notifier.reset();
        // Meanwhile its place is not given away.
        Pipe other;
        f.notifier.emplace(f.poller.notifier(other.reader()));
        waiter = wait(*f.notifier, f.result);
        f.turns(10);
        CHECK(!f.result);
        CHECK(kernel_let_go(f.pipe));
        other.put();
        f.turns();
        CHECK(f.result == ok);
    }
    fail_submits(0, 0);
}

TEST_CASE("IoUringPoller: no room for its own requests is an error", "[ring]") {
    Ring ring(1);
    ring.queue_nop(1);
    fail_submits(EBADF, 2);
    CHECK_THAT(construction_error(ring.get(), 1, std::errc::bad_file_descriptor),
               contains("io_uring_submit"));
    fail_submits(0, 0);
}

TEST_CASE("IoUringNotifier: of a channel, one request for any number of events", "[ring][I3]") {
    EdgeFixture f;
    for (int i = 0; i < 100; ++i) {
        f.result.reset();
        const Coroutine waiter = wait(f.notifier, f.result);
        f.turns(1);
        REQUIRE(!f.result);
        f.pipe.put();
        f.turns(1);
        REQUIRE(f.result == ok);
    }
    CHECK(f.requests() == 1);
}

TEST_CASE("IoUringNotifier: a multishot poll that ends is asked for again", "[ring][I3]") {
    EdgeFixture f(4);
    const bool waits = GENERATE(true, false);
    Coroutine waiter = wait(f.notifier, f.result);
    f.turns();
    if (!waits) waiter.destroy();
    // The completion queue is full, and the kernel ends what it cannot report.
    for (int batch = 0; batch < 3; ++batch) {
        for (std::uint64_t i = 0; i < 4; ++i) f.ring.queue_nop(i);
        io_uring_submit(&f.ring.get());
    }
    f.pipe.put();
    io_uring_submit(&f.ring.get());
    f.turns();
    CHECK(f.requests() == 13);
    if (waits) CHECK(f.result == ok);
    f.result.reset();
    waiter = wait(f.notifier, f.result);
    f.turns();
    if (!waits) CHECK(f.result == ok); // what came meanwhile
    for (int i = 0; i < 3; ++i) {
        f.result.reset();
        waiter = wait(f.notifier, f.result);
        f.pipe.put();
        f.turns();
        CHECK(f.result == ok);
    }
    CHECK(f.requests() == 14);
}

TEST_CASE("IoUringPoller: goes on when somebody cancels all requests of the ring", "[ring]") {
    Fixture f;
    Coroutine waiter = wait(*f.notifier, f.result);
    f.turns();
    io_uring_sqe* const sqe = io_uring_get_sqe(&f.ring.get());
    io_uring_prep_cancel64(sqe, 0, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
    io_uring_sqe_set_data64(sqe, 1);
    f.turns();
    REQUIRE(f.ring.foreign.size() == 1);
    REQUIRE(f.ring.foreign[0].res == 3); // all that there is
    CHECK(f.result == ok);               // a spurious wake

    f.result.reset();
    SECTION("a descriptor") {
        waiter = wait(*f.notifier, f.result);
        f.turns();
        CHECK(!f.result);
        f.pipe.put();
        f.turns();
        CHECK(f.result == ok);
    }
    SECTION("a stop from another thread") {
        std::stop_source stop;
        waiter = wait(*f.notifier, f.result, stop.get_token());
        std::thread([&] { stop.request_stop(); }).join();
        f.turn_until(f.result);
        CHECK(f.result == std::errc::operation_canceled);
    }
    SECTION("a timeout") {
        waiter = wait_for(*f.notifier, 1ms, f.result);
        f.turn_until(f.result);
        CHECK(f.result == std::errc::timed_out);
    }
}

TEST_CASE("IoUringNotifier: when it is destroyed, the kernel lets go of the descriptor", "[ring]") {
    const unsigned flags = GENERATE(0U, support::deferred);
    if (!support::kernel_has(flags)) return;
    Fixture f(64, flags);
    Coroutine waiter = wait(*f.notifier, f.result);
    SECTION("before it was submitted") {}
    SECTION("while it is polled") { f.turns(); }
    f.notifier.reset();
    CHECK(!f.result);
    CHECK(kernel_let_go(f.pipe)); // nobody takes a turn
    f.turns();
    CHECK(f.result == std::errc::operation_canceled);
    CHECK(f.ring.foreign.empty());
}

TEST_CASE("IoUringNotifier: outlives the poller, and the ring", "[ring]") {
    std::optional<Ring> ring(std::in_place);
    std::optional<IoUringPoller> poller(std::in_place, ring->get());
    Pipe pipe;
    IoUringNotifier notifier = poller->notifier(pipe.reader());
    Result first;
    std::stop_source stop;
    const Coroutine waiter = wait(notifier, first, stop.get_token());
    ring->turn(*poller);
    poller.reset();
    // Its last completions have its tag, so that their owner can ignore them.
    io_uring_cqe* next = nullptr;
    while (io_uring_peek_cqe(&ring->get(), &next) == 0) {
        CHECK(next->user_data >> 48 == IoUringPoller::default_tag);
        io_uring_cqe_seen(&ring->get(), next);
    }
    const bool ring_as_well = GENERATE(false, true);
    if (ring_as_well) ring.reset();
    Pipe other;
    Result second;
    IoUringNotifier late = std::move(notifier);
    stop.request_stop();
    CHECK(!first);
    const Coroutine again = wait(late, second);
    CHECK(second == std::errc::device_or_resource_busy); // the first one is still there
}

TEST_CASE("IoUringNotifier: a wait that begins after the poller has gone", "[ring]") {
    Ring ring;
    std::optional<IoUringPoller> poller(std::in_place, ring.get());
    Pipe pipe;
    IoUringNotifier notifier = poller->notifier(pipe.reader());
    poller.reset();
    Result result;
    const Coroutine waiter = wait(notifier, result);
    CHECK(result == std::errc::bad_file_descriptor);
}

TEST_CASE("IoUringPoller: a completion that is handed over twice does no harm", "[ring]") {
    Fixture f;
    struct Twice {
        bool complete(const io_uring_cqe& cqe) {
            return poller.complete(cqe), poller.complete(cqe);
        }
        IoUringPoller& poller;
    } twice{f.poller};
    for (int i = 0; i < 10; ++i) {
        f.result.reset();
        Coroutine waiter = wait(*f.notifier, f.result);
        f.ring.turn(twice);
        CHECK(!f.result);
        f.pipe.put();
        f.ring.turn(twice);
        CHECK(f.result == ok);
        CHECK(f.pipe.take());
        f.result.reset();
        waiter = wait_for(*f.notifier, 0ns, f.result);
        for (int turn = 0; turn < 3; ++turn) f.ring.turn(twice);
        CHECK(f.result == std::errc::timed_out);
    }
}

TEST_CASE("IoUringPoller: a completion that comes late is not taken for another's", "[ring]") {
    Fixture f;
    Coroutine waiter = wait(*f.notifier, f.result);
    f.turns();
    f.pipe.put();
    REQUIRE(io_uring_cq_ready(&f.ring.get()) > 0); // nobody has looked yet
    Pipe other;
    SECTION("of the notifier that has its place now") {
        f.notifier.reset();
        f.notifier.emplace(f.poller.notifier(other.reader()));
        f.result.reset();
        waiter = wait(*f.notifier, f.result);
        f.turns();
        CHECK(!f.result);
        other.put();
        f.turns();
        CHECK(f.result == ok);
    }
    SECTION("of the next wait, which began when it was handed over for the first time") {
        struct Local {
            static Coroutine read_all(IoUringNotifier& notifier, const Pipe& pipe, int& wakes) {
                for (;; ++wakes) {
                    co_await notifier.readable();
                    pipe.take();
                }
            }
        };
        waiter.destroy();
        int wakes = 0;
        waiter = Local::read_all(*f.notifier, f.pipe, wakes);
        io_uring_cqe* next = nullptr;
        REQUIRE(io_uring_peek_cqe(&f.ring.get(), &next) == 0);
        const io_uring_cqe cqe = *next;
        io_uring_cqe_seen(&f.ring.get(), next);
        for (int i = 0; i < 3; ++i) f.poller.complete(cqe);
        f.turns();
        CHECK(wakes == 1);
        f.pipe.put();
        f.turns();
        CHECK(wakes == 2);
    }
}

TEST_CASE("IoUringPoller: what a coroutine lets escape leaves complete(), and the others go on",
          "[ring]") {
    Fixture f;
    struct Throwing {
        struct promise_type {
            Throwing get_return_object() noexcept {
                return {std::coroutine_handle<promise_type>::from_promise(*this)};
            }
            std::suspend_never initial_suspend() const noexcept { return {}; }
            std::suspend_always final_suspend() const noexcept { return {}; }
            void return_void() const noexcept {}
            void unhandled_exception() const { throw; }
        };
        static Throwing run(IoUringNotifier& notifier) {
            co_await notifier.readable({}, 0ns);
            co_await Escaping::Pass{};
            throw std::runtime_error("escaped");
        }
        std::coroutine_handle<promise_type> handle;
    };
    Pipe other;
    IoUringNotifier notifier = f.poller.notifier(other.reader());
    const Throwing throwing = Throwing::run(notifier);
    const Coroutine waiter = wait_for(*f.notifier, 0ns, f.result);
    CHECK_THROWS_WITH(f.turns(1), "escaped");
    CHECK(!f.result);
    f.turns();
    CHECK(f.result == std::errc::timed_out);
    throwing.handle.destroy();
}
