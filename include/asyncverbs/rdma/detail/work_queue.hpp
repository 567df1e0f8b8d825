// SPDX-License-Identifier: MIT
#pragma once

#include <infiniband/verbs.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/rdma/completion.hpp>
#include <asyncverbs/rdma/detail/region_uses.hpp>
#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/rdma/operation.hpp>
#include <asyncverbs/rdma/send_request.hpp>
#include <asyncverbs/verbs/detail/memory_use.hpp>
#include <asyncverbs/verbs/detail/native.hpp>
#include <asyncverbs/verbs/error.hpp>
#include <asyncverbs/verbs/memory.hpp>

namespace asyncverbs::detail {

// The first failure on a queue pair. The flushes are consequences of it.
struct FlushCause {
    ibv_wc_status status = IBV_WC_SUCCESS;
    std::uint32_t vendor_error = 0;
};

// Waits until a work queue is idle, and then until `next` is; or `failure` is set.
struct IdleWaiter : CompletionWaiter {
    WorkQueue* next = nullptr;
    Failure failure;
};

struct WorkQueueOptions {
    ibv_qp* qp = nullptr;
    ibv_srq* srq = nullptr; // instead of `qp`: a shared receive queue
    bool sends = false;
    bool keeps_peers = false; // UD sends keep their address handles
    bool unordered = false;   // sends complete in any order
    std::uint32_t capacity = 0;
    std::uint32_t max_slices = 0;
    FlushCause* cause = nullptr;
    WorkQueue* sends_of_pair = nullptr; // of a receive queue
    // Of a send queue: the router of the pair's receives, if it is another one.
    RouterState* receive_router = nullptr;
    std::stop_token connection_ended = {}; // of the queue pair
};

// A send queue, a receive queue or a shared receive queue: slots for posted requests, allocated
// with the queue, and the operations that wait for room.
//
// A slot belongs to the device from the post to the completion, even if its operation is destroyed
// meanwhile: it keeps the memory of its request.
//
// A request is written to the chain, and the chain is handed to the device: by the call, or, while
// the router delivers a batch, at the end of that batch. On soft-RoCE, where a doorbell is a system
// call, 32 coroutines that write 64 bytes each pay 15 % less.
class WorkQueue : public ListNode {
public:
    WorkQueue(RouterState& router, const WorkQueueOptions& options);
    WorkQueue(const WorkQueue&) = delete;
    WorkQueue& operator=(const WorkQueue&) = delete;

    /// After the native queue is destroyed: the device uses no memory of it any more. The router
    /// resumes the waiters.
    ~WorkQueue() {
        router_.remove(wr_id_);
        fail_all(Failure::canceled("the queue was destroyed"));
        slots_.reset();
        more_memory_.reset();
        router_.on_queue_destroyed();
        router_.wake();
    }

    RouterState& router() const noexcept { return router_; }

    // --- operations ---

    /// Posts, or enqueues until there is room. Throws std::system_error (invalid_argument) for more
    /// slices than max_slices, or one that is too long; then nothing was posted.
    [[gnu::always_inline]] void submit(Operation& operation, const SendView& request) {
        check(request.slices);
        if (start(operation)) [[likely]] {
            post(operation, request);
        } else {
            const SendView copy = request; // so `request` stays in registers
            enqueue(operation, copy);
        }
    }
    [[gnu::always_inline]] void submit(Operation& operation, Slices receive) {
        check(receive);
        if (start(operation)) [[likely]] {
            post_receive(operation, receive);
        } else {
            enqueue(operation, SendView({IBV_WR_SEND, IBV_WC_RECV, {}}, receive));
        }
    }

    /// Posts several with one doorbell, as far as there is room. Throws as submit(), or
    /// std::bad_alloc; then none of them was posted, and the operations are as before.
    void submit_chain(std::span<const SendRequest> requests, std::span<Operation> operations);

    /// Hands the chain, which is not empty, to the device. If that rejects a request, this ends the
    /// operations of all requests that the device has not got: none may overtake the one that was
    /// rejected. Returns the error, which they report, or 0.
    int post_chain() noexcept;

    /// Posts what was gathered. Before sends, also the receives of all queues of the router: the
    /// peer may answer at once.
    void flush() noexcept {
        if (sends_) router_.post_gathered_receives();
        unlink(); // from the router's list
        if (chain_length_ > 0) post_chain();
    }

    // --- completions ---

    /// Whether `wc`, whose wr_id names this queue, is of a request that the device has (I13). On an
    /// error the opcode is not valid (I11).
    bool posted(const ibv_wc& wc) const noexcept {
        const std::uint32_t index = WrId::slot(wc.wr_id);
        return index < capacity_ && slots_[index].state != SlotState::free &&
               (srq_ != nullptr || wc.qp_num == qp_num_) &&
               (wc.status != IBV_WC_SUCCESS || ((wc.opcode & IBV_WC_RECV) == 0) == sends_);
    }
    void complete(const ibv_wc& wc) noexcept;
    /// A request was flushed, so the queue pair is in the error state, in which a device completes
    /// everything. But soft-iWARP completes nothing that is posted then, so on iWARP this ends all
    /// operations of the queue, and those that follow. A flushed receive ends the sends, too.
    void on_flushed() noexcept {
        if (!on_iwarp()) return;
        flush_all();
        if (sends_of_pair_ != nullptr) sends_of_pair_->flush_all();
    }
    /// Ends all operations of the queue, and those that follow, as a device in the error state
    /// does.
    void flush_all() noexcept;
    /// drain() has moved the queue pair to ERR. On iWARP this ends the operations that have not
    /// been posted, and those that follow.
    void on_error_state() noexcept {
        if (on_iwarp()) flush_waiting();
    }
    void note_cause(const ibv_wc& failure) const noexcept {
        if (cause_ == nullptr || cause_->status != IBV_WC_SUCCESS) return;
        *cause_ = {failure.status, failure.vendor_err};
    }

    /// No completion will come: fails all pending operations. Slots stay as they are.
    void fail_all(const Failure& failure) noexcept;

    // --- draining ---

    bool idle() const noexcept { return (in_flight_ == 0 && waiting_.empty()) || abandoned_; }
    void wait_until_idle(IdleWaiter& waiter) noexcept { idle_waiters_.push_back(waiter); }

    /// For a queue pair in ERR, where everything completes, except that unsignaled requests may
    /// have succeeded before: posts a signaled request behind them, for which there is room, see
    /// must_signal(). Throws naming ibv_post_send. To be called after flush().
    void post_marker();

    /// Appends what has not completed. Throws std::bad_alloc.
    void list_in_flight(std::vector<RequestInFlight>& requests);

    /// Whether the device may use the memory of a request.
    bool in_flight() const noexcept { return in_flight_ > 0; }

private:
    enum class SlotState : std::uint8_t { free, posted, reported }; // by list_in_flight()

    struct Slot {
        Operation* operation = nullptr; // null: it was destroyed, or the slot is free
        MemoryHold memory;              // of its first slice
        std::uint32_t more_slices = 0;  // which have a place in more_memory_
        std::uint32_t next_free = 0;    // of a free slot, if not in_order_
        ibv_wc_opcode opcode = IBV_WC_RECV;
        SlotState state = SlotState::free;
        bool signaled = true;
    };
    static_assert(sizeof(Slot) <= 32);

    // Of what is gathered. Longer chains gain little: a doorbell is then a small part of the cost.
    static constexpr std::uint32_t max_gathered = 32;

    std::uint32_t after(std::uint32_t index) const noexcept {
        return index + 1 == capacity_ ? 0 : index + 1;
    }
    std::uint32_t before(std::uint32_t index) const noexcept {
        return (index == 0 ? capacity_ : index) - 1;
    }
    bool has_room() const noexcept { return in_flight_ < limit_; }
    bool flushed() const noexcept { return limit_ == 0 && capacity_ > 0; }
    bool on_iwarp() const noexcept { return qp_ != nullptr && is_iwarp(*qp_->context); }

    // --- posting ---
    //
    // The path of a request that is posted at once is inlined into the call, where the kind of
    // request is known; rare paths are not inlined. Measured: without that, an operation costs a
    // third more.

    // Throws if the slices cannot be posted. Afterwards use_of() does not throw for them.
    void check(Slices slices) {
        bool fits = slices.size() <= max_slices_;
        for (const Slice& slice : slices) fits &= slice.length <= UINT32_MAX;
        if (!fits) [[unlikely]]
            throw_bad_slices(slices);
        for (const Slice& slice : slices) (void)use_of(slice);
    }

    // What counts the requests that use the slice; null if nothing does. Throws std::bad_alloc.
    MemoryUse* use_of(const Slice& slice) {
        if (slice.keeper == nullptr) return nullptr;
        if (last_use_->is_of(*slice.keeper)) [[likely]]
            return last_use_;
        return find_use(*slice.keeper);
    }
    [[gnu::noinline]] MemoryUse* find_use(MemoryKeeper& keeper) {
        if (MemoryUse* const use = keeper.use()) return use;
        last_use_ = &router_.regions().find_or_add(static_cast<RegionState&>(keeper));
        return last_use_;
    }

    [[noreturn]] void throw_bad_slices(Slices slices) const {
        if (capacity_ == 0) {
            throw_error(std::errc::invalid_argument, "a queue that was made for no work requests");
        }
        for (const Slice& slice : slices) (void)slice.sge(); // throws if it is too long
        throw_error(std::errc::invalid_argument, std::to_string(slices.size()) +
                                                     " slices in one work request of a queue for " +
                                                     std::to_string(max_slices_));
    }

    // False: there is no room, or it has to fail; see enqueue().
    bool start(Operation& operation) noexcept {
        if (router_.failure() || !has_room()) [[unlikely]]
            return false;
        operation.router_ = &router_;
        return true;
    }

    [[gnu::noinline]] void enqueue(Operation& operation, const SendView& request) {
        if (capacity_ == 0) throw_bad_slices({});
        operation.failure_ = router_.failure();
        if (operation.failure_) return;
        if (flushed()) return end_as_flushed(operation, request.work.completes_as);
        defer(operation, request);
        enqueue_deferred(operation);
    }

    void defer(Operation& operation, const SendView& request) {
        const auto use = [this](const Slice& slice) { return use_of(slice); };
        operation.deferred_ = std::make_unique<DeferredRequest>(request, use);
    }

    void enqueue_deferred(Operation& operation) noexcept {
        operation.router_ = &router_;
        waiting_.push_back(operation);
    }

    void reserve_chain(std::size_t requests) {
        if (requests <= chain_capacity_) return;
        auto sges = std::make_unique<ibv_sge[]>(requests * max_slices_);
        if (sends_) {
            send_chain_ = std::make_unique<ibv_send_wr[]>(requests);
        } else {
            receive_chain_ = std::make_unique<ibv_recv_wr[]>(requests);
        }
        for (std::size_t i = 0; i < requests; ++i) {
            ibv_sge*& list = sends_ ? send_chain_[i].sg_list : receive_chain_[i].sg_list;
            list = sges.get() + i * max_slices_;
        }
        chain_sges_ = std::move(sges);
        chain_capacity_ = static_cast<std::uint32_t>(requests);
    }

    [[gnu::always_inline]] void post(Operation& operation, const SendView& request) noexcept {
        append(&operation, request);
        post_or_gather(is_urgent(request.work));
        note_binding(operation, request.work);
    }
    [[gnu::always_inline]] void post_receive(Operation& operation, Slices slices) noexcept {
        append_receive(operation, slices);
        post_or_gather(false);
    }

    // To the chain, which has room: it never stays full.
    [[gnu::always_inline]] void append(Operation* operation, const SendView& request) noexcept {
        ibv_send_wr& wr = send_chain_[chain_length_];
        const std::uint32_t index = acquire_slot(operation, request);
        write(wr, request, index);
        if (chain_length_ > 0) send_chain_[chain_length_ - 1].next = &wr;
        ++chain_length_;
    }

    [[gnu::always_inline]] void append_receive(Operation& operation, Slices slices) noexcept {
        const std::uint32_t index = first_free_;
        first_free_ = slots_[index].next_free;
        fill_slot(index, &operation, IBV_WC_RECV, slices);
        ibv_recv_wr& wr = receive_chain_[chain_length_];
        wr.wr_id = wr_id_ | index;
        wr.next = nullptr;
        wr.num_sge = static_cast<int>(slices.size());
        write(wr.sg_list, slices);
        if (chain_length_ > 0) receive_chain_[chain_length_ - 1].next = &wr;
        ++chain_length_;
    }

    // The device reads inline data, and the last key of a memory window, while it is posted.
    static bool is_urgent(const SendWork& work) noexcept {
        return work.options.at_once || work.options.inline_data || work.window != nullptr;
    }

    // The next bind of the window names the key of this one, which has been posted.
    static void note_binding(const Operation& operation, const SendWork& work) noexcept {
        if (work.window != nullptr && !operation.failure_) work.window->rkey = work.remote.rkey;
    }

    [[gnu::always_inline]] void post_or_gather(bool urgent) noexcept {
        if (!router_.delivering()) {
            post_chain();
        } else if (urgent || chain_length_ == chain_capacity_) {
            flush();
        } else if (!linked()) {
            router_.gather(*this, sends_);
        }
    }

    void post_deferred() noexcept {
        while (!waiting_.empty() && has_room()) {
            Operation& operation = waiting_.take_front();
            const std::unique_ptr<DeferredRequest> deferred = std::move(operation.deferred_);
            if (deferred->is_receive()) {
                post_receive(operation, deferred->view().slices);
            } else {
                post(operation, deferred->view());
            }
        }
    }

    // --- slots ---

    [[gnu::always_inline]] std::uint32_t acquire_slot(Operation* operation,
                                                      const SendView& request) noexcept {
        const std::uint32_t index = in_order_ ? next_ : first_free_;
        if (in_order_) [[likely]] {
            next_ = after(index);
        } else {
            first_free_ = slots_[index].next_free;
        }
        fill_slot(index, operation, request.work.completes_as, request.slices);
        if (keeps_peers_ && request.work.peer != nullptr) {
            peers_[index] = *request.work.peer;
        }
        return index;
    }

    [[gnu::always_inline]] void fill_slot(std::uint32_t index, Operation* operation,
                                          ibv_wc_opcode opcode, Slices slices) noexcept {
        Slot& slot = slots_[index];
        slot.operation = operation;
        slot.opcode = opcode;
        slot.state = SlotState::posted;
        ++in_flight_;
        if (operation != nullptr) operation->slot_operation_ = &slot.operation;
        if (slices.empty()) return;
        // It holds nothing: constructing in place costs less than an assignment.
        std::construct_at(&slot.memory, use_of(slices.front()));
        if (slices.size() > 1) [[unlikely]]
            hold_more(slot, index, slices.subspan(1));
    }

    [[gnu::noinline]] void hold_more(Slot& slot, std::uint32_t index, Slices slices) noexcept {
        slot.more_slices = static_cast<std::uint32_t>(slices.size());
        MemoryHold* memory = &more_memory_[std::size_t{index} * (max_slices_ - 1)];
        for (const Slice& slice : slices) *memory++ = MemoryHold(use_of(slice));
    }
    [[gnu::noinline]] void release_more(Slot& slot, std::uint32_t index) noexcept {
        MemoryHold* memory = &more_memory_[std::size_t{index} * (max_slices_ - 1)];
        for (; slot.more_slices > 0; --slot.more_slices) (memory++)->reset();
    }

    // The device has finished with the slot, or never got it.
    [[gnu::always_inline]] void release_slot(std::uint32_t index) noexcept {
        Slot& slot = slots_[index];
        slot.state = SlotState::free;
        slot.memory.reset();
        if (slot.more_slices > 0) [[unlikely]]
            release_more(slot, index);
        if (keeps_peers_) peers_[index].reset();
        --in_flight_;
    }

    // Takes back the slot that was acquired last: the device has not got its request.
    void return_slot(std::uint32_t index) noexcept {
        if (in_order_) {
            next_ = index;
        } else {
            slots_[index].next_free = std::exchange(first_free_, index);
        }
        slots_[index].operation = nullptr;
        release_slot(index);
    }

    // The slots of unsignaled requests are free after the next signaled completion. So an
    // unsignaled request never takes the last free slot, and at most half of the queue is
    // unsignaled in sequence. Every request is signaled where requests complete in any order, and
    // on iWARP: soft-iWARP completes no unsignaled one, even if it is flushed.
    bool must_signal(SendOptions options) noexcept {
        const std::uint32_t half = capacity_ > 1 ? capacity_ / 2 : 1;
        const bool signal =
            options.signaled || !has_room() || unsignaled_ + 1 >= half || !in_order_ || on_iwarp();
        unsignaled_ = signal ? 0 : unsignaled_ + 1;
        return signal;
    }

    std::uint32_t count_unsignaled() const noexcept {
        std::uint32_t count = 0;
        std::uint32_t index = before(next_);
        for (; count < in_flight_ && !slots_[index].signaled; index = before(index)) ++count;
        return count;
    }

    static void write(ibv_sge* sges, Slices slices) noexcept {
        for (const Slice& slice : slices) {
            sges->addr = reinterpret_cast<std::uintptr_t>(slice.address);
            sges->length = static_cast<std::uint32_t>(slice.length);
            sges->lkey = slice.lkey;
            ++sges;
        }
    }

    [[gnu::always_inline]] void write(ibv_send_wr& wr, const SendView& request,
                                      std::uint32_t index) noexcept {
        write(wr.sg_list, request.slices);
        const SendWork& work = request.work;
        const SendOptions& options = work.options;
        slots_[index].signaled = must_signal(options);
        wr.wr_id = wr_id_ | index;
        wr.next = nullptr;
        wr.num_sge = static_cast<int>(request.slices.size());
        wr.opcode = work.opcode;
        const auto flag = [](bool set, unsigned bit) { return set ? bit : 0u; };
        wr.send_flags = flag(slots_[index].signaled, IBV_SEND_SIGNALED) |
                        flag(options.solicited, IBV_SEND_SOLICITED) |
                        flag(options.fence, IBV_SEND_FENCE) |
                        flag(options.inline_data, IBV_SEND_INLINE);
        wr.imm_data = work.imm;
        wr.qp_type.xrc.remote_srqn = work.peer_queue; // ignored by other types
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
        case IBV_WC_BIND_MW:
            wr.bind_mw.mw = work.window;
            wr.bind_mw.rkey = work.remote.rkey;
            wr.bind_mw.bind_info = {work.region, work.remote.address, work.remote.length,
                                    work.access};
            break;
        default:
            wr.wr.ud.ah = work.peer != nullptr ? work.peer->get() : nullptr;
            wr.wr.ud.remote_qpn = work.peer_queue;
            wr.wr.ud.remote_qkey = work.peer_qkey;
        }
    }

    // --- completing ---

    // For an operation that has no slot, or has none any more.
    void reject(Operation& operation, const char* verb, int error) noexcept {
        operation.failure_ = Failure(std::error_code(error, std::system_category()), verb);
        finish(operation);
    }

    // Completes it as a device in the error state does.
    void end_as_flushed(Operation& operation, ibv_wc_opcode opcode) noexcept {
        ibv_wc wc{};
        wc.status = IBV_WC_WR_FLUSH_ERR;
        wc.qp_num = qp_num_;
        operation.completion_.emplace(failed_completion(wc, opcode));
        finish(operation);
    }
    void flush_waiting() noexcept;

    int reject_chain(std::uint64_t wr_id, const char* verb, int result) noexcept;
    void resume_idle_waiters() noexcept;

    [[gnu::always_inline]] void complete_slot(std::uint32_t index, const ibv_wc& wc) noexcept {
        Slot& slot = slots_[index];
        if (Operation* const operation = std::exchange(slot.operation, nullptr)) {
            if (wc.status == IBV_WC_SUCCESS) [[likely]] {
                operation->completion_.emplace(wc);
            } else {
                operation->completion_.emplace(failed_completion(wc, slot.opcode));
            }
            finish(*operation);
        }
        release_slot(index);
    }

    // Unsignaled requests that were posted before `index` succeeded.
    [[gnu::noinline]] void complete_unsignaled(std::uint32_t index, std::uint32_t qp_num) noexcept {
        while (oldest_ != index) {
            ibv_wc silent{};
            silent.wr_id = wr_id_ | oldest_;
            silent.qp_num = qp_num;
            silent.opcode = slots_[oldest_].opcode;
            complete_slot(oldest_, silent);
            oldest_ = after(oldest_);
        }
    }

    Completion failed_completion(const ibv_wc& wc, ibv_wc_opcode opcode) const noexcept {
        ibv_wc valid{}; // I11
        valid.wr_id = wc.wr_id;
        valid.status = wc.status;
        valid.qp_num = wc.qp_num;
        valid.vendor_err = wc.vendor_err;
        valid.opcode = opcode;
        const bool flushed = wc.status == IBV_WC_WR_FLUSH_ERR;
        if (!flushed || cause_ == nullptr || cause_->status == IBV_WC_SUCCESS)
            return Completion(valid);
        return Completion(valid, cause_->status, cause_->vendor_error);
    }

    void finish(Operation& operation) noexcept {
        operation.router_ = nullptr;
        operation.slot_operation_ = nullptr;
        if (operation.waiter_ != nullptr) router_.make_ready(*operation.waiter_);
    }

    RouterState& router_;
    ibv_qp* const qp_;
    ibv_srq* const srq_;
    const std::uint32_t qp_num_; // of qp_
    const bool sends_;
    const bool in_order_; // completes in the order of the posts
    const bool keeps_peers_;
    const std::uint32_t capacity_;
    const std::uint32_t max_slices_;
    FlushCause* const cause_;
    WorkQueue* const sends_of_pair_; // of a receive queue
    RouterState* const receive_router_;
    std::uint64_t wr_id_ = 0; // of slot 0

    std::unique_ptr<Slot[]> slots_;
    std::unique_ptr<MemoryHold[]> more_memory_;        // of the slots' other slices
    std::unique_ptr<std::shared_ptr<ibv_ah>[]> peers_; // of the slots, if keeps_peers_
    std::unique_ptr<std::chrono::steady_clock::time_point[]> reported_; // of the slots, when first
    RegionUse* last_use_;                                               // that a slice needed
    std::uint32_t first_free_ = 0; // the first of the list of free slots, if not in_order_
    std::uint32_t next_ = 0;       // in_order_: a ring, the next slot to use
    std::uint32_t oldest_ = 0;     // in_order_: the slot in flight that was posted first
    std::uint32_t in_flight_ = 0;
    std::uint32_t limit_;          // of in_flight_: the capacity, or 0 after flush_waiting()
    std::uint32_t unsignaled_ = 0; // requests since the last signaled one
    bool abandoned_ = false;       // by the device: it may never complete what is in flight

    std::unique_ptr<ConnectionEnd> connection_end_; // on iWARP
    IntrusiveList<Operation> waiting_;              // for room, in order; none while there is room
    IntrusiveList<IdleWaiter> idle_waiters_;

    std::unique_ptr<ibv_send_wr[]> send_chain_; // of a send queue
    std::unique_ptr<ibv_recv_wr[]> receive_chain_;
    std::unique_ptr<ibv_sge[]> chain_sges_; // the sg_list of each
    std::uint32_t chain_capacity_ = 0;
    std::uint32_t chain_length_ = 0; // of what has slots, but is not with the device yet
};

inline WorkQueue::WorkQueue(RouterState& router, const WorkQueueOptions& options)
    : router_(router), qp_(options.qp), srq_(options.srq),
      qp_num_(options.qp != nullptr ? options.qp->qp_num : 0), sends_(options.sends),
      in_order_(sends_ && !options.unordered), keeps_peers_(options.keeps_peers),
      capacity_(options.capacity), max_slices_(options.max_slices), cause_(options.cause),
      sends_of_pair_(options.sends_of_pair), receive_router_(options.receive_router),
      last_use_(&router.regions().first()), limit_(capacity_) {
    if (capacity_ >= WrId::slot_mask) {
        throw_error(std::errc::invalid_argument,
                    "a work queue of " + std::to_string(capacity_) +
                        " work requests is too long: " + std::to_string(WrId::slot_mask - 1) +
                        " is the most");
    }
    slots_ = std::make_unique<Slot[]>(capacity_);
    if (max_slices_ > 1) {
        more_memory_ = std::make_unique<MemoryHold[]>(std::size_t{capacity_} * (max_slices_ - 1));
    }
    if (keeps_peers_) peers_ = std::make_unique<std::shared_ptr<ibv_ah>[]>(capacity_);
    reserve_chain(capacity_ < max_gathered ? capacity_ : max_gathered);
    for (std::uint32_t i = 0; i < capacity_; ++i) slots_[i].next_free = i + 1;
    if (options.connection_ended.stop_possible()) {
        connection_end_ = std::make_unique<ConnectionEnd>(*this, router_, options.connection_ended);
    }
    wr_id_ = router_.add(*this);
}

inline void WorkQueue::submit_chain(std::span<const SendRequest> requests,
                                    std::span<Operation> operations) {
    for (const SendRequest& request : requests) check(request.view().slices);
    if (capacity_ == 0 && !requests.empty()) throw_bad_slices({});
    if (router_.failure()) {
        for (Operation& operation : operations) operation.failure_ = router_.failure();
        return;
    }
    if (flushed()) {
        for (std::size_t i = 0; i < operations.size(); ++i) {
            end_as_flushed(operations[i], requests[i].view().work.completes_as);
        }
        return;
    }
    if (requests.size() > chain_capacity_ - chain_length_) flush(); // may make room
    const std::size_t room = capacity_ - in_flight_;
    const std::size_t count = requests.size() < room ? requests.size() : room;
    const std::span<Operation> deferred = operations.subspan(count);
    // All that needs memory comes first: if there is none, nothing was posted.
    reserve_chain(count);
    try {
        for (std::size_t i = 0; i < deferred.size(); ++i) {
            defer(deferred[i], requests[count + i].view());
        }
    } catch (...) {
        for (Operation& operation : deferred) operation.deferred_.reset();
        throw;
    }
    bool urgent = false;
    for (std::size_t i = 0; i < count; ++i) {
        const SendView request = requests[i].view();
        operations[i].router_ = &router_;
        append(&operations[i], request);
        urgent |= is_urgent(request.work);
    }
    for (Operation& operation : deferred) enqueue_deferred(operation);
    if (count > 0) post_or_gather(urgent);
    for (std::size_t i = 0; i < count; ++i) note_binding(operations[i], requests[i].view().work);
}

[[gnu::noinline]] inline int WorkQueue::post_chain() noexcept {
    const auto post = [this](auto verb, const char* name, auto* queue, auto* first) {
        auto* bad = decltype(first){};
        errno = 0;
        const int result = verb(queue, first, &bad);
        if (result == 0) [[likely]]
            return 0;
        if (bad == nullptr) bad = first;
        return reject_chain(bad->wr_id, failed_post(name, queue, bad), result);
    };
    int error = 0;
    if (sends_) {
        if (receive_router_ != nullptr) receive_router_->post_gathered_receives();
        error = post(ibv_post_send, "ibv_post_send", qp_, send_chain_.get());
    } else if (srq_ == nullptr) {
        error = post(ibv_post_recv, "ibv_post_recv", qp_, receive_chain_.get());
    } else {
        error = post(ibv_post_srq_recv, "ibv_post_srq_recv", srq_, receive_chain_.get());
    }
    chain_length_ = 0;
    return error;
}

// The device has got the requests of the chain before the one with `wr_id`. Returns the error.
[[gnu::noinline]] inline int WorkQueue::reject_chain(std::uint64_t wr_id, const char* verb,
                                                     int result) noexcept {
    const int error = verb_errno(result);
    const auto slot = [&](std::uint32_t i) {
        return WrId::slot(sends_ ? send_chain_[i].wr_id : receive_chain_[i].wr_id);
    };
    std::uint32_t first = 0;
    while (slot(first) != WrId::slot(wr_id)) ++first;
    for (std::uint32_t i = first; i < chain_length_; ++i) {
        if (Operation* const operation = slots_[slot(i)].operation) reject(*operation, verb, error);
    }
    for (std::uint32_t i = chain_length_; i-- > first;) return_slot(slot(i));
    if (sends_) unsignaled_ = count_unsignaled();
    while (!waiting_.empty()) {
        Operation& operation = waiting_.take_front();
        operation.deferred_.reset();
        reject(operation, verb, error);
    }
    resume_idle_waiters();
    return error;
}

inline void WorkQueue::post_marker() {
    if (flushed() || count_unsignaled() == 0) return;
    append(nullptr, SendView::send({}));
    if (const int error = post_chain()) throw_verb_error("ibv_post_send", error);
}

inline void WorkQueue::complete(const ibv_wc& wc) noexcept {
    const std::uint32_t index = WrId::slot(wc.wr_id);
    if (in_order_) {
        if (oldest_ != index) [[unlikely]]
            complete_unsignaled(index, wc.qp_num);
        oldest_ = after(oldest_);
    } else {
        slots_[index].next_free = std::exchange(first_free_, index);
    }
    complete_slot(index, wc);
    if (!waiting_.empty()) [[unlikely]]
        post_deferred();
    if (!idle_waiters_.empty()) [[unlikely]]
        resume_idle_waiters();
}

inline void WorkQueue::resume_idle_waiters() noexcept {
    while (!idle_waiters_.empty() && idle()) {
        IdleWaiter& waiter = idle_waiters_.take_front();
        WorkQueue* const next = std::exchange(waiter.next, nullptr);
        if (next != nullptr && !next->idle()) {
            next->wait_until_idle(waiter);
        } else {
            router_.make_ready(waiter);
        }
    }
}

// What the device completes none the less finds its slot without an operation.
inline void WorkQueue::flush_all() noexcept {
    if (std::exchange(abandoned_, true)) return; // each flushed completion calls it
    for (Slot& slot : std::span(slots_.get(), capacity_)) {
        if (slot.operation != nullptr) {
            end_as_flushed(*std::exchange(slot.operation, nullptr), slot.opcode);
        }
    }
    flush_waiting();
    resume_idle_waiters();
}

inline void WorkQueue::flush_waiting() noexcept {
    limit_ = 0;
    while (!waiting_.empty()) {
        Operation& operation = waiting_.take_front();
        const std::unique_ptr<DeferredRequest> deferred = std::move(operation.deferred_);
        end_as_flushed(operation, deferred->view().work.completes_as);
    }
}

inline void WorkQueue::fail_all(const Failure& failure) noexcept {
    const auto fail = [&](Operation& operation) {
        operation.failure_ = failure;
        finish(operation);
    };
    for (Slot& slot : std::span(slots_.get(), capacity_)) {
        if (slot.operation != nullptr) fail(*std::exchange(slot.operation, nullptr));
    }
    while (!waiting_.empty()) {
        Operation& operation = waiting_.take_front();
        operation.deferred_.reset();
        fail(operation);
    }
    while (!idle_waiters_.empty()) {
        IdleWaiter& waiter = idle_waiters_.take_front();
        waiter.failure = failure;
        router_.make_ready(waiter);
    }
}

inline void WorkQueue::list_in_flight(std::vector<RequestInFlight>& requests) {
    using Clock = std::chrono::steady_clock;
    if (in_flight_ > 0 && !reported_) {
        reported_ = std::make_unique<Clock::time_point[]>(capacity_);
    }
    const Clock::time_point now = Clock::now();
    for (std::uint32_t i = 0, index = oldest_; i < capacity_; ++i, index = after(index)) {
        Slot& slot = slots_[index];
        if (slot.state == SlotState::free) continue;
        if (slot.state == SlotState::posted) reported_[index] = now;
        requests.push_back({qp_num_, slot.opcode, true, now - reported_[index]});
        slot.state = SlotState::reported;
    }
    waiting_.for_each([&](const Operation& operation) {
        requests.push_back({qp_num_, operation.deferred_->view().work.completes_as});
    });
}

// --- the router's part ---

[[gnu::always_inline]] inline WorkQueue* RouterState::find(const ibv_wc& wc) const noexcept {
    const std::uint32_t index = WrId::route(wc.wr_id);
    if (index >= routes_.size()) return nullptr;
    const Route& route = routes_[index];
    if (route.queue == nullptr || route.tag != WrId::tag(wc.wr_id)) return nullptr;
    return route.queue->posted(wc) ? route.queue : nullptr;
}

inline void RouterState::dispatch(std::span<const ibv_wc> wcs) noexcept {
    for (const ibv_wc& wc : wcs) {
        if (wc.status != IBV_WC_SUCCESS) [[unlikely]]
            note_causes(wcs);
        if (WorkQueue* const queue = find(wc)) {
            queue->complete(wc);
            if (wc.status == IBV_WC_WR_FLUSH_ERR) [[unlikely]]
                queue->on_flushed();
        } else {
            ++ignored_;
        }
    }
}

// The two queues of a pair are flushed independently, so the cause of a flush may come after it in
// the batch.
inline void RouterState::note_causes(std::span<const ibv_wc> wcs) const noexcept {
    for (const ibv_wc& wc : wcs) {
        if (wc.status == IBV_WC_SUCCESS || wc.status == IBV_WC_WR_FLUSH_ERR) continue;
        if (const WorkQueue* const queue = find(wc)) queue->note_cause(wc);
    }
}

inline void RouterState::post_chains(IntrusiveList<ListNode>& queues) noexcept {
    while (!queues.empty()) static_cast<WorkQueue&>(queues.take_front()).post_chain();
}

inline std::vector<RequestInFlight> RouterState::in_flight() const {
    std::vector<RequestInFlight> requests;
    for (const Route& route : routes_) {
        if (route.queue != nullptr) route.queue->list_in_flight(requests);
    }
    return requests;
}

inline void RouterState::flush_ended() noexcept {
    while (!ended_.empty()) ended_.take_front().queue().flush_all();
}

inline void RouterState::fail_queues() noexcept {
    for (const Route& route : routes_) {
        if (route.queue != nullptr) route.queue->fail_all(failure_);
    }
}

} // namespace asyncverbs::detail
