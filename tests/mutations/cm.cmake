# Mutations of cm/.

set(tests cm/connection_test.cpp)

mutation(wrong-event-is-the-answer cm/detail/cm_session.hpp
    [[        const bool answered = answer_ && answer_->type == expected;]]
    [[        const bool answered = answer_.has_value();]])

mutation(answer-hides-the-end cm/detail/cm_session.hpp
    [[        if (!answered || expected != RDMA_CM_EVENT_ESTABLISHED) throw_if_failed(call);]]
    [[        if (!answered) throw_if_failed(call);]])

mutation(end-before-the-handshake-is-missed cm/detail/cm_queue_pair.hpp
    [[        session->throw_if_failed(call);]]
    "")

mutation(event-is-not-acked cm/detail/cm_session.hpp
    [[        rdma_ack_cm_event(event);]]
    "")

mutation(timeout-is-not-armed cm/detail/cm_session.hpp
    [[        if (operation_.timeout) wake_->set_deadline(Deadline::after(*operation_.timeout));]]
    "")

mutation(rejection-loses-its-private-data cm/detail/cm_session.hpp
    [[throw ConnectionRejected(call, event.status, event.private_data);]]
    [[throw ConnectionRejected(call, event.status, {});]])

mutation(disconnect-is-not-answered cm/detail/cm_session.hpp
    [[            rdma_disconnect(id());
            finish(event.type);]]
    [[            finish(event.type);]])

mutation(second-end-replaces-the-first cm/detail/cm_session.hpp
    [[        if (!end_) end_ = end;]]
    [[        end_ = end;]])

mutation(end-leaves-the-queue-pair-alone cm/detail/cm_session.hpp
    [[    void finish(rdma_cm_event_type end) noexcept {
        to_error();]]
    [[    void finish(rdma_cm_event_type end) noexcept {]])

mutation(old-connection-touches-its-queue-pair-again cm/detail/cm_session.hpp
    [[std::exchange(qp_, {}).lock();]]
    [[qp_.lock();]])

mutation(late-rejection-is-no-disconnect cm/detail/cm_session.hpp
    [[if (established_ && is_failure(event.type))]]
    [[if (false)]])

mutation(closing-does-not-wake-the-waiters cm/detail/cm_session.hpp
    [[        id_.reset();
        notify_all();]]
    [[        id_.reset();]])

mutation(peer-serves-more-reads-than-it-has cm/detail/cm_queue_pair.hpp
    [[wanted = supported = std::min(wanted, supported);]]
    [[wanted = supported;]])

mutation(kernel-sets-min-rnr-timer cm/detail/cm_queue_pair.hpp
    [[    receive.attr.min_rnr_timer = min_rnr_timer;]]
    [[    // receive.attr.min_rnr_timer]])

mutation(iwarp-waits-for-a-response cm/connect.hpp
    [[expected = RDMA_CM_EVENT_ESTABLISHED;]]
    [[expected = RDMA_CM_EVENT_CONNECT_RESPONSE;]])

mutation(first-address-gets-all-the-time cm/connect.hpp
    [[            share.timeout /= untried;]]
    "")

mutation(stop-leads-to-the-next-address cm/connect.hpp
    [[            if (stop.stop_requested()) throw;
            if (!first) first = std::current_exception();
        }
        --untried;]]
    [[            if (!first) first = std::current_exception();
        }
        --untried;]])

mutation(link-local-without-its-interface cm/socket_address.hpp
    [[|| ipv6.sin6_scope_id != 0) return;]]
    [[|| ipv6.sin6_scope_id == 0) return;]])

mutation(end-of-an-iwarp-connection-is-kept-secret cm/detail/cm_session.hpp
    [[        connection_ended(qp).request_stop();]]
    "")

mutation(end-of-an-iwarp-connection-overtakes-messages rdma/detail/router_state.hpp
    [[    connections_.move_if(ended_, [](const ConnectionEnd& end) { return end.reported(); });]]
    [[    connections_.move_if(ended_, [](const ConnectionEnd& end) { return end.reported(); });
    flush_ended();]])

set(tests cm/listener_test.cpp)

mutation(interrupted-read-of-an-event-is-empty cm/detail/cm_session.hpp
    [[            if (error == EAGAIN) return std::nullopt;]]
    [[            if (error == EAGAIN || error == EINTR) return std::nullopt;]])

mutation(acceptor-that-goes-parks-the-next cm/detail/cm_session.hpp
    [[        if (!reading_) notify_one();]]
    "")

mutation(late-acceptor-overtakes cm/detail/cm_session.hpp
    [[        return request_ && &waiters_.front() == &waiter;]]
    [[        return request_.has_value();]])

mutation(requests-replace-each-other cm/detail/cm_session.hpp
    [[        while (!request_) {]]
    [[        for (;;) {]])

mutation(port-in-use-is-no-address cm/listener.hpp
    [[            detail::throw_error(std::errc::address_in_use, call);]]
    [[            throw;]])

mutation(one-family-is-listened-to cm/listener.hpp
    [[            if (listener && !host.empty()) break;]]
    [[            if (listener) break;]])

mutation(accepted-connection-stays-on-the-listeners-loop cm/listener.hpp
    [[session->run_on(loop.value_or(session->loop()));]]
    [[session->run_on(session->loop());]])

mutation(request-is-read-before-it-is-accepted cm/detail/cm_session.hpp
    [[    CmSession(LoopHandle loop, CmId id) : loop_(loop) { id_.emplace(std::move(id)); }]]
    [[    CmSession(LoopHandle loop, CmId id) : loop_(loop) { id_.emplace(std::move(id)); start_reading(); }]])

set(tests cm/no_memory_test.cpp)

mutation(reader-that-did-not-start-is-reading cm/detail/cm_session.hpp
    [[        reader_.emplace(operator co_await(loop_.wait(id_->fd(), *this, {})));
        reading_ = true;]]
    [[        reading_ = true;
        reader_.emplace(operator co_await(loop_.wait(id_->fd(), *this, {})));]])

mutation(reader-that-cannot-begin-never-does cm/detail/cm_session.hpp
    [[std::exchange(failure_, nullptr)]]
    [[failure_]])
