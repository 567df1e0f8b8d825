// SPDX-License-Identifier: MIT
// The flavour of Asio that a test is compiled for, and the fixture of the adapter's tests.
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

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/verbs/device.hpp>

#include "support/catch.hpp"

namespace asyncverbs::adapters {

#if defined(ASYNCVERBS_BOOST_ASIO)
namespace net = boost::asio;
using Error = boost::system::error_code;
using SystemError = boost::system::system_error;
#else
namespace net = ::asio;
using Error = std::error_code;
using SystemError = std::system_error;
#endif

using IoExecutor = net::io_context::executor_type;
using Ids = std::vector<std::uint64_t>;

// Runs the handlers that are ready, and those that they make ready, without waiting. Returns how
// many there were.
inline std::size_t run_ready(net::io_context& io) {
    io.restart();
    return io.poll();
}

// Records what one or more handlers of async_poll() are called with.
class Outcome {
public:
    auto handler() {
        return [this, alive = alive_](const Error& e, std::span<ibv_wc> wcs) {
            ++calls;
            error = e;
            for (const ibv_wc& wc : wcs) wr_ids.push_back(wc.wr_id);
        };
    }

    /// One call, with these completions.
    bool completed(const Ids& ids) const { return calls == 1 && !error && wr_ids == ids; }

    /// So many calls, all of which were cancelled.
    bool cancelled(int times = 1) const {
        return calls == times && error == net::error::operation_aborted && wr_ids.empty();
    }

    /// How many handlers exist.
    long handlers() const { return alive_.use_count() - 1; }

    int calls = 0;
    Error error; // of the last call
    Ids wr_ids;

private:
    std::shared_ptr<int> alive_ = std::make_shared<int>();
};

// A simulated device, an io_context, and a queue on it; a test may destroy the last two.
struct Fixture {
    /// Starts an async_poll() with a buffer of `size` completions.
    template <class Handler>
    void start(Handler handler, std::size_t size = 4) {
        async_poll(*cq, std::span(buffers.emplace_back()).first(size), std::move(handler));
    }
    std::size_t run_ready() { return adapters::run_ready(*io); }
    /// Returns when the context has no work.
    void run() {
        io->restart();
        io->run();
    }

    ibv_cq* queue() const { return cq->completion_queue().native_handle(); }
    void complete(std::uint64_t wr_id) { sim.complete(queue(), wr_id); }
    /// Lets the queue deliver a completion, but not call its handler.
    void complete_without_call(std::uint64_t wr_id) {
        complete(wr_id);
        io->restart();
        while (sim.queued_completions(queue()) > 0) io->poll_one();
    }

    simulated::SimulatedVerbs sim;
    Context context = Context::open();
    std::optional<net::io_context> io{std::in_place};
    std::optional<AsioCq<IoExecutor>> cq{std::in_place, *io, context, 64};
    std::deque<std::array<ibv_wc, 4>> buffers;
};

} // namespace asyncverbs::adapters
