// SPDX-License-Identifier: MIT
// An AsyncCq on simulated verbs whose notifier is driven by the test, and coroutines that poll it.
#pragma once

#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <vector>

#include "support/coroutine.hpp"

namespace asyncverbs::support {

using WrIds = std::vector<std::uint64_t>;

template <class Notifier = ManualNotifier>
struct CqFixture {
    explicit CqFixture(const simulated::ProviderModel& provider = simulated::rxe,
                       const AsyncCqOptions& options = {})
        : sim(provider), cq(std::in_place, CompletionQueue(context, 64), notifier, options) {}

    void complete(std::initializer_list<std::uint64_t> wr_ids) {
        for (const std::uint64_t wr_id : wr_ids) sim.complete(native, wr_id);
    }

    // Reports the channel as readable, and lets the notifier resume its wait once. Returns whether
    // there was one.
    bool wake(const std::error_code& error = {}) {
        notifier.notify(error);
        return notifier.run();
    }

    void complete_and_wake(std::initializer_list<std::uint64_t> wr_ids) {
        complete(wr_ids);
        wake();
    }

    void run_until_idle() {
        while (notifier.run()) {
        }
    }

    simulated::SimulatedVerbs sim;
    Notifier notifier;
    Context context = Context::open();
    std::optional<AsyncCq> cq;
    ibv_cq* native = cq->native_handle();
};

template <std::size_t Span = 4>
Coroutine poll_once(AsyncCq& cq, WrIds& got, std::stop_token stop = {}) {
    std::array<ibv_wc, Span> wcs{};
    const std::span<ibv_wc> done = co_await cq.poll(wcs, stop);
    for (const ibv_wc& wc : done) got.push_back(wc.wr_id);
}

template <std::size_t Span = 4>
Coroutine poll_until(AsyncCq& cq, WrIds& got, std::size_t count) {
    std::array<ibv_wc, Span> wcs{};
    while (got.size() < count) {
        for (const ibv_wc& wc : co_await cq.poll(wcs)) got.push_back(wc.wr_id);
    }
}

inline Coroutine poll_wr_id(AsyncCq& cq, std::uint64_t wr_id, WrIds& got,
                            std::stop_token stop = {}) {
    const ibv_wc wc = co_await cq.poll_wr_id(wr_id, stop);
    got.push_back(wc.wr_id);
}

// Polls once, and stores {} or the error.
inline Coroutine poll_error(AsyncCq& cq, std::error_code& error, std::stop_token stop = {}) {
    std::array<ibv_wc, 1> wcs{};
    error = std::make_error_code(std::errc::interrupted); // to be overwritten
    const std::span<ibv_wc> done = co_await cq.poll(wcs, error, stop);
    if (!done.empty() && error) throw std::logic_error("completions and an error");
}

} // namespace asyncverbs::support
