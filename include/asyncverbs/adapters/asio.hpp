// SPDX-License-Identifier: MIT
// Awaits completions, and other descriptors of this library, in Asio's event loop.
#pragma once

#include <asyncverbs/requirements.hpp>

#include <infiniband/verbs.h>

#include <cassert>
#include <chrono>
#include <memory>
#include <span>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <asyncverbs/adapters/detail/asio_descriptor_waiter.hpp>
#include <asyncverbs/adapters/detail/asio_poll.hpp>
#include <asyncverbs/adapters/detail/asio_support.hpp>
#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/cq/async_cq_options.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>

namespace asyncverbs::inline ASYNCVERBS_ASIO_FLAVOUR {

/// Waits until a file descriptor is readable, by a posix::stream_descriptor. Models
/// TimedCqNotifier.
///
///     asio::io_context io;
///     AsioNotifier readable(io.get_executor(), fd);
///
/// Everything happens on the executor, and an AsyncCq resumes its coroutines there. If several
/// threads run the context, the executor must be a strand.
///
/// Thread: call and destroy it on the executor, or on any one thread while no thread runs the
/// executor. Stop tokens: from any thread.
/// Lifetime: the fd is not owned and must stay open until the notifier is destroyed. The context
/// may be destroyed first; then a waiting coroutine is never resumed, and can be destroyed. One
/// notifier per fd and context. Movable at any time; a moved-from one can only be assigned to or
/// destroyed.
/// Work: a pending wait is work of the context, so io_context::run() does not return before it
/// ends. An AsyncCq waits while a coroutine waits for it, a Router always. If the last waiting
/// coroutine is destroyed, not stopped, the AsyncCq keeps waiting until the next completion or its
/// own destruction.
template <class Executor = detail::net::any_io_executor>
class AsioNotifier {
public:
    using executor_type = Executor; ///< As in Asio's I/O objects.

    /// Registers `fd`. Throws std::system_error that names stream_descriptor::assign:
    /// bad_file_descriptor; file_exists if the fd is registered already; too_many_files_open if it
    /// is the context's first descriptor and no epoll can be created.
    AsioNotifier(const Executor& executor, int fd)
        : waiter_(detail::AsioDescriptorWaiter::create(executor, fd)) {}

    /// An awaitable of std::error_code: {} when the fd is readable, has an error or was hung up;
    /// errc::operation_canceled if `stop` was requested first, from any thread, or the notifier was
    /// destroyed; errc::device_or_resource_busy if another readable() is outstanding; otherwise
    /// Asio's error, such as operation_not_supported for a regular file. A wake may be spurious.
    ///
    /// Destroying the suspended coroutine cancels the wait. A wait costs one epoll_ctl, by which
    /// Asio finds out whether the fd is readable already. Neither a wait nor a stop allocates. A
    /// bound costs what Asio allocates for a handler: co_await throws std::bad_alloc if that fails.
    /// An any_io_executor that contains neither the executor of an io_context nor a strand on one
    /// may allocate by itself; a stop that finds no memory then waits for the next event.
    [[nodiscard]] detail::AsioReadable readable(std::stop_token stop = {}) {
        return wait_until(detail::Deadline::never, std::move(stop));
    }

    /// The same, with errc::timed_out when `max_wait` has passed since the call. With zero or less
    /// it completes after one iteration of the executor, with {} if the fd is readable then.
    [[nodiscard]] detail::AsioReadable readable(std::stop_token stop,
                                                std::chrono::nanoseconds max_wait) {
        return wait_until(detail::Deadline::after(max_wait), std::move(stop));
    }

private:
    detail::AsioReadable wait_until(detail::Deadline::Clock::time_point deadline,
                                    std::stop_token stop) {
        assert(waiter_.get() && "asyncverbs: a moved-from AsioNotifier");
        return {waiter_.get(), deadline, std::move(stop)};
    }

    detail::AsioOwner<detail::AsioDescriptorWaiter> waiter_;
};

/// Makes notifiers on an executor: a strand, or the executor of an io_context that one thread runs.
///
///     asio::io_context io;
///     AsioLoop loop(io);
///     AsyncCq cq = AsyncCq::create(context, 64, loop);
///
/// Notifiers do not refer to it, and may outlive it.
template <class Executor = detail::net::any_io_executor>
class AsioLoop {
public:
    using executor_type = Executor; ///< As in Asio's I/O objects.

    /// On `executor`.
    explicit AsioLoop(Executor executor) : executor_(std::move(executor)) {}

    /// On the executor of `context`, an io_context.
    template <detail::AsioContext Context>
    explicit AsioLoop(Context& context) : executor_(context.get_executor()) {}

    /// Errors as in AsioNotifier's constructor.
    [[nodiscard]] AsioNotifier<Executor> notifier(int fd) const {
        return AsioNotifier<Executor>(executor_, fd);
    }

    /// The executor of its notifiers.
    [[nodiscard]] Executor get_executor() const noexcept { return executor_; }

private:
    Executor executor_;
};

/// On an io_context, the executor is the context's own type.
template <detail::AsioContext Context>
AsioLoop(Context&) -> AsioLoop<typename Context::executor_type>;

/// An AsyncCq as an I/O object of Asio: with an executor, and polled by async_poll().
///
///     asio::io_context io;
///     AsioCq cq(io, context, 64);
///     std::array<ibv_wc, 16> wcs;
///     for (const ibv_wc& wc : co_await async_poll(cq, wcs, asio::use_awaitable)) handle(wc);
///
/// Thread: call and destroy it on the executor, or on any one thread while no thread runs the
/// executor; async_poll() from any thread. If several threads run the context, the executor must
/// be a strand.
/// Lifetime: it may be destroyed or moved at any time. Destroying it cancels outstanding
/// operations, as with any I/O object. The context may be destroyed first: then waiting handlers
/// are destroyed without being called, and the AsioCq can only be destroyed. A moved-from one can
/// only be assigned to or destroyed.
template <class Executor = detail::net::any_io_executor>
class AsioCq {
public:
    using executor_type = Executor; ///< As in Asio's I/O objects.

    /// As in Asio's I/O objects: with `use_awaitable_t<>::as_default_on_t<AsioCq<>>`, async_poll()
    /// needs no token.
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

    /// Takes ownership of `cq`, which must wait on `executor`, for example by an AsioNotifier.
    AsioCq(const Executor& executor, AsyncCq cq)
        : state_(detail::AsioCqState<Executor>::create(executor, std::move(cq))) {}

    /// The executor on which it lives.
    [[nodiscard]] executor_type get_executor() const noexcept { return state_->executor(); }

    /// Cancels the polls that were started before: they complete with operation_aborted, except
    /// those whose completions have left the queue already.
    void cancel() noexcept { state_->cancel(); }

    /// For creating queue pairs.
    [[nodiscard]] const CompletionQueue& completion_queue() const noexcept {
        return state_->cq().completion_queue();
    }

    /// The queue itself: for statistics, and for coroutines that await it without a token.
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

    detail::AsioOwner<detail::AsioCqState<Executor>> state_;
};

/// On an io_context, the executor is the context's own type.
template <detail::AsioContext Loop>
AsioCq(Loop&, const Context&, int, const AsyncCqOptions& = {})
    -> AsioCq<typename Loop::executor_type>;

/// Waits for at least one completion. Completes with `void(error_code, std::span<ibv_wc>)`; the
/// span is the front part of `wcs` that was filled. `wcs` and the memory that it refers to must
/// exist until then. Otherwise as AsyncCq::poll().
///
/// Errors, with an empty span: operation_aborted if it was cancelled or the AsioCq was destroyed;
/// invalid_argument if `wcs` is empty; otherwise the fatal error of the CQ.
/// Executor: the handler is called on its associated executor, by default that of the AsioCq, and
/// never within async_poll() or another handler. Both executors have work until then.
/// Cancellation: by the handler's cancellation slot, with every cancellation type (not with Asio
/// versions that have no slots), or by AsioCq::cancel(). Emit a cancellation_signal on the
/// executor of the handler, since it is not thread-safe; the context of the AsioCq must exist. A
/// completion that was already taken from the CQ is delivered.
/// Order: polls are served in the order in which they reach the executor of the AsioCq: at once if
/// started on it, otherwise when it runs them.
/// Cost: Asio calls no handler within async_poll(), so completions that are there cost a turn of
/// the context's loop. A coroutine that awaits async_cq().poll() goes on at once.
/// Allocation: one, with the handler's associated allocator, freed before the handler is called. If
/// it fails, async_poll() throws std::bad_alloc. A strand that has several functions to run
/// allocates in addition, and Asio ends the program if that fails; so may an any_io_executor that
/// contains neither the executor of an io_context nor a strand on one.
template <class Executor, class Token = detail::AsioDefaultToken<Executor>>
auto async_poll(AsioCq<Executor>& cq, std::span<ibv_wc> wcs, Token&& token = Token()) {
    return detail::initiate_asio<Token, detail::AsioPollSignature>(
        typename AsioCq<Executor>::InitiatePoll{cq.state_.get()}, token, wcs);
}

} // namespace asyncverbs::inline ASYNCVERBS_ASIO_FLAVOUR
