# Ways to break the protocol. Each makes a copy of one header and an explorer that is compiled with
# it; that one has to fail. The shipped headers carry no hooks for this.
#
# Left out because AsyncCq cannot tell the difference: Registration::detach() forgetting the edge of a
# wait that was destroyed (AsyncCq destroys a wait only together with its notifier), and an
# await_suspend() of CqOperation that does not look whether the stop came meanwhile (the pump's wait
# ends at once then). They are tested with the notifier and with the operation.

set(mutations "")
set(list "")
set(setting "")

# What they have in common is compiled once. They do not run for long, so nothing is optimised, and
# what is broken is to be found by its effect, not by an assertion inside.
add_library(mutation_settings INTERFACE)
target_link_libraries(mutation_settings INTERFACE asyncverbs_proof)
target_compile_options(mutation_settings INTERFACE -O0 -g0 -w)
target_compile_definitions(mutation_settings INTERFACE NDEBUG)
file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/mutations/common.cpp" CONTENT "\n" @ONLY)
add_library(mutation_common OBJECT EXCLUDE_FROM_ALL
    "${CMAKE_CURRENT_BINARY_DIR}/mutations/common.cpp")
target_link_libraries(mutation_common PRIVATE mutation_settings)
target_precompile_headers(mutation_common PRIVATE
    <infiniband/verbs.h> <algorithm> <array> <atomic> <chrono> <coroutine> <functional> <map>
    <memory> <mutex> <optional> <set> <span> <stop_token> <string> <system_error> <thread>
    <vector>
    # No mutation is of these, nor of what they include.
    <asyncverbs/verbs/completion_queue.hpp> <asyncverbs/verbs/completion_queue.hpp>
    <asyncverbs/verbs/device.hpp> <proof/properties.hpp> <support/simulated_verbs.hpp>)

# mutation(<name> <header> <text> <text instead>), to be found in the configurations whose name
# contains ${setting}.
function(mutation name header from to)
    set(directory "${CMAKE_CURRENT_BINARY_DIR}/mutations/${name}")
    set(shipped "${PROJECT_SOURCE_DIR}/include/asyncverbs/${header}")
    set(mutated "${directory}/include/asyncverbs/${header}")
    file(CONFIGURE OUTPUT "${directory}/from" CONTENT "${from}" @ONLY)
    file(CONFIGURE OUTPUT "${directory}/to" CONTENT "${to}" @ONLY)
    add_custom_command(
        OUTPUT "${mutated}"
        COMMAND "${CMAKE_COMMAND}" "-DHEADER=${shipped}" "-DFROM=${directory}/from"
                "-DTO=${directory}/to" "-DOUTPUT=${mutated}"
                -P "${CMAKE_CURRENT_SOURCE_DIR}/mutate.cmake"
        DEPENDS "${shipped}" "${directory}/from" "${directory}/to" mutate.cmake
        VERBATIM)
    add_executable(mutation-${name} EXCLUDE_FROM_ALL ${explored} "${mutated}")
    target_include_directories(mutation-${name} BEFORE PRIVATE "${directory}/include")
    target_link_libraries(mutation-${name} PRIVATE mutation_settings)
    target_precompile_headers(mutation-${name} REUSE_FROM mutation_common)
    set_target_properties(mutation-${name} PROPERTIES UNITY_BUILD ON)
    set(mutations ${mutations} mutation-${name} PARENT_SCOPE)
    set(list ${list} "mutation-${name} ${setting}" PARENT_SCOPE)
endfunction()

# --- poll, arm, wait ---

mutation(no-second-poll cq/cq_poller.hpp
    "        arm();"
    "        arm();
        may_wait_ = true;
        return 0;")

mutation(arm-before-poll cq/cq_poller.hpp
    "    if (const std::size_t polled = poll(wcs, timestamps)) return polled;
    return arm_and_poll(wcs, timestamps);"
    "    if (!armed_) arm();
    if (const std::size_t polled = poll(wcs, timestamps)) return polled;
    return arm_and_poll(wcs, timestamps);")

mutation(wait-without-draining cq/cq_poller.hpp
    "    if (const std::size_t polled = poll(wcs, timestamps)) return polled;
    return arm_and_poll(wcs, timestamps);"
    "    if (const std::size_t polled = poll(wcs, timestamps)) {
        if (!armed_) arm();
        may_wait_ = true;
        return polled;
    }
    return arm_and_poll(wcs, timestamps);")

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
    "if (!yielded) poller_.forget_arm();"
    "(void)yielded;")

mutation(polls-for-ever cq/detail/cq_state.hpp
    "anyone_waits() && !may_wait() &&"
    "anyone_waits() &&")

# --- events and acks ---

mutation(event-is-not-read cq/detail/cq_state.hpp
    "if (!events_are_credited_) poller_.consume();"
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

mutation(foreign-event-to-own-account cq/cq_poller.hpp
    "ibv_ack_cq_events(source, 1);"
    "++unacked_;")

mutation(foreign-event-is-not-acked cq/cq_poller.hpp
    "ibv_ack_cq_events(source, 1);"
    "")

mutation(edge-leaves-own-event cq/cq_poller.hpp
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
    "(waiter.request.wr_id ? selective_ : waiters_).push_back(waiter);"
    "IntrusiveList<CqWaiter> one;
    one.push_back(waiter);
    (waiter.request.wr_id ? selective_ : waiters_).prepend(one);")

mutation(who-comes-polls-first cq/detail/cq_state.hpp
    "if (anyone_waits() || must_yield()) return false;"
    "if (must_yield()) return false;")

mutation(leftover-is-not-passed-on cq/detail/cq_state.hpp
    "        waiter->handle.resume();"
    "        waiter->handle.resume();
        return;")

mutation(wake-is-not-passed-on cq/detail/cq_state.hpp
    "    dismiss_stopped();
    serve();"
    "    const bool stops = wake_source_.pending();
    dismiss_stopped();
    if (!stops) serve();")

mutation(pump-sleeps-too-early cq/detail/wait_loop.hpp
    "return !owner.idle();"
    "return false;")

mutation(pump-is-not-woken cq/detail/cq_state.hpp
    "if (wait_loop.idle) return wait_loop.handle;"
    "")

mutation(rest-of-a-batch-is-dropped cq/detail/cq_state.hpp
    "spare_.splice(spare_.begin(), unmatched_, kept);"
    "spare_.splice(spare_.begin(), unmatched_);
            break;")

mutation(kept-completions-are-forgotten cq/detail/cq_state.hpp
    "if (is_first && deliver_kept(request)) return true;"
    "(void)is_first;")

mutation(kept-completions-jump-the-queue cq/detail/cq_state.hpp
    "const bool is_first = waiters_.empty() && "
    "const bool is_first = ")

mutation(kept-completions-are-stolen cq/detail/cq_state.hpp
    "return !awaited(wr_id);"
    "return true || awaited(wr_id);")

# --- cancels ---

mutation(cancel-after-poll cq/detail/cq_state.hpp
    "if (!waiter) continue;"
    "if (!waiter) continue;
        if (waiter->stop_requested.load()) {
            waiter->request.outcome = CqRequest::Outcome::stopped;
        }")

mutation(cancel-after-delivery cq/async_cq.hpp
    "if (request_.outcome != CqRequest::Outcome::delivered) return report();"
    "if (stop_.stop_requested()) request_.outcome = CqRequest::Outcome::stopped;
        if (request_.outcome != CqRequest::Outcome::delivered) return report();")

mutation(poll-before-cancel cq/async_cq.hpp
    "if (stop_.stop_requested()) {"
    "if (stop_.stop_requested() && !state_.offer(request_)) {")

mutation(cancel-reaches-one-waiter-only cq/detail/cq_state.hpp
    "    waiters_.move_if(leaving_, stops);"
    "    if (!waiters_.empty() && stops(waiters_.front())) {
        CqWaiter& first = waiters_.front();
        first.unlink();
        leaving_.push_back(first);
    }")

mutation(cancels-are-not-renewed cq/detail/wait_loop.hpp
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
    "    fail_if_reported();
    dismiss_failed();"
    "    fail_if_reported();")

mutation(failure-does-not-last cq/detail/cq_state.hpp
    "    if (!failure_) {
        // Whoever"
    "    {
        // Whoever")

# --- many CQs on one channel ---

set(setting /shared)

mutation(event-to-the-wrong-queue cq/detail/shared_channel_state.hpp
    "Node* const node = find(source);"
    "Node* const node = find(source) ? nodes_.front() : nullptr;")

mutation(event-of-nobody-is-not-acked cq/detail/shared_channel_state.hpp
    "ibv_ack_cq_events(source, 1); // nobody's any more, or not yet (I4)"
    "")

mutation(one-event-a-wake cq/detail/shared_channel_state.hpp
    "        ready_.push_back(*node);
    }
}"
    "        ready_.push_back(*node);
        return;
    }
}")

mutation(channel-is-not-waited-for cq/detail/shared_channel_state.hpp
    "    if (wait_loop.idle) return wait_loop.handle;
    if (!wait_loop.running"
    "    if (!wait_loop.running")

mutation(stop-of-a-queue-is-not-seen cq/detail/shared_channel_state.hpp
    "return node.deadline <= now || node.stop.stop_requested();"
    "return node.deadline <= now;")

mutation(no-ack-at-leave cq/detail/shared_channel_state.hpp
    "if (const unsigned unclaimed = take_events()) ibv_ack_cq_events(cq_.get(), unclaimed);"
    "")

mutation(event-that-was-read-is-waited-for cq/detail/shared_channel_state.hpp
    "return events > 0 || stop_token"
    "return stop_token")

mutation(event-is-not-credited cq/detail/wait_loop.hpp
    "owner.credit(parts.notifier.take_events());"
    "parts.notifier.take_events();")

# --- a sink ---

set(setting /sink)

mutation(sink-is-not-served cq/detail/cq_state.hpp
    "if (handler_) return serve_handler();"
    "if (handler_) return;")

mutation(stop-waits-for-an-empty-queue cq/detail/cq_state.hpp
    "        handler_->on_completions(polled); // whom it resumes may close us
        dismiss_stopped();"
    "        handler_->on_completions(polled);")

mutation(sink-keeps-its-queue cq/detail/cq_state.hpp
    "    handler_.reset(); // it refers to this state"
    "    if (!wait_loop.running) handler_.reset();")

mutation(waits-though-it-has-failed cq/detail/cq_state.hpp
    "if (wait_loop.idle && !finished()) wait_loop.handle.resume();"
    "if (wait_loop.idle && !closed_) wait_loop.handle.resume();")

# --- spin, then sleep; solicited completions ---

set(setting /busy)

mutation(spins-in-place-of-the-second-poll cq/cq_poller.hpp
    "if (const std::size_t polled = poll_busily(wcs, timestamps)) return polled;"
    "if (const std::size_t polled = poll_busily(wcs, timestamps)) return polled;
            arm();
            may_wait_ = true;
            return 0;")

mutation(does-not-spin cq/cq_poller.hpp
    "return limit_.count() > 0;"
    "return limit_.count() < 0;")

set(setting /solicited)

mutation(solicited-is-forgotten cq/cq_poller.hpp
    "solicited_only_ ? 1 : 0"
    "0")

add_custom_target(mutations DEPENDS ${mutations})
list(JOIN list "\n" list)
file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/mutations/list" CONTENT "${list}\n" @ONLY)
add_test(NAME mutations
    COMMAND "${CMAKE_CURRENT_SOURCE_DIR}/mutations.sh" "${CMAKE_BINARY_DIR}")
set_tests_properties(mutations PROPERTIES LABELS proof)
