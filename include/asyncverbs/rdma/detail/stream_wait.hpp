// SPDX-License-Identifier: MIT
// The reader or the writer of a stream, while it waits for what the peer has to say.
#pragma once

#include <coroutine>
#include <stop_token>
#include <utility>

#include <asyncverbs/core/detail/maybe.hpp>
#include <asyncverbs/rdma/detail/on_stop.hpp>
#include <asyncverbs/rdma/detail/resumable.hpp>
#include <asyncverbs/rdma/detail/router_state.hpp>

namespace asyncverbs::detail {

// Awaited: until the router resumes what `place` points to, or `stop` is requested. A wake is a
// hint to look again. Pinned.
template <class Use>
class StreamWait : Resumable {
public:
    StreamWait(Resumable*& place, RouterState<Use>& router, std::stop_token stop) noexcept
        : place_(place), router_(router), stop_(std::move(stop)) {}
    StreamWait(const StreamWait&) = delete;
    StreamWait& operator=(const StreamWait&) = delete;
    ~StreamWait() { place_ = nullptr; }

    bool await_ready() const noexcept { return false; }
    bool await_suspend(std::coroutine_handle<> handle) {
        coroutine = handle;
        place_ = this;
        if (!stop_.stop_possible()) return true;
        on_stop_.emplace(static_cast<Resumable&>(*this), router_, stop_);
        return on_stop_->may_wait();
    }
    void await_resume() const noexcept {}

private:
    Resumable*& place_;
    RouterState<Use>& router_;
    std::stop_token stop_;
    Maybe<OnStop<Use>> on_stop_; // once it waits
};

} // namespace asyncverbs::detail
