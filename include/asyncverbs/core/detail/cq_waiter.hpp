// SPDX-License-Identifier: MIT
// A coroutine that waits for completions of one AsyncCq: the node that its awaiter embeds. It
// lives in the awaiting coroutine's frame, so waiting allocates nothing.
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

namespace asyncverbs::detail {

class CqReaper;

struct CqWaiter : ListNode {
    enum class Outcome { pending, delivered, stopped, failed };

    struct OnStop {
        CqWaiter& waiter;
        void operator()() const noexcept; // defined with the reaper
    };

    CqWaiter(CqReaper& owner, std::span<ibv_wc> destination, std::optional<std::uint64_t> only)
        : reaper(owner), completions(destination), wr_id(only) {}

    CqReaper& reaper;
    std::span<ibv_wc> completions;      // where to deliver
    std::optional<std::uint64_t> wr_id; // set: wait for this work request alone
    std::size_t delivered = 0;
    Outcome outcome = Outcome::pending;
    std::coroutine_handle<> handle;
    std::atomic<bool> stop_requested{false};
    std::optional<std::stop_callback<OnStop>> on_stop;
};

} // namespace asyncverbs::detail
