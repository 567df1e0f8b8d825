// SPDX-License-Identifier: MIT
// Waits for a file descriptor in Asio's event loop: what an AsyncCq, and whatever else of this
// library waits, needs to live in an io_context.
#pragma once

#include <infiniband/verbs.h>

#include <cassert>
#include <chrono>
#include <memory>
#include <span>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <asyncverbs/adapters/detail/asio_poll.hpp>
#include <asyncverbs/adapters/detail/asio_support.hpp>
#include <asyncverbs/adapters/detail/asio_watch.hpp>
#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/cq/async_cq_options.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>

namespace asyncverbs::inline ASYNCVERBS_ASIO_FLAVOUR {

/// Tells when a file descriptor is readable, by a posix::stream_descriptor. Models
/// TimedCqNotifier.
///
///     asio::io_context io;
///     AsioNotifier readable(io.get_executor(), fd);
///
/// Everything happens on the executor: give it a strand where several threads run the context.
/// What an AsyncCq resumes, it resumes there.
///
/// Thread: all calls, and its destruction, on the executor, or on any one thread while nobody
/// runs it; stop tokens from any thread.
/// Lifetime: the fd is not owned and must stay open until the notifier is destroyed. The context
/// may be destroyed before; a coroutine that waits then is never resumed, and can be destroyed.
/// One notifier per fd and context. Movable at any time; a moved-from one can only be assigned to
/// or destroyed.
/// A wait is work of the context: io_context::run() does not return before it ends. An AsyncCq
/// waits as long as somebody waits for it, a Router always; an AsyncCq also goes on when the last
/// who waited was destroyed, not stopped: until the next completion, or until it is destroyed.
template <class Executor = detail::net::any_io_executor>
class AsioNotifier {
public:
    using executor_type = Executor; ///< As in Asio's I/O objects.

    /// Registers `fd`. Throws std::system_error that names stream_descriptor::assign:
    /// bad_file_descriptor; file_exists for an fd that is registered already; too_many_files_open
    /// if the context has none that it waits for yet, and cannot create an epoll.
    AsioNotifier(const Executor& executor, int fd)
        : watch_(detail::AsioWatch<Executor>::create(executor, fd)) {}

    AsioNotifier(AsioNotifier&&) noexcept = default;

    /// Destroys the notifier that was here before.
    AsioNotifier& operator=(AsioNotifier&& other) noexcept {
        AsioNotifier(std::move(other)).watch_.swap(watch_); // the temporary closes the old one
        return *this;
    }
    ~AsioNotifier() {
        if (watch_) watch_->close();
    }

    /// An awaitable of std::error_code: {} when the fd is readable, has an error or was hung up;
    /// errc::operation_canceled when `stop` was requested first, from any thread, or the notifier
    /// was destroyed; errc::device_or_resource_busy when another readable() is outstanding; else
    /// Asio's error, such as operation_not_supported for a regular file. A wake may be spurious.
    ///
    /// Destroying the suspended coroutine cancels the wait. A wait costs an epoll_ctl, by which
    /// Asio looks whether the fd is readable already, and no allocation, nor does a stop. A bound
    /// costs what Asio allocates for a handler; an any_io_executor may allocate by itself.
    [[nodiscard]] detail::AsioReadable<Executor> readable(std::stop_token stop = {}) {
        assert(watch_ && "asyncverbs: a moved-from AsioNotifier");
        return {watch_, detail::Deadline::never, std::move(stop)};
    }

    /// The same, with errc::timed_out when `max_wait` has passed since the call. Zero or less comes
    /// back after one turn of the executor, with {} if the fd is readable then.
    [[nodiscard]] detail::AsioReadable<Executor> readable(std::stop_token stop,
                                                          std::chrono::nanoseconds max_wait) {
        assert(watch_ && "asyncverbs: a moved-from AsioNotifier");
        return {watch_, detail::Deadline::after(max_wait), std::move(stop)};
    }

private:
    std::shared_ptr<detail::AsioWatch<Executor>> watch_;
};

} // namespace asyncverbs::inline ASYNCVERBS_ASIO_FLAVOUR

namespace asyncverbs::inline ASYNCVERBS_ASIO_FLAVOUR {

/// Makes notifiers on an executor: that of an io_context which one thread runs, or a strand.
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

    /// Where its notifiers wait.
    [[nodiscard]] Executor get_executor() const noexcept { return executor_; }

private:
    Executor executor_;
};

/// On an io_context, the executor is the context's own type.
template <detail::AsioContext Context>
AsioLoop(Context&) -> AsioLoop<typename Context::executor_type>;

} // namespace asyncverbs::inline ASYNCVERBS_ASIO_FLAVOUR

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
