// SPDX-License-Identifier: MIT
// What a coroutine wants of an AsyncCq, and, once it has to wait for that, the node by which it
// waits. Both live in its awaiter, so waiting allocates nothing.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>

#include <asyncverbs/core/detail/intrusive_list.hpp>
#include <asyncverbs/core/detail/maybe.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

template <class Use>
class CqReaper;

template <class Use>
struct CqRequest {
    enum class Outcome { undecided, delivered, stopped, failed };

    std::span<ibv_wc> completions;                 // where to deliver
    Used<std::optional<std::uint64_t>, Use> wr_id; // set: wants this work request alone
    std::uint64_t* timestamps = nullptr;           // set: as many as there is room for completions
    std::size_t delivered = 0;
    Outcome outcome = Outcome::undecided;
};

template <class Use>
struct CqWaiter : ListNode {
    struct OnStop {
        CqWaiter& waiter;
        void operator()() const noexcept; // defined with the reaper
    };

    CqWaiter(CqReaper<Use>& owner, CqRequest<Use>& wanted,
             std::coroutine_handle<> coroutine) noexcept
        : reaper(owner), request(wanted), handle(coroutine) {}

    CqReaper<Use>& reaper;
    CqRequest<Use>& request;
    std::coroutine_handle<> handle;
    std::atomic<bool> stop_requested{false};
    Maybe<std::stop_callback<OnStop>> on_stop;
};

} // namespace asyncverbs::detail
