// SPDX-License-Identifier: MIT
// An operation as its work queue sees it: waiting for room in the queue, posted, or done.
// The result is kept here and not in the queue's slot, which is free again as soon as the device
// has finished.
#pragma once

#include <infiniband/verbs.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/rdma/completion.hpp>
#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/rdma/send_request.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

class WorkQueue;

// A request that could not be posted at once, with slices of its own. Allocates nothing for one
// slice.
class DeferredRequest {
public:
    DeferredRequest(std::optional<SendRequest> send, Slices slices) : send_(std::move(send)) {
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
    std::optional<SendRequest> send_; // none: a receive
    std::optional<Slice> one_;
    std::vector<Slice> many_;
};

// The list that it is a node of is that of the operations that wait for room.
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

    WorkQueue* queue = nullptr; // until it is done
    std::uint32_t slot = no_slot;
    Resumable* waiter = nullptr;
    std::optional<Completion> completion;
    std::shared_ptr<const std::system_error> failure; // why there will be no completion
    std::optional<DeferredRequest> deferred;          // while it waits for room

    static constexpr std::uint32_t no_slot = ~std::uint32_t{0};
};

// A send queue, a receive queue or a shared receive queue: what is posted to it, in slots that were
// allocated with it, and what waits for room in it.
// A slot belongs to the device from the post to the completion, whoever lost interest meanwhile: it
// keeps the memory regions of its request alive.

// The first failure on a queue pair, of which the flushes are the consequence.
struct FlushCause {
    ibv_wc_status status = IBV_WC_SUCCESS;
    std::uint32_t vendor_error = 0;
};

// Waits until a queue is idle, or `failure` says why it will not be.
struct IdleWaiter : Resumable {
    explicit IdleWaiter(Failure why) noexcept : failure(std::move(why)) {}
    Failure failure;
};

class WorkQueue {
public:
    struct SendQueue {
        ibv_qp* qp;
        bool to_many; // UD: each send keeps its address handle
    };
    struct ReceiveQueue {
        ibv_qp* qp;
    };

    /// The native queue has room for one more than `capacity`, for post_marker().
    WorkQueue(RouterState& router, SendQueue queue, std::uint32_t capacity,
              std::uint32_t max_slices, FlushCause& cause)
        : router_(router), qp_(queue.qp), sends_(true), capacity_(capacity),
          max_slices_(max_slices), cause_(&cause) {
        initialize(capacity + 1, max_slices + (queue.to_many ? 1 : 0));
    }
    WorkQueue(RouterState& router, ReceiveQueue queue, std::uint32_t capacity,
              std::uint32_t max_slices, FlushCause& cause)
        : router_(router), qp_(queue.qp), capacity_(capacity), max_slices_(max_slices),
          cause_(&cause) {
        initialize(capacity, max_slices);
    }
    WorkQueue(RouterState& router, ibv_srq* srq, std::uint32_t capacity, std::uint32_t max_slices)
        : router_(router), srq_(srq), capacity_(capacity), max_slices_(max_slices) {
        initialize(capacity, max_slices);
    }
    WorkQueue(const WorkQueue&) = delete;
    WorkQueue& operator=(const WorkQueue&) = delete;

    /// The device has let go of everything: the native queue is destroyed. The router resumes those
    /// who wait for what was under way.
    ~WorkQueue() {
        router_.remove(wr_id_);
        fail_all(router_.queue_failure());
        router_.wake();
    }

    RouterState& router() const noexcept { return router_; }
    FlushCause* cause() const noexcept { return cause_; }

    // --- operations ---

    /// Posts now, or as soon as there is room. Throws std::system_error (invalid_argument) for more
    /// slices than the queue was made for, or one too long; then nothing was posted.
    [[gnu::always_inline]] void submit(OperationState& operation, const SendWork& work,
                                       Slices slices) {
        check(slices);
        if (begin(operation)) [[likely]] {
            post(operation, work, slices);
        } else {
            defer(operation, SendWork(work), slices);
        }
    }
    [[gnu::always_inline]] void submit(OperationState& operation, Slices slices) {
        check(slices);
        if (begin(operation)) [[likely]] {
            post_receive(operation, slices);
        } else {
            defer(operation, slices);
        }
    }

    /// The same for several, with one doorbell for those that there is room for; `operation(i)` is
    /// that of the request i. Where the device refuses one, those behind it are not posted either.
    template <class At>
    void submit_chain(std::span<const SendRequest> requests, At operation);

    void move(OperationState& from, OperationState& to) noexcept {
        if (to.slot != OperationState::no_slot) slots_[to.slot].operation = &to;
        if (from.linked()) to.take_place_of(from);
    }
    void forget(OperationState& operation) noexcept {
        if (operation.slot != OperationState::no_slot) slots_[operation.slot].operation = nullptr;
    }

    // --- completions ---

    void complete(const ibv_wc& wc);

    /// No completion will come: whoever waits, waits no longer. Slots stay as they are.
    void fail_all(const Failure& failure) noexcept;

    // --- draining ---

    bool idle() const noexcept { return in_flight_ == 0 && waiting_.empty(); }
    void wait_until_idle(IdleWaiter& waiter) noexcept { idle_waiters_.push_back(waiter); }

    /// The queue pair is in ERR, where everything completes, but what was posted unsignaled may
    /// have succeeded before: sees to a completion behind it. Throws naming ibv_post_send.
    void post_marker();

private:
    struct Slot {
        OperationState* operation = nullptr; // null: nobody is interested, or it is free
        std::shared_ptr<ibv_mr> region;      // of its first slice
        ibv_wc_opcode opcode = IBV_WC_RECV;
        bool in_flight = false;
        bool signaled = true;
    };
    static_assert(sizeof(Slot) <= 48);

    void initialize(std::size_t slots, std::size_t kept_per_slot);
    std::uint32_t after(std::uint32_t index) const noexcept {
        return index + 1 == slot_count_ ? 0 : index + 1;
    }
    bool has_room() const noexcept { return in_flight_ < capacity_; }
    void check(Slices slices) const;
    [[noreturn]] void complain_of(Slices slices) const;
    bool begin(OperationState& operation) noexcept;
    void defer(OperationState& operation, SendWork work, Slices slices);
    void defer(OperationState& operation, Slices slices);
    void defer_as(OperationState& operation, std::optional<SendRequest> request, Slices slices);
    void post(OperationState& operation, const SendWork& work, Slices slices);
    void post_receive(OperationState& operation, Slices slices);
    void post_deferred();

    std::uint32_t take_to_send(OperationState* operation, const SendWork& work, Slices slices);
    std::uint32_t take_to_receive(OperationState& operation, Slices slices);
    void occupy(std::uint32_t index, OperationState* operation, ibv_wc_opcode opcode, Slices slices,
                const std::shared_ptr<ibv_ah>* peer = nullptr);
    void give_back(std::uint32_t index) noexcept;
    bool must_signal(const SendWork& work) noexcept;
    void write(ibv_send_wr& wr, const SendWork& work, ibv_sge* sges, Slices slices,
               std::uint32_t index) noexcept;
    static void write(ibv_sge* sges, Slices slices) noexcept;
    void refuse(OperationState& operation, const char* verb, int error);
    void take_back(OperationState& operation, const char* verb, int result);

    void settle(std::uint32_t index, const ibv_wc& wc) noexcept;
    void settle_unsignaled(std::uint32_t index, std::uint32_t qp_num) noexcept;
    Completion describe_failure(const ibv_wc& wc, ibv_wc_opcode opcode) const noexcept;
    void finish(OperationState& operation) noexcept {
        operation.queue = nullptr;
        operation.slot = OperationState::no_slot;
        if (operation.waiter != nullptr) router_.make_ready(*operation.waiter);
    }

    RouterState& router_;
    ibv_qp* const qp_ = nullptr;
    ibv_srq* const srq_ = nullptr;
    const bool sends_ = false;
    const std::uint32_t capacity_;
    const std::uint32_t max_slices_;
    FlushCause* const cause_ = nullptr;
    std::uint64_t wr_id_ = 0; // of slot 0

    std::vector<Slot> slots_;
    std::uint32_t slot_count_ = 0;                 // slots_.size() divides
    std::vector<std::shared_ptr<void>> more_kept_; // of the slots' other slices
    std::size_t more_per_slot_ = 0;
    std::vector<ibv_sge> sges_;       // of the request that is being posted
    std::vector<std::uint32_t> free_; // receives: slots that are free, the last one is next
    std::uint32_t next_ = 0;          // sends: a ring, where the next one goes
    std::uint32_t oldest_ = 0;        // sends: that was posted first of those in flight
    std::uint32_t in_flight_ = 0;
    std::uint32_t unsignaled_ = 0; // since the last that was signaled
    bool draining_ = false;

    IntrusiveList<OperationState> waiting_; // for room, in order
    IntrusiveList<IdleWaiter> idle_waiters_;
    std::vector<ibv_send_wr> chain_; // while one is posted
    std::vector<ibv_sge> chain_sges_;
};

inline void WorkQueue::initialize(std::size_t slots, std::size_t kept_per_slot) {
    if (slots > WrId::slot_mask) {
        throw_error(std::errc::invalid_argument,
                    "a work queue of " + std::to_string(slots) + " work requests is too long: " +
                        std::to_string(WrId::slot_mask) + " is the most");
    }
    slots_.resize(slots);
    slot_count_ = static_cast<std::uint32_t>(slots);
    more_per_slot_ = kept_per_slot > 0 ? kept_per_slot - 1 : 0;
    more_kept_.resize(slots * more_per_slot_);
    sges_.resize(max_slices_ > 0 ? max_slices_ : 1);
    if (!sends_) {
        for (std::size_t i = slots; i > 0; --i) free_.push_back(static_cast<std::uint32_t>(i - 1));
    }
    wr_id_ = router_.add(*this);
}

// --- posting ---
//
// What every operation does is inlined into the call that posts it, which knows what kind of
// request it is; what few do is kept out of it. That is a third of what an operation costs.

[[gnu::always_inline]] inline void WorkQueue::check(Slices slices) const {
    bool fits = slices.size() <= max_slices_;
    for (const Slice& slice : slices) fits &= slice.length <= UINT32_MAX;
    if (!fits) [[unlikely]]
        complain_of(slices);
}

[[noreturn]] inline void WorkQueue::complain_of(Slices slices) const {
    if (capacity_ == 0) {
        throw_error(std::errc::invalid_argument, "a queue that was made for no work requests");
    }
    for (const Slice& slice : slices) (void)slice.sge(); // throws if it is too long
    throw_error(std::errc::invalid_argument, std::to_string(slices.size()) +
                                                 " slices in one work request of a queue for " +
                                                 std::to_string(max_slices_));
}

// True: it is to be posted now.
[[gnu::always_inline]] inline bool WorkQueue::begin(OperationState& operation) noexcept {
    if (router_.failure()) [[unlikely]]
        return false;
    operation.queue = this;
    return waiting_.empty() && has_room();
}

[[gnu::noinline]] inline void WorkQueue::defer(OperationState& operation, SendWork work,
                                               Slices slices) {
    defer_as(operation, SendRequest(work, slices), slices);
}
[[gnu::noinline]] inline void WorkQueue::defer(OperationState& operation, Slices slices) {
    defer_as(operation, std::nullopt, slices);
}

inline void WorkQueue::defer_as(OperationState& operation, std::optional<SendRequest> request,
                                Slices slices) {
    try {
        if (capacity_ == 0) complain_of(slices);
        operation.failure = router_.failure();
        if (operation.failure) return;
        operation.deferred.emplace(std::move(request), slices);
    } catch (...) {
        operation.queue = nullptr;
        throw;
    }
    waiting_.push_back(operation);
}

[[gnu::always_inline]] inline std::uint32_t
WorkQueue::take_to_send(OperationState* operation, const SendWork& work, Slices slices) {
    const std::uint32_t index = next_;
    next_ = after(index);
    occupy(index, operation, work.completes_as, slices, work.peer);
    return index;
}

[[gnu::always_inline]] inline std::uint32_t WorkQueue::take_to_receive(OperationState& operation,
                                                                       Slices slices) {
    const std::uint32_t index = free_.back();
    free_.pop_back();
    occupy(index, &operation, IBV_WC_RECV, slices);
    return index;
}

[[gnu::always_inline]] inline void WorkQueue::occupy(std::uint32_t index, OperationState* operation,
                                                     ibv_wc_opcode opcode, Slices slices,
                                                     const std::shared_ptr<ibv_ah>* peer) {
    Slot& slot = slots_[index];
    slot.operation = operation;
    slot.opcode = opcode;
    slot.in_flight = true;
    // It is null, so a copy is made in its place: less than an assignment costs.
    if (!slices.empty()) std::construct_at(&slot.region, slices.front().region);
    if (more_per_slot_ > 0) {
        std::shared_ptr<void>* kept = &more_kept_[index * more_per_slot_];
        for (std::size_t i = 1; i < slices.size(); ++i) *kept++ = slices[i].region;
        if (peer != nullptr) *kept = *peer;
    }
    ++in_flight_;
}

// Of a request that was not posted, the last one that was taken.
[[gnu::noinline]] inline void WorkQueue::give_back(std::uint32_t index) noexcept {
    if (sends_) {
        next_ = index;
    } else {
        free_.push_back(index);
    }
    Slot& slot = slots_[index];
    slot.operation = nullptr;
    slot.in_flight = false;
    slot.region.reset();
    for (std::size_t i = 0; i < more_per_slot_; ++i) more_kept_[index * more_per_slot_ + i].reset();
    --in_flight_;
    unsignaled_ = capacity_; // unknown: the next one is signaled
}

// The last free slot is not given to a request that completes only with a later one, and the queue
// does not fill up with such.
inline bool WorkQueue::must_signal(const SendWork& work) noexcept {
    const bool signal = work.options.signaled || draining_ || in_flight_ >= capacity_ ||
                        unsignaled_ + 1 >= (capacity_ > 1 ? capacity_ / 2 : 1);
    unsignaled_ = signal ? 0 : unsignaled_ + 1;
    return signal;
}

inline void WorkQueue::write(ibv_sge* sges, Slices slices) noexcept {
    for (const Slice& slice : slices) {
        sges->addr = reinterpret_cast<std::uintptr_t>(slice.address);
        sges->length = static_cast<std::uint32_t>(slice.length);
        sges->lkey = slice.lkey;
        ++sges;
    }
}

[[gnu::always_inline]] inline void WorkQueue::write(ibv_send_wr& wr, const SendWork& work,
                                                    ibv_sge* sges, Slices slices,
                                                    std::uint32_t index) noexcept {
    write(sges, slices);
    const SendOptions& options = work.options;
    slots_[index].signaled = must_signal(work);
    wr.wr_id = wr_id_ | index;
    wr.next = nullptr;
    wr.sg_list = sges;
    wr.num_sge = static_cast<int>(slices.size());
    wr.opcode = work.opcode;
    const auto flag = [](bool set, unsigned bit) { return set ? bit : 0u; };
    wr.send_flags = flag(slots_[index].signaled, IBV_SEND_SIGNALED) |
                    flag(options.solicited, IBV_SEND_SOLICITED) |
                    flag(options.fence, IBV_SEND_FENCE) |
                    flag(options.inline_data, IBV_SEND_INLINE);
    wr.imm_data = work.imm;
    switch (work.completes_as) {
    case IBV_WC_RDMA_WRITE:
    case IBV_WC_RDMA_READ:
        wr.wr.rdma.remote_addr = work.remote.address;
        wr.wr.rdma.rkey = work.remote.rkey;
        break;
    case IBV_WC_COMP_SWAP:
    case IBV_WC_FETCH_ADD:
        wr.wr.atomic.remote_addr = work.remote.address;
        wr.wr.atomic.rkey = work.remote.rkey;
        wr.wr.atomic.compare_add = work.compare_add;
        wr.wr.atomic.swap = work.swap;
        break;
    default:
        wr.wr.ud.ah = work.peer != nullptr ? work.peer->get() : nullptr;
        wr.wr.ud.remote_qpn = work.peer_qp_num;
        wr.wr.ud.remote_qkey = work.peer_qkey;
    }
}

// The operation has no slot, or not any more.
inline void WorkQueue::refuse(OperationState& operation, const char* verb, int error) {
    operation.failure = std::make_shared<const std::system_error>(error == 0 ? EIO : error,
                                                                  std::system_category(), verb);
    finish(operation);
}

[[gnu::noinline]] inline void WorkQueue::take_back(OperationState& operation, const char* verb,
                                                   int result) {
    const int error = verb_errno(result);
    give_back(operation.slot);
    refuse(operation, verb, error);
}

[[gnu::always_inline]] inline void WorkQueue::post(OperationState& operation, const SendWork& work,
                                                   Slices slices) {
    const std::uint32_t index = take_to_send(&operation, work, slices);
    operation.slot = index;
    ibv_send_wr wr;
    write(wr, work, sges_.data(), slices, index);
    ibv_send_wr* bad = nullptr;
    errno = 0;
    if (const int result = ibv_post_send(qp_, &wr, &bad)) [[unlikely]]
        take_back(operation, "ibv_post_send", result);
}

[[gnu::always_inline]] inline void WorkQueue::post_receive(OperationState& operation,
                                                           Slices slices) {
    const std::uint32_t index = take_to_receive(operation, slices);
    operation.slot = index;
    write(sges_.data(), slices);
    ibv_recv_wr wr;
    wr.wr_id = wr_id_ | index;
    wr.next = nullptr;
    wr.sg_list = sges_.data();
    wr.num_sge = static_cast<int>(slices.size());
    ibv_recv_wr* bad = nullptr;
    errno = 0;
    const int result =
        srq_ != nullptr ? ibv_post_srq_recv(srq_, &wr, &bad) : ibv_post_recv(qp_, &wr, &bad);
    if (result != 0) [[unlikely]]
        take_back(operation, srq_ != nullptr ? "ibv_post_srq_recv" : "ibv_post_recv", result);
}

template <class At>
void WorkQueue::submit_chain(std::span<const SendRequest> requests, At operation) {
    std::size_t slices = 0;
    for (const SendRequest& request : requests) {
        check(request.slices()); // what is bad is found before the first is posted
        slices += request.slices().size();
    }
    chain_.resize(requests.size());
    chain_sges_.resize(slices);
    ibv_sge* sges = chain_sges_.data();
    std::size_t count = 0; // those that there is room for
    for (const SendRequest& request : requests) {
        OperationState& state = operation(static_cast<std::size_t>(&request - requests.data()));
        if (!begin(state)) {
            defer_as(state, request, request.slices());
            continue;
        }
        const SendWork work = request.work();
        state.slot = take_to_send(&state, work, request.slices());
        write(chain_[count], work, sges, request.slices(), state.slot);
        sges += request.slices().size();
        if (count > 0) chain_[count - 1].next = &chain_[count];
        ++count;
    }
    if (count == 0) return;
    ibv_send_wr* bad = nullptr;
    errno = 0;
    const int result = ibv_post_send(qp_, chain_.data(), &bad);
    if (result == 0) [[likely]]
        return;

    const int error = verb_errno(result);
    const std::size_t posted = bad == nullptr ? 0 : static_cast<std::size_t>(bad - chain_.data());
    for (std::size_t i = count; i-- > posted;) give_back(operation(i).slot);
    for (std::size_t i = posted; i < requests.size(); ++i) {
        OperationState& state = operation(i);
        state.unlink();
        state.deferred.reset();
        refuse(state, "ibv_post_send", error);
    }
}

inline void WorkQueue::post_deferred() {
    while (!waiting_.empty() && has_room()) {
        OperationState& operation = waiting_.take_front();
        const DeferredRequest request = std::move(*operation.deferred);
        operation.deferred.reset();
        if (request.is_send()) {
            post(operation, request.send().work(), request.slices());
        } else {
            post_receive(operation, request.slices());
        }
    }
}

inline void WorkQueue::post_marker() {
    draining_ = true;
    const std::uint32_t newest = next_ == 0 ? slot_count_ - 1 : next_ - 1;
    if (in_flight_ == 0 || slots_[newest].signaled) return;
    const SendWork work = SendWork::send({});
    const std::uint32_t index = take_to_send(nullptr, work, {});
    ibv_send_wr wr;
    write(wr, work, sges_.data(), {}, index);
    ibv_send_wr* bad = nullptr;
    errno = 0;
    if (const int result = ibv_post_send(qp_, &wr, &bad)) {
        const int error = verb_errno(result);
        give_back(index);
        throw_verb_error("ibv_post_send", error);
    }
}

// --- completing ---

inline Completion WorkQueue::describe_failure(const ibv_wc& wc,
                                              ibv_wc_opcode opcode) const noexcept {
    ibv_wc valid{}; // I11
    valid.wr_id = wc.wr_id;
    valid.status = wc.status;
    valid.qp_num = wc.qp_num;
    valid.vendor_err = wc.vendor_err;
    valid.opcode = opcode;
    const bool flushed = wc.status == IBV_WC_WR_FLUSH_ERR;
    if (!flushed || cause_ == nullptr || cause_->status == IBV_WC_SUCCESS) return Completion(valid);
    return Completion(valid, cause_->status, cause_->vendor_error);
}

[[gnu::always_inline]] inline void WorkQueue::settle(std::uint32_t index,
                                                     const ibv_wc& wc) noexcept {
    Slot& slot = slots_[index];
    if (OperationState* const operation = std::exchange(slot.operation, nullptr)) {
        if (wc.status == IBV_WC_SUCCESS) [[likely]] {
            operation->completion.emplace(wc);
        } else {
            operation->completion.emplace(describe_failure(wc, slot.opcode));
        }
        finish(*operation);
    }
    slot.in_flight = false;
    slot.region.reset();
    for (std::size_t i = 0; i < more_per_slot_; ++i) more_kept_[index * more_per_slot_ + i].reset();
    --in_flight_;
}

// A send queue completes in order: what was posted before `index`, unsignaled, has succeeded.
[[gnu::noinline]] inline void WorkQueue::settle_unsignaled(std::uint32_t index,
                                                           std::uint32_t qp_num) noexcept {
    while (oldest_ != index) {
        ibv_wc silent{};
        silent.wr_id = wr_id_ | oldest_;
        silent.qp_num = qp_num;
        silent.opcode = slots_[oldest_].opcode;
        settle(oldest_, silent);
        oldest_ = after(oldest_);
    }
}

inline void WorkQueue::complete(const ibv_wc& wc) {
    const std::uint32_t index = WrId::slot(wc.wr_id);
    if (index >= slot_count_ || !slots_[index].in_flight) return;
    if (sends_) {
        if (oldest_ != index) [[unlikely]]
            settle_unsignaled(index, wc.qp_num);
        oldest_ = after(oldest_);
    } else {
        free_.push_back(index);
    }
    settle(index, wc);
    if (!waiting_.empty()) [[unlikely]]
        post_deferred();
    while (!idle_waiters_.empty() && idle()) [[unlikely]] {
        router_.make_ready(idle_waiters_.take_front());
    }
}

inline void WorkQueue::fail_all(const Failure& failure) noexcept {
    const auto fail = [&](OperationState& operation) {
        operation.failure = failure;
        finish(operation);
    };
    for (Slot& slot : slots_) {
        if (slot.operation != nullptr) fail(*std::exchange(slot.operation, nullptr));
    }
    while (!waiting_.empty()) {
        OperationState& operation = waiting_.take_front();
        operation.deferred.reset();
        fail(operation);
    }
    while (!idle_waiters_.empty()) {
        IdleWaiter& waiter = idle_waiters_.take_front();
        waiter.failure = failure;
        router_.make_ready(waiter);
    }
}

// --- operations ---

inline OperationState::OperationState(OperationState&& other) noexcept
    : queue(std::exchange(other.queue, nullptr)), slot(std::exchange(other.slot, no_slot)),
      completion(other.completion), failure(std::move(other.failure)),
      deferred(std::move(other.deferred)) {
    if (queue != nullptr) queue->move(other, *this);
}

[[gnu::always_inline]] inline OperationState::~OperationState() {
    if (queue != nullptr) queue->forget(*this);
}

// How completions reach their work queues, and those who wait are resumed.

inline void RouterState::on_completions(std::size_t count) {
    dispatch(std::span(this->completions).first(count));
    resume_ready();
}

inline void RouterState::on_wake() {
    dismiss_stopped();
    resume_ready();
}

inline void RouterState::on_error(const std::system_error& cause) {
    if (!failure_) {
        failure_ = std::make_shared<std::system_error>(cause);
        for (const Route& route : routes_) {
            if (route.queue != nullptr) route.queue->fail_all(failure_);
        }
    }
    resume_ready();
}

// Settles all of a batch before anybody is resumed.
inline void RouterState::dispatch(std::span<const ibv_wc> wcs) {
    for (const ibv_wc& wc : wcs) {
        if (wc.status != IBV_WC_SUCCESS) [[unlikely]]
            note_causes(wcs);
        if (WorkQueue* const queue = find(wc.wr_id)) queue->complete(wc);
    }
}

// The cause of a flush may be behind it in the batch: the two queues of a pair are flushed each for
// itself.
inline void RouterState::note_causes(std::span<const ibv_wc> wcs) const noexcept {
    for (const ibv_wc& wc : wcs) {
        if (wc.status == IBV_WC_SUCCESS || wc.status == IBV_WC_WR_FLUSH_ERR) continue;
        const WorkQueue* const queue = find(wc.wr_id);
        if (queue == nullptr || queue->cause() == nullptr) continue;
        FlushCause& cause = *queue->cause();
        if (cause.status == IBV_WC_SUCCESS) cause = {wc.status, wc.vendor_err};
    }
}

inline void RouterState::dismiss_stopped() noexcept {
    IntrusiveList<Stoppable> stopped;
    stoppable_.move_if(stopped, [](const Stoppable& stoppable) {
        return stoppable.requested.load(std::memory_order_acquire);
    });
    while (!stopped.empty()) make_ready(stopped.take_front().waiter);
}

inline void RouterState::resume_ready() {
    struct Resuming {
        explicit Resuming(RouterState& s) noexcept : state(s) { state.resuming_ = true; }
        ~Resuming() {
            state.resuming_ = false;
            if (state.closed_) const auto last = std::move(state.alive_);
        }
        RouterState& state;
    };
    const Resuming resuming(*this);
    while (!ready_.empty() && !closed_) {
        ready_.take_front().coroutine.resume(); // may destroy queue pairs, and the router
    }
}

} // namespace asyncverbs::detail
