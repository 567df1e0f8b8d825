// SPDX-License-Identifier: MIT
// A completion queue as Asio programs know their I/O objects: async_poll() takes a completion
// token, and completes on an executor.
#pragma once

#include <infiniband/verbs.h>

#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include <asyncverbs/adapters/asio_loop.hpp>
#include <asyncverbs/adapters/detail/asio_cq_state.hpp>
#include <asyncverbs/adapters/detail/asio_flavour.hpp>
#include <asyncverbs/adapters/detail/asio_poll.hpp>
#include <asyncverbs/core/async_cq.hpp>
#include <asyncverbs/core/async_cq_options.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/context.hpp>

namespace asyncverbs::inline ASYNCVERBS_ASIO_FLAVOUR {

/// An AsyncCq with the executor on which it lives.
///
///     asio::io_context io;
///     AsioCq cq(io, context, 64);
///     std::array<ibv_wc, 16> wcs;
///     for (const ibv_wc& wc : co_await async_poll(cq, wcs, asio::use_awaitable)) handle(wc);
///
/// Thread: all calls, and its destruction, on the executor, or on any one thread while nobody runs
/// it; async_poll() from any thread. Where several threads run the context, the executor has to be
/// a strand.
/// Lifetime: it may be destroyed or moved at any time. Destroying it cancels what is outstanding,
/// as with any I/O object. The context may be destroyed before: handlers that wait are destroyed,
/// not called, and the AsioCq can then only be destroyed. A moved-from one can only be assigned to
/// or destroyed.
template <class Executor = detail::net::any_io_executor>
class AsioCq {
public:
    using executor_type = Executor; ///< As in Asio's I/O objects.

    /// As in Asio's I/O objects: `use_awaitable_t<>::as_default_on_t<AsioCq<>>` is an AsioCq for
    /// which async_poll() needs no token.
    template <class Other>
    struct rebind_executor {
        using other = AsioCq<Other>; ///< On an executor of another type.
    };

    /// Creates a CQ of at least `depth` entries. Throws std::system_error as AsyncCq::create() and
    /// AsioNotifier do.
    AsioCq(const Executor& executor, const Context& context, int depth,
           const AsyncCqOptions& options = {})
        : AsioCq(executor, create(executor, context, depth, options)) {}

    /// The same on the executor of `loop`, an io_context.
    template <detail::AsioContext Loop>
    AsioCq(Loop& loop, const Context& context, int depth, const AsyncCqOptions& options = {})
        : AsioCq(Executor(loop.get_executor()), context, depth, options) {}

    /// Takes `cq` over, which must wait on `executor`, as by an AsioNotifier.
    AsioCq(const Executor& executor, AsyncCq cq)
        : state_(detail::AsioCqState<Executor>::create(executor, std::move(cq))) {}

    AsioCq(AsioCq&&) noexcept = default;

    /// Destroys the AsioCq that was here before.
    AsioCq& operator=(AsioCq&& other) noexcept {
        AsioCq(std::move(other)).state_.swap(state_); // the temporary closes the old one
        return *this;
    }
    ~AsioCq() {
        if (state_) state_->close();
    }

    /// Where it lives.
    [[nodiscard]] executor_type get_executor() const noexcept { return state_->executor(); }

    /// Cancels the polls so far: they complete with operation_aborted, but for those whose
    /// completions have left the queue already.
    void cancel() noexcept { state_->cancel(); }

    /// For creating queue pairs.
    [[nodiscard]] const CompletionQueue& completion_queue() const noexcept {
        return state_->cq().completion_queue();
    }

    /// The queue itself: for statistics, and for coroutines that need no token.
    [[nodiscard]] AsyncCq& async_cq() noexcept { return state_->cq(); }

private:
    template <class E, class Token>
    friend auto async_poll(AsioCq<E>& cq, std::span<ibv_wc> wcs, Token&& token);

    static AsyncCq create(const Executor& executor, const Context& context, int depth,
                          const AsyncCqOptions& options) {
        const AsioLoop<Executor> loop(executor);
        return AsyncCq::create(context, depth, loop, options);
    }

    struct InitiatePoll {
        using executor_type = Executor;
        executor_type get_executor() const noexcept { return state->executor(); }

        template <class Handler>
        void operator()(Handler&& handler, std::span<ibv_wc> wcs) const {
            using Poll = detail::AsioPollPromise<std::decay_t<Handler>, Executor>;
            Poll::start(std::forward<Handler>(handler), state, wcs);
        }

        std::shared_ptr<detail::AsioCqState<Executor>> state;
    };

    std::shared_ptr<detail::AsioCqState<Executor>> state_;
};

/// On an io_context, the executor is the context's own type.
template <detail::AsioContext Loop>
AsioCq(Loop&, const Context&, int, const AsyncCqOptions& = {})
    -> AsioCq<typename Loop::executor_type>;

/// Completes with at least one completion: `void(error_code, std::span<ibv_wc>)`, where the span is
/// the front part of `wcs` that was filled. `wcs` and what it refers to must stay until then. The
/// rules are those of AsyncCq::poll().
///
/// Errors: operation_aborted if it was cancelled or the AsioCq destroyed; invalid_argument if `wcs`
/// is empty; else the fatal error of the CQ. The span is empty then.
/// Executor: the handler is called on its associated executor, by default that of the AsioCq, and
/// never within async_poll() or another handler. Both executors have work until then.
/// Cancellation: by the handler's cancellation slot, where this Asio has them, with every type; or
/// by AsioCq::cancel(). A completion that was taken from the CQ is delivered all the same.
/// Order: a poll takes its place in line where the AsioCq lives: at once if it is begun there, else
/// when that executor comes to it.
/// Allocation: one, with the handler's associated allocator, freed before the handler is called; if
/// it fails, async_poll() throws std::bad_alloc. What an any_io_executor or a strand allocates by
/// itself comes on top; to run out of memory there later may end the program.
template <class Executor, class Token = detail::net::default_completion_token_t<Executor>>
auto async_poll(AsioCq<Executor>& cq, std::span<ibv_wc> wcs, Token&& token = Token()) {
    return detail::net::async_initiate<Token, detail::AsioPollSignature>(
        typename AsioCq<Executor>::InitiatePoll{cq.state_}, token, wcs);
}

} // namespace asyncverbs::inline ASYNCVERBS_ASIO_FLAVOUR
