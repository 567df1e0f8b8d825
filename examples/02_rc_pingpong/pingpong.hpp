// SPDX-License-Identifier: MIT
// The ping-pong itself: one coroutine awaits completions and answers them, another one looks now
// and then how far the first has come.
#pragma once

#include "endpoint.hpp"
#include "histogram.hpp"
#include "options.hpp"

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include <chrono>
#include <cstdint>
#include <stop_token>

namespace pingpong {

class PingPong {
public:
    PingPong(asyncverbs::EpollExecutor& loop, asyncverbs::AsyncCq& cq, Endpoint& endpoint,
             const Options& options) noexcept
        : loop_(loop), cq_(cq), endpoint_(endpoint), options_(options) {}

    /// Exchanges all messages. Throws std::runtime_error with the root cause when the connection
    /// breaks or the peer falls silent.
    asyncverbs::Task<> run();

    /// From the first post to the last completion.
    std::chrono::nanoseconds elapsed() const noexcept { return elapsed_; }

    /// From the post of a send to the completion of the receive that answers it; filled only with
    /// the option --histogram.
    const Histogram& round_trips() const noexcept { return round_trips_; }

private:
    using Clock = std::chrono::steady_clock;

    asyncverbs::Task<> exchange();
    asyncverbs::Task<> watch(std::stop_token done);
    void send();
    void on_completions(std::span<const ibv_wc> wcs);
    void record_round_trip();
    [[noreturn]] void fail(ibv_wc wc);
    [[noreturn]] void fail_size(std::uint32_t size) const;

    asyncverbs::EpollExecutor& loop_;
    asyncverbs::AsyncCq& cq_;
    Endpoint& endpoint_;
    const Options& options_;
    std::uint32_t sent_ = 0; // completed
    std::uint32_t received_ = 0;
    bool sending_ = false; // what the next send waits for
    bool receiving_ = !options_.is_client();
    bool peer_silent_ = false;
    Clock::time_point send_time_{};
    std::chrono::nanoseconds elapsed_{0};
    Histogram round_trips_;
};

} // namespace pingpong
