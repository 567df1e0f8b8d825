# Mutations of adapters/.

# --- Asio: waits for a descriptor ---

if(TARGET asio_settings)
set(libraries asio_settings)

set(tests adapters/asio_lifetimes_test.cpp)

mutation(asio-timer-is-not-cancelled adapters/detail/asio_descriptor_waiter.hpp
    [[    if (operation.is_timed()) io_->cancel_timer();]]
    "")

mutation(asio-read-is-not-cancelled adapters/detail/asio_descriptor_waiter.hpp
    [[    if (event_pending_) io_->cancel_wait();]]
    "")

mutation(asio-closes-the-descriptor adapters/detail/asio_descriptor_waiter.hpp
    [[    ~AsioIoOn() override { descriptor_.release(); }]]
    [[    ~AsioIoOn() override {}]])

mutation(asio-outlives-its-context adapters/detail/asio_support.hpp
    [[        while (AsioServiceMember* const member = take_next()) member->shutdown();]]
    "")

set(tests adapters/asio_conformance_test.cpp)

mutation(asio-cancelled-read-ends-the-next-wait adapters/detail/asio_descriptor_waiter.hpp
    [[    if (error == net::error::operation_aborted) return wait_for_event(); // of an earlier operation]]
    "")

mutation(asio-posts-one-stop adapters/detail/asio_descriptor_waiter.hpp
    [[    const bool stop = stop_posted_.exchange(false);]]
    [[    const bool stop = stop_posted_.load();]])

mutation(asio-timer-of-an-earlier-wait-counts adapters/detail/asio_descriptor_waiter.hpp
    [[        return operation_ != nullptr && number_ == number;]]
    [[        return operation_ != nullptr;]])

mutation(asio-no-time-is-never-readable adapters/detail/asio_descriptor_waiter.hpp
    [[    if (::poll(&fd, 1, 0) > 0) return complete(std::error_code());]]
    "")

set(tests adapters/asio_no_memory_test.cpp)

mutation(asio-stop-needs-memory adapters/detail/asio_support.hpp
    [[    if constexpr (std::is_same_v<Executor, net::any_io_executor>) {]]
    [[    if constexpr (std::is_void_v<Executor>) {]])

mutation(asio-reads-before-it-has-memory-for-the-timer adapters/detail/asio_descriptor_waiter.hpp
    [[        // First what may fail for lack of memory.]]
    [[        wait_for_event();]])

# --- Asio: async_poll() ---

set(tests adapters/asio_cq_test.cpp)

mutation(asio-calls-the-handler-within-async-poll adapters/detail/asio_operation.hpp
    [[            net::post(executor, Step<&AsioOperation::dispatch_handler>]]
    [[            net::dispatch(executor, Step<&AsioOperation::dispatch_handler>]])

mutation(asio-cancels-later-polls adapters/detail/asio_poll.hpp
    [[        first_not_cancelled_ = next_id_.load(std::memory_order_relaxed);]]
    [[        first_not_cancelled_ = next_id_.load(std::memory_order_relaxed) + 1;]])

mutation(asio-slot-cancels-all-polls adapters/detail/asio_poll.hpp
    [[        waiting_.find_if(is_other) == nullptr ? stop_waiting() : poll->cancel();]]
    [[        waiting_.find_if(is_other) == nullptr ? stop_waiting() : stop_waiting();]])

mutation(asio-handler-executor-has-no-work adapters/detail/asio_operation.hpp
    [[        work_.emplace(std::move(executor));]]
    "")

set(libraries "")
if(OpenSSL_FOUND)
set(libraries asio_settings)
set(tests adapters/asio_stream_test.cpp)

mutation(asio-stream-has-no-end adapters/detail/asio_stream_call.hpp
    [[ error_ = net::error::eof;]]
    ";")

mutation(asio-stream-empty-call-waits adapters/detail/asio_stream_call.hpp
    [[        if (self.call_.is_empty()) co_return 0;]]
    "")

mutation(asio-stream-takes-empty-buffers adapters/detail/asio_stream_call.hpp
    [[            if (buffer.size() == 0) continue;]]
    "")

mutation(asio-stream-stays-cancelled adapters/detail/asio_stream_call.hpp
    [[        if (stop.stop_requested()) {]]
    [[        if (false) {]])

mutation(asio-stream-leaks-calls-of-its-context adapters/detail/asio_stream_call.hpp
    [[        while (!calls.empty()) AsioStreamCall::Destroy()(&calls.take_front());]]
    "")

mutation(asio-stream-slot-cancels-every-call adapters/detail/asio_stream_call.hpp
    [[        if (call != nullptr) stop_of(*call).request_stop(); // there is no other one]]
    [[        cancel();]])
set(libraries "")
set(tests "")
endif()

endif()

# --- io_uring ---

if(TARGET io_uring_settings)
set(libraries io_uring_settings)
set(tests adapters/io_uring_test.cpp)

mutation(ring-eintr-is-an-error adapters/detail/io_uring_loop.hpp
    [[        if (result != -EINTR) return -result;]]
    [[        return -result;]])

mutation(ring-late-completion-is-taken adapters/detail/io_uring_loop.hpp
    [[    if (slot.number != number) return nullptr;]]
    "")

mutation(ring-takes-completions-of-the-program adapters/detail/io_uring_loop.hpp
    [[return cqe.user_data >> 48 == tag_; }]]
    [[return cqe.user_data >> 48 != 0 || tag_ == 0; }]])

mutation(ring-full-queue-is-an-error adapters/detail/io_uring_loop.hpp
    [[    if (error != EAGAIN && error != EBUSY) return error;]]
    [[    if (error != 0) return error;]])

mutation(ring-does-not-retry adapters/detail/io_uring_loop.hpp
    [[        if (requests.must_retry()) signal();]]
    "")

mutation(ring-cancels-later adapters/detail/io_uring_loop.hpp
    [[        submit_cancels(); // at once: the caller may close the fd next]]
    "")

mutation(ring-does-not-cancel-its-last-requests adapters/detail/io_uring_loop.hpp
    [[        if (slot.state == State::armed || slot.state == State::to_cancel) queue_cancel(slot);]]
    "")

mutation(ring-failure-reaches-nobody adapters/detail/io_uring_loop.hpp
    [[            requests.fail(error);]]
    "")

mutation(ring-slot-is-used-before-it-is-cancelled adapters/detail/io_uring_loop.hpp
    [[        return slot.handler == nullptr && slot.state == State::idle;]]
    [[        return slot.handler == nullptr;]])

mutation(ring-destroyed-wait-makes-up-an-edge executor/detail/awaiters.hpp
    [[    if (waiter_->linked() && waiter_->error == 0) pending_edge_ = edge_;]]
    [[    if (waiter_->linked()) pending_edge_ = true;]])

mutation(ring-wait-is-resumed-twice adapters/detail/io_uring_loop.hpp
    [[        waiter.unlink();
        waiter.error = error;]]
    [[        waiter.error = error;]])

set(tests adapters/io_uring_conformance_test.cpp)

mutation(ring-edge-without-a-waiter-is-lost adapters/detail/io_uring_loop.hpp
    [[            if (error == 0) pending_edge_ = ring_.requests.armed(index_);]]
    "")

mutation(ring-no-time-is-never-readable adapters/detail/io_uring_loop.hpp
    [[        return ::poll(&fd, 1, 0) > 0;]]
    [[        return false;]])

set(libraries "")
endif()
