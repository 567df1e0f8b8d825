// SPDX-License-Identifier: MIT
// How a stream takes what its peer sends, and gives it to who reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <span>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/core/task.hpp>
#include <asyncverbs/rdma/completion.hpp>
#include <asyncverbs/rdma/detail/span_cursor.hpp>
#include <asyncverbs/rdma/detail/stream_loop.hpp>
#include <asyncverbs/rdma/detail/stream_message.hpp>
#include <asyncverbs/rdma/detail/stream_state.hpp>
#include <asyncverbs/rdma/detail/stream_wait.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

template <class Use>
inline StreamLoop StreamState<Use>::receive_all(StreamState<Use>& self) {
    try {
        // Also behind a failure: what had arrived is still to be read.
        while (!self.posted_.empty()) {
            Receive& receive = self.posted_.front();
            const Completion completion = co_await receive.operation;
            receive.unlink();
            self.accept(receive, completion.bytes());
        }
    } catch (...) {
        self.fail(std::current_exception());
    }
}

template <class Use>
inline void StreamState<Use>::accept(Receive& receive, std::size_t bytes) {
    const StreamMessage message = read_message(receive.buffer.bytes().first(bytes));
    if ((message.kind == StreamKind::hello) == greeted_) {
        throw_protocol_error(greeted_ ? "a second hello" : "something else before its hello");
    }
    const bool ends = message.kind == StreamKind::data || message.kind == StreamKind::end;
    if (peer_ended_ && ends) throw_protocol_error("something else after its end");
    switch (message.kind) {
    case StreamKind::data:
        accept_data(receive, message.payload);
        break;
    case StreamKind::hello:
        accept_hello(read_hello(message.payload));
        break;
    case StreamKind::credits:
        break;
    case StreamKind::end:
        peer_ended_ = true;
        wake(reader_);
        break;
    case StreamKind::goodbye:
        peer_ended_ = peer_gone_ = true;
        break;
    }
    // Before the credits that came with it are used; see extra_receives.
    if (message.kind != StreamKind::data && !failure_) post(receive);
    accept_credits(message.credits);
    if (peer_gone_) throw_error(std::errc::broken_pipe, "the peer has closed the stream");
}

template <class Use>
inline void StreamState<Use>::accept_data(Receive& receive, std::span<const std::byte> payload) {
    if (unreturned_ == options_.buffers) throw_protocol_error("more data than it had credits for");
    if (payload.size() > options_.buffer_size) throw_protocol_error("more data than fits a buffer");
    ++unreturned_;
    receive.unread = payload;
    arrived_.push_back(receive);
    wake(reader_);
}

template <class Use>
inline void StreamState<Use>::accept_hello(const StreamHello& hello) {
    greeted_ = true;
    peer_buffers_ = credits_ = hello.buffers;
    message_size_ = options_.buffer_size;
    if (message_size_ > hello.buffer_size) message_size_ = hello.buffer_size;
    wake(writer_);
}

template <class Use>
inline void StreamState<Use>::accept_credits(std::uint32_t credits) {
    if (credits > peer_buffers_ - credits_) throw_protocol_error("more credits than it owed");
    credits_ += credits;
    if (credits > 0) wake(writer_);
}

template <class Use>
inline void StreamState<Use>::post(Receive& receive) {
    receive.operation = qp_->recv(receive.buffer);
    posted_.push_back(receive);
    if (receive.operation.done()) fail_if_failed(receive.operation);
}

template <class Use>
inline std::size_t StreamState<Use>::take(Target to) {
    std::size_t taken = 0;
    while (!to.empty() && !arrived_.empty()) {
        Receive& first = arrived_.front();
        const auto chunk = to.take(first.unread.size());
        std::memcpy(chunk.data(), first.unread.data(), chunk.size());
        first.unread = first.unread.subspan(chunk.size());
        taken += chunk.size();
        if (first.unread.empty()) release(first);
    }
    return taken;
}

template <class Use>
inline void StreamState<Use>::release(Receive& receive) {
    receive.unlink();
    if (failure_) return;
    post(receive);
    ++owed_;
    if (credit_returner_ && credits_are_due()) std::exchange(credit_returner_, nullptr).resume();
}

template <class Use>
inline Task<std::size_t> StreamState<Use>::read(Self self, Target to, std::stop_token stop) {
    const Turn turn(self->reading_, "read at the same time");
    self->greet();
    if (to.empty()) co_return 0;
    // What has arrived is given first, then the end, then the failure: who has sent all and said so
    // may be gone.
    for (;;) {
        const std::size_t taken = self->take(to);
        if (taken > 0 || self->peer_ended_) co_return taken;
        self->rethrow_failure();
        throw_if_stopped(stop, "Stream::read_some");
        co_await StreamWait<Use>(self->reader_, *self->router_, stop);
    }
}

} // namespace asyncverbs::detail
