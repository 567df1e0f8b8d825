// SPDX-License-Identifier: MIT
// Two connected queue pairs of one device, each with an AsyncCq on the loop of the conformance
// suite: what is posted to the one is awaited at the other.
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/core/async_cq.hpp>
#include <asyncverbs/testing/detail/conformance_bench.hpp>
#include <asyncverbs/testing/detail/conformance_coroutine.hpp>
#include <asyncverbs/verbs/context.hpp>
#include <asyncverbs/verbs/memory_region.hpp>
#include <asyncverbs/verbs/protection_domain.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

namespace asyncverbs::detail::conformance {

template <class Harness>
class Pair {
public:
    static constexpr std::uint32_t depth = 32; // messages on the way

    Pair(Bench<Harness>& bench, const Context& context, const AsyncCqOptions& options = {})
        : bench_(bench), domain_(context), memory_(MemoryRegion::allocate(domain_, 8)),
          send_cq(std::in_place, AsyncCq::create(context, 2 * depth, bench.harness(), options)),
          recv_cq(std::in_place, AsyncCq::create(context, 2 * depth, bench.harness(), options)),
          sender_(domain_, send_cq->completion_queue(), send_cq->completion_queue(), wanted()),
          receiver_(domain_, recv_cq->completion_queue(), recv_cq->completion_queue(), wanted()) {
        sender_.connect(receiver_.local_address());
        receiver_.connect(sender_.local_address());
    }

    void post_recv(std::uint64_t id) { receiver_.post_recv({id, nullptr, &message_, 1}); }

    /// From any thread, one at a time. What goes wrong is seen in vain.
    // NOLINTNEXTLINE(bugprone-exception-escape): sge() throws for slices of 4 GiB alone
    void post_send(std::uint64_t id) noexcept {
        ibv_send_wr request{};
        request.wr_id = id;
        request.sg_list = &message_;
        request.num_sge = 1;
        request.opcode = IBV_WR_SEND;
        request.send_flags = IBV_SEND_SIGNALED;
        std::error_code error;
        sender_.post_send(request, error);
    }

    /// What a coroutine has taken so far, and the error that it has ended with.
    struct Taken {
        std::vector<std::uint64_t> ids;
        std::error_code error;
    };

    /// Takes `count` completions, or as many as come before a stop.
    Coroutine take(AsyncCq& cq, std::size_t count, Taken& taken, std::stop_token stop = {}) {
        std::array<ibv_wc, 4> wcs;
        while (taken.ids.size() < count) {
            const std::span<ibv_wc> some = co_await cq.poll(wcs, taken.error, stop);
            bench_.witness().resumed();
            if (taken.error) co_return;
            for (const ibv_wc& wc : some) {
                if (wc.status != IBV_WC_SUCCESS) bench_.witness().report("a work request failed");
                taken.ids.push_back(wc.wr_id);
            }
        }
    }

private:
    static QueuePairOptions wanted() {
        QueuePairOptions options;
        options.max_send_wr = options.max_recv_wr = depth;
        return options;
    }

    Bench<Harness>& bench_;
    ProtectionDomain domain_;
    MemoryRegion memory_;
    ibv_sge message_ = memory_.slice().sge();

public:
    std::optional<AsyncCq> send_cq;
    std::optional<AsyncCq> recv_cq;

private:
    QueuePair sender_;
    QueuePair receiver_;
};

} // namespace asyncverbs::detail::conformance
