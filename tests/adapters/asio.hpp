// SPDX-License-Identifier: MIT
// Asio in the flavour that a test is compiled for, and what the tests of the adapter share.
#pragma once

#include <asyncverbs/adapters/asio.hpp>

#if defined(ASYNCVERBS_BOOST_ASIO)
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/system_executor.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/use_future.hpp>
#if defined(ASYNCVERBS_ASIO_CANCELLATION)
#include <boost/asio/bind_cancellation_slot.hpp>
#endif
#if BOOST_ASIO_VERSION >= 102500
#include <boost/asio/deferred.hpp>
#define ASYNCVERBS_TEST_DEFERRED boost::asio::deferred
#endif
#else
#include <asio/awaitable.hpp>
#include <asio/bind_cancellation_slot.hpp>
#include <asio/bind_executor.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>
#include <asio/strand.hpp>
#include <asio/system_executor.hpp>
#include <asio/use_awaitable.hpp>
#include <asio/use_future.hpp>
#if ASIO_VERSION >= 102500
#include <asio/deferred.hpp>
#define ASYNCVERBS_TEST_DEFERRED asio::deferred
#else
#include <asio/experimental/deferred.hpp>
#define ASYNCVERBS_TEST_DEFERRED asio::experimental::deferred
#endif
#endif

#include <asyncverbs/verbs/device.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/simulated_verbs.hpp"

namespace asyncverbs::adapters {

#if defined(ASYNCVERBS_BOOST_ASIO)
namespace net = boost::asio;
using Error = boost::system::error_code;
#else
namespace net = ::asio;
using Error = std::error_code;
#endif

using IoExecutor = net::io_context::executor_type;

// Runs what is ready, and what that makes ready, without waiting. Returns how many handlers.
inline std::size_t poll(net::io_context& io) {
    io.restart();
    return io.poll();
}

// What a poll completed with, and where.
struct Outcome {
    int calls = 0;
    Error error;
    std::vector<std::uint64_t> wr_ids;

    auto handler() {
        return [this](const Error& e, std::span<ibv_wc> wcs) {
            ++calls;
            error = e;
            for (const ibv_wc& wc : wcs) wr_ids.push_back(wc.wr_id);
        };
    }
};

// A simulated device, an io_context, and a queue on it.
struct World {
    simulated::SimulatedVerbs sim;
    Context context = Context::open();
    net::io_context io;
    AsioCq<IoExecutor> cq{io, context, 64};
    std::array<ibv_wc, 4> wcs{};

    void complete(std::uint64_t wr_id) { sim.complete(cq.async_cq().native_handle(), wr_id); }
    bool armed() const { return sim.armed(queue()); }
    const ibv_cq* queue() const { return cq.completion_queue().native_handle(); }
};

} // namespace asyncverbs::adapters
