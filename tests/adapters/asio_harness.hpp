// SPDX-License-Identifier: MIT
// Harnesses for the conformance suite: AsioLoop on the executor of an io_context, on a strand, and
// on an any_io_executor of each.
#pragma once

#include <chrono>

#include "adapters/asio.hpp"

namespace asyncverbs::adapters {

template <class MakeLoop>
struct AsioHarness {
    auto notifier(int fd) { return loop.notifier(fd); }
    void run_once(std::chrono::milliseconds at_most) {
        io.restart(); // it stops when it has no work
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
struct OnAnyStrand {
    auto operator()(net::io_context& io) const { return AsioLoop<>(net::make_strand(io)); }
};

} // namespace asyncverbs::adapters
