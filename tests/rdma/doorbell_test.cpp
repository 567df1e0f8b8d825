// SPDX-License-Identifier: MIT
// What is posted while a router delivers a batch takes one doorbell per queue, at the end of it.
#include "rdma/fixture.hpp"

#include <asyncverbs/rdma/async_srq.hpp>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "support/escaping.hpp"

using namespace asyncverbs;
using namespace asyncverbs::support;

namespace {

constexpr QueuePairOptions queues_of_four{.max_send_wr = 4,
                                          .max_recv_wr = 4,
                                          .max_send_sge = 3,
                                          .max_recv_sge = 3,
                                          .max_inline_data = 64};

// Records each doorbell.
struct DoorbellFixture : RouterFixture {
    explicit DoorbellFixture(const QueuePairOptions& options = queues_of_four)
        : RouterFixture(simulated::rxe, options) {
        sim.on_call([this](const simulated::Call& call) {
            const bool posts = call.verb.substr(0, 9) == "ibv_post_";
            if (posts && call.moment == simulated::Call::Moment::before) {
                doorbells.emplace_back(call.verb.substr(9));
            }
        });
    }
    ~DoorbellFixture() { sim.on_call(nullptr); }

    Operation write_to(std::size_t at, SendOptions options = {}) {
        return a->write(slice(at - 200, 1), remote(at, 1), options);
    }
    // The device rejects it.
    Operation send_what_is_rejected() { return a->send_with_invalidate(Slices(), 1); }

    int posted_sends() const { return sim.posted_sends(a->queue_pair().native_handle()); }
    int posted_receives() const { return sim.posted_receives(a->queue_pair().native_handle()); }

    // Those since the last call.
    std::vector<std::string> take_doorbells() { return std::exchange(doorbells, {}); }
    // Calls `function` in a batch, and returns the doorbells of it.
    template <class Function>
    std::vector<std::string> doorbells_of_batch(Function function) {
        run_in_batch([&] {
            doorbells.clear();
            function();
        });
        return take_doorbells();
    }

    std::vector<std::string> doorbells;
};

using Doorbells = std::vector<std::string>;

Coroutine write_twice(AsyncQp& qp, Slice from, RemoteSlice to, int& done) {
    co_await qp.write(from, to);
    co_await qp.write(from, to);
    ++done;
}

std::error_code error_of(Operation& operation) {
    Awaited outcome;
    const Coroutine waiter = await<Operation&>(operation, outcome);
    REQUIRE(outcome.done());
    return outcome.code();
}

} // namespace

TEST_CASE("Doorbell: one for what 32 coroutines post", "[rdma]") {
    const bool two_queue_pairs = GENERATE(false, true);
    DoorbellFixture f({.max_send_wr = 32, .max_recv_wr = 1});
    f.sim.hold_delivery();
    int done = 0;
    std::vector<Coroutine> coroutines;
    for (std::size_t i = 0; i < 32; ++i) {
        AsyncQp& qp = two_queue_pairs && i % 2 == 1 ? *f.b : *f.a;
        coroutines.push_back(write_twice(qp, f.slice(i, 1), f.remote(200 + i, 1), done));
    }
    CHECK(f.take_doorbells() == Doorbells(32, "send")); // outside of a batch
    f.sim.deliver(32);
    f.run();
    CHECK(f.take_doorbells() == Doorbells(two_queue_pairs ? 2 : 1, "send"));
    CHECK(f.posted_sends() == (two_queue_pairs ? 16 : 32));
    f.sim.release_delivery();
    f.run();
    CHECK(done == 32);
    CHECK(f.take_doorbells().empty());
}

TEST_CASE("Doorbell: requests reach the device in the order of the calls", "[rdma]") {
    DoorbellFixture f;
    f.write(0, "abc");
    std::vector<Operation> operations;
    f.sim.hold_delivery();
    f.run_in_batch([&] {
        for (std::size_t i = 0; i < 3; ++i) {
            operations.push_back(f.a->write(f.slice(i, 1), f.remote(200, 1)));
            operations.push_back(f.b->recv(f.slice(100 + i, 1)));
        }
        CHECK(f.posted_sends() == 0);
    });
    CHECK(f.posted_sends() == 3);
    for (const char* each : {"a", "b", "c"}) {
        f.sim.deliver(1);
        CHECK(f.read(200, 1) == each);
    }
    for (std::size_t i = 0; i < 3; ++i) operations.push_back(f.a->send(f.slice(i, 1)));
    f.sim.release_delivery();
    f.run();
    CHECK(f.read(100, 3) == "abc");
    for (const Operation& operation : operations) CHECK(operation.done());
}

TEST_CASE("Doorbell: receives are posted before sends, on all queue pairs", "[rdma]") {
    DoorbellFixture f;
    std::vector<Operation> operations;
    const auto post = [&](SendOptions options = {}) {
        operations.push_back(f.write_to(200));
        operations.push_back(f.b->write(f.slice(0, 1), f.remote(202, 1)));
        operations.push_back(f.b->recv(f.slice(100, 8)));
        operations.push_back(f.a->recv(f.slice(110, 8)));
        operations.push_back(f.write_to(201, options));
    };
    CHECK(f.doorbells_of_batch([&] { post(); }) == Doorbells{"recv", "recv", "send", "send"});

    operations.clear();
    f.run();
    CHECK(f.doorbells_of_batch([&] {
        post({.at_once = true});
        CHECK(f.doorbells == Doorbells{"recv", "recv", "send"}); // not that of b
    }) == Doorbells{"recv", "recv", "send", "send"});

    SECTION("if the queue pair is needed") {
        CHECK(f.doorbells_of_batch([&] {
            post();
            CHECK(f.doorbells.empty());
            (void)f.a->queue_pair();
            CHECK(f.doorbells == Doorbells{"recv", "recv", "send"});
        }) == Doorbells{"recv", "recv", "send", "send"});
    }
    SECTION("if the queue is full") {
        CHECK(f.doorbells_of_batch([&] {
            post();
            operations.push_back(f.write_to(203));
            CHECK(f.doorbells.empty());
            operations.push_back(f.write_to(204)); // the fourth
            CHECK(f.doorbells == Doorbells{"recv", "recv", "send"});
        }) == Doorbells{"recv", "recv", "send", "send"});
    }
}

TEST_CASE("Doorbell: inline data may be overwritten as soon as the call returns", "[rdma]") {
    const bool chained = GENERATE(false, true);
    DoorbellFixture f;
    f.write(0, "inline");
    Operation receive = f.b->recv(f.slice(100, 8));
    std::array<Operation, 2> operations;
    f.run_in_batch([&] {
        if (chained) {
            const SendRequest requests[] = {SendRequest::send(f.slice(0, 6), {.inline_data = true}),
                                            SendRequest::write(f.slice(0, 1), f.remote(200, 1))};
            f.a->post(requests, operations);
        } else {
            operations[0] = f.a->send(f.slice(0, 6), {.inline_data = true});
        }
        f.write(0, "reused");
    });
    f.run();
    CHECK(receive.done());
    CHECK(f.read(100, 6) == "inline");
}

TEST_CASE("Doorbell: a chain that is posted in a batch joins what was gathered", "[rdma]") {
    DoorbellFixture f({.max_send_wr = 64, .max_recv_wr = 4});
    std::vector<SendRequest> requests;
    for (std::size_t i = 0; i < 40; ++i) {
        requests.push_back(SendRequest::write(f.slice(i, 1), f.remote(200 + i, 1)));
        f.memory[i] = static_cast<std::byte>(i + 1);
    }
    std::vector<Operation> operations(40);
    const std::span all(requests);
    const std::span results(operations);
    Operation first;
    SECTION("short") {
        CHECK(f.doorbells_of_batch([&] {
            first = f.write_to(300);
            f.a->post(all.first(20), results.first(20));
            f.a->post(all.subspan(20, 5), results.subspan(20, 5));
        }) == Doorbells{"send"});
        f.a->post(all.subspan(25), results.subspan(25));
    }
    SECTION("longer than what is gathered at most") {
        CHECK(f.doorbells_of_batch([&] {
            first = f.write_to(300);
            f.a->post(all, results);
        }) == Doorbells{"send", "send"});
    }
    SECTION("one by one, more than is gathered at most") {
        CHECK(f.doorbells_of_batch([&] {
            for (std::size_t i = 0; i < 40; ++i) operations[i] = f.a->post(requests[i]);
            first = f.write_to(300);
        }) == Doorbells{"send", "send"});
    }
    f.run();
    CHECK(first.done());
    for (std::size_t i = 0; i < 40; ++i) {
        CHECK(operations[i].done());
        CHECK(f.memory[200 + i] == f.memory[i]);
    }
}

// --- what is not posted ---

TEST_CASE("Doorbell: if a request is rejected, so are those behind it", "[rdma]") {
    const std::size_t place = GENERATE(0u, 1u, 2u, 3u);
    const std::size_t count = 6; // two wait for room
    DoorbellFixture f({.max_send_wr = 6, .max_recv_wr = 1});
    f.sim.hold_delivery();
    const Operation before[] = {f.write_to(300), f.write_to(301)};
    std::array<Operation, count> operations;
    std::array<Awaited, count> outcomes;
    std::array<Coroutine, count> waiters;
    std::vector<std::size_t> order;
    f.run_in_batch([&] {
        for (std::size_t i = 0; i < count; ++i) {
            operations[i] = i == place ? f.send_what_is_rejected() : f.write_to(200 + i);
            waiters[i] = [](Operation& operation, std::function<void()> done) -> Coroutine {
                std::error_code ignored;
                co_await operation.wait(ignored);
                done();
            }(operations[i], [&order, i] { order.push_back(i); });
        }
    });
    CHECK(f.posted_sends() == static_cast<int>(2 + place));
    CHECK(order.size() == count - place); // within the same batch
    f.sim.release_delivery();
    f.run();
    for (std::size_t i = 0; i < count; ++i) {
        CHECK(order[i] == (i + place) % count);
        if (i < place) {
            CHECK(!error_of(operations[i]));
        } else {
            CHECK(error_of(operations[i]) == std::errc::invalid_argument);
        }
    }
    // The slots are free again.
    f.sim.hold_delivery();
    for (std::size_t i = 0; i < count; ++i) operations[i] = f.write_to(200 + i);
    CHECK(f.posted_sends() == count);
    f.sim.release_delivery();
    f.run();
    for (Operation& operation : operations) CHECK(!error_of(operation));
}

TEST_CASE("Doorbell: if a receive is rejected, so are those behind it", "[rdma]") {
    DoorbellFixture f;
    f.sim.hold_delivery();
    // The device has room for two of them.
    f.b->queue_pair().post_recv(1, f.slice(0, 8));
    f.b->queue_pair().post_recv(2, f.slice(0, 8));
    std::array<Operation, 6> receives;
    f.run_in_batch([&] {
        for (Operation& receive : receives) receive = f.b->recv(f.slice(100, 8));
    });
    for (std::size_t i = 2; i < 6; ++i) {
        CHECK(error_of(receives[i]) == std::errc::not_enough_memory);
    }
    f.sim.release_delivery();
    std::vector<Operation> sends;
    for (int i = 0; i < 4; ++i) sends.push_back(f.a->send(f.slice(0, 1)));
    f.run();
    CHECK(!error_of(receives[0]));
    CHECK(!error_of(receives[1]));
    for (Operation& receive : receives) receive = f.b->recv(f.slice(100, 8));
    CHECK(f.sim.posted_receives(f.b->queue_pair().native_handle()) == 4);
}

TEST_CASE("Doorbell: a coroutine whose request was rejected may post again", "[rdma]") {
    DoorbellFixture f;
    f.sim.fail("ibv_post_send", {.error = ENOMEM, .nth = 2});
    int attempts = 0;
    const auto insist = [&]() -> Coroutine {
        co_await f.write_to(200); // resumed in a batch
        std::error_code error = std::make_error_code(std::errc::not_enough_memory);
        while (error) {
            ++attempts;
            Operation again = f.write_to(201);
            co_await again.wait(error);
        }
    };
    const Coroutine coroutine = insist();
    f.notifier.notify();
    f.notifier.run();
    CHECK(attempts == 2);
    f.run();
    REQUIRE(coroutine.done());
    coroutine.get();
}

TEST_CASE("Doorbell: requests are signaled often enough after a rejection", "[rdma]") {
    DoorbellFixture f;
    std::array<Operation, 2> unsignaled;
    Operation rejected;
    f.run_in_batch([&] {
        unsignaled[0] = f.write_to(200, {.signaled = false});
        rejected = f.send_what_is_rejected(); // would have been signaled
    });
    unsignaled[1] = f.write_to(201, {.signaled = false}); // half of the queue
    f.run();
    CHECK(rejected.done());
    for (const Operation& operation : unsignaled) CHECK(operation.done());
}

TEST_CASE("Doorbell: unsignaled requests in a chain complete with the next signaled one",
          "[rdma]") {
    DoorbellFixture f({.max_send_wr = 8, .max_recv_wr = 1});
    std::array<Operation, 4> operations;
    f.run_in_batch([&] {
        for (std::size_t i = 0; i < 4; ++i) {
            operations[i] = f.write_to(200 + i, {.signaled = i == 2});
        }
    });
    f.run();
    for (std::size_t i = 0; i < 3; ++i) CHECK(!error_of(operations[i]));
    CHECK(!operations[3].done());
    Draining drained(*f.a);
    f.run();
    CHECK(drained.completion);
    CHECK(!error_of(operations[3]));
}

TEST_CASE("Doorbell: operations that waited for room are posted together", "[rdma][I10]") {
    DoorbellFixture f;
    f.sim.hold_delivery();
    f.write(0, "0123456789");
    std::array<Operation, 10> operations;
    CHECK(f.doorbells_of_batch([&] {
        for (std::size_t i = 0; i < 10; ++i) operations[i] = f.write_to(200 + i);
    }) == Doorbells{"send"});
    for (const int posted : {4, 2, 0}) {
        CHECK(f.sim.deliver(4) > 0);
        f.run();
        CHECK(f.posted_sends() == posted);
    }
    CHECK(f.take_doorbells() == Doorbells(2, "send"));
    for (Operation& operation : operations) CHECK(!error_of(operation));
    CHECK(f.read(200, 10) == "0123456789");
}

// --- the end of an operation, a queue pair, a router ---

TEST_CASE("Doorbell: a gathered request is posted even if its operation is destroyed", "[rdma]") {
    DoorbellFixture f;
    f.sim.hold_delivery();
    f.write(0, "abc");
    Operation moved;
    f.run_in_batch([&] {
        {
            const Operation destroyed = f.write_to(200);
        }
        Operation kept = f.write_to(201);
        moved = std::move(kept);
        f.region.reset(); // the slots keep it
    });
    CHECK(f.posted_sends() == 2);
    CHECK(f.sim.calls("ibv_dereg_mr") == 0);
    f.sim.release_delivery();
    f.run();
    CHECK(f.read(200, 2) == "ab");
    CHECK(!error_of(moved));
    CHECK(f.sim.calls("ibv_dereg_mr") == 1);
}

TEST_CASE("Doorbell: a queue pair that is destroyed cancels what it has gathered", "[rdma][I12]") {
    DoorbellFixture f;
    Awaited outcomes[2];
    std::vector<Coroutine> waiters;
    CHECK(f.doorbells_of_batch([&] {
        waiters.push_back(await(f.write_to(200), outcomes[0]));
        waiters.push_back(await(f.a->recv(f.slice(100, 8)), outcomes[1]));
        f.region.reset();
        f.a.reset();
        CHECK(f.sim.calls("ibv_dereg_mr") == 1);
    }) == Doorbells{});
    for (const Awaited& outcome : outcomes) {
        CHECK(outcome.code() == std::errc::operation_canceled);
    }
}

TEST_CASE("Doorbell: other queue pairs post what they have gathered", "[rdma][I12]") {
    DoorbellFixture f;
    Operation operations[3];
    CHECK(f.doorbells_of_batch([&] {
        operations[0] = f.a->send(Slices());
        operations[1] = f.b->recv(Slices());
        operations[2] = f.b->send(Slices());
        f.a.reset();
    }) == Doorbells{"recv", "send"});
    CHECK(error_of(operations[0]) == std::errc::operation_canceled);
}

TEST_CASE("Doorbell: what was posted before the router is destroyed is posted", "[rdma][I8]") {
    const bool queue_pair_too = GENERATE(false, true);
    DoorbellFixture f;
    Operation receive = f.b->recv(f.slice(100, 8));
    f.write(0, "goodbye");
    std::vector<Operation> operations;
    const Doorbells doorbells = f.doorbells_of_batch([&] {
        operations.push_back(f.a->recv(f.slice(110, 8)));
        operations.push_back(f.a->send(f.slice(0, 7)));
        f.router.reset();
        Operation later = f.a->send(f.slice(0, 7));
        CHECK(error_of(later) == std::errc::operation_canceled);
        if (queue_pair_too) f.a.reset();
    });
    CHECK(doorbells == (queue_pair_too ? Doorbells{} : Doorbells{"recv", "send"}));
    CHECK((f.read(100, 7) == "goodbye") == !queue_pair_too);
}

namespace {

Escaping post_and_throw(Operation& operation, std::function<void()> post) {
    co_await operation;
    post();
    throw std::runtime_error("from a coroutine");
}

} // namespace

TEST_CASE("Doorbell: an exception of a coroutine does not lose what was posted", "[rdma]") {
    const bool rejected = GENERATE(false, true);
    DoorbellFixture f;
    f.write(0, "a");
    Operation receive = f.b->recv(f.slice(100, 1));
    std::vector<Operation> operations;
    Awaited outcome;
    std::vector<Coroutine> waiters;
    const Escaping thrower = post_and_throw(receive, [&] {
        operations.push_back(f.write_to(200));
        operations.push_back(f.a->recv(f.slice(110, 1)));
        if (rejected) waiters.push_back(await(f.send_what_is_rejected(), outcome));
        f.doorbells.clear();
    });
    Operation sent = f.a->send(f.slice(0, 1));
    CHECK_THROWS_WITH(f.run(), contains("from a coroutine"));
    CHECK(f.take_doorbells() == Doorbells{"recv", "send"});
    CHECK(f.read(200, 1) == "a");
    if (rejected) CHECK(outcome.code() == std::errc::invalid_argument);
    thrower.handle.destroy();
}

// --- draining ---

TEST_CASE("Doorbell: drain posts what was gathered, and waits for it", "[rdma][I12]") {
    const bool signaled = GENERATE(true, false);
    DoorbellFixture f;
    f.write(0, "a");
    Operation write;
    Operation receive;
    std::optional<Draining> drained;
    f.run_in_batch([&] {
        receive = f.a->recv(f.slice(100, 1));
        write = f.write_to(200, {.signaled = signaled});
        drained.emplace(*f.a);
        CHECK(f.read(200, 1) == "a"); // it was posted before the queue pair went to ERR
    });
    f.run();
    CHECK(drained->completion);
    CHECK(!error_of(write));
    CHECK(error_of(receive) == make_wc_error(IBV_WC_WR_FLUSH_ERR));
}

TEST_CASE("Doorbell: drain ends if the last operation is rejected", "[rdma][I12]") {
    DoorbellFixture f;
    f.sim.hold_delivery();
    std::vector<Operation> operations;
    for (std::size_t i = 0; i < 5; ++i) operations.push_back(f.write_to(200 + i)); // one waits
    Draining drained(*f.a); // flushes four: then there is room for the last
    f.sim.fail("ibv_post_send", {.error = ENOMEM});
    f.run();
    CHECK(error_of(operations.back()) == std::errc::not_enough_memory);
    CHECK(drained.completion);
}

// --- shared receives ---

TEST_CASE("Doorbell: one for the shared receives of a batch", "[rdma]") {
    DoorbellFixture f;
    std::optional<AsyncSrq> srq(std::in_place, *f.router, f.domain,
                                SharedReceiveQueueOptions{.max_wr = 8});
    AsyncQp qp(*f.router, f.domain, *srq, queues_of_four);
    AsyncQp peer(*f.router, f.domain, queues_of_four);
    qp.queue_pair().init();
    peer.queue_pair().connect(qp.queue_pair().local_address());
    qp.queue_pair().connect(peer.queue_pair().local_address());
    f.write(0, "abcdef");
    std::array<Operation, 6> receives;
    std::array<Operation, 6> sends;
    CHECK(f.doorbells_of_batch([&] {
        sends[0] = peer.send(f.slice(0, 1));
        for (std::size_t i = 0; i < 6; ++i) receives[i] = srq->recv(f.slice(100 + i, 1));
    }) == Doorbells{"srq_recv", "send"});
    for (std::size_t i = 1; i < 6; ++i) {
        sends[i] = peer.send(f.slice(i, 1));
        f.run();
    }
    for (Operation& receive : receives) CHECK(!error_of(receive));
    CHECK(f.read(100, 6) == "abcdef");

    // What is posted before the limit is set counts for it.
    CHECK(f.doorbells_of_batch([&] {
        receives[0] = srq->recv(f.slice(100, 1));
        (void)srq->shared_receive_queue();
        CHECK(f.doorbells == Doorbells{"srq_recv"});
    }) == Doorbells{"srq_recv"});
}
