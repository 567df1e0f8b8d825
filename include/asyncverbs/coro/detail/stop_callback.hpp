// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <stop_token>

namespace asyncverbs::detail {

// Calls `owner.on_stop()`, which is noexcept, once a stop is requested: on the thread that requests
// it, or inside set() if the stop came first. An empty callback costs nothing.
//
// reset() and the destructor wait for a call that runs on another thread, so on_stop() must not
// block. Owner may be incomplete where the callback is a member of it.
template <class Owner>
class StopCallback {
public:
    void set(const std::stop_token& token, Owner& owner) noexcept {
        if (token.stop_possible()) callback_.emplace(token, Call{&owner});
    }
    void reset() noexcept { callback_.reset(); }

private:
    struct Call {
        Owner* owner;
        void operator()() const noexcept { owner->on_stop(); }
    };
    std::optional<std::stop_callback<Call>> callback_;
};

} // namespace asyncverbs::detail
