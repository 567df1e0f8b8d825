# Mutations of rdma/.

set(tests rdma/async_qp_test.cpp)

mutation(unsignaled-success-loses-its-opcode rdma/detail/work_queue.hpp
    [[        silent.opcode = slots_[oldest_].opcode;]]
    "")

mutation(unsignaled-success-loses-its-queue-pair rdma/detail/work_queue.hpp
    [[        silent.qp_num = qp_num;]]
    "")

mutation(unsignaled-success-is-not-delivered rdma/detail/work_queue.hpp
    [[            complete_unsignaled(index, wc.qp_num);]]
    [[            oldest_ = index;]])

mutation(last-free-slot-is-unsignaled rdma/detail/work_queue.hpp
    [[options.signaled || !has_room() ||]]
    [[options.signaled ||]])

mutation(whole-queue-may-be-unsignaled rdma/detail/work_queue.hpp
    [[capacity_ / 2 : 1]]
    [[capacity_ * 2 : 1]])

mutation(flushed-receive-leaves-lost-sends rdma/detail/work_queue.hpp
    [[        if (sends_of_pair_ != nullptr) sends_of_pair_->flush_all();]]
    "")

mutation(flushed-queue-posts-on rdma/detail/work_queue.hpp
    [[    limit_ = 0;]]
    "")

mutation(flushed-queue-defers-chains rdma/detail/work_queue.hpp
    [[    if (flushed()) {]]
    [[    if (false) {]])

mutation(flushed-queue-is-never-idle rdma/detail/work_queue.hpp
    [[waiting_.empty()) || abandoned_; }]]
    [[waiting_.empty()); }]])

mutation(last-failure-is-the-cause rdma/detail/work_queue.hpp
    [[        if (cause_ == nullptr || cause_->status != IBV_WC_SUCCESS) return;]]
    [[        if (cause_ == nullptr) return;]])

mutation(cause-behind-the-flush-is-missed rdma/detail/work_queue.hpp
    [[            note_causes(wcs);]]
    [[            note_causes({&wc, 1});]])

mutation(error-completion-is-read-whole rdma/detail/work_queue.hpp
    [[    valid.opcode = opcode;]]
    [[    valid.opcode = wc.opcode;]])

mutation(deferred-operations-in-reverse rdma/detail/work_queue.hpp
    [[            Operation& operation = waiting_.take_front();
            const std::unique_ptr<DeferredRequest> deferred = std::move(operation.deferred_);
            if]]
    [[        Operation* newest = nullptr;
        waiting_.for_each([&](Operation& each) { newest = &each; });
        Operation& operation = *newest;
        operation.unlink();
        const std::unique_ptr<DeferredRequest> deferred = std::move(operation.deferred_);
        if]])

mutation(deferred-slices-are-not-copied rdma/send_request.hpp
    [[        request_.several_ = std::span<const Slice>(copies_.get(), count);]]
    "")

mutation(deferred-operations-stay-behind rdma/detail/work_queue.hpp
    [=[    if (!waiting_.empty()) [[unlikely]]
        post_deferred();]=]
    "")

mutation(full-queue-takes-more rdma/detail/work_queue.hpp
    [[{ return in_flight_ < limit_; }]]
    [[{ return in_flight_ <= limit_; }]])

mutation(region-is-not-kept rdma/detail/work_queue.hpp
    [[        std::construct_at(&slot.memory, use_of(slices.front()));]]
    "")

mutation(only-the-first-region-is-kept rdma/detail/work_queue.hpp
    [[        for (const Slice& slice : slices) *memory++ = MemoryHold(use_of(slice));]]
    "")

mutation(peer-of-a-datagram-is-not-kept rdma/detail/work_queue.hpp
    [[            peers_[index] = *request.work.peer;]]
    "")

mutation(regions-are-never-released rdma/detail/work_queue.hpp
    [[        slot.memory.reset();]]
    "")

mutation(rejected-request-keeps-its-slot rdma/detail/work_queue.hpp
    [[i-- > first;) return_slot(slot(i));]]
    [[i-- > first;) static_cast<void>(i);]])

mutation(posted-part-of-a-chain-is-rejected rdma/detail/work_queue.hpp
    [[    for (std::uint32_t i = first; i < chain_length_; ++i) {]]
    [[    for (std::uint32_t i = 0; i < chain_length_; ++i) {]])

mutation(rest-of-a-rejected-chain-is-forgotten rdma/detail/work_queue.hpp
    [[    for (std::uint32_t i = first; i < chain_length_; ++i) {]]
    [[    for (std::uint32_t i = first; i < first + 1; ++i) {]])

mutation(long-chain-forgets-what-has-no-room rdma/detail/work_queue.hpp
    [[    for (Operation& operation : deferred) enqueue_deferred(operation);]]
    "")

mutation(chain-is-not-linked rdma/detail/work_queue.hpp
    [[        if (chain_length_ > 0) send_chain_[chain_length_ - 1].next = &wr;]]
    "")

mutation(moved-operation-misses-its-completion rdma/operation.hpp
    [[    if (slot_operation_ != nullptr) *slot_operation_ = this;]]
    "")

mutation(moved-operation-loses-its-place rdma/operation.hpp
    [[    if (other.linked()) take_place_of(other);]]
    "")

mutation(stop-does-not-wake-the-router rdma/detail/router_state.hpp
    [[        requested_.store(true, std::memory_order_release);
        cq_->wake();]]
    [[        requested_.store(true, std::memory_order_release);]])

mutation(completion-is-lost-to-a-stop rdma/operation.hpp
    [[        return operation_.result(error_); // a completion counts also after a stop (I7)]]
    [[        if (stop_.stop_requested()) operation_.completion_.reset();
        return operation_.result(error_);]])

mutation(drain-does-not-wait-for-receives rdma/detail/queue_pair_state.hpp
    [[        next = &state_.receives;]]
    "")

mutation(drain-misses-unsignaled-requests rdma/detail/queue_pair_state.hpp
    [[            state_.sends.post_marker();]]
    "")

mutation(drain-does-not-flush rdma/detail/queue_pair_state.hpp
    [[            state_.queue_pair.to_error();
            return true;]]
    [[            return true;]])

mutation(drain-on-iwarp-posts-what-never-completes rdma/detail/work_queue.hpp
    [[        if (on_iwarp()) flush_waiting();]]
    "")

mutation(unsignaled-requests-on-iwarp rdma/detail/work_queue.hpp
    [[ || on_iwarp();]]
    [[;]])

mutation(destroyed-queue-does-not-wake-its-waiters rdma/detail/work_queue.hpp
    [[        router_.wake();
    }]]
    [[    }]])

mutation(destroyed-queue-forgets-what-waits-for-room rdma/detail/work_queue.hpp
    [[        operation.deferred_.reset();
        fail(operation);]]
    [[        operation.deferred_.reset();]])

mutation(regions-are-released-before-the-queue-pair rdma/detail/queue_pair_state.hpp
    [[        QueuePair released(std::move(queue_pair));]]
    [[        QueuePair& released = queue_pair;]])

set(tests rdma/doorbell_test.cpp)

mutation(each-request-takes-a-doorbell rdma/detail/work_queue.hpp
    [[            router_.gather(*this, sends_);]]
    [[            flush();]])

mutation(inline-data-stays-gathered rdma/detail/work_queue.hpp
    [[work.options.inline_data || work.window]]
    [[work.window]])

mutation(request-is-not-posted-at-once rdma/detail/work_queue.hpp
    [[        return work.options.at_once || ]]
    [[        return ]])

mutation(urgent-chain-stays-gathered rdma/detail/work_queue.hpp
    [[        urgent |= is_urgent(request.work);]]
    "")

mutation(sends-are-posted-before-receives rdma/detail/router_state.hpp
    [[        if (!gathered_receives_.empty()) post_chains(gathered_receives_);
        if (!gathered_sends_.empty()) post_chains(gathered_sends_);]]
    [[        if (!gathered_sends_.empty()) post_chains(gathered_sends_);
        if (!gathered_receives_.empty()) post_chains(gathered_receives_);]])

mutation(urgent-send-overtakes-receives rdma/detail/work_queue.hpp
    [[        if (sends_) router_.post_gathered_receives();]]
    "")

mutation(exception-loses-what-was-gathered rdma/detail/router_state.hpp
    [[            state_.post_gathered();]]
    "")

mutation(rejected-requests-wait-for-the-next-batch rdma/detail/router_state.hpp
    [[    } while (!ready_.empty() && !closed_);]]
    [[    } while (false);]])

mutation(destroyed-queue-pair-posts-what-was-gathered rdma/detail/queue_pair_state.hpp
    [[        QueuePair released(std::move(queue_pair));]]
    [[        sends.flush(); QueuePair released(std::move(queue_pair));]])

mutation(rejection-forgets-what-waits-for-room rdma/detail/work_queue.hpp
    [[        operation.deferred_.reset();
        reject(operation, verb, error);]]
    [[        operation.deferred_.reset();]])

mutation(rejection-forgets-unsignaled-requests rdma/detail/work_queue.hpp
    [[    if (sends_) unsignaled_ = count_unsignaled();]]
    "")

mutation(drain-misses-a-rejection rdma/detail/work_queue.hpp
    [[    resume_idle_waiters();
    return error;]]
    [[    return error;]])

mutation(drain-leaves-what-was-gathered rdma/detail/queue_pair_state.hpp
    [[        state_.sends.flush();]]
    "")

mutation(queue-pair-is-used-before-its-posts rdma/async_qp.hpp
    [[        state_->sends.flush();]]
    "")

mutation(limit-ignores-gathered-receives rdma/async_srq.hpp
    [[        state_->receives.flush();]]
    "")

set(tests rdma/region_uses_test.cpp)

mutation(region-in-use-is-deregistered rdma/detail/region_uses.hpp
    [[        if (idle()) {]]
    [[        if (abandoned()) {]])

mutation(last-request-does-not-release-its-region verbs/detail/memory_use.hpp
    [=[        if (left == 0 && abandoned()) [[unlikely]]
            release(); // may destroy this]=]
    "")

mutation(destroyed-region-is-mistaken-for-a-later-one rdma/detail/region_uses.hpp
    [[        region_.store(nullptr, std::memory_order_relaxed);]]
    "")

mutation(router-does-not-look-at-a-destroyed-region rdma/detail/region_uses.hpp
    [[    wake.request_stop(); // calls the notifier, hence with no lock held]]
    "")

mutation(uses-of-destroyed-regions-pile-up rdma/detail/region_uses.hpp
    [[        if (use->is_spare()) {]]
    [[        if (false) {]])

mutation(request-that-waits-for-room-keeps-no-region rdma/send_request.hpp
    [[        return MemoryHold(use);]]
    [[        return MemoryHold();]])

mutation(region-of-a-request-that-waits-is-looked-up-again rdma/send_request.hpp
    [[        slice.keeper = use;]]
    "")

set(tests rdma/router_test.cpp)

mutation(in-flight-misses-what-waits-for-room rdma/detail/work_queue.hpp
    [[    waiting_.for_each([&](const Operation& operation) {
        requests]]
    [[    IntrusiveList<Operation>().for_each([&](const Operation& operation) {
        requests]])

mutation(in-flight-takes-a-new-request-for-an-old-one rdma/detail/work_queue.hpp
    [[        slot.state = SlotState::posted;]]
    [[        if (slot.state == SlotState::free && !reported_) slot.state = SlotState::posted;
        if (slot.state == SlotState::free) slot.state = SlotState::reported;]])

mutation(wr-id-may-be-small rdma/detail/router_state.hpp
    [[first_tag = 0x800000]]
    [[first_tag = 0]])

mutation(wr-id-ignores-the-tag rdma/detail/work_queue.hpp
    [[route.queue == nullptr || route.tag != WrId::tag(wc.wr_id)]]
    [[route.queue == nullptr]])

mutation(route-keeps-its-tag rdma/detail/router_state.hpp
    [[WrId::first_tag : route.tag + 1]]
    [[WrId::first_tag : route.tag]])

mutation(completion-of-another-queue-pair rdma/detail/work_queue.hpp
    [[(srq_ != nullptr || wc.qp_num == qp_num_) &&]]
    "")

mutation(completion-of-the-other-direction rdma/detail/work_queue.hpp
    [[((wc.opcode & IBV_WC_RECV) == 0) == sends_]]
    [[true]])

mutation(completion-of-a-free-slot rdma/detail/work_queue.hpp
    [[slots_[index].state != SlotState::free &&]]
    "")

mutation(junk-is-a-cause rdma/detail/work_queue.hpp
    [[if (const WorkQueue* const queue = find(wc)) queue->note_cause(wc);]]
    [[if (WrId::route(wc.wr_id) < routes_.size() && routes_[WrId::route(wc.wr_id)].queue != nullptr) routes_[WrId::route(wc.wr_id)].queue->note_cause(wc);]])

mutation(waiters-resume-within-the-batch rdma/detail/work_queue.hpp
    [[            queue->complete(wc);]]
    [[            queue->complete(wc);
            resume_ready();]])

mutation(closed-router-resumes-waiters rdma/detail/router_state.hpp
    [[while (!ready_.empty() && !closed_) {]]
    [[while (!ready_.empty()) {]])

mutation(close-of-a-router-hides-its-error rdma/router.hpp
    [[        if (const std::error_code error = state_->try_close(state_)) return error;]]
    [[        static_cast<void>(state_->try_close(state_));]])

mutation(failure-reaches-no-operation rdma/detail/router_state.hpp
    [[            fail_queues();]]
    "")

mutation(stop-waits-for-an-empty-queue rdma/detail/router_state.hpp
    [[        collect_stopped();
        collect_ended();]]
    [[        collect_ended();]])

set(tests rdma/async_srq_test.cpp)

mutation(shared-receives-outlive-no-queue-pair rdma/detail/queue_pair_state.hpp
    [[shared_receives(std::move(shared)),]]
    [[shared_receives(shared ? std::shared_ptr<SharedReceiveState>(std::shared_ptr<void>(), shared.get()) : nullptr),]])

mutation(receive-slots-leak rdma/detail/work_queue.hpp
    [[    } else {
        slots_[index].next_free = std::exchange(first_free_, index);
    }
    complete_slot]]
    [[    }
    complete_slot]])

mutation(shared-receives-need-one-queue-pair rdma/detail/work_queue.hpp
    [[(srq_ != nullptr || wc.qp_num == qp_num_) &&]]
    [[wc.qp_num == qp_num_ &&]])

set(tests rdma/no_memory_test.cpp)

mutation(chain-posts-before-it-allocates rdma/detail/work_queue.hpp
    [[        for (Operation& operation : deferred) operation.deferred_.reset();
        throw;]]
    [[        for (std::size_t i = 0; i < count; ++i) {
            acquire_slot(&operations[i], requests[i].view());
        }
        throw;]])

mutation(rejection-needs-memory rdma/detail/work_queue.hpp
    [[Failure(std::error_code(error, std::system_category()), verb)]]
    [[Failure(std::system_error(error, std::system_category(), verb))]])

set(tests rdma/stream_test.cpp)

mutation(write-some-waits-for-all rdma/detail/stream_awaiters.hpp
    [[        if (written_ == 0 && !nothing_ && can_go_on()) wait_to_write();]]
    [[        if (!from_.empty() && can_go_on()) wait_to_write();]])

mutation(write-some-does-not-wait rdma/detail/stream_awaiters.hpp
    [[        if (written_ == 0 && !nothing_ && can_go_on()) wait_to_write();]]
    "")

mutation(message-without-a-credit rdma/detail/stream_state.hpp
    [[    --credits_;]]
    "")

mutation(credits-are-not-returned rdma/detail/stream_state.hpp
    [[        ++owed_;]]
    "")

mutation(credits-are-returned-when-all-are-owed rdma/detail/stream_state.hpp
    [[owed_ >= (buffers_ + 1) / 2]]
    [[owed_ > buffers_]])

mutation(peer-returns-credits-that-it-did-not-owe rdma/detail/stream_state.hpp
    [[    if (credits > peer_buffers_ - credits_) throw_protocol_error("more credits than it owed");]]
    "")

mutation(peer-sends-without-credits rdma/detail/stream_state.hpp
    [[    if (unreturned_ == buffers_) throw_protocol_error("more data than it had credits for");]]
    "")

mutation(receives-for-other-messages-run-out rdma/detail/stream_state.hpp
    [[    if (message.kind != StreamKind::data && !failure_) post(receive);]]
    "")

mutation(one-receive-too-few-for-other-messages rdma/detail/stream_state.hpp
    [[extra_receives = 4;]]
    [[extra_receives = 3;]])

mutation(message-larger-than-the-peers-buffer rdma/detail/stream_state.hpp
    [[    message_size_ = buffer_size_ < hello.buffer_size ? buffer_size_ : hello.buffer_size;]]
    [[    message_size_ = buffer_size_;]])

mutation(second-hello-is-accepted rdma/detail/stream_state.hpp
    [[if ((message.kind == StreamKind::hello) == greeted_) {]]
    [[if (message.kind != StreamKind::hello && !greeted_) {]])

mutation(read-drops-the-rest-of-a-message rdma/detail/stream_state.hpp
    [[        if (!first.unread.empty()) continue;]]
    "")

mutation(data-before-a-failure-is-lost rdma/detail/stream_awaiters.hpp
    [[        if (taken_ > 0 || state_->peer_ended_ || to_.empty()) return taken_;]]
    [[        state_->rethrow_failure();
        if (taken_ > 0 || state_->peer_ended_ || to_.empty()) return taken_;]])

mutation(close-does-not-wait-for-the-sends rdma/detail/stream_awaiters.hpp
    [[        all_sent_ = state_->sending_ == 0 && !state_->failure_;]]
    [[        all_sent_ = !state_->failure_;]])

mutation(small-writes-are-not-gathered rdma/detail/stream_state.hpp
    [[        if (gathered_ == message_size_ || sending_ == 0) send_gathered();]]
    [[        send_gathered();]])

mutation(full-message-waits rdma/detail/stream_state.hpp
    [[gathered_ == message_size_ || sending_ == 0]]
    [[sending_ == 0]])

mutation(gathered-bytes-wait-for-one-message-only rdma/detail/stream_state.hpp
    [[            fail_if_failed(oldest.operation);
        }]]
    [[            fail_if_failed(oldest.operation);
            send_gathered();
        }]])

mutation(gathered-bytes-wait-for-a-call rdma/detail/stream_state.hpp
    [[            fail_if_failed(oldest.operation);
        }
        flush();]]
    [[            fail_if_failed(oldest.operation);
        }]])

mutation(gathered-bytes-ignore-credits rdma/detail/stream_state.hpp
    [[        credits_ += credits;
        flush();]]
    [[        credits_ += credits;]])

mutation(end-overtakes-gathered-bytes rdma/detail/stream_awaiters.hpp
    [[state_->gathered_ == 0 && state_->has_free_send()]]
    [[state_->has_free_send()]])

mutation(end-waits-for-the-messages-before rdma/detail/stream_awaiters.hpp
    [[        state_->send_gathered();]]
    [[        state_->flush();]])

mutation(rejected-receive-is-not-noticed rdma/detail/stream_state.hpp
    [[Receive* next = posted_.find_if(done);]]
    [[Receive* next = !posted_.empty() && done(posted_.front()) ? &posted_.front() : nullptr;]])

mutation(failed-send-is-not-noticed rdma/detail/stream_state.hpp
    [[            fail_if_failed(oldest.operation);]]
    "")

mutation(two-readers-at-once rdma/detail/stream_awaiters.hpp
    [[        *busy_ = running_ = true;]]
    [[        running_ = true;]])

mutation(cancelled-call-stays-busy rdma/detail/stream_awaiters.hpp
    [[        if (std::exchange(running_, false)) *busy_ = false;]]
    "")

set(tests rdma/buffer_pool_test.cpp)

mutation(buffer-is-back-before-its-completion rdma/detail/work_queue.hpp
    [[        std::construct_at(&slot.memory, use_of(slices.front()));]]
    "")

mutation(buffer-goes-to-a-stopped-waiter rdma/detail/buffer_pool_state.hpp
    [[            if (!first.claim_wake()) continue;]]
    "")

mutation(buffer-of-a-destroyed-waiter-is-lost rdma/buffer_pool.hpp
    [[        if (buffer != nullptr) operation_.pool_->put(*buffer);]]
    "")

mutation(owner-that-is-last-does-not-return-its-buffer rdma/detail/buffer_pool_state.hpp
    [[        if (idle()) release();]]
    "")

mutation(buffer-returns-while-a-request-uses-it rdma/detail/buffer_pool_state.hpp
    [[        if (idle()) release();]]
    [[        release();]])

mutation(every-request-returns-its-buffer verbs/detail/memory_use.hpp
    [[if (left == 0 && abandoned())]]
    [[if (left == 0)]])

mutation(buffer-is-acquired-and-abandoned rdma/detail/buffer_pool_state.hpp
    [[        set_abandoned(false);]]
    "")

mutation(buffers-share-a-cache-line rdma/detail/buffer_pool_state.hpp
    [[        return lines * line;]]
    [[        return size;]])

set(tests rdma/memory_window_test.cpp)

mutation(window-keeps-its-key verbs/memory_window.hpp
    [[ibv_inc_rkey(bound_.rkey)]]
    [[bound_.rkey]])

mutation(window-of-any-region verbs/memory_window.hpp
    [[        if (slice.lkey != region_->lkey) {]]
    [[        if (false) {]])

mutation(window-lets-its-region-go verbs/memory_window.hpp
    [[        window_ = detail::own<detail::deallocate_window>(native, region_);]]
    [[        window_ = detail::own<detail::deallocate_window>(native);
        const auto domain = std::exchange(region_, borrow(region_.get()));]])

mutation(window-is-bound-with-all-rights rdma/send_request.hpp
    [[        work.access = access;]]
    [[        work.access = access | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;]])

mutation(window-is-bound-to-all rdma/detail/work_queue.hpp
    [[            wr.bind_mw.bind_info = {work.region, work.remote.address, work.remote.length,]]
    [[            wr.bind_mw.bind_info = {work.region, work.remote.address, work.region->length,]])

mutation(last-key-of-a-window-is-forgotten rdma/detail/work_queue.hpp
    [[        note_binding(operation, request.work);]]
    "")

mutation(last-key-of-a-window-in-a-chain-is-forgotten rdma/detail/work_queue.hpp
    [[    for (std::size_t i = 0; i < count; ++i) note_binding(operations[i], requests[i].view().work);]]
    "")

mutation(bind-is-gathered rdma/detail/work_queue.hpp
    [[ || work.window != nullptr;]]
    [[;]])

mutation(rejected-bind-has-a-key rdma/detail/work_queue.hpp
    [[if (work.window != nullptr && !operation.failure_)]]
    [[if (work.window != nullptr)]])

mutation(another-key-is-invalidated rdma/send_request.hpp
    [[        work.imm = window.remote_slice().rkey;]]
    [[        work.imm = ibv_inc_rkey(window.remote_slice().rkey);]])

set(tests rdma/two_queues_test.cpp)

mutation(shared-queue-of-xrc-is-not-named rdma/detail/work_queue.hpp
    [[        wr.qp_type.xrc.remote_srqn = work.peer_queue; // ignored by other types]]
    "")

mutation(sending-half-of-xrc-needs-receives verbs/detail/queue_pair_setup.hpp
    [[return qp.qp_type != IBV_QPT_XRC_SEND; }]]
    [[return qp.qp_type != IBV_QPT_UC; }]])

mutation(send-overtakes-a-receive-of-the-other-router rdma/detail/work_queue.hpp
    [[        if (receive_router_ != nullptr) receive_router_->post_gathered_receives();]]
    "")

mutation(failure-of-the-receives-router-is-not-noticed rdma/detail/queue_pair_state.hpp
    [[        if (!failure) failure = state_.receive_router->failure();]]
    "")

mutation(receives-complete-into-the-router-of-the-sends rdma/detail/queue_pair_state.hpp
    [[receives(*receive_router, receive_options())]]
    [[receives(*router, receive_options())]])

mutation(device-keeps-requests-of-a-borrowed-queue-pair rdma/detail/queue_pair_state.hpp
    [[            released.to_reset(ignored);]]
    "")

mutation(borrowed-queue-pair-is-always-reset rdma/detail/queue_pair_state.hpp
    [[released.is_adopted() && (sends.in_flight() || receives.in_flight())]]
    [[released.is_adopted()]])

mutation(unordered-send-is-not-signaled rdma/detail/work_queue.hpp
    [[!in_order_ || on_iwarp();]]
    [[on_iwarp();]])

mutation(unordered-completion-ends-those-before-it rdma/detail/queue_pair_state.hpp
    [[.unordered = options.type == IBV_QPT_DRIVER,]]
    "")

mutation(unordered-sends-take-the-slots-of-a-ring rdma/detail/work_queue.hpp
    [[        const std::uint32_t index = in_order_ ? next_ : first_free_;]]
    [[        const std::uint32_t index = next_;]])

mutation(unordered-sends-drop-their-address-handles rdma/detail/queue_pair_state.hpp
    [[.keeps_peers = sends_datagrams(options.type),]]
    [[.keeps_peers = options.type == IBV_QPT_UD,]])

set(tests verbs/adopt_test.cpp)

mutation(adopted-queue-pair-reserves-nothing verbs/detail/queue_pair_setup.hpp
    [[    ReleaseQueuePair release = reserve_queues(send_cq, recv_cq, options);
    ibv_qp* const native]]
    [[    ReleaseQueuePair release = reserve_queues(send_cq, recv_cq, {.max_send_wr = 0, .max_recv_wr = 0});
    ibv_qp* const native]])

mutation(adopted-channel-blocks verbs/completion_queue.hpp
    [[        : channel_(detail::adopted(handle, "ibv_comp_channel")) {
        detail::set_non_blocking(fd());]]
    [[        : channel_(detail::adopted(handle, "ibv_comp_channel")) {]])

mutation(borrowed-queue-pair-is-destroyed verbs/detail/queue_pair_setup.hpp
    [[if (destroyed || adopted) return 0;]]
    [[if (destroyed) return 0;]])

set(tests rdma/keep_alive_test.cpp)

mutation(keep-alive-looks-once rdma/keep_alive.hpp
    [[            if (error == timed_out) error = co_await]]
    [[            if (false) error = co_await]])

mutation(keep-alive-adds-to-sends rdma/keep_alive.hpp
    [[            if (!sends_nothing(*qp)) continue;]]
    "")

mutation(keep-alive-names-no-cause rdma/keep_alive.hpp
    [[        qp.state_->sends.note_cause(failure);]]
    "")

mutation(keep-alive-leaves-the-queue-pair rdma/keep_alive.hpp
    [[        qp.queue_pair().to_error(error);]]
    "")

mutation(keep-alive-writes-on-iwarp rdma/keep_alive.hpp
    [[        return iwarp ? qp.read]]
    [[        return false ? qp.read]])

mutation(keep-alive-forgets-the-stop rdma/keep_alive.hpp
    [[            error = co_await wait_for(sent, loop, interval / 2, stop);]]
    [[            error = co_await wait_for(sent, loop, interval / 2, {});]])

set(tests "")
