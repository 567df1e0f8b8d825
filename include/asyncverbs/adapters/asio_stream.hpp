// SPDX-License-Identifier: MIT
// A Stream as a stream of Asio.
#pragma once

#include <asyncverbs/requirements.hpp>

#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include <asyncverbs/adapters/detail/asio_stream_call.hpp>
#include <asyncverbs/adapters/detail/asio_support.hpp>
#include <asyncverbs/rdma/stream.hpp>

namespace asyncverbs::inline ASYNCVERBS_ASIO_FLAVOUR {

/// A Stream as Asio's AsyncReadStream and AsyncWriteStream: asio::async_read(), async_read_until()
/// and asio::ssl::stream work on it.
///
///     AsioStream stream(io.get_executor(), Stream(std::move(qp), domain));
///     asio::ssl::stream<AsioStream<>> tls(std::move(stream), ssl); // TLS over RDMA
///     co_await tls.async_handshake(asio::ssl::stream_base::client, asio::use_awaitable);
///
/// Executor: that of the loop on which the Router of the queue pair waits; if several threads run
/// it, a strand. Handlers are called on their associated executor, by default this one, and never
/// within the initiating function. Both executors have work until then.
/// Errors: eof at the end of the peer's data; operation_aborted if the call was cancelled, or this
/// object was destroyed; otherwise those of Stream, as error_code, not_enough_memory for
/// std::bad_alloc.
/// Cancellation: by the handler's cancellation slot, with every cancellation type (not with Asio
/// versions that have no slots), or by cancel(). A call that is cancelled has transferred nothing,
/// and the stream stays usable; composed operations report how much they have transferred.
/// Allocation: one for each call, with the handler's associated allocator, freed before the handler
/// is called; after a cancel() another one. If it fails, the initiating function throws
/// std::bad_alloc.
/// Thread: calls may start on any thread; everything else as for Stream, on the executor.
/// Lifetime: may be destroyed or moved at any time. Destroying it drops data that was not sent; see
/// async_close(). The context may be destroyed first: then handlers
/// that wait are destroyed without being called, and this can only be destroyed. A moved-from one
/// can only be assigned to or destroyed.
template <class Executor = detail::net::any_io_executor>
class AsioStream {
public:
    using executor_type = Executor;       ///< As in Asio's I/O objects.
    using lowest_layer_type = AsioStream; ///< As in Asio's sockets: there is no layer below.

    /// As in Asio's I/O objects.
    template <class Other>
    struct rebind_executor {
        using other = AsioStream<Other>; ///< On an executor of another type.
    };

    /// Takes over `stream`, whose router's loop runs on `executor`. Throws std::bad_alloc.
    AsioStream(const Executor& executor, Stream stream)
        : state_(State::create(executor, std::move(stream))) {}

    /// The same on the executor of `loop`, an io_context.
    template <detail::AsioContext Loop>
    AsioStream(Loop& loop, Stream stream)
        : AsioStream(Executor(loop.get_executor()), std::move(stream)) {}

    /// The executor on which it lives.
    [[nodiscard]] executor_type get_executor() const noexcept { return state_->executor(); }

    /// This object.
    [[nodiscard]] lowest_layer_type& lowest_layer() noexcept { return *this; }
    /// This object.
    [[nodiscard]] const lowest_layer_type& lowest_layer() const noexcept { return *this; }

    /// The stream itself: to connect its queue pair, and for coroutines that await its calls.
    [[nodiscard]] Stream& stream() noexcept { return state_->stream(); }

    /// Cancels the calls that were started before.
    void cancel() noexcept { state_->cancel(); }

    /// Reads as much as has arrived and `buffers` take, at most into the first 16 of them.
    /// Completes with void(error_code, std::size_t), the number of bytes. The memory of the buffers
    /// must exist until then. One read at a time.
    template <class Buffers, class Token = detail::AsioDefaultToken<Executor>>
    auto async_read_some(const Buffers& buffers, Token&& token = Token()) {
        return initiate<Token>(detail::AsioRead{detail::AsioSpans<std::byte>(buffers)}, token);
    }

    /// Writes as much of the first 16 of `buffers` as there is room for; otherwise as
    /// async_read_some(). One write at a time.
    template <class Buffers, class Token = detail::AsioDefaultToken<Executor>>
    auto async_write_some(const Buffers& buffers, Token&& token = Token()) {
        return initiate<Token>(detail::AsioWrite{detail::AsioSpans<const std::byte>(buffers)},
                               token);
    }

    /// Ends both directions, as Stream::close(), which it waits for: then the peer's device has
    /// received all that was written. Completes with void(error_code). Counts as a write.
    template <class Token = detail::AsioDefaultToken<Executor>>
    auto async_close(Token&& token = Token()) {
        return initiate<Token>(detail::AsioClose{}, token);
    }

private:
    using State = detail::AsioStreamState<Executor>;

    struct Initiate {
        using executor_type = Executor;
        executor_type get_executor() const noexcept { return state->executor(); }

        template <class Handler, class Call>
        void operator()(Handler&& handler, const Call& call) const {
            using Promise = detail::AsioStreamPromise<std::decay_t<Handler>, Executor, Call>;
            Promise::start(std::forward<Handler>(handler), state, call);
        }

        std::shared_ptr<State> state;
    };

    template <class Token, class Call>
    auto initiate(const Call& call, std::remove_reference_t<Token>& token) {
        return detail::initiate_asio<Token, typename Call::Signature>(Initiate{state_.get()}, token,
                                                                      call);
    }

    detail::AsioOwner<State> state_;
};

/// On an io_context, the executor is the context's own type.
template <detail::AsioContext Loop>
AsioStream(Loop&, Stream) -> AsioStream<typename Loop::executor_type>;

} // namespace asyncverbs::inline ASYNCVERBS_ASIO_FLAVOUR
