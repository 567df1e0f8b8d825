// SPDX-License-Identifier: MIT
// A suspended coroutine that the router is to resume: a node that lives in its awaiter.
#pragma once

#include <coroutine>

#include <asyncverbs/core/detail/intrusive_list.hpp>

namespace asyncverbs::detail {

struct Resumable : ListNode {
    std::coroutine_handle<> coroutine;
};

} // namespace asyncverbs::detail
