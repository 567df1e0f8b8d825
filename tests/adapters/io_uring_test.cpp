// SPDX-License-Identifier: MIT
// IoUringPoller on rings that are full, overflow, refuse requests, or are used by the program, too.
// What the conformance suite asserts is in io_uring_conformance_test.cpp.
#include <asyncverbs/adapters/io_uring.hpp>

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
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
#include "executor/wait.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"
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
using asyncverbs::support::ok;
using asyncverbs::support::Pipe;
using asyncverbs::support::Ring;
using asyncverbs::support::Wait;

static_assert(TimedCqNotifier<IoUringNotifier>);
static_assert(std::movable<IoUringNotifier> && !std::copyable<IoUringNotifier>);
static_assert(std::is_nothrow_move_constructible_v<IoUringNotifier>);
static_assert(!std::movable<IoUringPoller>);

namespace {

struct IoUringFixture {
    explicit IoUringFixture(unsigned entries = 64, unsigned flags = 0) : ring(entries, flags) {}

    auto readable(std::stop_token token = {}) { return notifier->readable(token); }
    auto readable_for(std::chrono::nanoseconds time) { return notifier->readable({}, time); }

    void iterate(int times = 5) {
        for (int i = 0; i < times; ++i) ring.run_once(poller);
    }
    void iterate_until_end_of(const Wait& wait) {
        for (int i = 0; i < 1000 && !wait.result; ++i) ring.run_once(poller, 10ms);
    }
    void fill_submission_queue() {
        for (; io_uring_sq_space_left(&ring.get()) > 0; ++nops) ring.queue_nop(1);
    }

    Ring ring;
    IoUringPoller poller{ring.get()};
    Pipe pipe;
    std::optional<IoUringNotifier> notifier{poller.notifier(pipe.reader())};
    std::size_t nops = 0;
};

struct EdgeFixture {
    explicit EdgeFixture(unsigned entries = 64) : ring(entries) {}
    ~EdgeFixture() { loop->requests.close(); }

    void iterate(int times = 5) {
        for (int i = 0; i < times; ++i) ring.run_once(*loop);
    }
    unsigned requests() { return ring.get().sq.sqe_tail - first_request; }

    Ring ring;
    std::shared_ptr<detail::IoUringLoop> loop =
        std::make_shared<detail::IoUringLoop>(ring.get(), IoUringPoller::default_tag);
    Pipe pipe;
    EdgeNotifier notifier{loop, pipe.reader()};
    unsigned first_request = ring.get().sq.sqe_tail;
};

// Closes the reader of `pipe`. Returns whether the kernel does not refer to it any more either.
bool kernel_released(Pipe& pipe) {
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

TEST_CASE("IoUringPoller and IoUringNotifier without memory", "[ring][no_memory]") {
    const bool once = GENERATE(true, false);
    bool failed = true;
    std::size_t skip = 0;
    for (; failed; ++skip) {
        INFO((once ? "only allocation " : "all from allocation ") << skip);
        IoUringFixture f;
        std::stop_source stop;
        const Wait stopped(f.readable(stop.get_token()));
        f.ring.foreign.reserve(64);
        once ? support::fail_allocation(skip) : support::run_out_of_memory(skip);
        try {
            IoUringPoller second(f.ring.get(), 7);
            std::optional<IoUringNotifier> other(second.notifier(f.pipe.writer()));
            std::optional<IoUringNotifier> more(f.poller.notifier(f.pipe.writer()));
        } catch (const std::bad_alloc&) {
        }
        stop.request_stop();
        f.iterate();
        failed = support::stop_failing();
        CHECK(stopped.result == std::errc::operation_canceled);
        const Wait readable(f.readable());
        f.pipe.put();
        f.iterate_until_end_of(readable);
        CHECK(readable.result == ok);
        REQUIRE(skip < 1000);
    }
    CHECK(skip > 4);
}

TEST_CASE("IoUringPoller: leaves other completions to the loop", "[ring]") {
    IoUringFixture f;
    const auto user_data = GENERATE(as<std::uint64_t>{}, 0, 1, 0x7fff'ffff'ffff, ~0ULL << 48);
    f.ring.queue_nop(user_data);
    f.iterate();
    REQUIRE(f.ring.foreign.size() == 1);
    CHECK(f.ring.foreign[0].user_data == user_data);
}

TEST_CASE("IoUringPoller: two on one ring, each with its own tag", "[ring]") {
    IoUringFixture f;
    IoUringPoller other(f.ring.get(), 7);
    struct Both {
        bool complete(const io_uring_cqe& cqe) { return a.complete(cqe) || b.complete(cqe); }
        IoUringPoller& a;
        IoUringPoller& b;
    } both{f.poller, other};
    Pipe pipe;
    IoUringNotifier notifier = other.notifier(pipe.reader());
    const Wait first(f.readable());
    const Wait second(notifier.readable());
    pipe.put();
    for (int i = 0; i < 5; ++i) f.ring.run_once(both);
    CHECK(!first.result);
    CHECK(second.result == ok);
    CHECK(f.ring.foreign.empty());
}

TEST_CASE("IoUringNotifier: readable() gives the errors of the kernel", "[ring]") {
    IoUringFixture f;
    SECTION("no descriptor") {
        IoUringNotifier none = f.poller.notifier(-1);
        const Wait wait(none.readable());
        f.iterate();
        CHECK(wait.result == std::errc::bad_file_descriptor);
    }
    SECTION("another coroutine waits already") {
        const Wait first(f.readable());
        const Wait second(f.readable());
        CHECK(second.result == std::errc::device_or_resource_busy);
        f.pipe.put();
        f.iterate();
        CHECK(first.result == ok);
    }
}

TEST_CASE("IoUringNotifier: a ring that refuses polls fails all waits at once", "[ring]") {
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
    const Wait first(notifier.readable());
    for (int i = 0; i < 5; ++i) ring.run_once(poller);
    CHECK(first.result == std::errc::permission_denied);
    const Wait second(notifier.readable());
    CHECK(second.result == std::errc::permission_denied);
}

TEST_CASE("IoUringPoller: when its own requests fail, so do all waits", "[ring]") {
    IoUringFixture f(4);
    const Wait wait(f.readable());
    f.iterate();
    // Ends the poll by which stop requests wake the loop: number 1, slot 0.
    io_uring_sqe* const sqe = io_uring_get_sqe(&f.ring.get());
    io_uring_prep_cancel64(sqe, std::uint64_t{IoUringPoller::default_tag} << 48 | 1U << 24, 0);
    io_uring_sqe_set_data64(sqe, 1);
    io_uring_submit(&f.ring.get());
    f.fill_submission_queue();
    fail_submits(EEXIST, 1); // and it cannot be repeated
    f.ring.take(f.poller);
    CHECK(failed_submits() == 1);
    fail_submits(0, 0);
    f.iterate();
    CHECK(wait.result == std::errc::file_exists);
    const Wait later(f.readable());
    CHECK(later.result == std::errc::file_exists);
}

TEST_CASE("IoUringNotifier: a full submission queue is submitted", "[ring]") {
    IoUringFixture f(4);
    f.fill_submission_queue();
    const Wait wait(f.readable());
    f.pipe.put();
    f.iterate();
    CHECK(wait.result == ok);
    CHECK(f.ring.foreign.size() == f.nops);
}

TEST_CASE("IoUringNotifier: a submission queue that the kernel does not empty", "[ring]") {
    IoUringFixture f(4);
    f.iterate();
    SECTION("for the moment") {
        const int error = GENERATE(EAGAIN, EBUSY, EINTR);
        f.fill_submission_queue();
        fail_submits(error, 2);
        const Wait wait(f.readable());
        f.pipe.put();
        f.iterate(10);
        CHECK(failed_submits() > 0);
        CHECK(wait.result == ok);
    }
    SECTION("for the moment, and nothing else wakes the loop") {
        Pipe quiet;
        while (io_uring_sq_space_left(&f.ring.get()) > 0) {
            io_uring_sqe* const sqe = io_uring_get_sqe(&f.ring.get());
            io_uring_prep_poll_add(sqe, quiet.reader(), POLLIN);
            io_uring_sqe_set_data64(sqe, 1);
        }
        fail_submits(EAGAIN, 1);
        const Wait wait(f.readable());
        f.iterate();
        CHECK(failed_submits() == 1);
        f.pipe.put();
        f.iterate_until_end_of(wait);
        CHECK(wait.result == ok);
        CHECK(f.ring.foreign.empty());
    }
    SECTION("because of a mistake") {
        f.fill_submission_queue();
        fail_submits(EEXIST, 1); // IORING_SETUP_SINGLE_ISSUER: only another thread may submit
        const Wait wait(f.readable());
        CHECK(wait.result == std::errc::file_exists);
    }
    SECTION("when a poll is cancelled") {
        Wait cancelled(f.readable());
        f.iterate();
        cancelled.coroutine.destroy();
        f.fill_submission_queue();
        fail_submits(EAGAIN, 1);
        f.notifier.reset();
        // Until it is cancelled, no other notifier takes its slot.
        Pipe other;
        f.notifier.emplace(f.poller.notifier(other.reader()));
        const Wait wait(f.readable());
        f.iterate(10);
        CHECK(!wait.result);
        CHECK(kernel_released(f.pipe));
        other.put();
        f.iterate();
        CHECK(wait.result == ok);
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

TEST_CASE("IoUringNotifier: on a channel, one request for any number of events", "[ring][I3]") {
    EdgeFixture f;
    for (int i = 0; i < 100; ++i) {
        const Wait wait(f.notifier.readable());
        f.iterate(1);
        REQUIRE(!wait.result);
        f.pipe.put();
        f.iterate(1);
        REQUIRE(wait.result == ok);
    }
    CHECK(f.requests() == 1);
}

TEST_CASE("IoUringNotifier: a multishot poll that ends is requested again", "[ring][I3]") {
    EdgeFixture f(4);
    const bool waits = GENERATE(true, false);
    Wait first(f.notifier.readable());
    f.iterate();
    if (!waits) first.coroutine.destroy();
    // The completion queue is full, and the kernel ends polls that it cannot report.
    for (int batch = 0; batch < 3; ++batch) {
        for (std::uint64_t i = 0; i < 4; ++i) f.ring.queue_nop(i);
        io_uring_submit(&f.ring.get());
    }
    f.pipe.put();
    io_uring_submit(&f.ring.get());
    f.iterate();
    CHECK(f.requests() == 13);
    if (waits) CHECK(first.result == ok);
    {
        const Wait wait(f.notifier.readable());
        f.iterate();
        if (!waits) CHECK(wait.result == ok); // what became readable meanwhile
    }
    for (int i = 0; i < 3; ++i) {
        const Wait wait(f.notifier.readable());
        f.pipe.put();
        f.iterate();
        CHECK(wait.result == ok);
    }
    CHECK(f.requests() == 14);
}

TEST_CASE("IoUringPoller: survives that the program cancels all requests of the ring", "[ring]") {
    IoUringFixture f;
    const Wait cancelled(f.readable());
    f.iterate();
    io_uring_sqe* const sqe = io_uring_get_sqe(&f.ring.get());
    io_uring_prep_cancel64(sqe, 0, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
    io_uring_sqe_set_data64(sqe, 1);
    f.iterate();
    REQUIRE(f.ring.foreign.size() == 1);
    REQUIRE(f.ring.foreign[0].res == 3); // the adapter's two and the notifier's
    CHECK(cancelled.result == ok);       // a spurious wake

    SECTION("a descriptor") {
        const Wait wait(f.readable());
        f.iterate();
        CHECK(!wait.result);
        f.pipe.put();
        f.iterate();
        CHECK(wait.result == ok);
    }
    SECTION("a stop from another thread") {
        std::stop_source stop;
        const Wait wait(f.readable(stop.get_token()));
        std::thread([&] { stop.request_stop(); }).join();
        f.iterate_until_end_of(wait);
        CHECK(wait.result == std::errc::operation_canceled);
    }
    SECTION("a timeout") {
        const Wait wait(f.readable_for(1ms));
        f.iterate_until_end_of(wait);
        CHECK(wait.result == std::errc::timed_out);
    }
}

TEST_CASE("IoUringNotifier: the kernel releases the descriptor when it is destroyed", "[ring]") {
    const unsigned flags = GENERATE(0U, support::deferred);
    if (!support::kernel_has(flags)) return;
    IoUringFixture f(64, flags);
    const Wait wait(f.readable());
    SECTION("before it was submitted") {}
    SECTION("while it is polled") { f.iterate(); }
    f.notifier.reset();
    CHECK(!wait.result);
    CHECK(kernel_released(f.pipe)); // without an iteration of the loop
    f.iterate();
    CHECK(wait.result == std::errc::operation_canceled);
    CHECK(f.ring.foreign.empty());
}

TEST_CASE("IoUringNotifier: outlives the poller, and the ring", "[ring]") {
    std::optional<Ring> ring(std::in_place);
    std::optional<IoUringPoller> poller(std::in_place, ring->get());
    Pipe pipe;
    IoUringNotifier notifier = poller->notifier(pipe.reader());
    std::stop_source stop;
    const Wait first(notifier.readable(stop.get_token()));
    ring->run_once(*poller);
    poller.reset();
    // The poller's last completions have its tag, so that the program can ignore them.
    io_uring_cqe* next = nullptr;
    while (io_uring_peek_cqe(&ring->get(), &next) == 0) {
        CHECK(next->user_data >> 48 == IoUringPoller::default_tag);
        io_uring_cqe_seen(&ring->get(), next);
    }
    const bool ring_as_well = GENERATE(false, true);
    if (ring_as_well) ring.reset();
    IoUringNotifier late = std::move(notifier);
    stop.request_stop();
    CHECK(!first.result);
    const Wait second(late.readable());
    CHECK(second.result == std::errc::device_or_resource_busy); // the first wait still exists
    if (!ring_as_well) CHECK(kernel_released(pipe));            // its polls are cancelled
}

TEST_CASE("IoUringNotifier: a wait that begins after the poller was destroyed", "[ring]") {
    Ring ring;
    std::optional<IoUringPoller> poller(std::in_place, ring.get());
    Pipe pipe;
    IoUringNotifier notifier = poller->notifier(pipe.reader());
    poller.reset();
    const Wait wait(notifier.readable());
    CHECK(wait.result == std::errc::bad_file_descriptor);
}

TEST_CASE("IoUringNotifier: a destroyed wait of no time leaves nothing behind", "[ring]") {
    const auto test = [](auto& f, auto& notifier) {
        for (const bool iterate : {false, true}) {
            Wait destroyed(notifier.readable({}, 0ns));
            if (iterate) io_uring_submit(&f.ring.get());
            destroyed.coroutine.destroy();
            const Wait wait(notifier.readable({}));
            f.iterate();
            CHECK(!wait.result);
            f.pipe.put();
            f.iterate();
            CHECK(wait.result == ok);
            CHECK(f.pipe.take());
        }
    };
    SECTION("level-triggered") {
        IoUringFixture f;
        test(f, *f.notifier);
    }
    SECTION("edge-triggered") {
        EdgeFixture f;
        test(f, f.notifier);
    }
}

TEST_CASE("IoUringNotifier: a wait of no time that is readable resumes once", "[ring]") {
    IoUringFixture f;
    Pipe quiet;
    IoUringNotifier other = f.poller.notifier(quiet.reader());
    f.pipe.put();
    std::optional<std::error_code> first;
    std::optional<std::error_code> second;
    const auto wait = [&]() -> Coroutine {
        auto kept = f.readable_for(0ns); // lives on after its end
        first = co_await kept;
        second = co_await other.readable();
    };
    const Coroutine waiting = wait();
    f.iterate();
    REQUIRE(first);
    CHECK(first == ok);
    CHECK_FALSE(second);
}

TEST_CASE("IoUringPoller: a completion that is passed twice does no harm", "[ring]") {
    IoUringFixture f;
    struct Twice {
        bool complete(const io_uring_cqe& cqe) {
            return poller.complete(cqe), poller.complete(cqe);
        }
        IoUringPoller& poller;
    } twice{f.poller};
    for (int i = 0; i < 10; ++i) {
        {
            const Wait wait(f.readable());
            f.ring.run_once(twice);
            CHECK(!wait.result);
            f.pipe.put();
            f.ring.run_once(twice);
            CHECK(wait.result == ok);
            CHECK(f.pipe.take());
        }
        const Wait bounded(f.readable_for(0ns));
        for (int j = 0; j < 3; ++j) f.ring.run_once(twice);
        CHECK(bounded.result == std::errc::timed_out);
    }
}

TEST_CASE("IoUringPoller: a late completion is not taken for another request's", "[ring]") {
    IoUringFixture f;
    Wait first(f.readable());
    f.iterate();
    f.pipe.put();
    REQUIRE(io_uring_cq_ready(&f.ring.get()) > 0); // not passed to the poller yet
    SECTION("of the notifier that has its slot now") {
        Pipe other;
        f.notifier.reset();
        f.notifier.emplace(f.poller.notifier(other.reader()));
        const Wait wait(f.readable());
        f.iterate();
        CHECK(!wait.result);
        other.put();
        f.iterate();
        CHECK(wait.result == ok);
    }
    SECTION("of the next wait, which began when it was passed for the first time") {
        struct Local {
            static Coroutine read_all(IoUringNotifier& notifier, const Pipe& pipe, int& wakes) {
                for (;; ++wakes) {
                    co_await notifier.readable();
                    pipe.take();
                }
            }
        };
        first.coroutine.destroy();
        int wakes = 0;
        const Coroutine reader = Local::read_all(*f.notifier, f.pipe, wakes);
        io_uring_cqe* next = nullptr;
        REQUIRE(io_uring_peek_cqe(&f.ring.get(), &next) == 0);
        const io_uring_cqe cqe = *next;
        io_uring_cqe_seen(&f.ring.get(), next);
        for (int i = 0; i < 3; ++i) f.poller.complete(cqe);
        f.iterate();
        CHECK(wakes == 1);
        f.pipe.put();
        f.iterate();
        CHECK(wakes == 2);
    }
}

TEST_CASE("IoUringPoller: an exception of a coroutine leaves complete(), and the others go on",
          "[ring]") {
    IoUringFixture f;
    struct Local {
        static Escaping throws(IoUringNotifier& notifier) {
            co_await notifier.readable({}, 0ns);
            co_await Escaping::Pass{};
            throw std::runtime_error("escaped");
        }
    };
    Pipe other;
    IoUringNotifier notifier = f.poller.notifier(other.reader());
    const Escaping throwing = Local::throws(notifier);
    const Wait wait(f.readable_for(0ns));
    CHECK_THROWS_WITH(f.iterate(1), "escaped");
    CHECK(!wait.result);
    f.iterate();
    CHECK(wait.result == std::errc::timed_out);
    throwing.handle.destroy();
}
