// SPDX-License-Identifier: MIT
// What can be chosen for a stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <utility>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/detail/stream_state.hpp>
#include <asyncverbs/rdma/detail/stream_transfer.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>
#include <asyncverbs/verbs/queue_pair_options.hpp>

namespace asyncverbs {

/// One end of a connection that carries bytes, in order, both ways. The other end is a Stream, too.
///
///     AsyncQp qp(router, domain, Stream::queue_pair_options());
///     qp.queue_pair().init();
///     Stream stream(std::move(qp), domain);    // posts its receives
///     stream.queue_pair().connect(remote);
///     co_await stream.write_all(request);
///     co_await stream.shutdown_write();
///     while (std::size_t count = co_await stream.read_some(buffer)) …
///
/// Each byte is copied once at either end, between the caller's memory and a registered buffer. A
/// message is sent only where a receive of the peer waits for it, so rnr_retry may be 0: the ends
/// tell each other what they have, and how much of it was read. An end that does not read makes the
/// writer wait.
///
/// One coroutine may read while another writes; shutdown_write() and close() count as writing. A
/// second reader or writer at the same time gets std::logic_error.
///
/// Errors: a broken connection ends reading and writing with the exception of its root cause, most
/// often OperationError; a peer that breaks the protocol, with std::system_error (protocol_error);
/// one that has closed its stream, writing with std::system_error (broken_pipe). What had arrived
/// is read first. A peer that vanished is noticed as its queue pair notices it, which takes a send:
/// a reader who needs to know sooner watches the connection.
/// Cancellation: by `stop`, from any thread, with std::system_error (operation_canceled).
/// Thread: that of the router. Lifetime: may be destroyed at any time, which drops what was not
/// sent; whoever still reads or writes is resumed with operation_canceled. A coroutine that waits
/// may be destroyed as if it was cancelled. Once it is made it allocates nothing but the frames of
/// its tasks. Move-only; only to be destroyed or assigned to when moved from.
class Stream {
public:
    /// What a queue pair needs for a stream.
    static QueuePairOptions queue_pair_options(const StreamOptions& options = {}) noexcept {
        return {.max_send_wr = options.buffers + 1,
                .max_recv_wr = options.buffers + detail::StreamState::extra_receives};
    }

    /// Takes `qp` over, RC and in INIT, and posts its receives: so they are there before it is
    /// connected, whatever the peer sends first. `domain` is that of `qp`. Throws
    /// std::system_error: invalid_argument for options out of range and a queue pair with fewer
    /// receives than queue_pair_options() asks for; naming ibv_post_recv; or as
    /// MemoryRegion::allocate().
    Stream(AsyncQp qp, const ProtectionDomain& domain, const StreamOptions& options = {})
        : state_(std::make_shared<detail::StreamState>(std::move(qp), domain, options)) {}

    Stream(Stream&&) noexcept = default;

    /// Drops the stream that was here before, as its destructor does.
    Stream& operator=(Stream&& other) noexcept {
        Stream old(std::move(other));
        old.state_.swap(state_); // and is abandoned with its state
        return *this;
    }
    ~Stream() {
        if (state_) state_->abandon();
    }

    /// To connect it, before anything is read or written. Throws std::system_error
    /// (invalid_argument) after close().
    [[nodiscard]] QueuePair& queue_pair() { return state_->qp().queue_pair(); }

    /// Reads what has arrived, at most as much as `to` takes; waits where there is nothing. Returns
    /// how many bytes; 0 where the peer has ended its data and all of it was read, or `to` is
    /// empty. Loses nothing when it is cancelled: what has arrived by then stays for the next.
    Task<std::size_t> read_some(std::span<std::byte> to, std::stop_token stop = {}) {
        return detail::StreamState::read(state_, Cursor<std::byte>(to), std::move(stop));
    }

    /// The same into several, one after the other.
    Task<std::size_t> read_some(std::span<const std::span<std::byte>> to,
                                std::stop_token stop = {}) {
        return detail::StreamState::read(state_, Cursor<std::byte>(to), std::move(stop));
    }

    /// Sends all of `from`, which is free when it returns; the device may still be at it. When it
    /// is cancelled or fails, an unknown part from the front was sent, or none: what can be said to
    /// the peer afterwards is only that there is no more.
    Task<> write_all(std::span<const std::byte> from, std::stop_token stop = {}) {
        return detail::StreamState::write(state_, Cursor<const std::byte>(from), std::move(stop));
    }

    /// The same of several, one after the other, together in as few messages as may be.
    Task<> write_all(std::span<const std::span<const std::byte>> from, std::stop_token stop = {}) {
        return detail::StreamState::write(state_, Cursor<const std::byte>(from), std::move(stop));
    }

    /// Ends what this end writes: behind all of it the peer reads the end. Reading goes on.
    Task<> shutdown_write(std::stop_token stop = {}) {
        return detail::StreamState::end_data(state_, std::move(stop));
    }

    /// Ends both ways: returns when the peer's device has received all that was written, or the
    /// peer has closed its end, and destroys the queue pair. What had arrived can be read; the
    /// peer's writing fails. Cancelled, it may be called again; does nothing after it has
    /// succeeded.
    Task<> close(std::stop_token stop = {}) {
        return detail::StreamState::close(state_, std::move(stop));
    }

private:
    template <class Byte>
    using Cursor = detail::SpanCursor<Byte>;

    std::shared_ptr<detail::StreamState> state_;
};

} // namespace asyncverbs
