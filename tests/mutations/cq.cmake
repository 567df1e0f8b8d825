# Mutations of the completion protocol, which the explorer must find, except where tests are named.
#
# Two are left out because AsyncCq behaves the same with them: a notifier that forgets the edge of a
# wait that was destroyed (AsyncCq destroys a wait only together with its notifier), and a
# PollOperation::await_suspend() that does not check for a stop that came meanwhile (the wait of the
# wait loop then ends at once). The tests of the notifier and of the operation cover them.

# --- poll, arm, wait ---

mutation(no-second-poll cq/cq_poller.hpp
    "        arm();"
    "        arm();
        may_wait_ = true;
        return 0;")

mutation(arm-before-poll cq/cq_poller.hpp
    "    if (const std::size_t polled = poll(wcs, timestamps)) return polled;
    if (!armed_) {"
    "    if (!armed_) arm();
    if (const std::size_t polled = poll(wcs, timestamps)) return polled;
    if (!armed_) {")

mutation(wait-without-draining cq/cq_poller.hpp
    "    if (const std::size_t polled = poll(wcs, timestamps)) return polled;
    if (!armed_) {"
    "    if (const std::size_t polled = poll(wcs, timestamps)) {
        if (!armed_) arm();
        may_wait_ = true;
        return polled;
    }
    if (!armed_) {")

mutation(re-arm-while-armed cq/cq_poller.hpp
    "if (!armed_) {"
    "{")

mutation(armed-is-not-cleared cq/cq_poller.hpp
    "count_events(unsigned count) noexcept {
    armed_ = false;"
    "count_events(unsigned count) noexcept {")

mutation(arm-is-not-forgotten cq/cq_poller.hpp
    "armed_ = may_wait_ = false;"
    "may_wait_ = false;")

mutation(timeout-is-ignored cq/detail/cq_state.hpp
    "if (!yielding_) poller_.forget_arm();"
    "")

mutation(polls-without-end cq/detail/cq_state.hpp
    "has_waiters() && !poller_.may_wait() &&"
    "has_waiters() &&")

# --- events and acks ---

mutation(event-is-not-read cq/detail/cq_state.hpp
    "if (!notifier_reads_events_) poller_.consume();"
    "poller_.forget_arm();")

mutation(ack-is-dropped cq/cq_poller.hpp
    "if ((unacked_ += count) >= ack_batch_) flush_acks();"
    "if (unacked_ >= ack_batch_) flush_acks();")

mutation(ack-is-repeated cq/cq_poller.hpp
    "std::exchange(unacked_, 0)"
    "unacked_")

mutation(ack-without-event cq/cq_poller.hpp
    "    }
    return false;
}"
    "    }
    ++unacked_;
    return false;
}")

mutation(no-ack-at-the-end cq/cq_poller.hpp
    "~CqPoller() { flush_acks(); }"
    "~CqPoller() {}")

mutation(destroy-before-ack cq/cq_poller.hpp
    "~CqPoller() { flush_acks(); }"
    "~CqPoller() {
        { CompletionQueue(std::move(cq_)); }
        flush_acks();
    }")

mutation(ack-before-last-use cq/cq_poller.hpp
    "~CqPoller() { flush_acks(); }"
    "~CqPoller() {
        flush_acks();
        ibv_wc left;
        ibv_poll_cq(native_, 1, &left);
    }")

mutation(foreign-event-is-acked-to-own-cq cq/cq_poller.hpp
    "ibv_ack_cq_events(source, 1);"
    "++unacked_;")

mutation(foreign-event-is-not-acked cq/cq_poller.hpp
    "ibv_ack_cq_events(source, 1);"
    "")

mutation(reading-stops-at-a-foreign-event cq/cq_poller.hpp
    "ibv_ack_cq_events(source, 1);"
    "ibv_ack_cq_events(source, 1);
        return false;")

mutation(interrupted-read-is-empty cq/cq_poller.hpp
    "if (error == EINTR) continue;"
    "if (error == EINTR) return nullptr;")

mutation(missed-edge-is-forgotten executor/detail/epoll_loop.hpp
    "            pending_edge_ = true;"
    "")

# --- several waiters ---

mutation(last-in-first-out cq/detail/cq_state.hpp
    "(waiter.request.wr_id ? wr_id_waiters_ : waiters_).push_back(waiter);"
    "IntrusiveList<CqWaiter> one;
    one.push_back(waiter);
    (waiter.request.wr_id ? wr_id_waiters_ : waiters_).prepend(one);")

mutation(newcomer-polls-before-waiters cq/detail/cq_state.hpp
    "if (has_waiters() || must_yield()) return false;"
    "if (must_yield()) return false;")

mutation(leftovers-are-not-passed-on cq/detail/cq_state.hpp
    "        waiter->handle.resume();"
    "        waiter->handle.resume();
        return;")

mutation(wake-of-a-stopped-waiter-is-lost cq/detail/cq_state.hpp
    "    resume_stopped(); // before"
    "    const bool stops = wake_source_.pending();
    resume_stopped();
    if (stops) return resume_failed(); // before")

mutation(wait-loop-suspends-with-waiters cq/detail/wait_loop.hpp
    "return owner.wait_needed();"
    "return false;")

mutation(wait-loop-is-not-started cq/detail/cq_state.hpp
    "return start_wait_loop();"
    "return std::noop_coroutine();")

mutation(rest-of-a-batch-is-dropped cq/detail/wr_id_table.hpp
    "                wcs[taken++] = release(*item);"
    "                wcs[taken++] = release(*item);
                while (!list->empty()) static_cast<void>(release(list->front()));")

mutation(unmatched-completions-are-forgotten cq/detail/cq_state.hpp
    "if (!unmatched_.empty() && is_first(request) && complete_from_unmatched(request)) return true;"
    "")

mutation(unmatched-completions-overtake-waiters cq/detail/cq_state.hpp
    "if (!waiters_.empty()) return false;
    return !request.wr_id"
    "return !request.wr_id")

mutation(poll-takes-an-awaited-wr-id cq/detail/cq_state.hpp
    "return waiters_by_wr_id_.find(wr_id) == nullptr;"
    "return true || waiters_by_wr_id_.find(wr_id) == nullptr;")

# The explorer's waiters do not poll for what another one gave up.
set(tests cq/async_cq_test.cpp)
mutation(stopped-waiter-keeps-its-claim cq/detail/cq_state.hpp
    "        waiter.request.outcome = CqRequest::Outcome::stopped;
        waiter.by_wr_id.unlink();"
    "        waiter.request.outcome = CqRequest::Outcome::stopped;")
set(tests "")

# --- cancels ---

mutation(cancel-after-poll cq/detail/cq_state.hpp
    "if (!waiter) continue;"
    "if (!waiter) continue;
        if (waiter->stop_requested.load()) {
            waiter->request.outcome = CqRequest::Outcome::stopped;
        }")

mutation(cancel-after-delivery cq/async_cq.hpp
    "if (request_.outcome != Outcome::delivered) return report_error();"
    "if (stop_.stop_requested()) request_.outcome = Outcome::stopped;
        if (request_.outcome != Outcome::delivered) return report_error();")

mutation(poll-before-cancel cq/async_cq.hpp
    "if (stop_.stop_requested()) {"
    "if (stop_.stop_requested() && !state_.try_complete(request_)) {")

mutation(cancel-reaches-one-waiter-only cq/detail/cq_state.hpp
    "    waiters_.move_if(removed_, stops);"
    "    if (!waiters_.empty() && stops(waiters_.front())) {
        CqWaiter& first = waiters_.front();
        first.unlink();
        removed_.push_back(first);
    }")

mutation(wake-source-is-not-reset cq/detail/wait_loop.hpp
    "        stop_source_ = std::stop_source();"
    "")

# --- errors ---

mutation(failing-poll-is-empty cq/cq_poller.hpp
    "if (polled < 0) throw_verb_error(\"ibv_poll_cq\", EIO);"
    "if (polled < 0) return 0;")

mutation(failing-arm-is-ignored cq/cq_poller.hpp
    "throw_verb_error(\"ibv_req_notify_cq\", detail::verb_errno(result));"
    "(void)result;")

mutation(failing-read-is-ignored cq/cq_poller.hpp
    "throw_verb_error(\"ibv_get_cq_event\", error);"
    "return nullptr;")

mutation(failure-does-not-reach-waiters cq/detail/cq_state.hpp
    "the queue before its failure
    resume_failed();"
    "the queue before its failure")

mutation(failure-does-not-last cq/detail/cq_state.hpp
    "    if (!failure_) {
        // The waiters were first"
    "    {
        // The waiters were first")

# --- many CQs on one channel ---

set(configurations /shared)

mutation(event-to-the-wrong-queue cq/shared_channel.hpp
    "ChannelSubscription& subscription = *found->second;"
    "const auto last = std::prev(subscriptions_.end());
        const auto other = found != last ? last : subscriptions_.begin();
        ChannelSubscription& subscription = *other->second;")

mutation(unsubscribed-event-is-not-acked cq/shared_channel.hpp
    "ibv_ack_cq_events(source, 1);"
    "")

mutation(one-event-per-wake cq/shared_channel.hpp
    "        ready_.push_back(subscription);
    }
}"
    "        ready_.push_back(subscription);
        return;
    }
}")

mutation(channel-is-not-waited-for cq/shared_channel.hpp
    "return start_wait_loop();"
    "return std::noop_coroutine();")

mutation(stop-of-one-queue-is-ignored cq/shared_channel.hpp
    "return subscription.deadline_ <= now || subscription.stop_.stop_requested();"
    "return subscription.deadline_ <= now;")

mutation(unsubscribe-without-ack cq/shared_channel.hpp
    "if (const unsigned unclaimed = take_events()) ibv_ack_cq_events(cq_.get(), unclaimed);"
    "")

mutation(waits-despite-a-read-event cq/shared_channel.hpp
    "return events_ > 0 || stop."
    "return stop.")

mutation(event-is-not-credited cq/detail/wait_loop.hpp
    "owner.credit(resources.notifier->take_events());"
    "resources.notifier->take_events();")

# --- a completion handler ---

set(configurations /handler)

mutation(handler-is-not-served cq/detail/cq_state.hpp
    "        serve_handler();"
    "")

mutation(stop-waits-for-an-empty-queue cq/detail/cq_state.hpp
    "        handler_->on_completions(polled); // may, too
        resume_stopped();"
    "        handler_->on_completions(polled);")

mutation(handler-keeps-its-queue cq/detail/cq_state.hpp
    "    handler_.reset(); // it refers to this state"
    "    if (waiting()) handler_.reset();")

mutation(waits-after-a-failure cq/detail/cq_state.hpp
    "if (!finished()) start_wait_loop().resume();"
    "if (!closed()) start_wait_loop().resume();")

# --- spin, then sleep; solicited completions ---

set(configurations /busy)

mutation(spin-replaces-the-second-poll cq/cq_poller.hpp
    "if (const std::size_t polled = spin(wcs, timestamps)) return polled;"
    "if (const std::size_t polled = spin(wcs, timestamps)) return polled;
            arm();
            may_wait_ = true;
            return 0;")

mutation(does-not-spin cq/cq_poller.hpp
    "return limit_.count() > 0;"
    "return limit_.count() < 0;")

set(configurations /solicited)

mutation(solicited-is-forgotten cq/cq_poller.hpp
    "solicited_only_ ? 1 : 0"
    "0")

# --- a device that loses arms ---

set(configurations /lossy)

mutation(lost-arm-is-waited-for cq/detail/cq_state.hpp
    "if (timed_ && poller_.arm_may_be_lost()) return lost_arm_wait;"
    "")

set(configurations "")

# --- what the explorer does not run ---

set(tests cq/close_test.cpp)

mutation(close-leaves-the-notifier cq/detail/wait_loop.hpp
    "release_notifier_(resources_);"
    "")

mutation(failed-close-still-waits cq/detail/cq_state.hpp
    "        throw_error(std::errc::bad_file_descriptor, \"this AsyncCq was closed\");"
    "")

set(tests "")
