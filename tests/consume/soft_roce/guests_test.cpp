// SPDX-License-Identifier: MIT
// Runs in two guests on one link: guest 1 connects to guest 0 and sends it a message.
#include <asyncverbs/cm.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>

#include "end.hpp"

using asyncverbs::Connection;
using asyncverbs::EpollExecutor;
using asyncverbs::Task;

namespace {

constexpr const char* port = "7471";

std::string environment(const char* name) {
    const char* const value = std::getenv(name);
    if (!value) throw std::runtime_error(std::string(name) + " is not set");
    return value;
}

Task<> serve(EpollExecutor& loop) {
    asyncverbs::Listener listener(loop, environment("RDMA_ADDRESS"), port);
    asyncverbs::IncomingConnection incoming = co_await listener.accept();
    End end(loop, incoming.context());
    incoming.prepare(end.qp.queue_pair());
    asyncverbs::Operation receive = end.post_recv();
    Connection connection = co_await incoming.accept(end.qp.queue_pair());
    const asyncverbs::Completion received = co_await receive;
    end.expect("from guest 1 to guest 0", received);
    std::printf("a message came from %s\n", connection.peer_address().text().c_str());
    co_await connection.disconnected();
}

// Returns std::nullopt if the other guest does not listen yet.
Task<std::optional<Connection>> try_connect(EpollExecutor& loop, std::optional<End>& end) {
    const auto make_queue_pair = [&](const asyncverbs::OutgoingConnection& outgoing) -> auto& {
        return end.emplace(loop, outgoing.context()).qp.queue_pair();
    };
    try {
        co_return co_await asyncverbs::connect(loop, environment("RDMA_PEER_ADDRESS"), port,
                                               make_queue_pair);
    } catch (const std::system_error& error) {
        std::printf("not yet: %s\n", error.what());
    }
    co_return std::nullopt;
}

// Retries without a limit: the runner has a timeout.
Task<> dial(EpollExecutor& loop) {
    std::optional<End> end;
    std::optional<Connection> connection;
    while (!connection) {
        co_await loop.sleep_for(std::chrono::milliseconds(200));
        connection = co_await try_connect(loop, end);
    }
    co_await end->send("from guest 1 to guest 0");
    co_await connection->disconnect();
}

} // namespace

int main() try {
    EpollExecutor loop;
    loop.run(environment("SOFT_ROCE_GUEST") == "0" ? serve(loop) : dial(loop));
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
