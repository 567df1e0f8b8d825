// SPDX-License-Identifier: MIT
// A piece of work in an executor's queues: a coroutine to resume or a function to call. The node
// is embedded in the awaiter or allocated with the function, so queueing never allocates.
#pragma once

#include <asyncverbs/core/detail/intrusive_list.hpp>

namespace asyncverbs::detail {

template <class Use>
struct ReadyNode : ListNode {
    using Action = void (*)(ReadyNode&);

    explicit ReadyNode(Action on_run, Action on_discard = nullptr) noexcept
        : run(on_run), discard(on_discard) {}

    Action run;
    Action discard; // destroys a node that its queue owns; null: the awaiter owns it
    ReadyNode* next_posted = nullptr;
};

} // namespace asyncverbs::detail
