// SPDX-License-Identifier: MIT
// A function on its way to an executor. The node and the function are one allocation.
#pragma once

#include <concepts>
#include <memory>
#include <utility>

#include <asyncverbs/core/detail/ready_node.hpp>

namespace asyncverbs::detail {

template <class Function>
class PostedFunction : public ReadyNode {
public:
    template <class F>
        requires std::constructible_from<Function, F>
    explicit PostedFunction(F&& function)
        : ReadyNode(&call, &drop), function_(std::forward<F>(function)) {}

private:
    static void call(ReadyNode& node) {
        const std::unique_ptr<PostedFunction> self(static_cast<PostedFunction*>(&node));
        self->function_();
    }
    static void drop(ReadyNode& node) { delete static_cast<PostedFunction*>(&node); }

    Function function_;
};

} // namespace asyncverbs::detail
