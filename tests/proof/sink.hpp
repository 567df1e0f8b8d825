// SPDX-License-Identifier: MIT
//
// A CompletionHandler on an AsyncCq, as a Router installs one: it reports to the explorer what it
// is given.
#pragma once

#include <asyncverbs/cq/async_cq.hpp>

#include <cstddef>
#include <memory>
#include <span>
#include <system_error>
#include <utility>

namespace asyncverbs::proof {

// Told what a sink is given.
class SinkOwner {
public:
    virtual void sink_gets(std::span<const ibv_wc> completions, const std::error_code& error) = 0;

protected:
    ~SinkOwner() = default;
};

class Sink final : public detail::CompletionHandler {
public:
    Sink(SinkOwner& owner, const AsyncCq& cq)
        : owner_(owner), state_(detail::AsyncCqAccess::state(cq)) {}

    static void attach(const std::shared_ptr<Sink>& sink) { sink->state_->attach(sink); }
    void interrupt() noexcept { state_->interrupt(); }

    void on_completions(std::size_t count) override {
        owner_.sink_gets(std::span(completions).first(count), {});
    }
    void on_wake() override {
        owner_.sink_gets({}, std::make_error_code(std::errc::operation_canceled));
    }
    void on_error(const std::system_error& cause) override {
        if (!std::exchange(failed_, true)) owner_.sink_gets({}, cause.code());
    }

private:
    SinkOwner& owner_;
    const std::shared_ptr<detail::CqState> state_;
    bool failed_ = false;
};

} // namespace asyncverbs::proof
