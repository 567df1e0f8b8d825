// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <utility>

#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/detail/stream_awaiters.hpp>
#include <asyncverbs/rdma/detail/stream_state.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>
#include <asyncverbs/verbs/queue_pair_options.hpp>

namespace asyncverbs {

/// The memory of one end: 2 * `buffers` + 4 messages of `buffer_size` + 4 bytes, rounded up to 64,
/// registered when the Stream is made. The defaults take 576 KiB. The ends may differ: each learns
/// what the other can take.
///
/// A message of the default size is 32 KiB, so it fills its packets. Measured on soft-RoCE: half
/// the size costs 5 % more, four of 48 KiB save 1 % and leave fewer buffers to a slow reader.
struct StreamOptions {
    std::size_t buffer_size = 32764; ///< bytes of the stream in one message, at most
    std::uint32_t buffers = 7; ///< messages in flight, or received and not read; in each direction
};

/// One end of a connection that carries bytes, in order, both ways. The other end is also a Stream.
///
///     AsyncQp qp(router, domain, Stream::queue_pair_options());
///     qp.queue_pair().init();
///     Stream stream(std::move(qp), domain);    // posts its receives
///     stream.queue_pair().connect(remote);
///     co_await stream.write_all(request);
///     co_await stream.shutdown_write();
///     while (std::size_t count = co_await stream.read_some(buffer)) …
///
/// Each byte is copied once at each end, between the caller's memory and a registered buffer. A
/// message is sent only if the peer has posted a receive for it, so rnr_retry may be 0: the ends
/// tell each other how many receives they have, and how many were read. If an end does not read,
/// the writer at the other end waits.
///
/// Small writes are gathered. A message is sent at once if it is full, or if no other one is in
/// flight. Otherwise it takes more data until it is full, or until the others have arrived; no call
/// has to wait for that.
///
/// All calls start when they are awaited, once. One coroutine may read while another writes;
/// shutdown_write() and close() count as writing. A second reader or writer at the same time gets
/// std::logic_error.
///
/// Errors: a broken connection fails reading and writing with the exception of its root cause,
/// usually OperationError; a peer that breaks the protocol fails both with std::system_error
/// (protocol_error); a peer that has closed its stream fails writing with std::system_error
/// (broken_pipe). Data that had arrived can still be read first. A write returns before its data
/// has arrived, often before it is sent, so later calls report what fails then; only the success of
/// close() says that everything has arrived. A peer that has vanished is noticed when something is
/// sent; see keep_alive().
/// Cancellation: by `stop`, from any thread, with std::system_error (operation_canceled).
/// Thread: that of the router. Lifetime: may be destroyed at any time, which drops data that was
/// not sent; pending calls then end with operation_canceled. Destroying a coroutine that waits for
/// a call cancels the call. Allocates nothing once it is made. Move-only; a moved-from Stream can
/// only be destroyed or assigned to.
class Stream {
public:
    /// The options of a queue pair for a stream.
    static QueuePairOptions queue_pair_options(const StreamOptions& options = {}) noexcept {
        return {.max_send_wr = options.buffers + 1,
                .max_recv_wr = options.buffers + detail::StreamState::extra_receives};
    }

    /// Takes over `qp`, which is RC and in INIT, and posts its receives, so that they are there
    /// before it is connected. `domain` is that of `qp`. Throws std::system_error: invalid_argument
    /// for options out of range and for a queue pair with fewer receives than queue_pair_options()
    /// asks for; naming ibv_post_recv; or as MemoryRegion::allocate().
    Stream(AsyncQp qp, const ProtectionDomain& domain, const StreamOptions& options = {})
        : state_(std::make_shared<detail::StreamState>(std::move(qp), domain, options.buffer_size,
                                                       options.buffers)) {}

    Stream(Stream&&) noexcept = default;

    /// Drops the previous stream, as the destructor does.
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

    /// Awaits data, and reads as much as has arrived and `to` takes. Returns the number of bytes; 0
    /// if the peer has ended its data and all of it was read, or `to` is empty. A read that is
    /// cancelled loses nothing: data that has arrived stays for the next one.
    detail::StreamRead read_some(std::span<std::byte> to, std::stop_token stop = {}) noexcept {
        return {state_, detail::SpanCursor<std::byte>(to), std::move(stop)};
    }

    /// The same into several spans, one after the other.
    detail::StreamRead read_some(std::span<const std::span<std::byte>> to,
                                 std::stop_token stop = {}) noexcept {
        return {state_, detail::SpanCursor<std::byte>(to), std::move(stop)};
    }

    /// Writes all of `from`: returns when it is copied to send buffers, before it has arrived. Then
    /// `from` can be reused. Waits until the peer has made its first call, and while all buffers
    /// are full because they are in flight or the peer does not read. If it is cancelled or fails,
    /// an unknown part from the front is written: afterwards, only shutdown_write() and close()
    /// make sense.
    detail::StreamWrite write_all(std::span<const std::byte> from,
                                  std::stop_token stop = {}) noexcept {
        return {state_, detail::SpanCursor<const std::byte>(from), std::move(stop)};
    }

    /// The same from several spans, one after the other, in as few messages as possible.
    detail::StreamWrite write_all(std::span<const std::span<const std::byte>> from,
                                  std::stop_token stop = {}) noexcept {
        return {state_, detail::SpanCursor<const std::byte>(from), std::move(stop)};
    }

    /// Awaits room, and writes as much of `from` as there is room for. Returns the number of bytes;
    /// 0 only if `from` is empty. A write that is cancelled or fails has written nothing.
    detail::StreamWriteSome write_some(std::span<const std::byte> from,
                                       std::stop_token stop = {}) noexcept {
        return {state_, detail::SpanCursor<const std::byte>(from), std::move(stop)};
    }

    /// The same from several spans, one after the other.
    detail::StreamWriteSome write_some(std::span<const std::span<const std::byte>> from,
                                       std::stop_token stop = {}) noexcept {
        return {state_, detail::SpanCursor<const std::byte>(from), std::move(stop)};
    }

    /// Ends the data of this end: the peer reads the end after all of it. Returns when everything
    /// is in flight, for which it waits as a write does. This end can still read.
    detail::StreamEnd shutdown_write(std::stop_token stop = {}) noexcept {
        return {state_, std::move(stop)};
    }

    /// Ends both directions: returns when the peer's device has received all written data, or the
    /// peer has closed its end, and destroys the queue pair. Data that had arrived can still be
    /// read; the peer's writes fail. May be called again if it is cancelled; does nothing after it
    /// has succeeded.
    detail::StreamClose close(std::stop_token stop = {}) noexcept {
        return {state_, std::move(stop)};
    }

private:
    friend struct detail::KeepAlive;

    std::shared_ptr<detail::StreamState> state_;
};

} // namespace asyncverbs
