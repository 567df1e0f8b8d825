// SPDX-License-Identifier: MIT
// What the servers have in common: any number of clients, and signals.
#pragma once

#include <asyncverbs/cm.hpp>
#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <stop_token>
#include <string>
#include <system_error>
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

/// Calls `function` for each `signal` of the process, which it blocks, until `stop` is requested.
template <class Function>
asyncverbs::Task<> on_signal(asyncverbs::EpollExecutor& loop, int signal, std::stop_token stop,
                             Function function) {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, signal);
    sigprocmask(SIG_BLOCK, &signals, nullptr);
    const int fd = ::signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
    if (fd < 0) throw std::system_error(errno, std::system_category(), "signalfd");
    asyncverbs::EpollNotifier notifier = loop.notifier(fd); // open until the program ends
    for (;;) {
        const std::error_code error = co_await notifier.readable(stop);
        if (error) break;
        signalfd_siginfo received;
        while (::read(fd, &received, sizeof received) > 0) function();
    }
}

} // namespace program
