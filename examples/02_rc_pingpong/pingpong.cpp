// SPDX-License-Identifier: MIT
#include "pingpong.hpp"

#include "progress.hpp"

#include <asyncverbs/coro/when_all.hpp>

#include <array>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>

namespace pingpong {

asyncverbs::Task<> PingPong::run() {
    std::stop_source done;
    struct Notify { // also if the exchange fails
        explicit Notify(std::stop_source& s) : source(s) {}
        ~Notify() { source.request_stop(); }
        std::stop_source& source;
    };
    const auto exchange_until_done = [](PingPong& self,
                                        std::stop_source& source) -> asyncverbs::Task<> {
        const Notify notify(source);
        co_await self.exchange();
    };
    co_await asyncverbs::when_all(exchange_until_done(*this, done), watch(done.get_token()));
}

// A message is sent when the last one, and the one that answers it, have both completed.
asyncverbs::Task<> PingPong::exchange() {
    const Clock::time_point start = Clock::now();
    std::array<ibv_wc, 2> wcs;
    while (sent_ < options_.iterations || received_ < options_.iterations) {
        if (!sending_ && !receiving_ && sent_ < options_.iterations) send();
        on_completions(co_await cq_.poll(wcs));
    }
    elapsed_ = Clock::now() - start;
}

void PingPong::send() {
    if (options_.histogram) send_time_ = Clock::now();
    endpoint_.post_send();
    sending_ = receiving_ = true;
}

void PingPong::on_completions(std::span<const ibv_wc> wcs) {
    for (const ibv_wc& wc : wcs) {
        if (wc.status != IBV_WC_SUCCESS) fail(wc);
        if (wc.wr_id == send_id) {
            ++sent_;
            sending_ = false;
        } else {
            if (options_.histogram) record_round_trip();
            if (wc.byte_len != options_.size) fail_size(wc.byte_len);
            endpoint_.use_receive();
            ++received_;
            receiving_ = false;
        }
    }
}

void PingPong::record_round_trip() {
    if (send_time_ == Clock::time_point{}) return; // the server's first receive answers nothing
    round_trips_.record(Clock::now() - send_time_);
}

void PingPong::fail_size(std::uint32_t size) const {
    throw std::runtime_error("the peer sent a message of " + std::to_string(size) + " bytes, not " +
                             std::to_string(options_.size) + ": both ends need the same --size");
}

// A queue pair that breaks flushes what is outstanding; of all that has completed by now, what was
// not flushed is the cause.
void PingPong::fail(ibv_wc wc) {
    if (peer_silent_) {
        throw std::runtime_error("the peer has been silent for " +
                                 std::to_string(options_.timeout.count()) +
                                 " s: it has gone, or has other --iters");
    }
    std::array<ibv_wc, 16> more;
    while (wc.status == IBV_WC_WR_FLUSH_ERR) {
        const auto found = cq_.try_poll(more);
        if (found.empty()) break;
        for (const ibv_wc& each : found) {
            if (each.status != IBV_WC_SUCCESS && wc.status == IBV_WC_WR_FLUSH_ERR) wc = each;
        }
    }
    throw std::runtime_error(
        std::string(wc.wr_id == send_id ? "send" : "receive") + " (wr_id " +
        std::to_string(wc.wr_id) + ") failed after " + std::to_string(received_) + " of " +
        std::to_string(options_.iterations) + " iters: " + ibv_wc_status_str(wc.status) +
        " (status " + std::to_string(wc.status) + ")");
}

// A peer that dies while nothing is on its way to it leaves no trace: no retry, no error. The
// connection is then broken from this side, so that the exchange ends like with any other error.
asyncverbs::Task<> PingPong::watch(std::stop_token done) {
    using namespace std::chrono_literals;
    Progress progress(options_.iterations);
    const std::chrono::milliseconds interval = progress.on_terminal() ? Progress::interval : 1s;
    std::uint32_t last_seen = 0;
    Clock::time_point last_change = Clock::now();
    for (;;) {
        const std::error_code stopped = co_await loop_.sleep_for(interval, done);
        if (stopped) co_return;
        progress.show(received_);
        const std::uint32_t seen = sent_ + received_;
        if (seen != last_seen) {
            last_seen = seen;
            last_change = Clock::now();
        } else if (options_.timeout > 0s && Clock::now() - last_change >= options_.timeout) {
            peer_silent_ = true;
            endpoint_.queue_pair().to_error();
            co_return;
        }
    }
}

} // namespace pingpong
