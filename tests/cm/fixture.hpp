// SPDX-License-Identifier: MIT
// A listener and what connects to it, on the simulated connection manager and one loop.
#pragma once

#include <asyncverbs/cm/connect.hpp>
#include <asyncverbs/cm/listener.hpp>

#include <asyncverbs/executor/epoll_executor.hpp>

#include <chrono>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>

#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/simulated_cm.hpp"
#include "support/simulated_verbs.hpp"

namespace asyncverbs::support {

inline std::span<const std::byte> bytes(std::string_view text) {
    return std::as_bytes(std::span(text));
}

// Private data as text, without the padding.
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

// What became of a coroutine that a test started.
struct Outcome {
    bool done = false;
    std::optional<std::system_error> error;

    bool failed(std::errc code) const { return error && error->code() == code; }
};

struct CmFixture {
    static constexpr const char* host = "10.7.0.1";

    // As many turns as anything here needs that needs no time.
    void run(int turns = 40) {
        for (; turns > 0; --turns) loop.run_once();
    }

    // The same until a bound has passed that somebody waits for.
    void run_until_done(const Outcome& outcome) {
        for (int turns = 0; turns < 5000 && !outcome.done; ++turns) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
            loop.run_once();
        }
        REQUIRE(outcome.done);
    }

    std::string port() const { return std::to_string(listener->port()); }

    // Starts `operation` and records how it ends.
    template <class Operation>
    static Coroutine start(Operation operation, Outcome& outcome) {
        try {
            static_cast<void>(co_await std::move(operation));
        } catch (const std::system_error& error) {
            outcome.error = error;
        }
        outcome.done = true;
    }
    Task<> serve(AcceptOptions options = {}, std::stop_token stop = {}) {
        incoming.emplace(co_await listener->accept(stop));
        if (!server_end) server_end.emplace(incoming->context());
        server.emplace(co_await incoming->accept(server_end->qp, options, stop));
    }

    Task<> dial(ConnectOptions options = {}, std::stop_token stop = {}) {
        const auto make_qp = [this](const OutgoingConnection& outgoing) -> QueuePair& {
            if (!client_end) client_end.emplace(outgoing.context());
            outgoing.prepare(client_end->qp);
            return client_end->qp;
        };
        client.emplace(co_await connect(loop, host, port(), make_qp, options, stop));
    }

    // Both ends.
    void make_connection() {
        const Coroutine serving = start(serve(), served);
        const Coroutine dialing = start(dial(), dialed);
        run();
        REQUIRE(server);
        REQUIRE(client);
    }

    ibv_qp_state client_state() const { return sim.qp_state(client_end->qp.native_handle()); }
    ibv_qp_state server_state() const { return sim.qp_state(server_end->qp.native_handle()); }

    simulated::SimulatedVerbs sim;
    simulated::SimulatedCm cm;
    EpollExecutor loop;
    std::optional<Listener> listener{std::in_place, loop, host, ""};
    std::optional<QueuePairOwner> server_end;
    std::optional<QueuePairOwner> client_end;
    std::optional<IncomingConnection> incoming;
    std::optional<Connection> server;
    std::optional<Connection> client;
    Outcome served;
    Outcome dialed;
};

} // namespace asyncverbs::support
