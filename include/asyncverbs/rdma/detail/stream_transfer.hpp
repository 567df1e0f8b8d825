// SPDX-License-Identifier: MIT
// How a stream sends: its greeting, what is written, the credits that it owes, and its end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <span>
#include <stop_token>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/rdma/completion.hpp>
#include <asyncverbs/rdma/detail/stream_state.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

inline StreamLoop StreamState::return_credits(StreamState& self) {
    try {
        while (!self.failure_) {
            co_await CreditsDue{self};
            write_header(self.credit_return_.buffer.bytes(), StreamKind::credits,
                         self.returned_credits());
            self.post(self.credit_return_, stream_header_size);
            co_await self.credit_return_.operation;
        }
    } catch (...) {
        self.fail(std::current_exception());
    }
}

// Nothing can be in the way of the first message.
inline void StreamState::greet() {
    if (has_greeted_ || failure_) return;
    has_greeted_ = true;
    write_hello(sends_.front().buffer.bytes().subspan(stream_header_size),
                {options_.buffers, static_cast<std::uint32_t>(options_.buffer_size)});
    send(StreamKind::hello, stream_hello_size);
}

// The payload is there already.
inline void StreamState::send(StreamKind kind, std::size_t payload) {
    Send& next = sends_[next_send_];
    next_send_ = next_send_ + 1 == sends_.size() ? 0 : next_send_ + 1;
    write_header(next.buffer.bytes(), kind, returned_credits());
    post(next, stream_header_size + payload);
}

inline void StreamState::send_data(Source& from) {
    std::byte* const payload = sends_[next_send_].buffer.address + stream_header_size;
    std::size_t size = 0;
    while (!from.empty() && size < message_size_) {
        const auto chunk = from.take(message_size_ - size);
        std::memcpy(payload + size, chunk.data(), chunk.size());
        size += chunk.size();
    }
    --credits_;
    send(StreamKind::data, size);
}

inline void StreamState::post(Send& send, std::size_t bytes) {
    send.operation = qp_->send(send.buffer.slice(0, bytes));
    send.posted = true;
    if (send.operation.done()) fail_if_failed(send.operation);
}

inline bool StreamState::is_free(Send& send) {
    if (send.posted && send.operation.done()) {
        send.posted = false;
        fail_if_failed(send.operation);
    }
    return !send.posted;
}

inline Task<> StreamState::until_free(StreamState& self, Send& send, std::stop_token stop) {
    std::error_code ignored; // is_free() looks for it
    for (;;) {
        const bool is_free = self.is_free(send);
        self.rethrow_failure();
        if (is_free) co_return;
        throw_if_stopped(stop, "Stream");
        co_await send.operation.wait(ignored, stop);
    }
}

inline Task<> StreamState::write(Self self, Source from, std::stop_token stop) {
    const Turn turn(self->writing_, "written to at the same time");
    self->greet();
    std::error_code ignored; // is_free() looks for it
    while (!from.empty()) {
        Send& next = self->sends_[self->next_send_];
        const bool is_free = self->is_free(next);
        self->rethrow_failure();
        if (self->ended_) throw_error(std::errc::broken_pipe, "write_all() after shutdown_write()");
        throw_if_stopped(stop, "Stream::write_all");
        if (!is_free) {
            co_await next.operation.wait(ignored, stop);
        } else if (self->credits_ == 0) {
            co_await StreamWait(self->writer_, *self->router_, stop);
        } else {
            self->send_data(from);
        }
    }
    self->rethrow_failure();
}

inline Task<> StreamState::end_data(Self self, std::stop_token stop) {
    const Turn turn(self->writing_, "written to at the same time");
    self->greet();
    if (self->ended_) co_return;
    co_await until_free(*self, self->sends_[self->next_send_], stop);
    self->ended_ = true;
    self->send(StreamKind::end);
    self->rethrow_failure();
}

// Where both have ended their data, there is nothing left to say.
inline Task<> StreamState::part(StreamState& self, std::stop_token stop) {
    self.greet();
    if (!self.parted_ && !(self.ended_ && self.peer_ended_)) {
        co_await until_free(self, self.sends_[self.next_send_], stop);
        self.parted_ = self.ended_ = true;
        self.send(StreamKind::goodbye);
    }
    for (Send& send : self.sends_) co_await until_free(self, send, stop);
}

inline Task<> StreamState::close(Self self, std::stop_token stop) {
    const Turn turn(self->writing_, "written to at the same time");
    if (!self->qp_) co_return;
    try {
        co_await part(*self, stop);
    } catch (...) {
        if (!self->peer_gone_) throw;
    }
    self->abandon();
}

// How a stream takes what its peer sends, and gives it to who reads.

inline StreamLoop StreamState::receive_all(StreamState& self) {
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

inline void StreamState::accept(Receive& receive, std::size_t bytes) {
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

inline void StreamState::accept_data(Receive& receive, std::span<const std::byte> payload) {
    if (unreturned_ == options_.buffers) throw_protocol_error("more data than it had credits for");
    if (payload.size() > options_.buffer_size) throw_protocol_error("more data than fits a buffer");
    ++unreturned_;
    receive.unread = payload;
    arrived_.push_back(receive);
    wake(reader_);
}

inline void StreamState::accept_hello(const StreamHello& hello) {
    greeted_ = true;
    peer_buffers_ = credits_ = hello.buffers;
    message_size_ = options_.buffer_size;
    if (message_size_ > hello.buffer_size) message_size_ = hello.buffer_size;
    wake(writer_);
}

inline void StreamState::accept_credits(std::uint32_t credits) {
    if (credits > peer_buffers_ - credits_) throw_protocol_error("more credits than it owed");
    credits_ += credits;
    if (credits > 0) wake(writer_);
}

inline void StreamState::post(Receive& receive) {
    receive.operation = qp_->recv(receive.buffer);
    posted_.push_back(receive);
    if (receive.operation.done()) fail_if_failed(receive.operation);
}

inline std::size_t StreamState::take(Target to) {
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

inline void StreamState::release(Receive& receive) {
    receive.unlink();
    if (failure_) return;
    post(receive);
    ++owed_;
    if (credit_returner_ && credits_are_due()) std::exchange(credit_returner_, nullptr).resume();
}

inline Task<std::size_t> StreamState::read(Self self, Target to, std::stop_token stop) {
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
        co_await StreamWait(self->reader_, *self->router_, stop);
    }
}

} // namespace asyncverbs::detail
