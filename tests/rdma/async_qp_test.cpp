// SPDX-License-Identifier: MIT
// Operations of queue pairs on simulated verbs: data, full queues, chains, cancellation, errors.
#include "rdma/fixture.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

using namespace asyncverbs;
using namespace asyncverbs::support;

static_assert(std::movable<Operation> && !std::copyable<Operation>);
static_assert(sizeof(Operation) <= 200); // it is part of coroutine frames
static_assert(std::movable<Router> && !std::copyable<Router>);
static_assert(std::movable<AsyncQp> && !std::copyable<AsyncQp>);
static_assert(std::is_trivially_destructible_v<Completion>);

// --- data ---

TEST_CASE("AsyncQp: a message is sent and received", "[rdma]") {
    RouterFixture f;
    f.write(0, "hello");
    Awaiting received(f.b->post_recv(f.slice(100, 64)));
    Awaiting sent(f.a->send(f.slice(0, 5)));
    f.run();
    REQUIRE(sent.completion);
    REQUIRE(received.completion);
    CHECK(sent.completion->opcode() == IBV_WC_SEND);
    CHECK(sent.completion->qp_num() == f.a->queue_pair().qp_num());
    CHECK(received.completion->opcode() == IBV_WC_RECV);
    CHECK(received.completion->bytes() == 5);
    CHECK(received.completion->qp_num() == f.b->queue_pair().qp_num());
    CHECK(!received.completion->imm());
    CHECK(f.read(100, 5) == "hello");
}

TEST_CASE("AsyncQp: operations are posted by the call and awaited in any order", "[rdma]") {
    RouterFixture f;
    Operation first = f.b->post_recv(f.slice(100, 8));
    Operation second = f.b->post_recv(f.slice(200, 8));
    CHECK(f.sim.posted_receives(f.b->queue_pair().native_handle()) == 2);
    f.write(0, "1");
    f.write(8, "2");
    Operation one = f.a->send(f.slice(0, 1));
    Operation two = f.a->send(f.slice(8, 1));
    CHECK(!first.done());
    f.run();
    CHECK(first.done());
    Awaited outcomes[4];
    const Coroutine waiters[] = {
        await(std::move(second), outcomes[0]), await(std::move(one), outcomes[1]),
        await(std::move(first), outcomes[2]), await(std::move(two), outcomes[3])};
    for (const Awaited& outcome : outcomes) CHECK(outcome.completion);
    CHECK(f.read(100, 1) == "1");
    CHECK(f.read(200, 1) == "2");
}

TEST_CASE("AsyncQp: immediates are in host order", "[rdma]") {
    RouterFixture f;
    Awaiting by_send(f.b->recv(f.slice(100, 8)));
    Awaiting by_write(f.b->recv(Slices()));
    Operation send = f.a->send_with_imm(f.slice(0, 1), 0x01020304);
    Operation write = f.a->write_with_imm(f.slice(0, 4), f.remote(300, 4), 0xfffefdfc);
    f.run();
    CHECK(send.done());
    CHECK(write.done());
    REQUIRE(by_send.completion);
    REQUIRE(by_write.completion);
    CHECK(by_send.completion->imm() == 0x01020304);
    CHECK(by_write.completion->imm() == 0xfffefdfc);
}

TEST_CASE("AsyncQp: one-sided operations work on the peer's memory", "[rdma]") {
    RouterFixture f;
    f.write(0, "written!");
    Awaiting written(f.a->write(f.slice(0, 8), f.remote(200, 8)));
    f.run();
    REQUIRE(written.completion);
    CHECK(written.completion->opcode() == IBV_WC_RDMA_WRITE);
    CHECK(f.read(200, 8) == "written!");

    Awaiting read(f.a->read(f.slice(16, 8), f.remote(200, 8)));
    f.run();
    REQUIRE(read.completion);
    CHECK(f.read(16, 8) == "written!");

    f.write_number(400, 40);
    Awaiting added(f.a->fetch_and_add(f.slice(0, 8), f.remote(400, 8), 2));
    f.run();
    REQUIRE(added.completion);
    CHECK(f.number(0) == 40);
    CHECK(f.number(400) == 42);

    Awaiting swapped(f.a->compare_and_swap(f.slice(8, 8), f.remote(400, 8), 42, 7));
    f.run();
    REQUIRE(swapped.completion);
    CHECK(f.number(8) == 42);
    CHECK(f.number(400) == 7);
}

TEST_CASE("AsyncQp: several slices, inline data", "[rdma]") {
    RouterFixture f;
    f.write(0, "scatter and gather");
    const std::array<Slice, 3> from{f.slice(0, 7), f.slice(7, 5), f.slice(12, 6)};
    const std::vector<Slice> to{f.slice(100, 4), f.slice(200, 64)};
    Awaiting received(f.b->recv(to));
    Operation sent = f.a->send(from, {.inline_data = true});
    f.write(0, "overwritten at once");
    f.run();
    CHECK(sent.done());
    REQUIRE(received.completion);
    CHECK(received.completion->bytes() == 18);
    CHECK(f.read(100, 4) == "scat");
    CHECK(f.read(200, 14) == "ter and gather");
}

TEST_CASE("AsyncQp: datagrams", "[rdma]") {
    RouterFixture f(simulated::rxe, {.type = IBV_QPT_UD, .max_send_wr = 4, .max_recv_wr = 4});
    std::optional<AddressHandle> peer(std::in_place, f.domain, f.a->queue_pair(),
                                      f.b->queue_pair().local_address());
    f.write(0, "datagram");
    Awaiting received(f.b->recv(f.slice(100, 100)));
    f.sim.hold_delivery();
    Operation sent = f.a->send_to(f.slice(0, 8), *peer, f.b->queue_pair().qp_num(), 0x11111111);
    peer.reset(); // the operation keeps it
    CHECK(f.sim.calls("ibv_destroy_ah") == 0);
    f.sim.release_delivery();
    f.run();
    CHECK(sent.done());
    CHECK(f.sim.calls("ibv_destroy_ah") == 1);
    REQUIRE(received.completion);
    CHECK(received.completion->bytes() == 48);
    CHECK(received.completion->src_qp() == f.a->queue_pair().qp_num());
    CHECK(f.read(140, 8) == "datagram");
}

TEST_CASE("AsyncQp: bad input throws at once", "[rdma]") {
    RouterFixture f;
    const std::vector<Slice> many(4, f.slice(0, 1));
    CHECK_THROWS_WITH(f.a->send(many), contains("4 slices in one work request of a queue for 3"));
    CHECK_THROWS_WITH(f.a->recv(many), contains("4 slices in one work request of a queue for 3"));
    CHECK_THROWS_WITH(f.a->write(f.slice(0, 9), f.remote(100, 8)),
                      contains("9 bytes do not fit the peer's slice of 8"));
    CHECK_THROWS_WITH(f.a->fetch_and_add(f.slice(0, 4), f.remote(400, 8), 1),
                      contains("8 bytes, aligned"));
    CHECK_THROWS_WITH(f.a->fetch_and_add(f.slice(0, 8), f.remote(401, 8), 1),
                      contains("8 bytes, aligned"));
    CHECK(f.sim.posted_sends(f.a->queue_pair().native_handle()) == 0);
    AsyncQp deaf(*f.router, f.domain, {.max_recv_wr = 0});
    CHECK_THROWS_WITH(deaf.recv(f.slice(0, 1)), contains("made for no work requests"));
    Awaiting outcome{Operation()};
    REQUIRE(outcome.error);
    CHECK(outcome.code() == std::errc::invalid_argument);
}

// --- full queues ---

TEST_CASE("AsyncQp: operations wait for room in a full queue, in order", "[rdma][I10]") {
    RouterFixture f;
    std::vector<Operation> receives;
    std::vector<Operation> sends;
    f.sim.hold_delivery();
    for (std::size_t i = 0; i < 12; ++i) {
        f.memory[i] = static_cast<std::byte>(i);
        receives.push_back(f.b->post_recv(f.slice(100 + i, 1)));
        sends.push_back(f.a->send(f.slice(i, 1)));
    }
    CHECK(f.sim.posted_sends(f.a->queue_pair().native_handle()) == 4);
    CHECK(f.sim.posted_receives(f.b->queue_pair().native_handle()) == 4);
    f.sim.release_delivery();
    f.run();
    for (std::size_t i = 0; i < 12; ++i) {
        CHECK(sends[i].done());
        CHECK(receives[i].done());
        CHECK(f.memory[100 + i] == static_cast<std::byte>(i));
    }
}

TEST_CASE("AsyncQp: operations that waited for room are posted in order", "[rdma]") {
    const bool chained = GENERATE(true, false);
    RouterFixture f;
    f.write(0, "abcdefghij");
    std::vector<SendRequest> requests;
    for (std::size_t i = 0; i < 10; ++i) {
        requests.push_back(SendRequest::write(f.slice(i, 1), f.remote(200, 1)));
    }
    std::vector<Operation> operations(10);
    f.sim.hold_delivery();
    if (chained) {
        f.a->post(requests, operations);
    } else {
        for (std::size_t i = 0; i < 10; ++i) operations[i] = f.a->post(requests[i]);
    }
    for (std::size_t i = 0; i < 10; ++i) {
        CHECK(f.sim.deliver_from(f.a->queue_pair().native_handle()) == 1);
        f.run();
        CHECK(f.read(200, 1) == std::string(1, static_cast<char>('a' + i)));
        CHECK(operations[i].done());
    }
}

TEST_CASE("AsyncQp: an operation that waits for room holds copies of its slices", "[rdma]") {
    RouterFixture f;
    f.sim.hold_delivery();
    std::vector<Operation> sends;
    for (int i = 0; i < 4; ++i) sends.push_back(f.a->send(f.slice(0, 1)));
    f.write(8, "abc");
    {
        const std::vector<Slice> slices{f.slice(8, 1), f.slice(9, 2)};
        sends.push_back(f.a->send(slices));
    }
    std::vector<Operation> receives;
    for (std::size_t i = 0; i < 5; ++i) receives.push_back(f.b->recv(f.slice(100 + 8 * i, 8)));
    f.sim.release_delivery();
    f.run();
    CHECK(sends.back().done());
    CHECK(f.read(132, 3) == "abc");
}

TEST_CASE("AsyncQp: an operation that waits for room is not posted after it is destroyed",
          "[rdma]") {
    RouterFixture f;
    f.sim.hold_delivery();
    std::vector<Operation> sends;
    for (std::size_t i = 0; i < 4; ++i) sends.push_back(f.a->send(f.slice(i, 1)));
    std::optional<Operation> dropped(f.a->send(f.slice(4, 1)));
    sends.push_back(f.a->send(f.slice(5, 1)));
    dropped.reset();
    for (std::size_t i = 0; i < 6; ++i) f.memory[i] = static_cast<std::byte>(i);
    std::vector<Operation> receives;
    for (std::size_t i = 0; i < 6; ++i) receives.push_back(f.b->recv(f.slice(100 + i, 1)));
    f.sim.release_delivery();
    f.run();
    CHECK(sends.back().done());
    CHECK(f.memory[104] == std::byte{5});
    CHECK(!receives.back().done());
}

TEST_CASE("AsyncQp: the next signaled send releases the slots of unsignaled sends", "[rdma]") {
    RouterFixture f(simulated::mlx5);
    std::vector<Operation> receives;
    std::vector<Operation> sends;
    for (std::size_t i = 0; i < 32; ++i) {
        receives.push_back(f.b->recv(f.slice(100 + i, 1)));
        sends.push_back(f.a->send(f.slice(i, 1), {.signaled = false}));
    }
    f.run();
    // The queue signals some requests itself.
    for (std::size_t i = 0; i + 1 < sends.size(); ++i) CHECK(sends[i].done());
    CHECK(f.sim.counters(f.native).completions_polled < 32 + 32);
    Awaiting last(std::move(sends.front()));
    REQUIRE(last.completion);
    CHECK(last.completion->opcode() == IBV_WC_SEND);
    CHECK(last.completion->qp_num() == f.a->queue_pair().qp_num());
}

TEST_CASE("AsyncQp: half of a queue may be unsignaled, not more", "[rdma]") {
    RouterFixture f;
    const auto write = [&f] {
        return f.a->write(f.slice(0, 1), f.remote(200, 1), {.signaled = false});
    };
    const Operation first = write();
    f.run();
    CHECK(!first.done());
    const Operation second = write(); // of four
    f.run();
    CHECK(first.done());
    CHECK(second.done());
}

TEST_CASE("AsyncQp: an unsignaled success is that of its own request", "[rdma]") {
    RouterFixture f;
    Operation write = f.a->write(f.slice(0, 4), f.remote(200, 4), {.signaled = false});
    Operation send = f.a->send(Slices());
    Operation receive = f.b->recv(Slices());
    f.run();
    Awaiting written(std::move(write));
    REQUIRE(written.completion);
    CHECK(written.completion->opcode() == IBV_WC_RDMA_WRITE);
    CHECK(written.completion->qp_num() == f.a->queue_pair().qp_num());
    CHECK(send.done());
    CHECK(receive.done());
}

// --- chains ---

TEST_CASE("AsyncQp: a chain takes one doorbell", "[rdma]") {
    RouterFixture f;
    f.write(0, "onetwo");
    const SendRequest requests[] = {SendRequest::write(f.slice(0, 3), f.remote(200, 3)),
                                    SendRequest::write(f.slice(3, 3), f.remote(203, 3)),
                                    SendRequest::send_with_imm(Slices(), 7)};
    std::array<Operation, 3> operations;
    Operation received = f.b->recv(Slices());
    const std::uint64_t before = f.sim.calls("ibv_post_send");
    f.a->post(requests, operations);
    CHECK(f.sim.calls("ibv_post_send") - before == 1);
    f.run();
    for (const Operation& operation : operations) CHECK(operation.done());
    CHECK(received.done());
    CHECK(f.read(200, 6) == "onetwo");
}

TEST_CASE("AsyncQp: a chain that is too long waits for room", "[rdma]") {
    RouterFixture f;
    std::vector<SendRequest> requests;
    for (std::size_t i = 0; i < 11; ++i) {
        requests.push_back(SendRequest::write(f.slice(i, 1), f.remote(200 + i, 1)));
    }
    f.write(0, "hello world");
    std::vector<Operation> operations(11);
    f.sim.hold_delivery();
    f.a->post(requests, operations);
    CHECK(f.sim.posted_sends(f.a->queue_pair().native_handle()) == 4);
    f.sim.release_delivery();
    f.run();
    for (const Operation& operation : operations) CHECK(operation.done());
    CHECK(f.read(200, 11) == "hello world");
}

TEST_CASE("AsyncQp: if a chain is rejected, the posted part of it completes", "[rdma]") {
    RouterFixture f;
    f.write(0, "ab");
    const SendRequest requests[] = {
        SendRequest::write(f.slice(0, 1), f.remote(200, 1)),
        SendRequest::write(f.slice(1, 1), f.remote(201, 1), {.signaled = false}),
        SendRequest::write(f.slice(0, 100), f.remote(202, 100), {.inline_data = true}), // too long
        SendRequest::write(f.slice(3, 1), f.remote(302, 1))};
    std::array<Operation, 4> operations;
    f.a->post(requests, operations);
    std::array<Awaited, 4> outcomes;
    const std::array<Coroutine, 4> waiters{
        await(std::move(operations[0]), outcomes[0]), await(std::move(operations[1]), outcomes[1]),
        await(std::move(operations[2]), outcomes[2]), await(std::move(operations[3]), outcomes[3])};
    f.run();
    CHECK(outcomes[0].completion);
    CHECK(!outcomes[1].done()); // posted, and not signaled
    for (const std::size_t i : {2u, 3u}) {
        REQUIRE(outcomes[i].error);
        CHECK(outcomes[i].error->what() == std::string("ibv_post_send: Invalid argument"));
    }
    // The slots are free again, and the next send completes the unsignaled one.
    std::vector<Operation> more;
    for (std::size_t i = 0; i < 6; ++i) {
        more.push_back(f.a->write(f.slice(0, 1), f.remote(210 + i, 1)));
    }
    f.run();
    for (const Operation& operation : more) CHECK(operation.done());
    CHECK(outcomes[1].completion);
    CHECK(f.read(200, 2) == "ab");
}

TEST_CASE("AsyncQp: a chain and its operations must match", "[rdma]") {
    RouterFixture f;
    const SendRequest requests[] = {SendRequest::send(Slices())};
    std::array<Operation, 2> operations;
    CHECK_THROWS_WITH(f.a->post(requests, operations), contains("1 requests and 2 operations"));
}

// --- destroyed and moved operations ---

TEST_CASE("AsyncQp: slot and region outlive a destroyed operation", "[rdma]") {
    RouterFixture f;
    f.sim.hold_delivery();
    std::optional<Operation> receive(f.b->recv(f.slice(100, 8)));
    std::optional<Operation> send(f.a->send(f.slice(0, 8)));
    receive.reset();
    send.reset();
    f.region.reset(); // the simulation fails the test if this deregisters it
    CHECK(f.sim.calls("ibv_dereg_mr") == 0);
    f.sim.release_delivery();
    f.run();
    CHECK(f.sim.calls("ibv_dereg_mr") == 1);
}

TEST_CASE("AsyncQp: all regions of a request are kept", "[rdma]") {
    RouterFixture f;
    std::array<std::byte, 8> more{};
    std::optional<MemoryRegion> other(std::in_place, f.domain, more, all_access);
    f.sim.hold_delivery();
    {
        const std::array<Slice, 2> slices{f.slice(0, 4), other->slice()};
        (void)f.b->recv(slices);
    }
    other.reset();
    CHECK(f.sim.calls("ibv_dereg_mr") == 0);
    Operation send = f.a->send(f.slice(0, 8));
    f.sim.release_delivery();
    f.run();
    CHECK(f.sim.calls("ibv_dereg_mr") == 1);
}

TEST_CASE("AsyncQp: a destroyed coroutine leaves its operation to the device", "[rdma]") {
    RouterFixture f;
    f.sim.hold_delivery();
    Awaited outcome;
    {
        const Coroutine receiver = await(f.b->recv(f.slice(100, 8)), outcome);
        const Coroutine sender = await(f.a->send(f.slice(0, 8)), outcome);
    }
    f.sim.release_delivery();
    f.run();
    CHECK(!outcome.done());
    // The slots are free again.
    std::vector<Operation> receives;
    for (int i = 0; i < 4; ++i) receives.push_back(f.b->recv(f.slice(100, 8)));
    CHECK(f.sim.posted_receives(f.b->queue_pair().native_handle()) == 4);
}

TEST_CASE("AsyncQp: a pending operation may be moved", "[rdma]") {
    RouterFixture f;
    f.sim.hold_delivery();
    std::vector<Operation> operations;
    for (int i = 0; i < 4; ++i) operations.push_back(f.a->send(f.slice(0, 1)));
    Operation waiting = f.a->send(f.slice(0, 1));
    Operation moved = std::move(waiting);
    waiting = std::move(operations.front());
    operations.erase(operations.begin());
    std::vector<Operation> receives;
    for (int i = 0; i < 5; ++i) receives.push_back(f.b->recv(f.slice(100, 8)));
    f.sim.release_delivery();
    f.run();
    CHECK(moved.done());
    CHECK(waiting.done());
    for (const Operation& operation : operations) CHECK(operation.done());
}

// --- cancellation ---

TEST_CASE("AsyncQp: a stop ends the wait, not the operation", "[rdma]") {
    RouterFixture f;
    Operation receive = f.b->recv(f.slice(100, 8));
    std::stop_source stop;
    std::error_code error;
    const auto wait = [&](std::stop_token token) -> Coroutine {
        const Completion completion = co_await receive.wait(error, std::move(token));
        if (!error && completion.bytes() != 3) throw std::logic_error("another message");
    };
    {
        const Coroutine waiter = wait(stop.get_token());
        CHECK(!waiter.done());
        stop.request_stop();
        f.run();
        REQUIRE(waiter.done());
        CHECK(error == std::errc::operation_canceled);
    }
    const Coroutine stopped_before = wait(stop.get_token());
    CHECK(stopped_before.done());
    CHECK(error == std::errc::operation_canceled);

    const Coroutine again = wait({});
    CHECK(!again.done());
    Operation sent = f.a->send(f.slice(0, 3));
    f.run();
    REQUIRE(again.done());
    again.get();
    CHECK(!error);
}

TEST_CASE("AsyncQp: the stop of the call applies unless the wait has another", "[rdma]") {
    RouterFixture f;
    std::stop_source stop;
    Operation receive = f.b->recv(f.slice(100, 8), stop.get_token());
    std::error_code by_call;
    std::error_code by_wait;
    const auto wait = [&]() -> Coroutine { co_await receive.wait(by_call); };
    const auto wait_on = [&]() -> Coroutine { co_await receive.wait(by_wait, {}); };

    const Coroutine waiter = wait();
    CHECK(!waiter.done());
    stop.request_stop();
    f.run();
    REQUIRE(waiter.done());
    CHECK(by_call == std::errc::operation_canceled);

    const Coroutine undisturbed = wait_on();
    CHECK(!undisturbed.done());
    Operation sent = f.a->send(f.slice(0, 3));
    f.run();
    REQUIRE(undisturbed.done());
    CHECK(!by_wait);
}

TEST_CASE("AsyncQp: a stop from another thread", "[rdma]") {
    RouterFixture f;
    std::stop_source stop;
    Awaiting outcome(f.b->recv(f.slice(100, 8)), stop.get_token());
    std::thread([&] { stop.request_stop(); }).join();
    CHECK(!outcome.done());
    f.run();
    REQUIRE(outcome.error);
    CHECK(outcome.code() == std::errc::operation_canceled);
}

TEST_CASE("AsyncQp: a completion that came before the stop was seen is delivered", "[rdma][I7]") {
    RouterFixture f;
    std::stop_source stop;
    Awaiting outcome(f.b->recv(f.slice(100, 8)), stop.get_token());
    Operation sent = f.a->send(f.slice(0, 3));
    f.sim.on_call([&](const simulated::Call& call) {
        const bool polled = call.verb == "ibv_poll_cq" && call.value > 0;
        if (polled && call.moment == simulated::Call::Moment::after) stop.request_stop();
    });
    f.run();
    f.sim.on_call(nullptr);
    CHECK(outcome.completion);
}

// --- errors ---

TEST_CASE("AsyncQp: a failed operation reports the cause", "[rdma][I11]") {
    RouterFixture f;
    f.sim.hold_delivery();
    Awaiting failed(f.a->send(f.slice(0, 1)));
    Awaiting flushed(f.a->send(f.slice(0, 1)));
    Awaiting receive(f.a->recv(f.slice(100, 1)));
    f.sim.time_out();
    f.run();
    const std::string number = std::to_string(f.a->queue_pair().qp_num());
    REQUIRE(failed.operation_error);
    CHECK(failed.code() == make_wc_error(IBV_WC_RETRY_EXC_ERR));
    CHECK(failed.operation_error->completion().status() == IBV_WC_RETRY_EXC_ERR);
    CHECK(failed.operation_error->completion().opcode() == IBV_WC_SEND);
    CHECK(failed.operation_error->completion().qp_num() == f.a->queue_pair().qp_num());
    CHECK_THAT(failed.operation_error->what(), contains("send on queue pair " + number) &&
                                                   contains("transport retry counter exceeded"));
    // The root cause, not the flush that follows it.
    REQUIRE(flushed.operation_error);
    CHECK(flushed.code() == make_wc_error(IBV_WC_RETRY_EXC_ERR));
    CHECK(flushed.operation_error->completion().status() == IBV_WC_WR_FLUSH_ERR);
    REQUIRE(receive.operation_error);
    CHECK(receive.code() == make_wc_error(IBV_WC_RETRY_EXC_ERR));
    CHECK_THAT(receive.operation_error->what(),
               contains("receive on queue pair " + number + ", flushed"));
}

TEST_CASE("AsyncQp: the cause may come after the flushes", "[rdma]") {
    RouterFixture f;
    f.sim.hold_delivery();
    Operation receive = f.a->recv(f.slice(100, 1));
    Operation send = f.a->send(f.slice(0, 1));
    // A device may flush the receive queue before it reports the failure of the send.
    const std::uint32_t qp_num = f.a->queue_pair().qp_num();
    f.sim.complete(f.native, detail::WrId::make(1, detail::WrId::first_tag), IBV_WC_WR_FLUSH_ERR,
                   qp_num);
    f.sim.complete(f.native, detail::WrId::make(0, detail::WrId::first_tag), IBV_WC_REM_ACCESS_ERR,
                   qp_num);
    f.run();
    Awaiting outcome(std::move(receive));
    CHECK(outcome.code() == make_wc_error(IBV_WC_REM_ACCESS_ERR));
}

TEST_CASE("AsyncQp: the first failure is the cause of the flushes", "[rdma]") {
    RouterFixture f;
    f.sim.hold_delivery();
    Operation sends[] = {f.a->send(f.slice(0, 1)), f.a->send(f.slice(0, 1)),
                         f.a->send(f.slice(0, 1))};
    const std::uint64_t first = detail::WrId::make(0, detail::WrId::first_tag);
    const std::uint32_t qp_num = f.a->queue_pair().qp_num();
    f.sim.complete(f.native, first, IBV_WC_REM_ACCESS_ERR, qp_num);
    f.sim.complete(f.native, first + 1, IBV_WC_REM_OP_ERR, qp_num);
    f.sim.complete(f.native, first + 2, IBV_WC_WR_FLUSH_ERR, qp_num);
    f.run();
    Awaiting second(std::move(sends[1]));
    CHECK(second.code() == make_wc_error(IBV_WC_REM_OP_ERR));
    Awaiting flushed(std::move(sends[2]));
    CHECK(flushed.code() == make_wc_error(IBV_WC_REM_ACCESS_ERR));
}

TEST_CASE("AsyncQp: errors without exceptions", "[rdma]") {
    RouterFixture f;
    f.sim.hold_delivery();
    Operation send = f.a->send(f.slice(0, 1));
    f.sim.time_out();
    f.run();
    std::error_code error;
    std::optional<Completion> completion;
    const auto wait = [&]() -> Coroutine { completion = co_await send.wait(error); };
    const Coroutine waiter = wait();
    REQUIRE(completion);
    CHECK(error == make_wc_error(IBV_WC_RETRY_EXC_ERR));
    CHECK(completion->status() == IBV_WC_RETRY_EXC_ERR);
}

TEST_CASE("AsyncQp: a request that the device rejects takes no room", "[rdma]") {
    RouterFixture f;
    for (int i = 0; i < 10; ++i) {
        f.sim.fail("ibv_post_send", {.error = EINVAL});
        f.sim.fail("ibv_post_recv", {.error = EINVAL});
        Awaiting send(f.a->send(f.slice(0, 1)));
        Awaiting receive(f.a->recv(f.slice(0, 1)));
        REQUIRE(send.error);
        REQUIRE(receive.error);
        CHECK(send.error->what() == std::string("ibv_post_send: Invalid argument"));
        CHECK(receive.error->what() == std::string("ibv_post_recv: Invalid argument"));

        f.sim.fail("ibv_post_send", {.error = EINVAL});
        const SendRequest chain[] = {SendRequest::send(Slices()), SendRequest::send(Slices())};
        std::array<Operation, 2> operations;
        f.a->post(chain, operations);
        for (const Operation& operation : operations) REQUIRE(operation.done());
    }
    Operation receive = f.b->recv(f.slice(100, 1));
    Operation send = f.a->send(f.slice(0, 1));
    f.run();
    CHECK(send.done());
    CHECK(receive.done());
}

TEST_CASE("AsyncQp: what iWARP lacks is named", "[rdma]") {
    RouterFixture f;
    f.context.native_handle()->device->transport_type = IBV_TRANSPORT_IWARP;
    const auto check = [](const Awaiting& outcome, const char* text) {
        REQUIRE(outcome.error);
        CHECK_THAT(outcome.error->what(), contains(text));
    };
    check(Awaiting(f.a->send_with_imm(f.slice(0, 1), 1)), "iWARP has no immediate data");
    check(Awaiting(f.a->fetch_and_add(f.slice(0, 8), f.remote(8, 8), 1)), "iWARP has no atomics");
    const SendRequest chain[] = {SendRequest::send_with_imm(f.slice(0, 1), 1)};
    Operation operations[1];
    f.a->post(chain, operations);
    check(Awaiting(std::move(operations[0])), "iWARP has no immediate data");
}

TEST_CASE("AsyncQp: on iWARP a flushed receive ends what the device does not complete",
          "[rdma][I12]") {
    RouterFixture f; // of 4 sends and 4 receives
    f.context.native_handle()->device->transport_type = IBV_TRANSPORT_IWARP;
    std::optional<MemoryRegion> region = MemoryRegion::allocate(f.domain, 64);
    const std::error_code flushed = make_wc_error(IBV_WC_WR_FLUSH_ERR);
    Awaiting receive(f.a->recv(f.slice(100, 1)));
    f.a->queue_pair().to_error(); // as a device does if the peer is gone
    std::vector<Operation> lost;  // some of them wait for room
    for (int i = 0; i < 6; ++i) lost.push_back(f.a->send(region->slice(0, 1)));
    for (int i = 0; i < 6; ++i) lost.push_back(f.a->recv(f.slice(100, 1)));
    Awaiting awaited(std::move(lost.front()));
    lost.front() = Operation();
    f.run();
    CHECK(receive.code() == flushed);
    CHECK(awaited.code() == flushed);
    for (const Operation& operation : std::span(lost).subspan(1)) CHECK(operation.done());

    CHECK(Awaiting(f.a->send(f.slice(0, 1))).code() == flushed);
    CHECK(Awaiting(f.a->recv(f.slice(100, 1))).code() == flushed);
    const SendRequest chain[] = {SendRequest::send(Slices()), SendRequest::send(Slices())};
    std::array<Operation, 2> operations;
    f.a->post(chain, operations);
    for (const Operation& operation : operations) CHECK(operation.done());
    CHECK(Draining(*f.a).completion);

    // The device has not given the memory back.
    region.reset();
    CHECK(f.sim.calls("ibv_dereg_mr") == 0);
    f.a.reset();
    CHECK(f.sim.calls("ibv_dereg_mr") == 1);
}

TEST_CASE("AsyncQp: a failure of the completion queue fails all operations", "[rdma][I5]") {
    RouterFixture f;
    f.sim.hold_delivery();
    std::vector<Operation> sends;
    for (int i = 0; i < 5; ++i) sends.push_back(f.a->send(f.slice(0, 1)));
    Awaiting posted(std::move(sends.front()));
    Awaiting waiting(std::move(sends.back()));
    f.sim.fail("ibv_poll_cq");
    f.run();
    REQUIRE(posted.error);
    REQUIRE(waiting.error);
    CHECK(posted.error->what() == std::string("ibv_poll_cq: Input/output error"));
    CHECK(waiting.error->what() == std::string("ibv_poll_cq: Input/output error"));
    Awaiting later(f.a->send(f.slice(0, 1)));
    CHECK(later.error->what() == std::string("ibv_poll_cq: Input/output error"));
    Draining drained(*f.a);
    CHECK(drained.error);
}

// --- draining and destroying ---

TEST_CASE("AsyncQp: drain waits for everything", "[rdma][I12]") {
    RouterFixture f(simulated::mlx5);
    std::vector<Operation> operations;
    for (int i = 0; i < 6; ++i) operations.push_back(f.b->recv(f.slice(100, 1)));
    // These succeed without a completion: drain has to cause one.
    operations.push_back(f.a->write(f.slice(0, 1), f.remote(200, 1), {.signaled = false}));
    operations.push_back(f.b->write(f.slice(0, 1), f.remote(200, 1), {.signaled = false}));
    Draining a(*f.a);
    Draining b(*f.b);
    CHECK(!a.done());
    f.run();
    CHECK(a.completion);
    CHECK(b.completion);
    for (const Operation& operation : operations) CHECK(operation.done());
    Awaiting last(std::move(operations.back()));
    CHECK(last.completion);
    Draining again(*f.a);
    CHECK(again.completion);
}

TEST_CASE("AsyncQp: drain of a full queue", "[rdma][I12]") {
    RouterFixture f;
    std::vector<Operation> operations;
    for (const bool signaled : {true, false, true, false}) {
        operations.push_back(
            f.a->write(f.slice(0, 1), f.remote(200, 1), {.signaled = signaled})); // succeeds
    }
    Draining drained(*f.a);
    f.run();
    CHECK(drained.completion);
    for (const Operation& operation : operations) CHECK(operation.done());
}

TEST_CASE("AsyncQp: drain waits for both queues", "[rdma][I12]") {
    RouterFixture f;
    AsyncQp qp(*f.router, f.domain, {.max_send_wr = 1, .max_recv_wr = 40});
    qp.queue_pair().connect(f.b->queue_pair().local_address());
    f.sim.hold_delivery();
    std::vector<Operation> operations;
    operations.push_back(qp.send(Slices()));
    // More than a batch of completions.
    for (int i = 0; i < 40; ++i) operations.push_back(qp.recv(Slices()));
    bool all_done = false;
    const auto drain = [&]() -> Coroutine {
        co_await qp.drain();
        all_done = std::ranges::all_of(operations, &Operation::done);
    };
    const Coroutine drainer = drain();
    f.run();
    CHECK(drainer.done());
    CHECK(all_done);
}

TEST_CASE("AsyncQp: drain on iWARP, where the device completes nothing in ERR", "[rdma][I12]") {
    RouterFixture f; // of 4 sends and 4 receives
    f.context.native_handle()->device->transport_type = IBV_TRANSPORT_IWARP;
    const std::error_code flushed = make_wc_error(IBV_WC_WR_FLUSH_ERR);
    std::vector<Operation> operations;
    SECTION("nothing is posted") {}
    SECTION("sends that succeeded, not signaled") {
        operations.push_back(f.a->write(f.slice(0, 1), f.remote(200, 1), {.signaled = false}));
    }
    SECTION("sends under way, not signaled, and some that wait for room") {
        f.sim.hold_delivery();
        for (int i = 0; i < 6; ++i) {
            operations.push_back(f.a->write(f.slice(0, 1), f.remote(200, 1), {.signaled = false}));
        }
    }
    SECTION("more receives than there is room for") {
        for (int i = 0; i < 6; ++i) operations.push_back(f.a->recv(f.slice(100, 1)));
    }
    Draining drained(*f.a);
    Awaiting send(f.a->send(f.slice(0, 1)));
    Awaiting receive(f.a->recv(f.slice(100, 1)));
    f.run();
    CHECK(drained.completion);
    CHECK(send.code() == flushed);
    CHECK(receive.code() == flushed);
    for (const Operation& operation : operations) CHECK(operation.done());
}

TEST_CASE("AsyncQp: drain before it is connected", "[rdma]") {
    RouterFixture f;
    AsyncQp reset(*f.router, f.domain);
    Draining outcome(reset);
    CHECK(outcome.completion);
}

TEST_CASE("AsyncQp: destroying it wakes its waiters", "[rdma][I12]") {
    RouterFixture f;
    Awaiting received(f.b->recv(f.slice(100, 1)));
    f.b.reset();
    f.notifier.run(); // without an event
    CHECK(received.code() == std::errc::operation_canceled);
}

TEST_CASE("AsyncQp: the regions of posted requests outlive the native queue pair", "[rdma][I12]") {
    RouterFixture f;
    f.sim.hold_delivery();
    {
        const Operation abandoned[] = {f.b->recv(f.slice(100, 1)), f.b->send(f.slice(0, 1))};
    }
    f.region.reset(); // the simulation fails the test if this deregisters it
    f.b.reset();      // or if this does it too early
    CHECK(f.sim.calls("ibv_dereg_mr") == 1);
}

TEST_CASE("AsyncQp: destroyed at any time", "[rdma][I12]") {
    RouterFixture f;
    f.sim.hold_delivery();
    std::vector<Operation> kept;
    Awaiting posted(f.b->recv(f.slice(100, 1)));
    for (int i = 0; i < 3; ++i) kept.push_back(f.b->recv(f.slice(100, 1)));
    Awaiting waiting(f.b->recv(f.slice(100, 1)));
    Draining drained(*f.b);
    f.b.reset();
    CHECK(!posted.done()); // a destructor resumes no coroutine
    f.run();
    CHECK(posted.code() == std::errc::operation_canceled);
    CHECK(waiting.code() == std::errc::operation_canceled);
    CHECK(drained.code() == std::errc::operation_canceled);
    for (const Operation& operation : kept) CHECK(operation.done());
}
