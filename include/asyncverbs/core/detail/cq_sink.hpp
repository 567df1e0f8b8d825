// SPDX-License-Identifier: MIT
// Takes all completions of a CQ, in the place of coroutines that poll it: a router.
#pragma once

#include <infiniband/verbs.h>

#include <cstddef>
#include <system_error>

namespace asyncverbs::detail {

// Each call may resume coroutines, and let through what they throw. These may close the reaper, and
// destroy all else that refers to the sink: it lives until the call returns.
template <class Use>
class CqSink {
public:
    CqSink() = default;
    CqSink(const CqSink&) = delete;
    CqSink& operator=(const CqSink&) = delete;

    ibv_wc completions[16];

    /// So many of `completions` have come, at least one.
    virtual void deliver(std::size_t count) = 0;

    /// Somebody called CqReaper::interrupt().
    virtual void interrupted() = 0;

    /// Nothing will come any more. Called again when a coroutine that it resumed has thrown.
    virtual void fail(const std::system_error& cause) = 0;

protected:
    ~CqSink() = default;
};

} // namespace asyncverbs::detail
