// SPDX-License-Identifier: MIT
// A listener and its clients, on the simulated connection manager and one loop.
#pragma once

#include <asyncverbs/cm/connect.hpp>
#include <asyncverbs/cm/listener.hpp>

#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/simulation/simulated_cm.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>

#include <chrono>
#include <concepts>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "support/catch.hpp"
#include "support/coroutine.hpp"

namespace asyncverbs::support {

inline std::span<const std::byte> bytes(std::string_view text) {
    return std::as_bytes(std::span(text));
}

// Private data as text, without padding.
inline std::string text(std::span<const std::byte> data) {
    const std::string all(reinterpret_cast<const char*>(data.data()), data.size());
    return all.substr(0, all.find('\0'));
}

// A queue pair with its parents.
struct QueuePairOwner {
    explicit QueuePairOwner(const Context& device)
        : context(device.shared_handle()), domain(context), cq(context, 4),
          qp(domain, cq, cq, {.max_send_wr = 1, .max_recv_wr = 1}) {}

    Context context;
    ProtectionDomain domain;
    CompletionQueue cq;
    QueuePair qp;
};

// How an operation has ended.
struct Outcome {
    bool done = false;
    std::optional<rdma_cm_event_type> event;
    std::optional<std::system_error> error;

    bool succeeded() const { return done && !error; }
    bool failed(std::errc code) const { return error && error->code() == code; }
};

// An operation that a test has started.
struct Running : Outcome {
    template <awaitable Operation>
    explicit Running(Operation operation) : coroutine(run(std::move(operation), *this)) {}
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;

    template <awaitable Operation>
    static Coroutine run(Operation operation, Outcome& outcome) {
        try {
            if constexpr (std::same_as<await_result_t<Operation>, rdma_cm_event_type>) {
                outcome.event = co_await std::move(operation);
            } else {
                static_cast<void>(co_await std::move(operation));
            }
        } catch (const std::system_error& error) {
            outcome.error = error;
        }
        outcome.done = true;
    }

    Coroutine coroutine;
};

struct CmFixture {
    static constexpr const char* host = "10.7.0.1";

    // Enough iterations for everything that does not wait for a timeout.
    void run(int iterations = 40) {
        for (; iterations > 0; --iterations) loop.run_once();
    }

    // Runs the loop until a timeout has ended the operation.
    void run_until_done(const Outcome& outcome) {
        for (int i = 0; i < 5000 && !outcome.done; ++i) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
            loop.run_once();
        }
        REQUIRE(outcome.done);
    }

    Task<> serve(AcceptOptions options = {}, std::stop_token stop = {}) {
        incoming.emplace(co_await listener->accept(stop));
        if (!server_end) server_end.emplace(incoming->context());
        server.emplace(co_await incoming->accept(server_end->qp, options, stop));
    }

    Task<> dial(ConnectOptions options = {}, std::stop_token stop = {}) {
        return dial_on(loop, options, std::move(stop));
    }
    template <class Loop>
    Task<> dial_on(Loop& client_loop, ConnectOptions options = {}, std::stop_token stop = {}) {
        const auto make_qp = [this](const OutgoingConnection& outgoing) -> QueuePair& {
            if (!client_end) client_end.emplace(outgoing.context());
            outgoing.prepare(client_end->qp);
            return client_end->qp;
        };
        client.emplace(co_await connect(client_loop, host, port, make_qp, options, stop));
    }

    void start_server(AcceptOptions options = {}, std::stop_token stop = {}) {
        serving = Running::run(serve(options, std::move(stop)), served);
    }
    void start_client(ConnectOptions options = {}, std::stop_token stop = {}) {
        dialing = Running::run(dial(options, std::move(stop)), dialed);
    }
    void run_client(ConnectOptions options = {}, std::stop_token stop = {}) {
        start_client(options, std::move(stop));
        run();
    }

    // A client's request, and a queue pair to accept it with.
    void take_request() {
        start_client();
        const auto take = [this]() -> Task<> { incoming.emplace(co_await listener->accept()); };
        const Running taking(take());
        run();
        REQUIRE(incoming);
        server_end.emplace(incoming->context());
    }

    // Runs accept() and connect() as far as they go without a timeout.
    void handshake(AcceptOptions accept = {}, ConnectOptions connect = {}) {
        start_server(accept);
        run_client(connect);
    }

    void make_connection() {
        handshake();
        REQUIRE(server);
        REQUIRE(client);
    }

    void make_device_iwarp() {
        const Context context = Context::open("sim0");
        context.native_handle()->device->transport_type = IBV_TRANSPORT_IWARP;
    }

    ibv_qp_state client_state() const { return sim.qp_state(client_end->qp.native_handle()); }
    ibv_qp_state server_state() const { return sim.qp_state(server_end->qp.native_handle()); }

    simulated::SimulatedVerbs sim;
    simulated::SimulatedCm cm;
    EpollExecutor loop;
    std::optional<Listener> listener{std::in_place, loop, host, ""};
    std::string port = std::to_string(listener->port());
    std::optional<QueuePairOwner> server_end;
    std::optional<QueuePairOwner> client_end;
    std::optional<IncomingConnection> incoming;
    std::optional<Connection> server;
    std::optional<Connection> client;
    Outcome served;
    Outcome dialed;
    Coroutine serving;
    Coroutine dialing;
};

} // namespace asyncverbs::support
