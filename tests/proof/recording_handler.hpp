// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/cq/async_cq.hpp>

#include <cstddef>
#include <memory>
#include <span>
#include <system_error>
#include <utility>

namespace asyncverbs::proof {

class HandlerObserver {
public:
    virtual void on_handled(std::span<const ibv_wc> completions, const std::error_code& error) = 0;

protected:
    ~HandlerObserver() = default;
};

// A CompletionHandler on an AsyncCq, as a Router installs one. It reports each call to the
// observer: completions, the first error, or operation_canceled for a wake.
class RecordingHandler final : public detail::CompletionHandler {
public:
    RecordingHandler(HandlerObserver& observer, const AsyncCq& cq)
        : observer_(observer), state_(detail::AsyncCqAccess::state(cq)) {}

    static void install(const std::shared_ptr<RecordingHandler>& handler) {
        handler->state_->set_handler(handler);
    }
    void wake() noexcept { state_->wake(); }

    void on_completions(std::size_t count) override {
        observer_.on_handled(std::span(completions).first(count), {});
    }
    void on_wake() override {
        observer_.on_handled({}, std::make_error_code(std::errc::operation_canceled));
    }
    void on_empty() override {}
    void on_error(const std::system_error& cause) override {
        if (!std::exchange(failed_, true)) observer_.on_handled({}, cause.code());
    }

private:
    HandlerObserver& observer_;
    const std::shared_ptr<detail::CqState> state_;
    bool failed_ = false;
};

} // namespace asyncverbs::proof
