// SPDX-License-Identifier: MIT
// The ping-pong: one coroutine awaits completions and answers them, another one watches it.
#pragma once

#include "endpoint.hpp"
#include "histogram.hpp"
#include "options.hpp"

#include "../terminal.hpp"

#include <asyncverbs/asyncverbs.hpp>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <span>
#include <stdexcept>
#include <string>

namespace pingpong {

using Clock = std::chrono::steady_clock;

class PingPong {
public:
    PingPong(asyncverbs::EpollExecutor& loop, asyncverbs::AsyncCq& cq, Endpoint& endpoint,
             const Options& options) noexcept
        : loop_(loop), cq_(cq), endpoint_(endpoint), options_(options) {}

    /// Exchanges all messages: sends one when the previous one and its answer have both completed.
    /// Throws std::runtime_error with the root cause if the connection breaks or the peer is
    /// silent.
    asyncverbs::Task<> run() {
        asyncverbs::Scope watching; // its end is the end of watch()
        watching.spawn(watch());
        ibv_wc wcs[2];
        const Clock::time_point start = Clock::now();
        while (sent_ < options_.iterations || received_ < options_.iterations) {
            if (!sending_ && !receiving_ && sent_ < options_.iterations) send();
            const std::span<const ibv_wc> completions = co_await cq_.poll(wcs);
            for (const ibv_wc& wc : completions) complete(wc);
        }
        elapsed_ = Clock::now() - start;
    }

    /// From the first post to the last completion.
    Clock::duration elapsed() const noexcept { return elapsed_; }

    /// From the post of a send to the completion of the receive that answers it, if the options ask
    /// for a histogram.
    const Histogram& round_trips() const noexcept { return round_trips_; }

private:
    void send() {
        if (options_.histogram) send_time_ = Clock::now();
        endpoint_.post_send();
        sending_ = receiving_ = true;
    }

    void complete(const ibv_wc& wc) {
        if (wc.status != IBV_WC_SUCCESS) fail(wc);
        if (wc.wr_id == send_id) {
            ++sent_;
            sending_ = false;
            return;
        }
        // The first message that the server receives answers none of its own.
        if (options_.histogram && send_time_ != Clock::time_point()) {
            round_trips_.record(Clock::now() - send_time_);
        }
        if (wc.byte_len != options_.size) {
            throw std::runtime_error("the peer sent a message of " + std::to_string(wc.byte_len) +
                                     " bytes, not " + std::to_string(options_.size) +
                                     ": both ends need the same --size");
        }
        endpoint_.use_receive();
        ++received_;
        receiving_ = false;
    }

    // A queue pair that fails flushes its outstanding work requests, so a completion with another
    // error is the cause. It may still be in the completion queue.
    [[noreturn]] void fail(ibv_wc wc) {
        if (peer_silent_) {
            throw std::runtime_error("the peer has been silent for " +
                                     std::to_string(options_.timeout) +
                                     " s: it has ended, or has other --iters");
        }
        ibv_wc next;
        while (wc.status == IBV_WC_WR_FLUSH_ERR && !cq_.try_poll({&next, 1}).empty()) {
            if (next.status != IBV_WC_SUCCESS) wc = next;
        }
        throw std::runtime_error(
            std::string(wc.wr_id == send_id ? "send" : "receive") + " (wr_id " +
            std::to_string(wc.wr_id) + ") failed after " + std::to_string(received_) + " of " +
            std::to_string(options_.iterations) + " iters: " + ibv_wc_status_str(wc.status) +
            " (status " + std::to_string(wc.status) + ")");
    }

    // Shows the progress on a terminal, in a line that is erased in the end, and breaks the
    // connection if the peer is silent. A peer that dies while no message is on its way to it
    // causes no error, since nothing is retried.
    asyncverbs::Task<> watch() {
        terminal::StatusLine line;
        const std::chrono::milliseconds interval(line.on_terminal() ? 250 : 1000);
        const Clock::time_point start = Clock::now();
        Clock::time_point last_change = start;
        std::uint64_t seen = 0;
        for (;;) {
            co_await loop_.sleep_for(interval);
            if (received_ > 0) line.show(progress(Clock::now() - start));
            if (const std::uint64_t now_seen = std::uint64_t{sent_} + received_; now_seen != seen) {
                seen = now_seen;
                last_change = Clock::now();
            } else if (options_.timeout > 0 &&
                       Clock::now() - last_change >= std::chrono::seconds(options_.timeout)) {
                peer_silent_ = true;
                endpoint_.queue_pair().to_error();
                co_return;
            }
        }
    }

    std::string progress(std::chrono::duration<double> elapsed) const {
        const double each = elapsed.count() / received_;
        char text[100];
        std::snprintf(text, sizeof text, "%u of %u iters, %.2f usec/iter, %.0f s left", received_,
                      options_.iterations, each * 1e6, each * (options_.iterations - received_));
        return text;
    }

    asyncverbs::EpollExecutor& loop_;
    asyncverbs::AsyncCq& cq_;
    Endpoint& endpoint_;
    const Options& options_;
    std::uint32_t sent_ = 0; // completed
    std::uint32_t received_ = 0;
    bool sending_ = false; // the next send waits until both are false
    bool receiving_ = !options_.is_client();
    bool peer_silent_ = false;
    Clock::time_point send_time_{};
    Clock::duration elapsed_{};
    Histogram round_trips_;
};

} // namespace pingpong
