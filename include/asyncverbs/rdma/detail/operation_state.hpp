// SPDX-License-Identifier: MIT
// An operation as its work queue sees it: waiting for room in the queue, posted, or done.
// The result is kept here and not in the queue's slot, which is free again as soon as the device
// has finished.
#pragma once

#include <cstdint>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/core/detail/intrusive_list.hpp>
#include <asyncverbs/rdma/completion.hpp>
#include <asyncverbs/rdma/detail/resumable.hpp>
#include <asyncverbs/rdma/send_request.hpp>
#include <asyncverbs/rdma/slices.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

namespace asyncverbs::detail {

template <class Use>
class WorkQueue;

// A request that could not be posted at once, with slices of its own. Allocates nothing for one
// slice.
template <class Use>
class DeferredRequest {
public:
    DeferredRequest(Used<std::optional<SendRequest>, Use> send, Slices slices)
        : send_(std::move(send)) {
        if (slices.size() == 1) {
            one_ = slices.front();
        } else {
            many_.assign(slices.begin(), slices.end());
        }
    }

    DeferredRequest(DeferredRequest&&) = default;
    DeferredRequest& operator=(DeferredRequest&&) = default;
    [[gnu::noinline]] ~DeferredRequest() = default; // few operations have one

    bool is_send() const noexcept { return send_.has_value(); }
    const SendRequest& send() const noexcept { return *send_; }
    Slices slices() const noexcept { return many_.empty() && one_ ? Slices(*one_) : Slices(many_); }

private:
    Used<std::optional<SendRequest>, Use> send_; // none: a receive
    Used<std::optional<Slice>, Use> one_;
    Used<std::vector<Slice>, Use> many_;
};

// The list that it is a node of is that of the operations that wait for room.
template <class Use>
class OperationState : public ListNode {
public:
    OperationState() noexcept = default;
    OperationState(OperationState&& other) noexcept;
    OperationState& operator=(OperationState&& other) noexcept {
        if (this == &other) return *this;
        this->~OperationState();
        std::construct_at(this, std::move(other));
        return *this;
    }
    ~OperationState();

    bool done() const noexcept { return completion || failure; }

    WorkQueue<Use>* queue = nullptr; // until it is done
    std::uint32_t slot = no_slot;
    Resumable* waiter = nullptr;
    Used<std::optional<Completion>, Use> completion;
    std::shared_ptr<const std::system_error> failure; // why there will be no completion
    std::optional<DeferredRequest<Use>> deferred;     // while it waits for room

    static constexpr std::uint32_t no_slot = ~std::uint32_t{0};
};

} // namespace asyncverbs::detail
