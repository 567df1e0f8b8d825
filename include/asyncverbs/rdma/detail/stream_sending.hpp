// SPDX-License-Identifier: MIT
// How a stream sends: its greeting, what is written, the credits that it owes, and its end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <stop_token>
#include <system_error>

#include <asyncverbs/core/task.hpp>
#include <asyncverbs/rdma/detail/span_cursor.hpp>
#include <asyncverbs/rdma/detail/stream_loop.hpp>
#include <asyncverbs/rdma/detail/stream_message.hpp>
#include <asyncverbs/rdma/detail/stream_state.hpp>
#include <asyncverbs/rdma/detail/stream_wait.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

template <class Use>
inline StreamLoop StreamState<Use>::return_credits(StreamState<Use>& self) {
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
template <class Use>
inline void StreamState<Use>::greet() {
    if (has_greeted_ || failure_) return;
    has_greeted_ = true;
    write_hello(sends_.front().buffer.bytes().subspan(stream_header_size),
                {options_.buffers, static_cast<std::uint32_t>(options_.buffer_size)});
    send(StreamKind::hello, stream_hello_size);
}

// The payload is there already.
template <class Use>
inline void StreamState<Use>::send(StreamKind kind, std::size_t payload) {
    Send& next = sends_[next_send_];
    next_send_ = next_send_ + 1 == sends_.size() ? 0 : next_send_ + 1;
    write_header(next.buffer.bytes(), kind, returned_credits());
    post(next, stream_header_size + payload);
}

template <class Use>
inline void StreamState<Use>::send_data(Source& from) {
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

template <class Use>
inline void StreamState<Use>::post(Send& send, std::size_t bytes) {
    send.operation = qp_->send(send.buffer.slice(0, bytes));
    send.posted = true;
    if (send.operation.done()) fail_if_failed(send.operation);
}

template <class Use>
inline bool StreamState<Use>::is_free(Send& send) {
    if (send.posted && send.operation.done()) {
        send.posted = false;
        fail_if_failed(send.operation);
    }
    return !send.posted;
}

template <class Use>
inline Task<> StreamState<Use>::until_free(StreamState<Use>& self, Send& send,
                                           std::stop_token stop) {
    std::error_code ignored; // is_free() looks for it
    for (;;) {
        const bool is_free = self.is_free(send);
        self.rethrow_failure();
        if (is_free) co_return;
        throw_if_stopped(stop, "Stream");
        co_await send.operation.wait(ignored, stop);
    }
}

template <class Use>
inline Task<> StreamState<Use>::write(Self self, Source from, std::stop_token stop) {
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
            co_await StreamWait<Use>(self->writer_, *self->router_, stop);
        } else {
            self->send_data(from);
        }
    }
    self->rethrow_failure();
}

template <class Use>
inline Task<> StreamState<Use>::end_data(Self self, std::stop_token stop) {
    const Turn turn(self->writing_, "written to at the same time");
    self->greet();
    if (self->ended_) co_return;
    co_await until_free(*self, self->sends_[self->next_send_], stop);
    self->ended_ = true;
    self->send(StreamKind::end);
    self->rethrow_failure();
}

// Where both have ended their data, there is nothing left to say.
template <class Use>
inline Task<> StreamState<Use>::part(StreamState<Use>& self, std::stop_token stop) {
    self.greet();
    if (!self.parted_ && !(self.ended_ && self.peer_ended_)) {
        co_await until_free(self, self.sends_[self.next_send_], stop);
        self.parted_ = self.ended_ = true;
        self.send(StreamKind::goodbye);
    }
    for (Send& send : self.sends_) co_await until_free(self, send, stop);
}

template <class Use>
inline Task<> StreamState<Use>::close(Self self, std::stop_token stop) {
    const Turn turn(self->writing_, "written to at the same time");
    if (!self->qp_) co_return;
    try {
        co_await part(*self, stop);
    } catch (...) {
        if (!self->peer_gone_) throw;
    }
    self->abandon();
}

} // namespace asyncverbs::detail
