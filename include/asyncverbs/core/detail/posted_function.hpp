// SPDX-License-Identifier: MIT
// A function on its way to an executor. The node and the function are one allocation.
#pragma once

#include <concepts>
#include <utility>

#include <asyncverbs/core/detail/ready_node.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>

namespace asyncverbs::detail {

template <class Function, class Use>
class PostedFunction : public ReadyNode<Use> {
public:
    template <class F>
        requires std::constructible_from<Function, F>
    explicit PostedFunction(F&& function)
        : ReadyNode<Use>(&call, &drop), function_(std::forward<F>(function)) {}

private:
    static void call(ReadyNode<Use>& node) {
        const std::unique_ptr<PostedFunction> self(static_cast<PostedFunction*>(&node));
        self->function_();
    }
    static void drop(ReadyNode<Use>& node) { delete static_cast<PostedFunction*>(&node); }

    Function function_;
};

} // namespace asyncverbs::detail
