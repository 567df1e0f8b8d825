// SPDX-License-Identifier: MIT
// Asio's loop for the conformance suite of notifiers: on an io_context's own executor, on a strand,
// and on any executor.
#pragma once

#include <chrono>

#include "adapters/asio.hpp"

namespace asyncverbs::adapters {

template <class MakeLoop>
struct AsioHarness {
    auto notifier(int fd) { return loop.notifier(fd); }
    void run_once(std::chrono::milliseconds at_most) {
        io.restart(); // it stops whenever nobody waits
        io.run_one_for(at_most);
    }

    net::io_context io;
    decltype(MakeLoop()(io)) loop = MakeLoop()(io);
};

struct OnContext {
    auto operator()(net::io_context& io) const { return AsioLoop(io); }
};
struct OnStrand {
    auto operator()(net::io_context& io) const { return AsioLoop(net::make_strand(io)); }
};
struct OnAny {
    auto operator()(net::io_context& io) const { return AsioLoop<>(io); }
};

} // namespace asyncverbs::adapters
