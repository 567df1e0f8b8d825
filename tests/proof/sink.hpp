// SPDX-License-Identifier: MIT
//
// What takes all completions of an AsyncCq, in the place of a Router: AsyncCq gives its reaper to
// nobody but a RouterState, of which this is one.
#pragma once

#include <asyncverbs/core/async_cq.hpp>
#include <asyncverbs/core/detail/cq_sink.hpp>

#include <cstddef>
#include <memory>
#include <span>
#include <system_error>
#include <utility>

namespace asyncverbs::proof {

// Whoever is told what a sink gets.
class SinkOwner {
public:
    virtual void sink_gets(std::span<const ibv_wc> completions, const std::error_code& error) = 0;

protected:
    ~SinkOwner() = default;
};

} // namespace asyncverbs::proof

template <>
class asyncverbs::detail::RouterState<asyncverbs::proof::SinkOwner> final : public CqSink<OnUse> {
public:
    RouterState(proof::SinkOwner& owner, AsyncCq& cq) : owner_(owner), reaper_(cq.reaper_) {}

    static void attach(const std::shared_ptr<RouterState>& sink) { sink->reaper_->attach(sink); }
    void interrupt() noexcept { reaper_->interrupt(); }

    void deliver(std::size_t count) override {
        owner_.sink_gets(std::span(completions).first(count), {});
    }
    void interrupted() override {
        owner_.sink_gets({}, std::make_error_code(std::errc::operation_canceled));
    }
    void fail(const std::system_error& cause) override {
        if (!std::exchange(failed_, true)) owner_.sink_gets({}, cause.code());
    }

private:
    proof::SinkOwner& owner_;
    const std::shared_ptr<CqReaper<OnUse>> reaper_;
    bool failed_ = false;
};

namespace asyncverbs::proof {

using Sink = detail::RouterState<SinkOwner>;

} // namespace asyncverbs::proof
