// SPDX-License-Identifier: MIT
// How the servers accept any number of clients.
#pragma once

#include <asyncverbs/cm.hpp>
#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <utility>

namespace program {

// Prints the exception that ends the service of a client.
template <class Serve>
asyncverbs::Task<> serve_one(Serve& serve, asyncverbs::IncomingConnection incoming) {
    std::string peer;
    try {
        peer = incoming.peer_address().text();
        co_await serve(std::move(incoming));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: %s\n", peer.c_str(), error.what());
    }
}

/// Accepts `count` clients, 0 for any number, and awaits `serve(incoming)`, a Task<>, for each of
/// them. An error of one client is printed and does not end the others, nor does a lack of
/// descriptors or memory: the client for which there are none is refused.
template <class Serve>
asyncverbs::Task<> serve_clients(asyncverbs::EpollExecutor& loop, asyncverbs::Listener& listener,
                                 std::uint32_t count, Serve serve) {
    asyncverbs::Scope clients;
    for (std::uint32_t i = 0; count == 0 || i < count; ++i) {
        bool refused = false;
        try {
            asyncverbs::IncomingConnection incoming = co_await listener.accept();
            clients.spawn(serve_one(serve, std::move(incoming)));
        } catch (const std::exception& error) {
            std::fprintf(stderr, "a client was refused: %s\n", error.what());
            refused = true;
        }
        // What is missing may be there again soon.
        if (refused) co_await loop.sleep_for(std::chrono::milliseconds(100));
    }
    co_await clients.join();
}

} // namespace program
